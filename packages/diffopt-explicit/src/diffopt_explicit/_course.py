"""The way through a run and back, of which some states are kept."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from diffopt_explicit._placement import Placement


class Cost(NamedTuple):
    """What it takes to reverse a run."""

    advances: int  # how often a step is taken without a graph
    states: int  # the most that are kept at once


@dataclass(frozen=True)
class Course:
    """A run of so many steps, gone back by `size` of them at once.

    The last ones' graphs are kept on the way there, so that they are not taken again. The way
    back begins with those before. Where only some states are kept, the placement decides on each
    stretch of `size` steps as on one step.
    """

    placement: Placement
    steps: int
    size: int = 1

    @property
    def turn(self) -> int:
        """The first of the steps that are not taken again."""
        return max(0, self.steps - self.size)

    @cached_property
    def there(self) -> frozenset[int]:
        """The states to keep on the way there."""
        last = self.begin(self.turn)
        return frozenset({0, *self.between(0, last, 1), last})

    def begin(self, end: int, at: int = 0) -> int:
        """With which step to go back from `end`, where the nearest state is `at`."""
        return max(at, end - self.size)

    def between(self, first: int, last: int, kept: int) -> Iterator[int]:
        """The states to keep on the way from `first` to `last`, from where it goes back."""
        stretches = math.ceil((last - first) / self.size)
        for place in self.placement.between(first, first + stretches, kept):
            yield first + (place - first) * self.size

    def cost(self) -> Cost:
        """What it takes in all."""
        end = advances = self.turn
        kept = sorted(self.there) if end else []
        most = len(kept)
        while end:
            while kept[-1] >= end:
                kept.pop()
            at, begin = kept[-1], self.begin(end, kept[-1])
            advances += begin - at
            kept += (i for i in self.between(at, begin, len(kept)) if i < begin)
            end, most = begin, max(most, len(kept))
        return Cost(advances, most)
