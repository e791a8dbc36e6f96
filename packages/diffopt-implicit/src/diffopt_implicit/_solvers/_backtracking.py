"""Line search by shrinking the step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from diffopt_implicit._linear_system import check_positive
from diffopt_implicit._solvers._line_search import (
    Bracket,
    Point,
    check_wolfe,
    chosen,
    decreases,
)

Condition = Literal["armijo", "goldstein", "wolfe", "strong-wolfe"]


@dataclass(frozen=True)
class BacktrackingLineSearch:
    """Shrink the step until the function decreases enough.

    With the value ``f(t)`` along the direction and its slope ``f'(t)``, all conditions ask for
    ``f(t) <= f(0) + c1 t f'(0)``, and further::

        armijo        nothing
        goldstein     f(t) >= f(0) + (1 - c1) t f'(0)
        wolfe         f'(t) >= c2 f'(0)
        strong-wolfe  |f'(t)| <= c2 |f'(0)|

    A step that is too short for a condition is doubled, as long as none was too long. A search that
    runs out of evaluations ends at the last step that satisfies the first condition.

    Attributes:
        condition: Which.
        c1: Share of the decrease that the slope promises, in (0, 1/2).
        c2: Share of the slope that may be left, in (`c1`, 1).
        decrease: By what a step shrinks, in (0, 1).
        maxiter: At most so many evaluations.

    Example:
        >>> import torch
        >>> from diffopt_implicit import BFGS
        >>> solver = BFGS(lambda x: (x - 3).cosh(), linesearch=BacktrackingLineSearch())
        >>> print(f"{solver.run(torch.tensor(0.0)).params:.4f}")
        3.0000

    Source:
        Nocedal & Wright, *Numerical Optimization*, 2006, algorithm 3.1, eqs. 3.4, 3.6, 3.7, 3.11.
    """

    condition: Condition = "armijo"
    c1: float = 1e-4
    c2: float = 0.9
    decrease: float = 0.8
    maxiter: int = 30

    def __post_init__(self) -> None:
        check_wolfe(self.c1, self.c2)
        check_positive("maxiter", self.maxiter)
        if self.condition not in get_args(Condition):
            named = ", ".join(map(repr, get_args(Condition)))
            raise ValueError(f"`condition` must be one of {named}, got {self.condition!r}.")
        if not 0 < self.decrease < 1:
            raise ValueError(f"`decrease` must be in (0, 1), got {self.decrease}.")

    def accepts(self, start: Point, point: Point) -> Tensor:
        """Tell whether the conditions hold."""
        return ~self._is_long(start, point) & ~self._is_short(start, point)

    def narrowed(self, start: Point, bracket: Bracket, point: Point) -> Bracket:
        """Put `point` in the place of an end."""
        long = self._is_long(start, point)
        low, high = chosen(long, bracket.low, point), chosen(long, point, bracket.high)
        closed = bracket.closed | long
        between = low.step + self.decrease * (high.step - low.step)
        step = torch.where(closed, between, point.step / self.decrease)
        return Bracket(step, low, high, closed, bracket.width)

    def _is_long(self, start: Point, point: Point) -> Tensor:
        long = ~decreases(start, point, self.c1)
        if self.condition == "strong-wolfe":
            return long | (point.slope > -self.c2 * start.slope)
        return long

    def _is_short(self, start: Point, point: Point) -> Tensor:
        if self.condition == "armijo":
            return torch.zeros_like(point.step, dtype=torch.bool)
        if self.condition == "goldstein":
            return point.value < start.value + (1 - self.c1) * point.step * start.slope
        return point.slope < self.c2 * start.slope
