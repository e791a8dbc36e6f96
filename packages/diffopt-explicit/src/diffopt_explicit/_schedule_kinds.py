"""The kinds of schedules: values that are called with a step, from 0."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from diffopt_explicit._hyperparameter import Scalar, Schedule


@dataclass(frozen=True)
class Constant:
    """The same value at every step."""

    value: Scalar

    def __call__(self, step: int) -> Scalar:
        """Return the value."""
        return self.value


@dataclass(frozen=True)
class Polynomial:
    """From one value to another along a power of the remaining time; see `polynomial`."""

    init_value: Scalar
    end_value: Scalar
    power: Scalar
    steps: int
    begin: int = 0

    def __post_init__(self) -> None:
        _check_count("begin", self.begin)

    def __call__(self, step: int) -> Scalar:
        """Return the value at this step."""
        remaining = 1 - _progress(step, self.begin, self.steps)
        return (self.init_value - self.end_value) * remaining**self.power + self.end_value


@dataclass(frozen=True)
class ExponentialDecay:
    """A value times a rate to the power of the time; see `exponential_decay`."""

    init_value: Scalar
    steps: int
    rate: Scalar
    begin: int = 0
    staircase: bool = False

    def __post_init__(self) -> None:
        _check_count("begin", self.begin)

    def __call__(self, step: int) -> Scalar:
        """Return the value at this step."""
        if self.steps <= 0 or _is_number(self.rate, 0) or step <= self.begin:
            return self.init_value
        time = (step - self.begin) / self.steps
        return self.init_value * self.rate ** (math.floor(time) if self.staircase else time)


@dataclass(frozen=True)
class CosineDecay:
    """From a value to a share of it along half a cosine wave; see `cosine_decay`."""

    init_value: Scalar
    steps: int
    alpha: Scalar = 0.0

    def __call__(self, step: int) -> Scalar:
        """Return the value at this step."""
        wave = (1 + math.cos(math.pi * _progress(step, 0, self.steps))) / 2
        return self.init_value * ((1 - self.alpha) * wave + self.alpha)


@dataclass(frozen=True)
class PiecewiseConstant:
    """A value that is multiplied at certain steps; see `piecewise_constant`."""

    init_value: Scalar
    scales: Mapping[int, Scalar] = field(hash=False)

    def __post_init__(self) -> None:
        for boundary in self.scales:
            _check_count("scales", boundary)

    def __call__(self, step: int) -> Scalar:
        """Return the value at this step."""
        value = self.init_value
        for boundary, scale in self.scales.items():
            if step >= boundary:
                value = value * scale
        return value


@dataclass(frozen=True)
class Join:
    """Schedules one after the other, each counting from its own beginning; see `join`."""

    schedules: tuple[Schedule, ...]
    boundaries: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.schedules) != len(self.boundaries) + 1:
            raise ValueError(
                f"`join` needs one boundary fewer than schedules, got {len(self.boundaries)} "
                f"boundaries for {len(self.schedules)} schedules."
            )
        if any(a >= b for a, b in zip((0, *self.boundaries), self.boundaries, strict=False)):
            raise ValueError(f"`boundaries` must be positive and rise, got {self.boundaries}.")

    def __call__(self, step: int) -> Scalar:
        """Return what the schedule whose turn it is returns."""
        index = sum(step >= boundary for boundary in self.boundaries)
        return self.schedules[index](step - (0, *self.boundaries)[index])


def _progress(step: int, begin: int, steps: int) -> float:
    """The share of the time that is over, in [0, 1]."""
    return 0.0 if steps <= 0 else min(max((step - begin) / steps, 0.0), 1.0)


def _is_number(value: Scalar, number: float) -> bool:
    return isinstance(value, (int, float)) and value == number


def _check_count(name: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"`{name}` must be a number of steps, at least 0; got {value!r}.")
