"""Newton's method for roots."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from diffopt_implicit._coordinates import Coordinates
from diffopt_implicit._linear_system import Tree, check_positive, safe_norm
from diffopt_implicit._solvers._jacobian import VectorFunction
from diffopt_implicit._solvers._solver import Solver
from diffopt_implicit._solvers._status import SolverStatus, ended, judged, running
from diffopt_implicit._solvers._step import OptStep
from diffopt_implicit._torch import any_true


class NewtonState(NamedTuple):
    """The state of `Newton`; scalars, of each example under `vmap`.

    Attributes:
        iter_num: Int64, updates.
        error: ``|F(x)| / (1 + |x|)`` before the last update.
        status: Int64, a `SolverStatus`.
        num_fun_eval: Int64, calls of the function.
        num_jac_eval: Int64, how many of them gave a Jacobian too.
        inverse: That of the last Jacobian, (n, n).
    """

    iter_num: Tensor
    error: Tensor
    status: Tensor
    num_fun_eval: Tensor
    num_jac_eval: Tensor
    inverse: Tensor


@dataclass(frozen=True)
class Newton(Solver):
    """Find a root by linearizing: ``x <- x - J^{-1} F(x)``.

    The Jacobian of all elements is written out. There is no line search: start near a root. A
    minimum of ``f`` near to the start is the root of ``torch.func.grad(f)``, and so are maxima
    and saddle points: `TrustRegion` is Newton's method that goes downhill, from anywhere.

    Attributes:
        fun: ``(x, *args, **kwargs) ->`` a tree like ``x``, zero at the root.
        jacobian_every: A Jacobian is used for so many updates, positive; None: the first is kept
            for all (the chord method), which converges linearly.
        tol: Stop at ``|F(x)| <= tol (1 + |x|)``.

    Example:
        >>> import torch
        >>> a = torch.tensor(2.0, requires_grad=True)
        >>> x, state = Newton(lambda x, a: x**2 - a).run(torch.tensor(1.0), a)
        >>> x, state.iter_num
        (tensor(1.4142, grad_fn=...), tensor(4))
        >>> torch.autograd.grad(x, a)
        (tensor(0.3536),)

    Source:
        Ortega & Rheinboldt, *Iterative Solution of Nonlinear Equations*, 1970, sections 7.1 and
        7.2; with a Jacobian kept for some steps, Shamanskii, 1967.
    """

    fun: Callable[..., Tree]
    jacobian_every: int | None = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.jacobian_every is not None:
            check_positive("jacobian_every", self.jacobian_every)

    def init_state(self, init_params: Tree, *args: Any, **kwargs: Any) -> NewtonState:
        """Return the state before the first update."""
        x = Coordinates.of(init_params, "`init_params`").vector(init_params, "`init_params`")
        count = torch.zeros_like(x.sum(), dtype=torch.int64)
        error = torch.full_like(x.sum(), torch.inf).detach()
        waiting = torch.full_like(count, SolverStatus.RUNNING)
        return NewtonState(count, error, waiting, count, count, torch.zeros_like(x.outer(x)))

    def update(self, params: Tree, state: NewtonState, *args: Any, **kwargs: Any) -> OptStep:
        """Take one step, unless ``x`` is a root already."""
        space = Coordinates.of(params, "`params`")
        fun, x = VectorFunction(self.fun, space, args, kwargs), space.vector(params, "`params`")
        live = running(state)
        period = self.maxiter if self.jacobian_every is None else self.jacobian_every
        renewed = live & (state.iter_num % period == 0)
        value, inverse, singular = self._linearized(fun, x, state, renewed)
        error = torch.where(live, (safe_norm(value) / (1 + safe_norm(x))).detach(), state.error)
        status = judged(state.status, error, self.tol)
        status = ended(status, singular, SolverStatus.STALLED)
        moved = torch.where(status == SolverStatus.RUNNING, x - inverse @ value, x)
        after = NewtonState(
            state.iter_num + live,
            error,
            status,
            state.num_fun_eval + live,
            state.num_jac_eval + renewed,
            inverse,
        )
        return OptStep(space.tree(moved), after)

    def _linearized(
        self, fun: VectorFunction, x: Tensor, state: NewtonState, renewed: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the value, the inverse Jacobian to use, and whether there is none."""
        if not any_true(renewed):
            return check_square(fun(x), x), state.inverse, torch.zeros_like(renewed)
        value, jacobian = fun.linearized(x)
        check_square(value, x)
        inverse, failed = torch.linalg.inv_ex(jacobian)
        usable = (failed == 0) & inverse.detach().isfinite().all()
        kept = torch.where(renewed & usable, inverse, state.inverse)
        return value, kept, renewed & ~usable

    def optimality_fun(self, params: Tree, *args: Any, **kwargs: Any) -> Tree:
        """Return ``F(x)``."""
        return self.fun(params, *args, **kwargs)


def check_square(value: Tensor, x: Tensor) -> Tensor:
    """Refuse as many equations as there are no unknowns."""
    if len(value) != len(x):
        raise ValueError(
            f"A root is sought of as many equations as unknowns, got {len(value)} and {len(x)}. "
            "For least squares use `LevenbergMarquardt`."
        )
    return value
