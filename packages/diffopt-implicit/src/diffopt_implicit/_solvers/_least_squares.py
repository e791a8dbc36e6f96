"""Nonlinear least squares: the methods of Gauss and Newton, and of Levenberg and Marquardt."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from pytree_core import tree_leaves
from torch import Tensor

from diffopt_implicit._coordinates import Coordinates
from diffopt_implicit._linear_system import Tree, check_positive, safe_norm
from diffopt_implicit._solvers._jacobian import VectorFunction, unit_matrix
from diffopt_implicit._solvers._solver import Solver
from diffopt_implicit._solvers._status import SolverStatus, ended, judged, running
from diffopt_implicit._solvers._step import OptStep


class GaussNewtonState(NamedTuple):
    """The state of `GaussNewton`; scalars, of each example under `vmap`.

    Attributes:
        iter_num: Int64, updates.
        error: Euclidean norm of the gradient ``J^T r``, before the last update.
        status: Int64, a `SolverStatus`.
        value: ``|r|^2 / 2`` there.
        num_fun_eval: Int64, calls of the function, each with a Jacobian.
    """

    iter_num: Tensor
    error: Tensor
    status: Tensor
    value: Tensor
    num_fun_eval: Tensor


def half_square(residual_fun: Callable[..., Tree]) -> Callable[..., Tensor]:
    """Return what least squares minimize."""

    def objective(params: Tree, *args: Any, **kwargs: Any) -> Tensor:
        leaves = tree_leaves(residual_fun(params, *args, **kwargs))
        return 0.5 * torch.stack([leaf.square().sum() for leaf in leaves]).sum()

    return objective


@dataclass(frozen=True)
class GaussNewton(Solver):
    """Minimize ``|r(x)|^2 / 2`` by linearizing: ``x <- x - J^+ r(x)``.

    The step is that of least squares, and the shortest if several are. There is no line search:
    start near the minimum, or take `LevenbergMarquardt`.

    Attributes:
        residual_fun: ``(x, *args, **kwargs) ->`` the residual ``r``, any tree of real tensors.
        tol: Stop once the norm of the gradient ``J^T r`` is at most this.

    Example:
        >>> import torch
        >>> t = torch.tensor([0.0, 1.0, 2.0])
        >>> y = torch.tensor([2.0, 1.0, 0.5])
        >>> solver = GaussNewton(lambda p, y: p["a"] * (p["b"] * t).exp() - y)
        >>> found = solver.run({"a": torch.tensor(1.0), "b": torch.tensor(-0.5)}, y).params
        >>> found["a"], found["b"]  # log(1 / 2)
        (tensor(2.), tensor(-0.6931))

    Source:
        Nocedal & Wright, *Numerical Optimization*, 2nd edition, 2006, section 10.3.
    """

    residual_fun: Callable[..., Tree]

    def init_state(self, init_params: Tree, *args: Any, **kwargs: Any) -> GaussNewtonState:
        """Return the state before the first update."""
        x = Coordinates.of(init_params, "`init_params`").vector(init_params, "`init_params`")
        count = torch.zeros_like(x.sum(), dtype=torch.int64)
        unknown = torch.full_like(x.sum(), torch.inf).detach()
        waiting = torch.full_like(count, SolverStatus.RUNNING)
        return GaussNewtonState(count, unknown, waiting, unknown, count)

    def update(self, params: Tree, state: GaussNewtonState, *args: Any, **kwargs: Any) -> OptStep:
        """Take one step, unless ``x`` is a minimum already."""
        space = Coordinates.of(params, "`params`")
        x, live = space.vector(params, "`params`"), running(state)
        r, jacobian = VectorFunction(self.residual_fun, space, args, kwargs).linearized(x)
        error = torch.where(live, safe_norm(r @ jacobian).detach(), state.error)
        status = judged(state.status, error, self.tol)
        finite = torch.where(error.isfinite(), jacobian, 0.0)  # of NaN there is no inverse
        step = torch.linalg.pinv(finite) @ r
        moved = torch.where(status == SolverStatus.RUNNING, x - step, x)
        value = torch.where(live, 0.5 * (r @ r), state.value)
        calls = state.num_fun_eval + live
        after = GaussNewtonState(state.iter_num + live, error, status, value, calls)
        return OptStep(space.tree(moved), after)

    def optimality_fun(self, params: Tree, *args: Any, **kwargs: Any) -> Tree:
        """Return the gradient ``J^T r``."""
        return torch.func.grad(half_square(self.residual_fun))(params, *args, **kwargs)


class LevenbergMarquardtState(NamedTuple):
    """The state of `LevenbergMarquardt`; scalars, of each example under `vmap`.

    Attributes:
        iter_num: Int64, updates, whether their steps were taken or not.
        error: Euclidean norm of the gradient ``J^T r``.
        status: Int64, a `SolverStatus`.
        value: ``|r|^2 / 2``.
        num_fun_eval: Int64, calls of the function, each with a Jacobian.
        damping: What is added to the diagonal of ``J^T J``.
        growth: By what it is multiplied when the next step is refused.
        residual: ``r``, (m,).
        jacobian: ``J``, (m, n).
    """

    iter_num: Tensor
    error: Tensor
    status: Tensor
    value: Tensor
    num_fun_eval: Tensor
    damping: Tensor
    growth: Tensor
    residual: Tensor
    jacobian: Tensor


@dataclass(frozen=True)
class LevenbergMarquardt(Solver):
    """Minimize ``|r(x)|^2 / 2`` by damped linearizations.

    The step solves ``(J^T J + damping I) p = -J^T r``. It is taken if it goes downhill; the
    damping follows how well the linearization foretold by how much.

    Attributes:
        residual_fun: ``(x, *args, **kwargs) ->`` the residual ``r``, any tree of real tensors.
        damping: The first damping, against the largest element of the diagonal of ``J^T J``,
            positive.
        tol: Stop once the norm of the gradient ``J^T r`` is at most this.

    Example:
        >>> import torch
        >>> def rosenbrock(x, a):
        ...     return torch.stack([10 * (x[1] - x[0] ** 2), a - x[0]])
        >>> a = torch.tensor(1.0, requires_grad=True)
        >>> x = LevenbergMarquardt(rosenbrock).run(torch.tensor([-1.2, 1.0]), a).params
        >>> x, torch.autograd.grad(x[1], a)  # (a, a^2)
        (tensor([1., 1.], grad_fn=...), (tensor(2.),))

    Source:
        Madsen, Nielsen & Tingleff, *Methods for non-linear least squares problems*, 2nd edition,
        2004, algorithm 3.16.
    """

    residual_fun: Callable[..., Tree]
    damping: float = 1e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive("damping", self.damping)

    def init_state(self, init_params: Tree, *args: Any, **kwargs: Any) -> LevenbergMarquardtState:
        """Return the state before the first update."""
        space = Coordinates.of(init_params, "`init_params`")
        x = space.vector(init_params, "`init_params`")
        fun = VectorFunction(self.residual_fun, space, args, kwargs)
        r, jacobian = fun.linearized(x)
        error = safe_norm(r @ jacobian).detach()
        count = torch.zeros_like(error, dtype=torch.int64)
        status = judged(torch.full_like(count, SolverStatus.RUNNING), error, self.tol)
        largest = jacobian.detach().square().sum(0).amax()
        damping = self.damping * torch.where(largest > 0, largest, 1.0)
        growth = torch.full_like(damping, 2.0)
        return LevenbergMarquardtState(
            count, error, status, 0.5 * (r @ r), count + 1, damping, growth, r, jacobian
        )

    def update(
        self, params: Tree, state: LevenbergMarquardtState, *args: Any, **kwargs: Any
    ) -> OptStep:
        """Try one step."""
        space = Coordinates.of(params, "`params`")
        x, live = space.vector(params, "`params`"), running(state)
        step = damped_step(state)
        trial = torch.where(live, x + step, x)
        r, jacobian = VectorFunction(self.residual_fun, space, args, kwargs).linearized(trial)
        value = 0.5 * (r @ r)
        gain = foretold(state, step, value)
        taken = live & (gain > 0) & jacobian.detach().isfinite().all()
        near = safe_norm(step) <= torch.finfo(x.dtype).eps * (1 + safe_norm(x))
        damping, growth = damped(state, gain, taken)

        def kept(new: Tensor, old: Tensor) -> Tensor:
            return torch.where(taken, new, old)

        error = kept(safe_norm(r @ jacobian).detach(), state.error)
        status = judged(state.status, error, self.tol)
        after = LevenbergMarquardtState(
            state.iter_num + live,
            error,
            ended(status, near.detach(), SolverStatus.STALLED),
            kept(value, state.value),
            state.num_fun_eval + live,
            torch.where(live, damping, state.damping),
            torch.where(live, growth, state.growth),
            kept(r, state.residual),
            kept(jacobian, state.jacobian),
        )
        return OptStep(space.tree(kept(trial, x)), after)

    def optimality_fun(self, params: Tree, *args: Any, **kwargs: Any) -> Tree:
        """Return the gradient ``J^T r``."""
        return torch.func.grad(half_square(self.residual_fun))(params, *args, **kwargs)


def damped_step(state: LevenbergMarquardtState) -> Tensor:
    """Return the step, by orthogonal factors: normal equations would square the condition."""
    jacobian = state.jacobian
    n = jacobian.shape[1]
    bottom = state.damping.sqrt() * unit_matrix(n, jacobian)
    q, upper = torch.linalg.qr(torch.cat([jacobian, bottom]))
    right = state.residual @ q[: len(state.residual)]
    return -torch.linalg.solve_triangular(upper, right[:, None], upper=True)[:, 0]


def foretold(state: LevenbergMarquardtState, step: Tensor, value: Tensor) -> Tensor:
    """Return the decrease of the value against that of the linearization; NaN where that fails."""
    slope = state.residual @ state.jacobian
    expected = 0.5 * (state.damping * (step @ step) - step @ slope)
    # Where both are rounding, the step is as good as any.
    slack = 4 * torch.finfo(value.dtype).eps * state.value
    return ((state.value - value + slack) / (expected + slack)).detach()


def damped(state: LevenbergMarquardtState, gain: Tensor, taken: Tensor) -> tuple[Tensor, Tensor]:
    """Return the next damping and growth."""
    less = state.damping * (1 - (2 * gain - 1) ** 3).clamp(min=1 / 3)
    damping = torch.where(taken, less, state.damping * state.growth)
    return damping, torch.where(taken, 2.0, 2 * state.growth)
