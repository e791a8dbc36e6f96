"""The states of random generators, kept and brought back."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from diffopt_implicit._condition import random_states
from diffopt_implicit._torch import Tensors


@contextmanager
def randomness(states: Tensors) -> Iterator[None]:
    """Draw from torch's generators as at an earlier time, and leave them as they were."""
    before = random_states()
    restore(states)
    try:
        yield
    finally:
        restore(before)


def restore(states: Tensors) -> None:
    """Bring back what `random_states` returned."""
    torch.set_rng_state(states[0])
    if len(states) > 1:
        torch.cuda.set_rng_state_all(list(states[1:]))


def on_cpu(states: Tensors) -> Tensors:
    """Bring states to where generators take them; `map_location` may have moved them."""
    return tuple(state.cpu() for state in states)


def everything() -> dict[str, Any]:
    """Return the states of the generators of torch, Python and, where in use, NumPy."""
    numpy = sys.modules.get("numpy")
    legacy = None if numpy is None else numpy.random.get_state()
    return {
        "torch": random_states(),
        "python": random.getstate(),
        # A list, which `torch.load` trusts.
        "numpy": None if legacy is None else (legacy[0], legacy[1].tolist(), *legacy[2:]),
    }


def restore_everything(states: dict[str, Any]) -> None:
    """Bring back what `everything` returned."""
    restore(on_cpu(states["torch"]))
    random.setstate(states["python"])
    if states["numpy"] is not None:
        sys.modules["numpy"].random.set_state(tuple(states["numpy"]))
