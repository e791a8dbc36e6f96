"""How a linear solve ended, and what is said when it failed."""

from __future__ import annotations

import warnings
from enum import IntEnum
from typing import Literal, NamedTuple

from torch import Tensor

from diffopt_implicit._torch import any_true, by_example

OnFailure = Literal["raise", "warn", "ignore"]


class LinearSolveStatus(IntEnum):
    """Why the iterations of a linear solver stopped.

    Example:
        >>> LinearSolveStatus.CONVERGED
        <LinearSolveStatus.CONVERGED: 0>
    """

    CONVERGED = 0
    MAXITER = 1
    STAGNATED = 2
    INDEFINITE = 3
    NONFINITE = 4
    DIVERGED = 5


ADVICE = {
    LinearSolveStatus.MAXITER: (
        "Raise `maxiter` or `tol`, add a `ridge`, or give a `preconditioner`."
    ),
    LinearSolveStatus.STAGNATED: (
        "Rounding, or a singular matrix, allows no better: check that the problem has a unique "
        "solution, work in float64, add a `ridge`, or raise `tol`."
    ),
    LinearSolveStatus.INDEFINITE: (
        "It met a direction along which the matrix, or the preconditioner, is not positive "
        "definite: use `solve_normal_cg`, which needs no definite matrix, or add a `ridge`."
    ),
    LinearSolveStatus.NONFINITE: (
        "NaN or infinity appeared: check the values and derivatives of the condition there."
    ),
    LinearSolveStatus.DIVERGED: (
        "The iterations grow without bound: lower `step_size`, or use `solve_gmres` or "
        "`solve_normal_cg`, which no eigenvalue makes grow."
    ),
}


class LinearSolveInfo(NamedTuple):
    """The end of a linear solve; under `torch.func.vmap`, of each example.

    Attributes:
        status: Int64 scalar, a `LinearSolveStatus`.
        residual: Norm of the true residual, recomputed from the solution; of the normal
            equations' residual where least squares was asked for. After a fixed number of
            iterations (``tol=0``) no product is spent on it: it is that of the recurrence of
            conjugate gradients, and that before the last term of a series.
        tolerance: What `residual` had to reach.
        iterations: Int64 scalar, how many iterations were taken.

    Example:
        >>> import torch
        >>> from diffopt_implicit import solve_cg
        >>> x, info = solve_cg(lambda x: 2 * x, torch.ones(3), info=True)
        >>> info.converged.item(), info.iterations.item()
        (True, 1)
    """

    status: Tensor
    residual: Tensor
    tolerance: Tensor
    iterations: Tensor

    @property
    def converged(self) -> Tensor:
        """Whether the solution is as exact as asked for, or as the dtype allows."""
        return self.status == LinearSolveStatus.CONVERGED


class LinearSolveError(RuntimeError):
    """A linear system could not be solved, and its result would be a wrong derivative.

    Attributes:
        info: The `LinearSolveInfo` of the failed solve.

    Example:
        >>> import torch
        >>> from diffopt_implicit import solve_cg
        >>> try:
        ...     solve_cg(lambda x: -x, torch.ones(2))
        ... except LinearSolveError as error:
        ...     print(LinearSolveStatus(int(error.info.status)).name)
        INDEFINITE
    """

    def __init__(self, message: str, info: LinearSolveInfo | None = None) -> None:
        super().__init__(message)
        self.info = info


class LinearSolveWarning(UserWarning):
    """The warning given instead of `LinearSolveError` with ``on_failure="warn"``.

    Example:
        >>> import warnings
        >>> warnings.simplefilter("error", LinearSolveWarning)
    """


def report(name: str, info: LinearSolveInfo, on_failure: OnFailure) -> None:
    """Raise or warn if any example of `info` failed."""
    if on_failure == "ignore" or not any_true(~info.converged):
        return
    message = describe(name, info)
    if on_failure == "raise":
        raise LinearSolveError(message, info)
    warnings.warn(message, LinearSolveWarning, stacklevel=4)


def describe(name: str, info: LinearSolveInfo) -> str:
    """Tell in words how the first failed example of `info` ended."""
    rows = by_example(*info)
    failed = [row for row in rows if row[0] != LinearSolveStatus.CONVERGED]
    status, residual, tolerance, iterations = failed[0]
    accepted = (
        "For a fixed number of iterations pass `on_failure='ignore'`."
        if tolerance == 0 and status == LinearSolveStatus.MAXITER
        else "With `on_failure='warn'` this is a warning."
    )
    which = f" on {len(failed)} of {len(rows)} systems; the first" if len(rows) > 1 else ": it"
    return (
        f"`{name}` failed{which} stopped with a residual of {residual:.3g} after "
        f"{int(iterations)} iterations, where {tolerance:.3g} is asked for. "
        f"{ADVICE[LinearSolveStatus(int(status))]} {accepted}"
    )


def check_on_failure(on_failure: str) -> None:
    """Refuse a word that means nothing."""
    if on_failure not in ("raise", "warn", "ignore"):
        raise ValueError(f"`on_failure` must be 'raise', 'warn' or 'ignore', got {on_failure!r}.")
