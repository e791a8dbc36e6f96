"""Line search by secants of the slope."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from diffopt_implicit._linear_system import check_positive
from diffopt_implicit._solvers._line_search import (
    Bracket,
    Point,
    check_wolfe,
    chosen,
    decreases,
    rounding,
)


@dataclass(frozen=True)
class HagerZhangLineSearch:
    """Find a step that satisfies the Wolfe conditions, by secants of the slope.

    With the value ``f(t)`` along the direction and its slope ``f'(t)``::

        f(t) <= f(0) + c1 t f'(0)   and   f'(t) >= c2 f'(0)

    The bracket is cut by a secant of the slope, a second one, and in the middle where these did
    not cut it by a third. Where differences of values are within rounding,
    ``f'(t) <= (2 c1 - 1) f'(0)`` stands for the first condition.

    Attributes:
        c1: Share of the decrease that the slope promises, in (0, 1/2).
        c2: Share of the slope that may be left, in (`c1`, 1).
        expansion: By what the step grows until there is a bracket, above 1.
        maxiter: At most so many evaluations.

    Example:
        >>> import torch
        >>> from diffopt_implicit import NonlinearCG
        >>> solver = NonlinearCG(lambda x: (x - 3).cosh(), linesearch=HagerZhangLineSearch())
        >>> print(f"{solver.run(torch.tensor(0.0)).params:.4f}")
        3.0000

    Source:
        Hager & Zhang, *A new conjugate gradient method with guaranteed descent and an efficient
        line search*, SIAM J. Optim. 16, 2005, section 4.
    """

    c1: float = 0.1
    c2: float = 0.9
    expansion: float = 5.0
    maxiter: int = 30

    def __post_init__(self) -> None:
        check_wolfe(self.c1, self.c2)
        check_positive("maxiter", self.maxiter)
        if not self.expansion > 1:
            raise ValueError(f"`expansion` must be above 1, got {self.expansion}.")

    def accepts(self, start: Point, point: Point) -> Tensor:
        """Tell whether both conditions hold."""
        return decreases(start, point, self.c1) & (point.slope >= self.c2 * start.slope)

    def narrowed(self, start: Point, bracket: Bracket, point: Point) -> Bracket:
        """Put `point` in the place of an end."""
        below = point.value <= start.value + rounding(start)
        falls = below & (point.slope < 0)
        replaced = chosen(falls, bracket.low, bracket.high)
        low = chosen(falls, point, bracket.low)
        high = chosen(falls, bracket.high, point)
        closed = bracket.closed | ~falls
        width = high.step - low.step
        # A cycle of cuts: a secant of both ends, one of the new end and the one that it replaced,
        # and the middle where these did not cut enough. `bracket.width` is that of its begin, and
        # negative after the second.
        second = secant(replaced, point)
        inside = (second > low.step) & (second < high.step) & bracket.closed
        begun = bracket.width > 0
        slow = (bracket.width != 0) & (width > 0.66 * bracket.width.abs())
        middle = (low.step + high.step) / 2
        first = secant(low, high)
        first = torch.where((first > low.step) & (first < high.step), first, middle)
        uphill = high.slope < 0  # a high end that slopes down is no bracket of a slope of 0
        step = torch.where(begun & inside, second, torch.where(slow, middle, first))
        step = torch.where(uphill | ~high.slope.isfinite(), middle, step)
        step = torch.where(closed, step, self.expansion * point.step)
        after = torch.where(begun & inside, -bracket.width, torch.where(slow, 0.0, width))
        return Bracket(step, low, high, closed, torch.where(closed, after, 0.0))


def secant(one: Point, other: Point) -> Tensor:
    """Return where the line through two slopes is zero."""
    return (one.step * other.slope - other.step * one.slope) / (other.slope - one.slope)
