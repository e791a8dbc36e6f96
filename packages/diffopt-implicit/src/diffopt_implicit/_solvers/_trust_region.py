"""Newton's method for minima, within a region in which its model is trusted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from diffopt_implicit._coordinates import Coordinates
from diffopt_implicit._linear_system import Tree, VectorMap, check_positive, safe_norm
from diffopt_implicit._solvers._jacobian import unit_matrix
from diffopt_implicit._solvers._objective import Objective, gradient
from diffopt_implicit._solvers._solver import Solver
from diffopt_implicit._solvers._status import SolverStatus, ended, judged, running
from diffopt_implicit._solvers._step import OptStep
from diffopt_implicit._torch import any_true, vjp

# The shares of what the model foretold at which the region shrinks, and grows: Nocedal & Wright,
# algorithm 4.1.
POOR, GOOD = 0.25, 0.75


class ModelStep(NamedTuple):
    """A step of a quadratic model.

    Attributes:
        step: The step, (n,).
        curved: Its product with the Hessian, (n,).
        products: Int64 scalar, how many products with the Hessian it took.
    """

    step: Tensor
    curved: Tensor
    products: Tensor


class Subproblem(Protocol):
    """A way to minimize a quadratic model in a ball: a frozen value.

    Example:
        >>> SteihaugCG()
        SteihaugCG(maxiter=None)
    """

    def __call__(self, slope: Tensor, product: VectorMap, radius: Tensor) -> ModelStep:
        """Return a step of at most the length `radius`.

        Args:
            slope: The gradient, (n,).
            product: The product with the Hessian.
            radius: Scalar, positive.
        """
        ...


@dataclass(frozen=True)
class SteihaugCG:
    """Conjugate gradients, until the ball or a direction of negative curvature ends them.

    Takes products with the Hessian alone.

    Attributes:
        maxiter: At most so many products; default the number of unknowns.

    Example:
        >>> import torch
        >>> slope, radius = torch.tensor([1.0, 0.0]), torch.tensor(0.5)
        >>> SteihaugCG()(slope, lambda v: -v, radius).step
        tensor([-0.5000, 0.0000])

    Source:
        Steihaug, *The conjugate gradient method and trust regions in large scale optimization*,
        SIAM J. Numer. Anal. 20, 1983; Nocedal & Wright, *Numerical Optimization*, 2nd edition,
        2006, algorithm 7.2.
    """

    maxiter: int | None = None

    def __call__(self, slope: Tensor, product: VectorMap, radius: Tensor) -> ModelStep:
        """Return a step."""
        size = safe_norm(slope)
        goal = size * size.sqrt().clamp(max=0.5)  # for convergence of higher than first order
        p, curved, r, d = 0 * slope, 0 * slope, slope, -slope
        live, count = size > 0, torch.zeros_like(size, dtype=torch.int64)
        for _ in range(len(slope) if self.maxiter is None else self.maxiter):
            if not any_true(live):
                break
            image = product(d)
            curvature, rr = d @ image, r @ r
            alpha = rr / torch.where(curvature > 0, curvature, 1.0)
            leaves = ~((curvature > 0) & (safe_norm(p + alpha * d) < radius))
            length = torch.where(live, torch.where(leaves, to_boundary(p, d, radius), alpha), 0.0)
            p, curved, after = p + length * d, curved + length * image, r + alpha * image
            count = count + live
            live = live & ~leaves & (safe_norm(after) > goal)
            d = torch.where(live, (after @ after) / torch.where(rr > 0, rr, 1.0) * d - after, d)
            r = torch.where(live, after, r)
        return ModelStep(p, curved, count)


@dataclass(frozen=True)
class Dogleg:
    """The way along steepest descent, then towards Newton's step, as far as the ball reaches.

    The Hessian is written out and factorized; where it is not positive definite, only steepest
    descent is left.

    Example:
        >>> import torch
        >>> slope, radius = torch.tensor([1.0, 0.0]), torch.tensor(5.0)
        >>> Dogleg()(slope, lambda v: 2 * v, radius).step
        tensor([-0.5000, 0.0000])

    Source:
        Powell, 1970; Nocedal & Wright, *Numerical Optimization*, 2nd edition, 2006, section 4.1.
    """

    def __call__(self, slope: Tensor, product: VectorMap, radius: Tensor) -> ModelStep:
        """Return a step."""
        hessian = torch.func.vmap(product)(unit_matrix(len(slope), slope))
        factor, failed = torch.linalg.cholesky_ex(hessian)
        convex = failed == 0
        safe = torch.where(convex, factor, unit_matrix(len(slope), slope))
        newton = -torch.cholesky_solve(slope[:, None], safe)[:, 0]
        curvature, square = slope @ (hessian @ slope), slope @ slope
        bowl = curvature > 0
        cauchy = -(square / torch.where(bowl, curvature, 1.0)) * slope
        steepest = to_boundary(0 * slope, -slope, radius) * -slope
        first = torch.where(bowl & (safe_norm(cauchy) < radius), cauchy, steepest)
        bend = newton - cauchy
        second = cauchy + to_boundary(cauchy, bend, radius).clamp(max=1.0) * bend
        inside = convex & (safe_norm(cauchy) < radius)
        step = torch.where(inside, second, first)
        count = torch.full_like(failed, len(slope), dtype=torch.int64)
        return ModelStep(step, hessian @ step, count)


def to_boundary(p: Tensor, d: Tensor, radius: Tensor) -> Tensor:
    """Return the positive ``t`` at which ``p + t d`` leaves the ball, for ``p`` within it."""
    pd, dd = p @ d, d @ d
    safe = torch.where(dd > 0, dd, 1.0)
    root = (pd * pd + safe * (radius * radius - p @ p).clamp(min=0)).clamp(min=0).sqrt()
    return (root - pd) / safe


class TrustRegionState(NamedTuple):
    """The state of `TrustRegion`; scalars, of each example under `vmap`.

    Attributes:
        iter_num: Int64, updates, whether their steps were taken or not.
        error: Euclidean norm of the gradient, before the last update.
        status: Int64, a `SolverStatus`.
        value: Of the function there.
        num_fun_eval: Int64, calls of the function.
        num_grad_eval: Int64, how many of them were differentiated, twice.
        num_hvp_eval: Int64, products with the Hessian.
        radius: Of the ball in which the model is trusted.
    """

    iter_num: Tensor
    error: Tensor
    status: Tensor
    value: Tensor
    num_fun_eval: Tensor
    num_grad_eval: Tensor
    num_hvp_eval: Tensor
    radius: Tensor


@dataclass(frozen=True)
class TrustRegion(Solver):
    """Minimize a function by its quadratic models, wherever it starts.

    Newton's method that only goes downhill: the step minimizes the model in a ball, whose radius
    follows how well the last model foretold the decrease. Hessians need not be positive definite.

    Attributes:
        fun: ``(x, *args, **kwargs) ->`` a scalar, twice differentiable.
        subproblem: How to minimize a model: `SteihaugCG` or `Dogleg`.
        radius: The first radius, positive.
        max_radius: The largest.
        tol: Stop once the norm of the gradient is at most this.

    Example:
        >>> import torch
        >>> def rosenbrock(x, a):
        ...     return (a - x[0]) ** 2 + 100 * (x[1] - x[0] ** 2) ** 2
        >>> a = torch.tensor(1.0, requires_grad=True)
        >>> x = TrustRegion(rosenbrock, tol=1e-3).run(torch.tensor([-1.2, 1.0]), a).params
        >>> x.detach().round(decimals=2)
        tensor([1., 1.])
        >>> torch.autograd.grad(x[0], a)[0].round(decimals=2)
        tensor(1.)

    Source:
        Nocedal & Wright, *Numerical Optimization*, 2nd edition, 2006, algorithm 4.1.
    """

    fun: Callable[..., Tensor]
    subproblem: Subproblem = SteihaugCG()
    radius: float = 1.0
    max_radius: float = 1e3

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive("radius", self.radius)
        check_positive("max_radius", self.max_radius)

    def init_state(self, init_params: Tree, *args: Any, **kwargs: Any) -> TrustRegionState:
        """Return the state before the first update."""
        x = Coordinates.of(init_params, "`init_params`").vector(init_params, "`init_params`")
        count = torch.zeros_like(x.sum(), dtype=torch.int64)
        unknown = torch.full_like(x.sum(), torch.inf).detach()
        radius = torch.full_like(unknown, self.radius)
        waiting = torch.full_like(count, SolverStatus.RUNNING)
        return TrustRegionState(count, unknown, waiting, unknown, count, count, count, radius)

    def update(self, params: Tree, state: TrustRegionState, *args: Any, **kwargs: Any) -> OptStep:
        """Try one step, unless ``x`` is a minimum already."""
        space = Coordinates.of(params, "`params`")
        objective = Objective(self.fun, False, space, args, kwargs)
        x, live = space.vector(params, "`params`"), running(state)
        (slope, value), pull = vjp(lambda x: objective.at(x)[1::-1], x)
        error = torch.where(live, safe_norm(slope).detach(), state.error)
        status = judged(state.status, error + 0 * value.detach(), self.tol)
        moves = status == SolverStatus.RUNNING
        radius, moved, products = state.radius, x, torch.zeros_like(state.num_hvp_eval)
        zero = torch.zeros_like(value)
        if any_true(moves):
            model = self.subproblem(slope, lambda v: pull((v, zero))[0], state.radius)
            trial = torch.where(moves, x + model.step, x)
            gain = foretold(model, slope, value, objective.value(trial)[0])
            moved = torch.where(moves & (gain > 1e-4), trial, x)
            radius = torch.where(moves, self._next_radius(state.radius, gain, model.step), radius)
            products = torch.where(moves, model.products, 0)
        stuck = radius <= torch.finfo(x.dtype).eps * (1 + safe_norm(x))
        after = TrustRegionState(
            state.iter_num + live,
            error,
            ended(status, stuck.detach(), SolverStatus.STALLED),
            torch.where(live, value, state.value),
            state.num_fun_eval + live + moves,
            state.num_grad_eval + live,
            state.num_hvp_eval + products,
            radius.detach(),
        )
        return OptStep(space.tree(moved), after)

    def _next_radius(self, radius: Tensor, gain: Tensor, step: Tensor) -> Tensor:
        size = safe_norm(step)
        grows = (gain > GOOD) & (size >= 0.99 * radius)
        larger = torch.where(grows, (2 * radius).clamp(max=self.max_radius), radius)
        return torch.where(gain >= POOR, larger, 0.25 * torch.minimum(size, radius))

    def optimality_fun(self, params: Tree, *args: Any, **kwargs: Any) -> Tree:
        """Return the gradient."""
        return gradient(self.fun, False, params, args, kwargs)


def foretold(model: ModelStep, slope: Tensor, value: Tensor, after: Tensor) -> Tensor:
    """Return the decrease of the value against that of the model; NaN where that fails."""
    expected = -(slope @ model.step) - 0.5 * (model.step @ model.curved)
    # Where both are rounding, the step is as good as any.
    slack = 10 * torch.finfo(value.dtype).eps * value.abs().clamp(min=torch.finfo(value.dtype).tiny)
    return ((value - after + slack) / (expected + slack)).detach()
