"""The loop of a line search; what to try next is said by the values in the other modules."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from pytree_core import tree_map
from torch import Tensor

from diffopt_implicit._solvers._objective import Objective
from diffopt_implicit._torch import any_true, is_wrapped

Chosen = TypeVar("Chosen")


class Point(NamedTuple):
    """A point on a line, and the function there.

    Attributes:
        step: Scalar, how many directions from the start.
        value: Scalar.
        slope: Scalar, the derivative in `step`.
        x: The vector itself.
        grad: The gradient there.
        aux: What the function returns beside its value.
    """

    step: Tensor
    value: Tensor
    slope: Tensor
    x: Tensor
    grad: Tensor
    aux: Any


class Line(NamedTuple):
    """The points ``x + step direction``."""

    objective: Objective
    x: Tensor
    direction: Tensor

    def at(self, step: Tensor) -> Point:
        """Evaluate the function at a step."""
        x = torch.addcmul(self.x, self.direction, step)
        value, grad, aux = self.objective.at(x)
        return Point(step, value, torch.dot(grad, self.direction), x, grad, aux)


class Bracket(NamedTuple):
    """What a line search remembers.

    Attributes:
        step: What to try next.
        low: The best point that is good enough to end with: at first the start.
        high: An end beyond which there is no need to look, once `closed`.
        closed: Whether there is such an end yet.
        width: The length of the bracket before it was last cut.
    """

    step: Tensor
    low: Point
    high: Point
    closed: Tensor
    width: Tensor


class LineSearch(Protocol):
    """A way to choose a step length: a frozen value, passed as ``linesearch=``.

    Example:
        >>> from diffopt_implicit import ZoomLineSearch
        >>> ZoomLineSearch(c2=0.1)
        ZoomLineSearch(c1=0.0001, c2=0.1, maxiter=30)
    """

    @property
    def maxiter(self) -> int:
        """At most so many evaluations."""
        ...

    def accepts(self, start: Point, point: Point) -> Tensor:
        """Tell whether the search may end at `point`."""
        ...

    def narrowed(self, start: Point, bracket: Bracket, point: Point) -> Bracket:
        """Return the bracket that `point`, not accepted, leaves, and what to try next."""
        ...


class Found(NamedTuple):
    """The end of a line search.

    Attributes:
        point: Where it ended; the start where it failed.
        failed: Whether no step was found.
        evaluations: Int64, of value and gradient.
    """

    point: Point
    failed: Tensor
    evaluations: Tensor


def searched(rule: LineSearch, line: Line, start: Point, step: Tensor, live: Tensor) -> Found:
    """Search a step, for the examples that are `live`."""
    bracket = Bracket(step, start, start, torch.zeros_like(live), torch.zeros_like(step))
    found, going = start, live
    evaluations = torch.zeros_like(live, dtype=torch.int64)
    for _ in range(rule.maxiter if any_true(live) else 0):
        point = line.at(bracket.step)
        evaluations = evaluations + going
        accepted = going & rule.accepts(start, point)
        found, going = chosen(accepted, point, found), going & ~accepted
        if not any_true(going):
            break
        bracket = chosen(going, rule.narrowed(start, bracket, point), bracket)
    else:
        found = chosen(going, bracket.low, found)
    return Found(found, live & ~(found.step > 0), evaluations)


def chosen(condition: Tensor, one: Chosen, other: Chosen) -> Chosen:
    """Return `one` where a scalar condition holds, else `other`: trees alike."""
    # A choice between whole trees, when there is but one example: no copies, and no derivative
    # of what was not chosen.
    if not is_wrapped(condition):
        return one if bool(condition) else other

    def choose(a: Any, b: Any) -> Any:
        return torch.where(condition, a, b) if isinstance(a, Tensor) else a

    return tree_map(choose, one, other)  # type: ignore[no-any-return]


def decreases(start: Point, point: Point, c1: float) -> Tensor:
    """Tell where the value falls enough, as far as its rounding errors let us see."""
    # Strictly, too: the bound of a tiny step is, rounded, no bound.
    armijo = (point.value <= start.value + c1 * point.step * start.slope) & (
        point.value < start.value
    )
    if not any_true(~armijo):
        return armijo & (point.slope.abs() < torch.inf)
    # Near a minimum differences of values are rounding errors, and slopes tell: the approximate
    # Wolfe condition, Hager & Zhang, SIAM J. Optim. 16, 2005, eq. 4.1.
    level = (point.value - start.value).abs() <= rounding(start)
    flatter = (point.slope <= (2 * c1 - 1) * start.slope) & (point.slope >= 0.9 * start.slope)
    return (armijo | (level & flatter)) & point.slope.isfinite()


def rounding(start: Point) -> Tensor:
    """Return the size of differences of values that mean nothing."""
    return 10 * torch.finfo(start.value.dtype).eps * start.value.abs()


def check_wolfe(c1: float, c2: float) -> None:
    """Refuse constants for which there may be no step."""
    if not 0 < c1 < 0.5:
        raise ValueError(f"`c1` must be in (0, 1/2), got {c1}.")
    if not c1 < c2 < 1:
        raise ValueError(f"`c2` must be in (`c1`, 1) = ({c1}, 1), got {c2}.")
