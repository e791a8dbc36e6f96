"""L-BFGS within bounds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from pytree_core import tree_broadcast_prefix, tree_map
from torch import Tensor

from diffopt_implicit import projections
from diffopt_implicit._coordinates import Coordinates
from diffopt_implicit._linear_system import Tree, check_positive
from diffopt_implicit._solvers._descent import DescentState, length, short_step
from diffopt_implicit._solvers._line_search import chosen
from diffopt_implicit._solvers._objective import Evaluation, Objective, gradient
from diffopt_implicit._solvers._quasi_newton import inverse_product, normalized_pair
from diffopt_implicit._solvers._solver import Solver
from diffopt_implicit._solvers._status import SolverStatus, ended, judged, running
from diffopt_implicit._solvers._step import OptStep
from diffopt_implicit._solvers._step_size import Trial, searched_step


class Box(NamedTuple):
    """Bounds, as vectors."""

    lower: Tensor
    upper: Tensor

    def nearest(self, x: Tensor) -> Tensor:
        """Return the projection of a vector."""
        return torch.minimum(torch.maximum(x, self.lower), self.upper)

    def distance(self, x: Tensor, grad: Tensor) -> Tensor:
        """Return how far a projected gradient step leads, 0 at a solution."""
        return length(x - self.nearest(x - grad))

    def is_free(self, x: Tensor, grad: Tensor, near: Tensor) -> Tensor:
        """Tell which elements are not held by a bound within `near`, towards which they tend."""
        held = (x <= self.lower + near) & (grad > 0)
        return ~(held | ((x >= self.upper - near) & (grad < 0)))


@dataclass(frozen=True)
class LBFGSB(Solver):
    """Minimize within bounds by L-BFGS on the elements that no bound holds.

    Elements at a bound, towards which the gradient pushes them, follow the gradient; the others a
    quasi-Newton direction made of their own share of the last steps. A search shrinks the step
    along the projection of that direction on the bounds.

    Called as ``run(init_params, bounds, *args, **kwargs)``, with ``bounds = (lower, upper)``, each
    a number or a tree that is a prefix of the parameters; either may be infinite, and both may
    require grad. The solution has derivatives also where bounds are active. Where a lower bound is
    above its upper one the status is ``INFEASIBLE``.

    Beside SciPy's L-BFGS-B, to the same tolerance: 30 iterations (42 evaluations) against 20 (30)
    on Rosenbrock's function with ``x[0] <= 0.5``, 34 (40) against 164 (196) on that of fifty
    unknowns below 0.8, 12 (13) against 11 (15) on nonnegative least squares with the diabetes
    data.

    Attributes:
        fun: ``(params, *args, **kwargs) ->`` a scalar to minimize, smooth.
        history_size: How many pairs are kept, positive.
        has_aux: Whether `fun` returns ``(scalar, aux)``.
        maxls: At most so many evaluations a search.
        tol: Stop where the Euclidean norm of ``x - projection(x - gradient)`` is at most this.

    Example:
        >>> import torch
        >>> solver = LBFGSB(lambda x, target: (x - target).square().sum())
        >>> upper = torch.tensor(1.0, requires_grad=True)
        >>> x = solver.run(torch.zeros(2), (0.0, upper), torch.tensor([0.5, 3.0])).params
        >>> x.detach(), torch.autograd.grad(x.sum(), upper)
        (tensor([0.5000, 1.0000]), (tensor(1.),))

    Source:
        Bertsekas, *Projected Newton methods for optimization problems with simple constraints*,
        SIAM J. Control Optim. 20, 1982, with the quasi-Newton matrix of Byrd, Nocedal & Schnabel,
        Math. Programming 63, 1994. Not the algorithm of Byrd, Lu, Nocedal & Zhu, 1995.
    """

    fun: Callable[..., Any]
    history_size: int = field(default=10, kw_only=True)
    has_aux: bool = field(default=False, kw_only=True)
    maxls: int = field(default=40, kw_only=True)

    keeps_gradient = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive("history_size", self.history_size)
        check_positive("maxls", self.maxls)

    def init_state(
        self, init_params: Tree, bounds: tuple[Tree, Tree], *args: Any, **kwargs: Any
    ) -> DescentState:
        """Return the state before the first update: the function is evaluated within bounds."""
        space = Coordinates.of(init_params, "`init_params`")
        box = box_of(space, bounds, init_params)
        x = box.nearest(space.vector(init_params, "`init_params`"))
        value, grad, aux = Objective(self.fun, self.has_aux, space, args, kwargs).at(x)
        error = box.distance(x, grad) + 0 * value.detach()
        none = torch.zeros_like(error, dtype=torch.int64)
        crossed = (box.lower > box.upper).any()
        status = ended(none + SolverStatus.RUNNING, crossed, SolverStatus.INFEASIBLE)
        status = judged(status, error, self.tol)
        memory = x.detach().new_zeros(2, self.history_size, space.size)
        zero, calls = torch.zeros_like(error), none + 1
        return DescentState(none, error, status, value, zero, calls, calls, aux, grad, memory)

    def update(
        self,
        params: Tree,
        state: DescentState,
        bounds: tuple[Tree, Tree],
        *args: Any,
        **kwargs: Any,
    ) -> OptStep:
        """Search along one projected direction."""
        space = Coordinates.of(params, "`params`")
        box = box_of(space, bounds, params)
        x = box.nearest(space.vector(params, "`params`"))
        objective, live = Objective(self.fun, self.has_aux, space, args, kwargs), running(state)
        direction = self._direction(box, x, state)

        def attempt(size: Tensor) -> Trial:
            there = box.nearest(x + size * direction)
            at = objective.at(there)
            return Trial(size, there, at.value.detach(), at)

        here = Evaluation(state.value, state.grad, state.aux)
        first = torch.where(state.iter_num > 0, 1.0, short_step(direction))
        trial, failed, calls = searched_step(
            attempt,
            partial(projected_bound, x, here),
            state.value,
            first,
            live,
            decrease=0.5,
            maxls=self.maxls,
        )
        moves = live & ~failed
        new, (value, grad, aux) = chosen(moves, (trial.x, trial.rest), (x, here))
        pair, curved = normalized_pair(new - x, grad - state.grad)
        later = torch.cat([state.memory[:, 1:], pair[:, None]], dim=1)
        error = torch.where(live, box.distance(new, grad) + 0 * value.detach(), state.error)
        status = ended(state.status, failed, SolverStatus.LINE_SEARCH_FAILED)
        after = DescentState(
            state.iter_num + live,
            error,
            judged(status, error, self.tol),
            value,
            torch.where(live, trial.stepsize, state.stepsize),
            state.num_fun_eval + calls,
            state.num_grad_eval + calls,
            aux,
            grad,
            torch.where(curved & moves, later, state.memory),
        )
        return OptStep(space.tree(new), after)

    def optimality_fun(
        self, params: Tree, bounds: tuple[Tree, Tree], *args: Any, **kwargs: Any
    ) -> Tree:
        """Return ``params - projection(params - gradient)``."""
        grad = gradient(self.fun, self.has_aux, params, args, kwargs)
        there = tree_map(lambda x, g: x - g, params, grad)
        return tree_map(lambda x, z: x - z, params, projections.box(there, *bounds))

    def _direction(self, box: Box, x: Tensor, state: DescentState) -> Tensor:
        # Elements are held from a little distance on, or the search might shrink without end.
        free = box.is_free(x, state.grad, state.error.clamp(max=1e-3))
        own = torch.where(free, state.grad, 0.0)
        steps, changes = torch.where(free, state.memory, 0.0)
        curvature = (steps * changes).sum(-1)
        eps = torch.finfo(x.dtype).eps
        sizes = torch.linalg.vector_norm(steps, dim=-1) * torch.linalg.vector_norm(changes, dim=-1)
        known = curvature > eps * sizes
        scale = torch.where(known, torch.where(known, curvature, 1.0).rsqrt(), 0.0)
        pairs = torch.stack([steps, changes]) * scale[:, None]
        # What is held now may have been all that the last pairs moved.
        order = torch.arange(1, self.history_size + 1, device=x.device)
        newest = torch.where(known, order, 0).argmax(0, keepdim=True)
        square = pairs[1].square().sum(-1).gather(0, newest)[0]
        newton = torch.where(free, -inverse_product(pairs, own, square), -state.grad)
        downhill = (torch.dot(newton, own) < 0) | ~(length(own) > 0)
        return chosen(downhill, newton, -state.grad)


def projected_bound(x: Tensor, here: Evaluation, trial: Trial) -> Tensor:
    """Return Armijo's bound of the value at a projected point."""
    return (here.value + 1e-4 * torch.dot(here.grad, trial.x - x)).detach()


def box_of(space: Coordinates, bounds: tuple[Tree, Tree], params: Tree) -> Box:
    """Return bounds as vectors."""
    if not isinstance(bounds, tuple) or len(bounds) != 2:
        raise ValueError(
            "`bounds` must be a pair `(lower, upper)` of numbers or trees like the parameters, "
            f"got {type(bounds).__name__}."
        )

    def spread(leaf: Tensor, bound: Any) -> Tensor:
        return torch.as_tensor(bound, dtype=leaf.dtype, device=leaf.device).expand(leaf.shape)

    def side(bound: Tree) -> Tensor:
        return space.vector(tree_map(spread, params, tree_broadcast_prefix(bound, params)), "bound")

    return Box(side(bounds[0]), side(bounds[1]))
