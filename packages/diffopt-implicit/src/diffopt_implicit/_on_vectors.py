"""The way of a linear system on trees to an algorithm on vectors, and back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from torch import Tensor

from diffopt_implicit._coordinates import Coordinates
from diffopt_implicit._linear_info import LinearSolveInfo, OnFailure, check_on_failure, report
from diffopt_implicit._linear_system import (
    MatVec,
    Stopping,
    Tree,
    VectorMap,
    check_nonnegative,
    is_differentiated,
    size_of,
)
from diffopt_implicit._operator import Operator
from diffopt_implicit._preconditioners import Preconditioner, prepared

Algorithm = Callable[
    [Operator, Tensor, Tensor | None, VectorMap, Stopping], tuple[Tensor, LinearSolveInfo]
]


def solve_on_vectors(
    name: str,
    algorithm: Algorithm,
    matvec: MatVec,
    b: Tree,
    *,
    init: Tree | None = None,
    ridge: float | Tensor,
    tol: float | None,
    atol: float,
    maxiter: int | None = None,
    preconditioner: MatVec | Preconditioner | None = None,
    on_failure: OnFailure,
) -> tuple[Tree, LinearSolveInfo]:
    """Solve ``(A + ridge I) x = b`` by an algorithm on vectors, and report a failure."""
    check_on_failure(on_failure)
    check_nonnegative("ridge", ridge)
    space = Coordinates.of(b, "`b`")
    stopping = Stopping.of(tol, atol, maxiter, space.eps, space.size)
    near_inverse = prepared(preconditioner, matvec, b, ridge)

    def precondition(r: Tensor) -> Tensor:
        if near_inverse is None:
            return r
        return space.vector(near_inverse(space.tree(r)), "The result of `preconditioner`")

    rhs, operator = space.vector(b, "`b`"), Operator(matvec, space, ridge)
    start = None if init is None else space.vector(init, "`init`")
    if start is not None and is_differentiated(partial(operator.residual, rhs, start), stopping):
        start = None
    # Brought to size 1, so that squares of tiny or huge numbers stay within range.
    scale = size_of(rhs)
    x, ended = algorithm(
        operator,
        rhs / scale,
        None if start is None else start / scale,
        precondition,
        replace(stopping, atol=atol / scale),
    )
    ended = ended._replace(residual=ended.residual * scale, tolerance=ended.tolerance * scale)
    report(name, ended, on_failure)
    return space.tree(x * scale), ended
