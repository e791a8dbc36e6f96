"""Why a solver stopped, for each example, and what is said when it failed."""

from __future__ import annotations

import warnings
from enum import IntEnum
from typing import Any

import torch
from torch import Tensor

from diffopt_implicit._linear_info import OnFailure
from diffopt_implicit._solvers._step import State
from diffopt_implicit._torch import any_true, by_example, is_wrapped, nan_largest


class SolverStatus(IntEnum):
    """How far an example has come; the values of the int64 tensor ``state.status``.

    Example:
        >>> import torch
        >>> from diffopt_implicit import FixedPointIteration
        >>> state = FixedPointIteration(torch.cos).run(torch.tensor(1.0)).state
        >>> SolverStatus(int(state.status))
        <SolverStatus.CONVERGED: 0>
    """

    RUNNING = -1
    CONVERGED = 0
    MAXITER = 1
    LINE_SEARCH_FAILED = 2
    NONFINITE = 3
    INFEASIBLE = 4
    UNBOUNDED = 5
    STALLED = 6


ADVICE = {
    SolverStatus.MAXITER: "Raise `maxiter` or `tol`, start nearer, or damp the iterations",
    SolverStatus.LINE_SEARCH_FAILED: (
        "No step decreased the function enough: check its gradient, that it is smooth, and that "
        "`tol` is within its rounding errors; work in float64"
    ),
    SolverStatus.NONFINITE: (
        "NaN or infinity appeared: lower the step size, start elsewhere, and check the function"
    ),
    SolverStatus.INFEASIBLE: "No point satisfies the constraints: check or relax them",
    SolverStatus.UNBOUNDED: "The objective falls without bound: check its sign, or constrain it",
    SolverStatus.STALLED: (
        "No further progress was made: check that a solution exists, start elsewhere, scale the "
        "problem, or work in float64"
    ),
}


class SolverError(RuntimeError):
    """An iterative solver did not reach its tolerance.

    Attributes:
        state: The state that it ended in.

    Example:
        >>> raised = SolverError("not converged")
        >>> raised.state is None
        True
    """

    def __init__(self, message: str, state: Any = None) -> None:
        super().__init__(message)
        self.state = state


class SolverWarning(UserWarning):
    """The warning given instead of `SolverError` with ``on_failure="warn"``.

    Example:
        >>> import warnings
        >>> warnings.simplefilter("error", SolverWarning)
    """


def running(state: State) -> Tensor:
    """Tell which examples are not finished: only these may move, and count."""
    return state.status == SolverStatus.RUNNING


def judged(status: Tensor, error: Tensor, tol: float) -> Tensor:
    """Return the status after an update that left `error`; what was finished stays so."""
    one = error.ndim == status.ndim == 0 and not (is_wrapped(error) or is_wrapped(status))
    if one and int(status) == SolverStatus.RUNNING and tol < float(error) < torch.inf:
        return status  # as after most updates
    reached = torch.where(error <= tol, SolverStatus.CONVERGED.value, SolverStatus.RUNNING.value)
    now = torch.where(error.isfinite(), reached, SolverStatus.NONFINITE.value)
    return torch.where(status == SolverStatus.RUNNING, now, status).detach()


def ended(status: Tensor, where: Tensor, reason: SolverStatus) -> Tensor:
    """Return `status` with `reason` for the running examples that are named."""
    return torch.where(where & (status == SolverStatus.RUNNING), reason.value, status).detach()


def report(name: str, state: State, tol: float, maxiter: int, on_failure: OnFailure) -> None:
    """Raise or warn if any example failed."""
    failed = state.status != SolverStatus.CONVERGED
    if on_failure == "ignore" or not any_true(failed):
        return
    message = describe(name, state, tol, maxiter)
    if on_failure == "raise":
        raise SolverError(message, state)
    warnings.warn(message, SolverWarning, stacklevel=6)


def describe(name: str, state: State, tol: float, maxiter: int) -> str:
    """Tell in words how the examples that failed ended."""
    rows = by_example(state.status, state.error)
    failed = [row for row in rows if row[0] != SolverStatus.CONVERGED]
    status = SolverStatus(int(failed[0][0]))
    worst = max((error for _, error in failed), key=nan_largest)
    within = maxiter if status is SolverStatus.MAXITER else f"at most {maxiter}"
    return (
        f"`{name}` left {len(failed)} of {len(rows)} examples with an error of up to "
        f"{worst:.2g} after {within} iterations, where {tol:.2g} is asked "
        f"for ({status.name}). {ADVICE[status]}; with `on_failure='warn'` this is a warning."
    )
