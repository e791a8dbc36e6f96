"""Line search by bracketing and cubic interpolation."""

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
class ZoomLineSearch:
    """Find a step that satisfies the strong Wolfe conditions, by bracketing and cubics.

    With the value ``f(t)`` along the direction and its slope ``f'(t)``::

        f(t) <= f(0) + c1 t f'(0)   and   |f'(t)| <= c2 |f'(0)|

    Where differences of values are within rounding, ``f'(t) <= (2 c1 - 1) f'(0)`` stands for the
    first. A search that runs out of evaluations ends at the best point that satisfies it.

    Attributes:
        c1: Share of the decrease that the slope promises, in (0, 1/2).
        c2: Share of the slope that may be left, in (`c1`, 1): 0.9 for quasi-Newton methods, 0.1
            for conjugate gradients.
        maxiter: At most so many evaluations.

    Example:
        >>> import torch
        >>> from diffopt_implicit import LBFGS
        >>> solver = LBFGS(lambda x: (x - 3).cosh(), linesearch=ZoomLineSearch(c2=0.5))
        >>> print(f"{solver.run(torch.tensor(0.0)).params:.4f}")
        3.0000

    Source:
        Nocedal & Wright, *Numerical Optimization*, 2006, algorithms 3.5 and 3.6, eq. 3.59.
    """

    c1: float = 1e-4
    c2: float = 0.9
    maxiter: int = 30

    def __post_init__(self) -> None:
        check_wolfe(self.c1, self.c2)
        check_positive("maxiter", self.maxiter)

    def accepts(self, start: Point, point: Point) -> Tensor:
        """Tell whether both conditions hold."""
        flat = point.slope.abs() <= self.c2 * start.slope.abs()
        return decreases(start, point, self.c1) & flat

    def narrowed(self, start: Point, bracket: Bracket, point: Point) -> Bracket:
        """Put `point` in the place of an end."""
        low, high, closed = bracket.low, bracket.high, bracket.closed
        # As long as there is no end, it lies in the direction of the search.
        toward = torch.where(closed, high.step - low.step, 1.0)
        worse = ~decreases(start, point, self.c1) | ~(point.value <= low.value + rounding(start))
        turned = ~worse & (point.slope * toward >= 0)
        high = chosen(worse, point, chosen(turned, low, high))
        low = chosen(worse, low, point)
        closed = closed | worse | turned
        between = cubic_minimum(low, high)
        step = torch.where(closed, between, 2 * point.step)
        return Bracket(step, low, high, closed, bracket.width)


def cubic_minimum(low: Point, high: Point) -> Tensor:
    """Return where the cubic through both ends is least, not too near to an end."""
    width = high.step - low.step
    # Guarded twice, so that no derivative of what is not used is NaN.
    used = (width != 0) & high.value.isfinite() & high.slope.isfinite()
    span = torch.where(used, width, 1.0)
    right, rise = (torch.where(used, t, 0.0) for t in (high.slope, high.value - low.value))
    d1 = low.slope + right - 3 * rise / span
    square = d1 * d1 - low.slope * right
    used = used & (square > 0)
    d2 = span.sign() * torch.where(used, square, 1.0).sqrt()
    bottom = right - low.slope + 2 * d2
    used = used & (bottom != 0)
    share = 1 - (right + d2 - d1) / torch.where(used, bottom, 1.0)
    return low.step + width * torch.where(used, share.clamp(0.1, 0.9), 0.5)
