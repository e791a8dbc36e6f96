"""Descent along a direction by a line search: what quasi-Newton and gradient methods share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from diffopt_implicit._coordinates import Coordinates
from diffopt_implicit._linear_system import Tree
from diffopt_implicit._solvers._line_search import (
    Line,
    LineSearch,
    Point,
    chosen,
    searched,
)
from diffopt_implicit._solvers._objective import Objective, gradient
from diffopt_implicit._solvers._solver import Solver
from diffopt_implicit._solvers._status import SolverStatus, ended, judged, running
from diffopt_implicit._solvers._step import OptStep
from diffopt_implicit._solvers._zoom import ZoomLineSearch
from diffopt_implicit._torch import any_true


class DescentState(NamedTuple):
    """The state of a descent method; scalars, of each example under `vmap`.

    Attributes:
        iter_num: Int64, updates.
        error: Euclidean norm of the gradient.
        status: Int64, a `SolverStatus`.
        value: Of the function.
        stepsize: The last step, in units of the direction; 0 before the first.
        num_fun_eval: Int64, calls of the function.
        num_grad_eval: Int64, how many of them were differentiated: all.
        aux: What the function returned beside its value.
        grad: The gradient as a vector.
        memory: What the method keeps to choose its direction.
    """

    iter_num: Tensor
    error: Tensor
    status: Tensor
    value: Tensor
    stepsize: Tensor
    num_fun_eval: Tensor
    num_grad_eval: Tensor
    aux: Any
    grad: Tensor
    memory: Any


class Move(NamedTuple):
    """A step that was taken, as vectors."""

    step: Tensor
    change: Tensor  # of the gradient
    grad: Tensor  # after it
    direction: Tensor
    previous: Tensor  # the gradient before it


@dataclass(frozen=True)
class Descent(Solver):
    """The base of solvers that search along one direction an update.

    Attributes:
        fun: ``(params, *args, **kwargs) ->`` a scalar to minimize, smooth.
        linesearch: How to choose the step.
        has_aux: Whether `fun` returns ``(scalar, aux)``.
    """

    fun: Callable[..., Any]
    linesearch: LineSearch = field(default_factory=ZoomLineSearch)
    has_aux: bool = False

    keeps_gradient: ClassVar[bool] = True

    @abstractmethod
    def first_memory(self, x: Tensor) -> Any:
        """Return the memory before the first step, at the vector `x`."""

    @abstractmethod
    def direction(self, memory: Any, grad: Tensor) -> Tensor:
        """Return the direction of search, downhill."""

    @abstractmethod
    def remembered(self, memory: Any, move: Move) -> Any:
        """Return the memory after a step."""

    def init_state(self, init_params: Tree, *args: Any, **kwargs: Any) -> DescentState:
        """Return the state before the first update: the function is evaluated."""
        space = Coordinates.of(init_params, "`init_params`")
        x = space.vector(init_params, "`init_params`")
        value, grad, aux = Objective(self.fun, self.has_aux, space, args, kwargs).at(x)
        error = length(grad)
        none = torch.zeros_like(error, dtype=torch.int64)
        status = judged(none + SolverStatus.RUNNING, error + 0 * value.detach(), self.tol)
        calls = none + 1
        state = DescentState(
            none, error, status, value, torch.zeros_like(error), calls, calls, aux, grad, None
        )
        return state._replace(memory=self.first_memory(x))

    def update(self, params: Tree, state: DescentState, *args: Any, **kwargs: Any) -> OptStep:
        """Search along one direction."""
        space = Coordinates.of(params, "`params`")
        x = space.vector(params, "`params`")
        live = running(state)
        direction = self.direction(state.memory, state.grad)
        slope = torch.dot(direction, state.grad)
        steepest = (direction == -state.grad).all()
        # Rounding, or a function that is not smooth, may spoil a direction.
        spoilt = ~(slope < -1e-10 * length(direction) * state.error)
        if any_true(spoilt):
            direction = chosen(spoilt, -state.grad, direction)
            slope = chosen(spoilt, -torch.dot(state.grad, state.grad), slope)
            steepest = steepest | spoilt
        start = Point(torch.zeros_like(slope), state.value, slope, x, state.grad, state.aux)
        line = Line(Objective(self.fun, self.has_aux, space, args, kwargs), x, direction)
        unit = torch.ones_like(slope)
        if any_true(steepest):
            unit = chosen(steepest, short_step(direction), unit)
        first = self.first_step(state.memory, slope, unit)
        point, lost, calls = searched(self.linesearch, line, start, first, live)
        move = Move(point.x - x, point.grad - state.grad, point.grad, direction, state.grad)
        memory = chosen(live & ~lost, self.remembered(state.memory, move), state.memory)
        error, status = length(point.grad), state.status
        if any_true(lost):
            # What was learned may be wrong: forget it, and give up where the gradient fails too.
            memory = chosen(lost & ~steepest, self.first_memory(x), memory)
            status = ended(status, lost & steepest, SolverStatus.LINE_SEARCH_FAILED)
        after = DescentState(
            state.iter_num + live,
            error,
            judged(status, error, self.tol),
            point.value,
            chosen(live, point.step, state.stepsize),
            state.num_fun_eval + calls,
            state.num_grad_eval + calls,
            point.aux,
            point.grad,
            memory,
        )
        return OptStep(space.tree(point.x), after)

    def first_step(self, memory: Any, slope: Tensor, unit: Tensor) -> Tensor:
        """Return the step to try first: `unit`, which is 1 but for the gradient's direction."""
        return unit

    def optimality_fun(self, params: Tree, *args: Any, **kwargs: Any) -> Tree:
        """Return the gradient of `fun`."""
        return gradient(self.fun, self.has_aux, params, args, kwargs)


def length(vector: Tensor) -> Tensor:
    """Return the Euclidean norm, to compare with."""
    return torch.linalg.vector_norm(vector.detach())


def short_step(direction: Tensor) -> Tensor:
    """Return the step of length 1 in a direction of unknown scale, or 1 where that is shorter."""
    return torch.dot(direction, direction).clamp(min=1).rsqrt()
