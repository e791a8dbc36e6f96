"""What a run needs to go on where it was when it was killed."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch

from diffopt_dist._world import get_rank, is_initialized


class Checkpoint:
    """A file that holds the latest state of a run, whole at any moment.

    A run that is killed, whenever that is, and started again goes on from the last state that
    was saved, with the same random numbers, and reaches what it would have reached.

    Args:
        path: The file. It is a pickle: load only what you trust.

    Example:
        >>> import tempfile, torch
        >>> from diffopt_dist import Checkpoint
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     checkpoint = Checkpoint(folder + "/run")
        ...     state = checkpoint.load({"step": 0, "w": torch.zeros(2)})
        ...     checkpoint.save({"step": 1, "w": torch.ones(2)})
        ...     checkpoint.load(state)
        {'step': 1, 'w': tensor([1., 1.])}
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    def save(self, state: Any) -> None:
        """Put a state in the place of the last one, with the generators of random numbers.

        In a world one rank saves, and all may load; the generators are those of that rank.

        Args:
            state: A tree of tensors and of anything that can be pickled, such as the
                ``state_dict()`` of modules and optimizers.
        """
        content = {"state": state, "rank": _rank(), "generators": _generators()}
        unfinished = self.path.with_name(f"{self.path.name}.unfinished-{os.getpid()}")
        try:
            with open(unfinished, "wb") as file:
                torch.save(content, file)
                file.flush()
                os.fsync(file.fileno())
            unfinished.replace(self.path)
        finally:
            unfinished.unlink(missing_ok=True)

    def load(self, default: Any) -> Any:
        """Return the state that was saved last, or `default` if there is none.

        The generators of torch, NumPy and Python go on from there as well, on the rank that
        saved them; on others use `seed_rank` with the step.

        Args:
            default: The state at the beginning.
        """
        try:
            content = torch.load(self.path, weights_only=False)
        except FileNotFoundError:
            return default
        if content["rank"] == _rank():
            torch_state, numpy_state, python_state = content["generators"]
            torch.set_rng_state(torch_state)
            np.random.set_state(numpy_state)
            random.setstate(python_state)
        return content["state"]


def _rank() -> int:
    return get_rank() if is_initialized() else 0


def _generators() -> tuple[Any, ...]:
    return torch.get_rng_state(), np.random.get_state(), random.getstate()
