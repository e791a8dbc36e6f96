"""`AndersonWrapper`: Anderson's acceleration of another solver."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from diffopt_implicit._linear_system import Tree
from diffopt_implicit._solvers._fixed_point_solvers import AndersonAcceleration, AndersonState
from diffopt_implicit._solvers._line_search import chosen
from diffopt_implicit._solvers._solver import Solver
from diffopt_implicit._solvers._status import SolverStatus, judged, running
from diffopt_implicit._solvers._step import OptStep


class AndersonWrapperState(NamedTuple):
    """The state of `AndersonWrapper`; scalars, of each example under `vmap`.

    Attributes:
        iter_num: Int64, updates.
        error: Of the wrapped solver, in its last update.
        status: Int64, a `SolverStatus`.
        num_fun_eval: Int64, calls of the function.
        num_grad_eval: Int64, how many of them were differentiated.
        anderson: What the acceleration remembers.
    """

    iter_num: Tensor
    error: Tensor
    status: Tensor
    num_fun_eval: Tensor
    num_grad_eval: Tensor
    anderson: AndersonState


@dataclass(frozen=True)
class AndersonWrapper(Solver):
    """Accelerate a solver: one update of it, from a fresh state, is the map iterated.

    For solvers whose single update leads towards the solution: `GradientDescent`,
    `ProximalGradient` and `ProjectedGradient` with ``acceleration=False``, `MirrorDescent`,
    `BlockCoordinateDescent`. With steps that are given, better than searched, the map is smooth.
    The points between are combinations of images and may leave a set that the solver projects on.

    Attributes:
        solver: What to accelerate; its `tol`, `maxiter`, `adjoint` and `on_failure` are not used.
        memory: As of `AndersonAcceleration`.
        beta: As of `AndersonAcceleration`.
        ridge: As of `AndersonAcceleration`.
        tol: Stop where the error of `solver`, as it defines it, is at most this.

    Example:
        >>> import torch
        >>> from diffopt_implicit import GradientDescent
        >>> scale = torch.tensor([1.0, 30.0])
        >>> plain = GradientDescent(
        ...     lambda x: (scale * (x - 1).square()).sum(), stepsize=0.02, acceleration=False
        ... )
        >>> x, state = AndersonWrapper(plain).run(torch.zeros(2))
        >>> [round(float(v), 3) for v in x], int(state.iter_num) < 20
        ([1.0, 1.0], True)

    Source:
        Walker & Ni, *Anderson acceleration for fixed-point iterations*, SIAM J. Numer. Anal. 49,
        2011; of proximal gradients, Mai & Johansson, ICML 2020.
    """

    solver: Solver
    memory: int = field(default=5, kw_only=True)
    beta: float = field(default=1.0, kw_only=True)
    ridge: float = field(default=1e-8, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._accelerated(None)

    def init_state(self, init_params: Tree, *args: Any, **kwargs: Any) -> AndersonWrapperState:
        """Return the state before the first update: nothing is evaluated, the error infinite."""
        anderson = self._accelerated(None).init_state(init_params)
        count = anderson.iter_num[0]
        error = anderson.error[0]
        return AndersonWrapperState(count, error, anderson.status[0], count, count, anderson)

    def update(
        self, params: Tree, state: AndersonWrapperState, *args: Any, **kwargs: Any
    ) -> OptStep:
        """Take one accelerated step."""
        live = running(state)
        fresh = self.solver.init_state(params, *args, **kwargs)
        image, inner = self.solver.update(params, fresh, *args, **kwargs)
        new, anderson = self._accelerated(image).update(params, state.anderson)
        failed = inner.status > SolverStatus.MAXITER
        error = torch.where(live, inner.error, state.error)
        status = chosen(live & failed, inner.status, judged(state.status, error, self.tol))
        # Where the solver has come to an end, its last point is better than a combination.
        last = chosen(status == SolverStatus.CONVERGED, image, new)
        moves = live & ~failed
        after = AndersonWrapperState(
            state.iter_num + live,
            error,
            status,
            state.num_fun_eval + live * inner.num_fun_eval,
            state.num_grad_eval + live * inner.num_grad_eval,
            chosen(moves, anderson, state.anderson),
        )
        return OptStep(chosen(moves, last, params), after)

    def optimality_fun(self, params: Tree, *args: Any, **kwargs: Any) -> Tree:
        """Return that of `solver`."""
        return self.solver.optimality_fun(params, *args, **kwargs)

    def _accelerated(self, image: Tree) -> AndersonAcceleration:
        return AndersonAcceleration(
            lambda params: image, self.memory, self.beta, self.ridge, tol=0.0
        )
