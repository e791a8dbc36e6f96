"""Where the numbers of a program go."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol


class Logger(Protocol):
    """What an `Engine` tells its numbers: any function of these three.

    Example:
        >>> def print_loss(step, problem_name, values):
        ...     print(f"{problem_name} {step}: {values['loss']:.2f}")
        >>> print_loss(3, "model", {"loss": 0.5})
        model 3: 0.50
    """

    def __call__(self, step: int, problem_name: str, values: Mapping[str, float], /) -> None:
        """Take the numbers of a step.

        Args:
            step: How many steps the problem has taken; for validations, how many rounds.
            problem_name: The problem, or "validation".
            values: The `loss`, the `gradient_norm`, and more.
        """
        ...


class TensorBoardLogger:
    """Write the numbers of a program for TensorBoard, which must be installed.

    Args:
        folder: Where to write.

    Raises:
        ModuleNotFoundError: Without TensorBoard.

    Example:
        >>> logger = TensorBoardLogger("runs/first")  # doctest: +SKIP
    """

    def __init__(self, folder: str | Path) -> None:
        try:
            from torch.utils.tensorboard.writer import SummaryWriter
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "`TensorBoardLogger` needs TensorBoard: "
                "`pip install diffopt-implicit[tensorboard]`."
            ) from error
        self.writer = SummaryWriter(str(folder))

    def __call__(self, step: int, problem_name: str, values: Mapping[str, float]) -> None:
        """Write the numbers as ``problem_name/key``."""
        for key, value in values.items():
            self.writer.add_scalar(f"{problem_name}/{key}", value, step)
        self.writer.flush()


class ProgressBar:
    """Show a bar for the steps of one problem, with the last losses of all, by tqdm.

    Args:
        problem_name: Whose steps to count.
        total: How many there will be.
        options: Handed on to `tqdm`.

    Raises:
        ModuleNotFoundError: Without tqdm.

    Example:
        >>> bar = ProgressBar("weights", total=100)  # doctest: +SKIP
    """

    def __init__(self, problem_name: str, total: int | None = None, **options: Any) -> None:
        try:
            from tqdm import tqdm
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "`ProgressBar` needs tqdm: `pip install diffopt-implicit[progress]`."
            ) from error
        self.problem_name, self.losses = problem_name, dict[str, str]()
        self.bar = tqdm(total=total, desc=problem_name, **options)

    def __call__(self, step: int, problem_name: str, values: Mapping[str, float]) -> None:
        """Note a loss, and move the bar."""
        if "loss" in values:
            self.losses[problem_name] = f"{values['loss']:.3g}"
        if problem_name == self.problem_name:
            self.bar.set_postfix(self.losses, refresh=False)
            self.bar.update(step - self.bar.n)
            if step == self.bar.total:
                self.bar.close()
