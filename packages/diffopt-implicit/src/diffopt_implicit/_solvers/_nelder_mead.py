"""The method of Nelder and Mead: minima by values alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from diffopt_implicit._coordinates import Coordinates
from diffopt_implicit._linear_system import Tree, check_positive
from diffopt_implicit._solvers._implicit_only import check_implicit
from diffopt_implicit._solvers._jacobian import unit_matrix
from diffopt_implicit._solvers._objective import Objective, gradient
from diffopt_implicit._solvers._solver import Solver
from diffopt_implicit._solvers._status import SolverStatus, judged, running
from diffopt_implicit._solvers._step import OptStep
from diffopt_implicit._torch import any_true


class NelderMeadState(NamedTuple):
    """The state of `NelderMead`; of each example under `vmap`.

    Attributes:
        iter_num: Int64 scalar, updates.
        error: Scalar, the larger of the extents of the simplex and of its values, each against 1
            plus the size of the best.
        status: Int64 scalar, a `SolverStatus`.
        value: Scalar, the least value.
        num_fun_eval: Int64 scalar, calls of the function.
        simplex: The corners, best first, (n + 1, n).
        values: Their values, (n + 1,).
    """

    iter_num: Tensor
    error: Tensor
    status: Tensor
    value: Tensor
    num_fun_eval: Tensor
    simplex: Tensor
    values: Tensor


@dataclass(frozen=True)
class NelderMead(Solver):
    """Minimize a function by its values: a simplex walks downhill, and shrinks.

    For a few unknowns. The iterations need no derivatives, and have none: those of the minimum
    are implicit ones, for which the function must be twice differentiable there; `adjoint` is
    ``"implicit"`` or an `Implicit`. The accuracy of a minimum found by values is at best the
    root of the rounding error.

    Attributes:
        fun: ``(x, *args, **kwargs) ->`` a scalar.
        initial_size: Of the first simplex: each element is moved by this times the larger of
            its size and 1, positive.
        tol: Stop once the simplex, and the range of its values, are no larger than this, against
            1 plus the size of the best.

    Example:
        >>> import torch
        >>> a = torch.tensor([1.0, 2.0], requires_grad=True)
        >>> solver = NelderMead(lambda x, a: (x - a).square().sum() + x.square().sum(), tol=1e-3)
        >>> x = solver.run(torch.zeros(2), a).params  # near a / 2
        >>> torch.autograd.grad(x.sum(), a)
        (tensor([0.5000, 0.5000]),)

    Source:
        Nelder & Mead, 1965; in the form and with the coefficients of Gao & Han, *Implementing the
        Nelder-Mead simplex algorithm with adaptive parameters*, Comput. Optim. Appl. 51, 2012.
    """

    fun: Callable[..., Tensor]
    initial_size: float = 0.1
    maxiter: int = field(default=2000, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive("initial_size", self.initial_size)
        check_implicit(self)

    def init_state(self, init_params: Tree, *args: Any, **kwargs: Any) -> NelderMeadState:
        """Return the state before the first update: the function is evaluated at n + 1 points."""
        space = Coordinates.of(init_params, "`init_params`")
        x = space.vector(init_params, "`init_params`").detach()
        spread = self.initial_size * x.abs().clamp(min=1.0)
        simplex = torch.cat([x[None], x + spread * unit_matrix(len(x), x)])
        values = evaluated(Objective(self.fun, False, space, args, kwargs), simplex)
        simplex, values = ordered(simplex, values)
        error = extent(simplex, values)
        count = torch.zeros_like(error, dtype=torch.int64)
        status = judged(torch.full_like(count, SolverStatus.RUNNING), error, self.tol)
        calls = count + len(values)
        return NelderMeadState(count, error, status, values[0], calls, simplex, values)

    def update(self, params: Tree, state: NelderMeadState, *args: Any, **kwargs: Any) -> OptStep:
        """Replace the worst corner, or shrink towards the best."""
        space = Coordinates.of(params, "`params`")
        objective = Objective(self.fun, False, space, args, kwargs)
        simplex, values, live = state.simplex, state.values, running(state)
        n = max(simplex.shape[-1], 2)  # of one unknown, the coefficients of two
        worst, others = simplex[-1], simplex[:-1].mean(0)
        away = others - worst
        reflected = others + away
        value = at(objective, reflected)
        expands, outside = value < values[0], value < values[-1]
        good = ~expands & (value < values[max(len(values) - 2, 0)])
        inward = torch.full_like(value, 0.75 - 0.5 / n)  # of two numbers `where` makes a float32
        length = torch.where(outside, inward, -inward)
        second = others + torch.where(expands, 1 + 2 / n, length) * away
        tried = live & ~good
        other = at(objective, second) if any_true(tried) else value
        # An expansion or a contraction must better what it was tried for.
        takes = tried & (other < torch.where(expands | outside, value, values[-1]))
        shrinks = tried & ~takes & ~expands
        corner = torch.where(takes, second, reflected)
        corner_value = torch.where(takes, other, value)
        replaced = torch.cat([simplex[:-1], corner[None]])
        replaced_values = torch.cat([values[:-1], corner_value[None]])
        if any_true(shrinks):
            small = simplex[0] + (1 - 1 / n) * (simplex - simplex[0])
            below = torch.cat([values[:1], evaluated(objective, small[1:])])
            replaced = torch.where(shrinks, small, replaced)
            replaced_values = torch.where(shrinks, below, replaced_values)
        simplex = torch.where(live, replaced, simplex)
        simplex, values = ordered(simplex, torch.where(live, replaced_values, values))
        error = torch.where(live, extent(simplex, values), state.error)
        after = NelderMeadState(
            state.iter_num + live,
            error,
            judged(state.status, error, self.tol),
            values[0],
            state.num_fun_eval + live + tried + (len(values) - 1) * shrinks,
            simplex,
            values,
        )
        return OptStep(space.tree(simplex[0]), after)

    def optimality_fun(self, params: Tree, *args: Any, **kwargs: Any) -> Tree:
        """Return the gradient."""
        return gradient(self.fun, False, params, args, kwargs)


def at(objective: Objective, x: Tensor) -> Tensor:
    """Return a value, infinite where it is none: such a corner is the worst."""
    value = objective.value(x)[0].detach()
    return torch.where(value.isnan(), torch.inf, value)


def evaluated(objective: Objective, corners: Tensor) -> Tensor:
    """Return the values of corners, one after another."""
    return torch.stack([at(objective, corner) for corner in corners])


def ordered(simplex: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Put the best corner first."""
    values, order = values.sort(stable=True)
    return simplex[order], values


def extent(simplex: Tensor, values: Tensor) -> Tensor:
    """Return how large a simplex is, in its corners and values."""
    size = (simplex - simplex[0]).abs().amax() / (1 + simplex[0].abs().amax())
    return torch.maximum(size, (values[-1] - values[0]) / (1 + values[0].abs()))
