"""Stochastic gradient descent with step sizes from the value of the loss."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from diffopt_implicit._coordinates import Coordinates
from diffopt_implicit._linear_system import Tree, check_nonnegative, check_positive
from diffopt_implicit._solvers._descent import length
from diffopt_implicit._solvers._fixed_point_solvers import check_share
from diffopt_implicit._solvers._gradient_step import Step, StepState, first_state, taken
from diffopt_implicit._solvers._objective import Evaluation, Objective, gradient
from diffopt_implicit._solvers._solver import Solver
from diffopt_implicit._solvers._status import running
from diffopt_implicit._solvers._step import OptStep
from diffopt_implicit._solvers._step_size import Trial, searched_step


@dataclass(frozen=True)
class AdaptiveSGD(Solver):
    """The base of stochastic gradient descent with a step size of its own in each update.

    ``v <- momentum v - stepsize grad f(x)``, ``x <- x + v``.

    Attributes:
        fun: ``(params, *args, data=..., **kwargs) ->`` a scalar, of a minibatch.
        max_stepsize: The largest step size, positive.
        momentum: In [0, 1).
        has_aux: Whether `fun` returns ``(scalar, aux)``.
    """

    fun: Callable[..., Any]
    max_stepsize: float = field(default=1.0, kw_only=True)
    momentum: float = field(default=0.0, kw_only=True)
    has_aux: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive("max_stepsize", self.max_stepsize)
        check_share("momentum", self.momentum)

    @abstractmethod
    def step_size(
        self, objective: Objective, x: Tensor, at: Evaluation, state: StepState
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the step size, whether none was found, and how many calls that took."""

    def init_state(self, init_params: Tree, *args: Any, **kwargs: Any) -> StepState:
        """Return the state before the first update: nothing is evaluated, the error infinite."""
        x = Coordinates.of(init_params, "`init_params`").vector(init_params, "`init_params`")
        return first_state(init_params, torch.zeros_like(x))

    def update(self, params: Tree, state: StepState, *args: Any, **kwargs: Any) -> OptStep:
        """Take one step."""
        space = Coordinates.of(params, "`params`")
        x = space.vector(params, "`params`")
        objective = Objective(self.fun, self.has_aux, space, args, kwargs)
        at = objective.at(x)
        size, failed, trials = self.step_size(objective, x, at, state)
        velocity = self.momentum * state.memory - size * at.grad
        step = Step(x + velocity, size, length(at.grad), velocity, failed, trials)
        moved, after = taken(step, state, x, at, self.tol)
        return OptStep(space.tree(moved), after)

    def optimality_fun(self, params: Tree, *args: Any, **kwargs: Any) -> Tree:
        """Return the gradient of `fun`."""
        return gradient(self.fun, self.has_aux, params, args, kwargs)


@dataclass(frozen=True)
class PolyakSGD(AdaptiveSGD):
    """Stochastic gradient descent with Polyak's step size, for losses whose minimum is known.

    ``stepsize = min(max_stepsize, (f(x) - fun_min) / (|g|^2 + delta))``: right for models that can
    fit each minibatch to `fun_min`.

    Its derivatives are to be implicit: the steps converge, but not their derivatives. A step size
    depends on the direction of the error, which turns ever more sensitively from step to step, so
    those of ``adjoint="unroll"`` grow without bound.

    Attributes:
        fun: ``(params, *args, data=..., **kwargs) ->`` a scalar, of a minibatch: `run_iterator`
            gives `data`.
        fun_min: The least value of a minibatch.
        delta: Keeps the step size finite, at least 0.
        max_stepsize: The largest step size, positive.
        momentum: Share of the last step that is added, in [0, 1).
        has_aux: Whether `fun` returns ``(scalar, aux)``.
        tol: Stop where the Euclidean norm of the gradient is at most this.

    Example:
        >>> import torch
        >>> solver = PolyakSGD(lambda w, data: (data @ w - data.sum(-1)).square().mean())
        >>> batches = torch.randn(100, 8, 3, generator=torch.Generator().manual_seed(0))
        >>> w, state = solver.run_iterator(torch.zeros(3), batches)
        >>> [round(float(v), 2) for v in w]
        [1.0, 1.0, 1.0]

    Source:
        Loizou, Vaswani, Laradji & Lacoste-Julien, *Stochastic Polyak step-size for SGD*, AISTATS
        2021, eq. 4.
    """

    fun_min: float = field(default=0.0, kw_only=True)
    delta: float = field(default=0.0, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_nonnegative("delta", self.delta)

    def step_size(
        self, objective: Objective, x: Tensor, at: Evaluation, state: StepState
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return Polyak's."""
        square = torch.dot(at.grad, at.grad) + self.delta
        size = (at.value - self.fun_min) / torch.where(square > 0, square, 1.0)
        size = size.clamp(0, self.max_stepsize)
        return size, torch.zeros_like(running(state)), torch.zeros_like(state.iter_num)


@dataclass(frozen=True)
class ArmijoSGD(AdaptiveSGD):
    """Stochastic gradient descent with a line search on each minibatch.

    A step from ``x`` shrinks until ``f(x - stepsize g) <= f(x) - c1 stepsize |g|^2``; the next
    search begins at the last step size, increased. The step size is a constant for derivatives.

    Attributes:
        fun: As of `PolyakSGD`.
        c1: Share of the decrease that the gradient promises, in (0, 1).
        decrease: By what a step shrinks, in (0, 1).
        increase: By what the last step size is multiplied, at least 1.
        max_stepsize: The largest step size, positive.
        momentum: As of `PolyakSGD`.
        has_aux: As of `PolyakSGD`.
        maxls: At most so many evaluations a search.
        tol: As of `PolyakSGD`.

    Example:
        >>> import torch
        >>> solver = ArmijoSGD(lambda w, data: (data @ w - data.sum(-1)).square().mean())
        >>> batches = torch.randn(100, 8, 3, generator=torch.Generator().manual_seed(0))
        >>> w, state = solver.run_iterator(torch.zeros(3), batches)
        >>> [round(float(v), 2) for v in w]
        [1.0, 1.0, 1.0]

    Source:
        Vaswani, Mishkin, Laradji, Schmidt, Gidel & Lacoste-Julien, *Painless stochastic gradient:
        interpolation, line-search, and convergence rates*, NeurIPS 2019, eq. 1 and algorithm 1.
    """

    c1: float = field(default=0.5, kw_only=True)
    decrease: float = field(default=0.8, kw_only=True)
    increase: float = field(default=1.5, kw_only=True)
    maxls: int = field(default=40, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive("maxls", self.maxls)
        for name in ("c1", "decrease"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be in (0, 1), got {getattr(self, name)}.")
        if not self.increase >= 1:
            raise ValueError(f"`increase` must be at least 1, got {self.increase}.")

    def step_size(
        self, objective: Objective, x: Tensor, at: Evaluation, state: StepState
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Search one."""
        first = torch.where(state.stepsize > 0, self.increase * state.stepsize, self.max_stepsize)
        found = searched_step(
            partial(step_along, objective, x, at.grad),
            partial(armijo_bound, at, self.c1),
            at.value,
            first.clamp(max=self.max_stepsize),
            running(state) & at.value.isfinite(),
            decrease=self.decrease,
            maxls=self.maxls,
        )
        return found.trial.stepsize.detach(), found.failed, found.evaluations


def step_along(objective: Objective, x: Tensor, grad: Tensor, size: Tensor) -> Trial:
    """Evaluate the function a step down the gradient."""
    new = (x - size * grad).detach()
    return Trial(size, new, objective.value(new)[0].detach(), None)


def armijo_bound(at: Evaluation, c1: float, trial: Trial) -> Tensor:
    """Return ``f(x) - c1 stepsize |g|^2``."""
    return (at.value - c1 * trial.stepsize * torch.dot(at.grad, at.grad)).detach()
