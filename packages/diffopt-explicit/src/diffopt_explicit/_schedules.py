"""Schedules: hyperparameters as functions of the step, and of parameters of their own.

A schedule is a value that is called with a step, from 0. Wherever it takes a number, it takes
a 0-d tensor too, and its result is then part of that tensor's graph: schedules are learned
like any other hyperparameter. Counts of steps are integers.
"""

from __future__ import annotations

from collections.abc import Mapping

from diffopt_explicit._hyperparameter import Scalar, Schedule
from diffopt_explicit._schedule_kinds import (
    Constant,
    CosineDecay,
    ExponentialDecay,
    Join,
    PiecewiseConstant,
    Polynomial,
)


def constant(value: Scalar) -> Constant:
    """Return the same value at every step.

    Example:
        >>> from diffopt_explicit import constant
        >>> constant(0.1)(7)
        0.1
    """
    return Constant(value)


def linear(init_value: Scalar, end_value: Scalar, steps: int, begin: int = 0) -> Polynomial:
    """Go from one value to another in a straight line; before and after it is constant.

    Args:
        init_value: The value until step `begin`.
        end_value: The value from step ``begin + steps`` on.
        steps: How long it takes; 0 or less keeps the first value.
        begin: When it starts.

    Example:
        >>> from diffopt_explicit import linear
        >>> [linear(1.0, 0.0, steps=4)(step) for step in (0, 1, 4, 9)]
        [1.0, 0.75, 0.0, 0.0]
    """
    return Polynomial(init_value, end_value, 1, steps, begin)


def polynomial(
    init_value: Scalar, end_value: Scalar, power: Scalar, steps: int, begin: int = 0
) -> Polynomial:
    """Go from one value to another along a power of the remaining time.

    With the remaining share of time ``r``, from 1 at step `begin` to 0 at ``begin + steps``::

        value = (init_value - end_value) * r**power + end_value

    Args:
        init_value: The value until step `begin`.
        end_value: The value from step ``begin + steps`` on.
        power: 1 is a straight line, more is steeper at first.
        steps: How long it takes; 0 or less keeps the first value.
        begin: When it starts.

    Example:
        >>> from diffopt_explicit import polynomial
        >>> polynomial(30.0, 10.0, power=2, steps=10, begin=4)(9)
        15.0
    """
    return Polynomial(init_value, end_value, power, steps, begin)


def exponential_decay(
    init_value: Scalar, steps: int, rate: Scalar, begin: int = 0, *, staircase: bool = False
) -> ExponentialDecay:
    """Multiply a value by `rate` every `steps` steps, smoothly or all at once.

    After step `begin`, with ``time = (step - begin) / steps``::

        value = init_value * rate**time

    Args:
        init_value: The value until step `begin`.
        steps: The period; 0 or less keeps the first value.
        rate: The factor of a period; the number 0 keeps the first value.
        begin: When it starts.
        staircase: Round the time down to whole periods.

    Example:
        >>> from diffopt_explicit import exponential_decay
        >>> exponential_decay(1.0, steps=2, rate=0.5)(6)
        0.125
    """
    return ExponentialDecay(init_value, steps, rate, begin, staircase)


def cosine_decay(init_value: Scalar, steps: int, alpha: Scalar = 0.0) -> CosineDecay:
    """Go from a value to ``alpha`` times it along half a cosine wave.

    Args:
        init_value: The value at step 0.
        steps: How long it takes; 0 or less keeps the first value.
        alpha: Share of the value that is left in the end.

    Example:
        >>> from diffopt_explicit import cosine_decay
        >>> round(cosine_decay(0.1, steps=10)(5), 6)
        0.05

    Source: Loshchilov & Hutter, *SGDR: stochastic gradient descent with warm restarts*,
    ICLR 2017, eq. 5.
    """
    return CosineDecay(init_value, steps, alpha)


def warmup_cosine(
    init_value: Scalar,
    peak_value: Scalar,
    warmup_steps: int,
    steps: int,
    end_value: Scalar = 0.0,
) -> Join:
    """Rise in a straight line to a peak, then fall along half a cosine wave.

    Args:
        init_value: The value at step 0.
        peak_value: The value at step `warmup_steps`; not 0.
        warmup_steps: How long it rises.
        steps: How long it takes in all.
        end_value: The value from step `steps` on.

    Raises:
        ValueError: Unless ``0 < warmup_steps < steps``.

    Example:
        >>> from diffopt_explicit import warmup_cosine
        >>> schedule = warmup_cosine(0.0, 1.0, warmup_steps=10, steps=110, end_value=0.1)
        >>> [round(schedule(step), 3) for step in (0, 5, 10, 60, 110)]
        [0.0, 0.5, 1.0, 0.55, 0.1]

    Source: Goyal et al., *Accurate, large minibatch SGD*, 2017, section 2.2; Loshchilov &
    Hutter, ICLR 2017, eq. 5.
    """
    if not 0 < warmup_steps < steps:
        raise ValueError(
            f"`warmup_steps` must be between 0 and `steps`, got {warmup_steps} and {steps}."
        )
    fall = CosineDecay(peak_value, steps - warmup_steps, end_value / peak_value)
    return join([linear(init_value, peak_value, warmup_steps), fall], [warmup_steps])


def piecewise_constant(init_value: Scalar, scales: Mapping[int, Scalar]) -> PiecewiseConstant:
    """Multiply a value by a factor at each of some steps, and keep it in between.

    Args:
        init_value: The value at step 0.
        scales: Factors by the step from which on they count.

    Example:
        >>> from diffopt_explicit import piecewise_constant
        >>> schedule = piecewise_constant(0.1, {3: 2.0, 6: 0.5})
        >>> [schedule(step) for step in (2, 3, 6)]
        [0.1, 0.2, 0.1]
    """
    return PiecewiseConstant(init_value, dict(scales))


def join(schedules: list[Schedule], boundaries: list[int]) -> Join:
    """Put schedules one after the other; each counts from its own beginning.

    Args:
        schedules: What comes when.
        boundaries: The steps at which the second, third, ... begin.

    Raises:
        ValueError: Unless there is a rising, positive boundary between each two.

    Example:
        >>> from diffopt_explicit import constant, join, linear
        >>> schedule = join([constant(1.0), linear(1.0, 0.0, steps=2)], [10])
        >>> [schedule(step) for step in (9, 11, 12)]
        [1.0, 0.5, 0.0]
    """
    return Join(tuple(schedules), tuple(boundaries))


def one_cycle(
    peak_value: Scalar,
    steps: int,
    *,
    rising: float = 0.3,
    init_divisor: Scalar = 25.0,
    end_divisor: Scalar = 1e4,
) -> Join:
    """Rise to a peak and fall far below the start, both along half a cosine wave.

    Args:
        peak_value: The largest value.
        steps: How long it takes in all.
        rising: Share of the time before the peak, in (0, 1).
        init_divisor: What the peak is divided by at the start.
        end_divisor: What the start is divided by in the end.

    Raises:
        ValueError: If `rising` leaves no step before or after the peak.

    Example:
        >>> from diffopt_explicit import one_cycle
        >>> schedule = one_cycle(1.0, steps=100)
        >>> [round(schedule(step), 6) for step in (0, 15, 30, 100)]
        [0.04, 0.52, 1.0, 4e-06]

    Source: Smith & Topin, *Super-convergence: very fast training of neural networks using
    large learning rates*, 2018, section 3.
    """
    peak = round(rising * steps)
    if not 0 < peak < steps:
        raise ValueError(f"`rising` must leave steps on both sides, got {rising} of {steps} steps.")
    start = peak_value / init_divisor
    rise = CosineDecay(start, peak, init_divisor)
    fall = CosineDecay(peak_value, steps - peak, 1 / (init_divisor * end_divisor))
    return join([rise, fall], [peak])
