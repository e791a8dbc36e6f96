"""When to stop: a measure that no longer improves."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from diffopt_implicit._linear_system import check_nonnegative, check_positive


@dataclass(frozen=True)
class EarlyStopping:
    """Stop a program when a validated measure has not improved for some time.

    Attributes:
        measure: Which of the numbers that `validate` returns.
        patience: After how many validations without improvement to stop; positive.
        mode: Whether less or more is better.
        min_delta: By how much to be better for an improvement, at least 0.

    Example:
        >>> EarlyStopping("error", patience=3)
        EarlyStopping(measure='error', patience=3, mode='min', min_delta=0.0)
    """

    measure: str
    patience: int = 10
    mode: Literal["min", "max"] = "min"
    min_delta: float = 0.0

    def __post_init__(self) -> None:
        check_positive("patience", self.patience)
        check_nonnegative("min_delta", self.min_delta)
        if self.mode not in ("min", "max"):
            raise ValueError(f"`mode` must be 'min' or 'max', got {self.mode!r}.")

    def judge(self, value: float, patience: Patience) -> Patience:
        """Return what is left of the patience after a value; NaN is no improvement."""
        if patience.best is None:
            better = value == value
        elif self.mode == "min":
            better = value < patience.best - self.min_delta
        else:
            better = value > patience.best + self.min_delta
        if better:
            return Patience(value, 0)
        return replace(patience, bad=patience.bad + 1)


@dataclass(frozen=True)
class Patience:
    """How a measure went.

    Attributes:
        best: The best value so far.
        bad: How many validations ago.
    """

    best: float | None = None
    bad: int = 0
