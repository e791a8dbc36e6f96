"""The state of methods that evaluate the function once an update, and then step."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from diffopt_implicit._coordinates import Coordinates
from diffopt_implicit._linear_system import Tree
from diffopt_implicit._solvers._line_search import chosen
from diffopt_implicit._solvers._objective import Evaluation
from diffopt_implicit._solvers._status import SolverStatus, ended, judged, running


class StepState(NamedTuple):
    """The state of such a method; scalars, of each example under `vmap`.

    Attributes:
        iter_num: Int64, updates.
        error: What is held against the tolerance, before the last step.
        status: Int64, a `SolverStatus`.
        value: Of the function before the last step.
        stepsize: The last; 0 before the first.
        num_fun_eval: Int64, calls of the function.
        num_grad_eval: Int64, how many of them were differentiated.
        aux: What the function returned beside its value; () before the first update.
        memory: What the method keeps beside.
    """

    iter_num: Tensor
    error: Tensor
    status: Tensor
    value: Tensor
    stepsize: Tensor
    num_fun_eval: Tensor
    num_grad_eval: Tensor
    aux: Any
    memory: Any


def first_state(init_params: Tree, memory: Any = ()) -> StepState:
    """Return the state before the first update: nothing is evaluated, the error infinite."""
    x = Coordinates.of(init_params, "`init_params`").vector(init_params, "`init_params`")
    zero = torch.zeros_like(x.detach().sum())
    count, far = zero.to(torch.int64), zero + torch.inf
    status = count + SolverStatus.RUNNING
    return StepState(count, far, status, far, zero, count, count, (), memory)


class Step(NamedTuple):
    """A step to be taken, by the examples that run.

    Attributes:
        x: Where it leads.
        stepsize: How long it is.
        error: What is held against the tolerance.
        memory: What the method keeps after it.
        failed: Whether no step was found.
        trials: How many calls of the function that took, beside one with its gradient.
    """

    x: Tensor
    stepsize: Tensor
    error: Tensor
    memory: Any = ()
    failed: Tensor | None = None
    trials: Tensor | int = 0


def taken(
    step: Step, state: StepState, x: Tensor, at: Evaluation, tol: float
) -> tuple[Tensor, StepState]:
    """Return where `step` leads from `x`, and the state; finished examples stay."""
    live = running(state)
    failed = torch.zeros_like(live) if step.failed is None else step.failed
    # A value that is not finite stops an example even where its gradient is.
    error = torch.where(live, (step.error + 0 * at.value).detach(), state.error)
    status = ended(state.status, failed & error.isfinite(), SolverStatus.LINE_SEARCH_FAILED)
    moves = live & error.isfinite() & ~failed
    after = StepState(
        state.iter_num + live,
        error,
        judged(status, error, tol),
        chosen(live, at.value, state.value),
        chosen(live, step.stepsize, state.stepsize),
        state.num_fun_eval + live + step.trials,
        state.num_grad_eval + live,
        at.aux if state.aux == () else chosen(live, at.aux, state.aux),
        chosen(moves, step.memory, state.memory),
    )
    return chosen(moves, step.x, x), after
