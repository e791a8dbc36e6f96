"""Which states of a run to keep, as values."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from diffopt_explicit import _binomial


@runtime_checkable
class Placement(Protocol):
    """Where to take snapshots on the way through a run, forward and back."""

    def between(self, first: int, last: int, kept: int) -> Iterator[int]:
        """The states to keep on the way from `first` to `last`, in their order.

        Args:
            first: The step before which there is a snapshot.
            last: The step before which the way ends; from there it goes back, step by step.
            kept: How many snapshots there are, with that before `first`.
        """
        ...


@dataclass(frozen=True)
class Binomial:
    """So many snapshots, where they save the most steps (Griewank & Walther 2000)."""

    slots: int

    def between(self, first: int, last: int, kept: int) -> Iterator[int]:
        """The states to keep on the way from `first` to `last`, in their order."""
        return _binomial.snapshots(first, last, self.slots - kept + 1)


@dataclass(frozen=True)
class KAry:
    """Snapshots at the nodes of a tree with `branches` branches, met from right to left.

    For ``branches ** depth`` steps at most ``depth * (branches - 1) + 1`` states are kept at
    once, and each step is taken ``depth * (branches - 1) / branches`` times without a graph, on
    average. `Replay(snapshots=...)` with as many states takes fewer.

    Attributes:
        branches: Into how many parts to cut a run, and each of these again; at least 2.

    Example:
        >>> from diffopt_explicit import KAry, Replay
        >>> Replay(snapshots=KAry(4)).advances(64 + 1)  # the last step's graph is kept
        145

    Source: Engstrom et al., *Optimizing ML training with metagradient descent*, 2025 (REPLAY).
    """

    branches: int = 2

    def __post_init__(self) -> None:
        if self.branches < 2:
            raise ValueError(f"`branches` must be at least 2, got {self.branches}.")

    def between(self, first: int, last: int, kept: int) -> Iterator[int]:
        """The states to keep on the way from `first` to `last`, in their order."""
        while (steps := last + 1 - first) > 1:
            part = math.ceil(steps / self.branches)
            yield from range(first + part, last + 1, part)
            first += (steps - 1) // part * part
            if part == 1:
                return


class Online:
    """Which snapshots to hold while the number of steps is not known yet.

    Whenever a run ends, the states that are held let it be reversed with the least number of
    times that any step must be taken again.

    Attributes:
        levels: By the step of each snapshot that is held, how often its place was moved on.

    Source: Wang, Moin & Iaccarino, *Minimal repetition dynamic checkpointing algorithm for
    unsteady adjoint calculation*, SIAM Journal on Scientific Computing 31, 2009.
    """

    def __init__(self) -> None:
        self.levels: dict[int, float] = {}

    def dropped(self, index: int, slots: int) -> int | None:
        """Hold a snapshot before step `index`; return the step of one to drop for it.

        That may be `index` itself: the first state is never dropped.
        """
        if slots == len(self.levels) == 1:
            return index
        dropped, level = None, 0.0 if self.levels else math.inf
        if len(self.levels) >= slots:
            dropped = self._dispensable()
            if dropped is None:
                dropped = max(self.levels)
                level = self.levels[dropped] + 1
            del self.levels[dropped]
        self.levels[index] = level
        return dropped

    def _dispensable(self) -> int | None:
        """The latest snapshot before one of a higher level."""
        highest = -1.0
        for index in sorted(self.levels, reverse=True):
            if self.levels[index] < highest:
                return index
            highest = self.levels[index]
        return None
