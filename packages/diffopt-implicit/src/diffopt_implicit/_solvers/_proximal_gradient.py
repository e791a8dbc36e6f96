"""Gradient descent, proximal and projected: accelerated, with fixed or searched steps."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from pytree_core import tree_map
from torch import Tensor

from diffopt_implicit._coordinates import Coordinates
from diffopt_implicit._linear_system import Tree, check_positive
from diffopt_implicit._solvers._descent import length
from diffopt_implicit._solvers._gradient_step import Step, StepState, first_state, taken
from diffopt_implicit._solvers._objective import Evaluation, Objective, gradient
from diffopt_implicit._solvers._solver import Solver
from diffopt_implicit._solvers._status import running
from diffopt_implicit._solvers._step import OptStep
from diffopt_implicit._solvers._step_size import (
    SearchedStep,
    StepSize,
    Trial,
    check_step_size,
    first_sizes,
    given_step,
    quadratic_bound,
    searched_step,
)


class Momentum(NamedTuple):
    """What acceleration remembers.

    Attributes:
        velocity: The extrapolated point ``y`` of the next update, a vector.
        weight: Nesterov's ``t``; 1 without acceleration.
    """

    velocity: Tensor
    weight: Tensor


@dataclass(frozen=True)
class GradientSolver(Solver):
    """The base of solvers of ``min f(x) + g(x)``, by gradients of ``f`` and a map for ``g``.

    Attributes:
        fun: The smooth ``f``, ``(params, *args, **kwargs) ->`` a scalar.
        stepsize: A number or tensor, a schedule ``iter_num ->`` such, or None: then each step is
            searched, shrunk from twice the last one until a quadratic bounds ``f`` there.
        acceleration: Whether to extrapolate as Nesterov, restarting where that leads uphill.
        has_aux: Whether `fun` returns ``(scalar, aux)``.
        maxls: At most so many evaluations a search.
    """

    fun: Callable[..., Any]
    stepsize: StepSize | None = field(default=None, kw_only=True)
    acceleration: bool = field(default=True, kw_only=True)
    has_aux: bool = field(default=False, kw_only=True)
    maxls: int = field(default=40, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_step_size(self.stepsize)
        check_positive("maxls", self.maxls)

    @abstractmethod
    def split(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Problem:
        """Tell the arguments of the map from those of `fun`."""

    @abstractmethod
    def mapped(self, params: Tree, hyperparams: tuple[Any, ...], scaling: Tensor | float) -> Tree:
        """Apply the map of ``g``, for the step size `scaling`."""

    def init_state(self, init_params: Tree, *args: Any, **kwargs: Any) -> StepState:
        """Return the state before the first update: nothing is evaluated, the error infinite."""
        x = Coordinates.of(init_params, "`init_params`").vector(init_params, "`init_params`")
        return first_state(init_params, Momentum(x, torch.ones_like(x.detach().sum())))

    def update(self, params: Tree, state: StepState, *args: Any, **kwargs: Any) -> OptStep:
        """Step along the gradient, and map."""
        space = Coordinates.of(params, "`params`")
        x = space.vector(params, "`params`")
        hyperparams, args, kwargs = self.split(args, kwargs)
        objective = Objective(self.fun, self.has_aux, space, args, kwargs)
        y = state.memory.velocity if self.acceleration else x
        at = objective.at(y)

        def attempt(size: Tensor) -> Trial:
            there = self.mapped(space.tree(y - size * at.grad), hyperparams, size)
            new = space.vector(there, "The mapped parameters")
            searched = self.stepsize is None
            return Trial(size, new, objective.value(new)[0] if searched else at.value, None)

        (size, new, *_), failed, trials = self._stepped(attempt, y, at, state)
        error = length(y - new) / size.detach()
        momentum = self._extrapolated(x, y, new, state.memory)
        step = Step(new, size, error, momentum, failed, trials)
        moved, after = taken(step, state, x, at, self.tol)
        return OptStep(space.tree(moved), after)

    def optimality_fun(self, params: Tree, *args: Any, **kwargs: Any) -> Tree:
        """Return ``params - map(params - gradient)``, whatever the step size was."""
        hyperparams, args, kwargs = self.split(args, kwargs)
        grad = gradient(self.fun, self.has_aux, params, args, kwargs)
        there = tree_map(lambda x, g: x - g, params, grad)
        return tree_map(lambda x, z: x - z, params, self.mapped(there, hyperparams, 1.0))

    def _stepped(
        self, attempt: Callable[[Tensor], Trial], y: Tensor, at: Evaluation, state: StepState
    ) -> SearchedStep:
        live = running(state) & at.value.isfinite()
        if self.stepsize is not None:
            size = given_step(self.stepsize, state.iter_num, state.error)
            return SearchedStep(attempt(size), torch.zeros_like(live), 0 * state.iter_num)
        first, largest = first_sizes(state.stepsize)
        bound = partial(quadratic_bound, y, at.value, at.grad, largest)
        return searched_step(attempt, bound, at.value, first, live, decrease=0.5, maxls=self.maxls)

    def _extrapolated(self, x: Tensor, y: Tensor, new: Tensor, before: Momentum) -> Momentum:
        if not self.acceleration:
            return Momentum(new, before.weight)
        uphill = torch.dot(y - new, new - x).detach() > 0
        weight = torch.where(uphill, 1.0, before.weight)
        after = (1 + (1 + 4 * weight.square()).sqrt()) / 2
        return Momentum(new + (weight - 1) / after * (new - x), after)


class Problem(NamedTuple):
    """The arguments of `run`, sorted."""

    hyperparams: tuple[Any, ...]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def sorted_arguments(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Problem:
    """Take what is called `name`, or the first argument, for the map: a tuple, one, or None."""
    if name in kwargs:
        rest = dict(kwargs)
        given, args, kwargs = rest.pop(name), args, rest
    else:
        given, args = (args[0], args[1:]) if args else (None, ())
    if given is None:
        return Problem((), args, kwargs)
    return Problem(given if isinstance(given, tuple) else (given,), args, kwargs)


@dataclass(frozen=True)
class GradientDescent(GradientSolver):
    """Minimize by gradient descent: ``x <- y - stepsize grad f(y)``.

    Attributes:
        fun: ``(params, *args, **kwargs) ->`` a scalar to minimize, smooth.
        stepsize: A number or tensor, a schedule ``iter_num ->`` such, or None, which searches.
            A tensor that requires grad has its derivative with ``adjoint="unroll"``.
        acceleration: Whether ``y`` is extrapolated from the last two ``x``, as Nesterov does,
            restarting where that leads uphill; else it is the last.
        has_aux: Whether `fun` returns ``(scalar, aux)``.
        maxls: At most so many evaluations a search.
        tol: Stop where the Euclidean norm of the gradient at ``y``, over all leaves, is at most
            this.

    Example:
        >>> import torch
        >>> solver = GradientDescent(lambda x, a: (x - a).square().sum())
        >>> a = torch.tensor([1.0, 2.0], requires_grad=True)
        >>> x, state = solver.run(torch.zeros(2), a)
        >>> x.sum().backward()
        >>> a.grad
        tensor([1., 1.])

    Source:
        Nesterov, *A method of solving a convex programming problem with convergence rate
        O(1/k^2)*, Soviet Math. Dokl. 27, 1983; O'Donoghue & Candès, *Adaptive restart for
        accelerated gradient schemes*, Found. Comput. Math. 15, 2015, section 3.2.
    """

    def split(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Problem:
        """Leave all to `fun`."""
        return Problem((), args, kwargs)

    def mapped(self, params: Tree, hyperparams: tuple[Any, ...], scaling: Tensor | float) -> Tree:
        """Return `params`."""
        return params


@dataclass(frozen=True)
class ProximalGradient(GradientSolver):
    """Minimize ``f(x) + g(x)``: ``x <- prox(y - stepsize grad f(y))``.

    Called as ``run(init_params, hyperparams_prox, *args, **kwargs)``, in which the solution has
    derivatives, also where the proximal operator has set elements to zero.

    Attributes:
        fun: The smooth ``f``, as of `GradientDescent`.
        prox: The proximal operator of ``g``, of `diffopt_implicit.proximal` or like them:
            ``(params, *hyperparams_prox, scaling=stepsize) ->`` a tree like `params`.
        stepsize: As of `GradientDescent`.
        acceleration: As of `GradientDescent`: then it is FISTA.
        has_aux: As of `GradientDescent`.
        maxls: As of `GradientDescent`.
        tol: Stop where the Euclidean norm of ``(y - x) / stepsize`` is at most this.

    Example:
        >>> import torch
        >>> from diffopt_implicit import proximal
        >>> solver = ProximalGradient(lambda x, y: 0.5 * (x - y).square().sum(), proximal.lasso)
        >>> penalty = torch.tensor(0.7, requires_grad=True)
        >>> x = solver.run(torch.zeros(3), penalty, torch.tensor([3.0, 0.5, -1.0])).params
        >>> x.detach()
        tensor([ 2.3000,  0.0000, -0.3000])
        >>> torch.autograd.grad(x[0], penalty)
        (tensor(-1.),)

    Source:
        Beck & Teboulle, *A fast iterative shrinkage-thresholding algorithm for linear inverse
        problems*, SIAM J. Imaging Sciences 2, 2009, eqs. 4.1-4.3.
    """

    prox: Callable[..., Tree]

    def split(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Problem:
        """Take `hyperparams_prox`."""
        return sorted_arguments("hyperparams_prox", args, kwargs)

    def mapped(self, params: Tree, hyperparams: tuple[Any, ...], scaling: Tensor | float) -> Tree:
        """Apply `prox`."""
        return self.prox(params, *hyperparams, scaling=scaling)


@dataclass(frozen=True)
class ProjectedGradient(GradientSolver):
    """Minimize ``f(x)`` on a convex set: ``x <- projection(y - stepsize grad f(y))``.

    Called as ``run(init_params, hyperparams_proj, *args, **kwargs)``, in which the solution has
    derivatives, also where constraints are active.

    Attributes:
        fun: As of `GradientDescent`.
        projection: On the set, of `diffopt_implicit.projections` or like them:
            ``(params, *hyperparams_proj) ->`` a tree like `params`.
        stepsize: As of `GradientDescent`.
        acceleration: As of `GradientDescent`.
        has_aux: As of `GradientDescent`.
        maxls: As of `GradientDescent`.
        tol: As of `ProximalGradient`.

    Example:
        >>> import torch
        >>> from diffopt_implicit import projections
        >>> solver = ProjectedGradient(lambda x, y: (x - y).square().sum(), projections.box)
        >>> upper = torch.tensor(1.0, requires_grad=True)
        >>> x = solver.run(torch.zeros(2), (0.0, upper), torch.tensor([0.5, 3.0])).params
        >>> x.detach(), torch.autograd.grad(x.sum(), upper)
        (tensor([0.5000, 1.0000]), (tensor(1.),))

    Source:
        Beck & Teboulle, ibid.; Blondel et al., *Efficient and modular implicit differentiation*,
        NeurIPS 2022, eq. 9.
    """

    projection: Callable[..., Tree]

    def split(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Problem:
        """Take `hyperparams_proj`."""
        return sorted_arguments("hyperparams_proj", args, kwargs)

    def mapped(self, params: Tree, hyperparams: tuple[Any, ...], scaling: Tensor | float) -> Tree:
        """Apply `projection`."""
        return self.projection(params, *hyperparams)
