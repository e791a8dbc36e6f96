"""Direct solvers: the matrix is written out and factorized."""

from __future__ import annotations

from typing import Literal, overload

from torch import Tensor

from diffopt_implicit._factorizations import cholesky, lu, qr, written_out
from diffopt_implicit._linear_info import LinearSolveInfo, OnFailure
from diffopt_implicit._linear_system import (
    MatVec,
    Tree,
)
from diffopt_implicit._on_vectors import solve_on_vectors
from diffopt_implicit._torch import outside_graphs


@overload
def solve_lu(
    matvec: MatVec,
    b: Tree,
    *,
    ridge: float | Tensor = 0.0,
    tol: float | None = None,
    atol: float = 0.0,
    info: Literal[False] = False,
    on_failure: OnFailure = "raise",
) -> Tree: ...


@overload
def solve_lu(
    matvec: MatVec,
    b: Tree,
    *,
    ridge: float | Tensor = 0.0,
    tol: float | None = None,
    atol: float = 0.0,
    info: Literal[True],
    on_failure: OnFailure = "raise",
) -> tuple[Tree, LinearSolveInfo]: ...


@outside_graphs
def solve_lu(
    matvec: MatVec,
    b: Tree,
    *,
    ridge: float | Tensor = 0.0,
    tol: float | None = None,
    atol: float = 0.0,
    info: bool = False,
    on_failure: OnFailure = "raise",
) -> Tree | tuple[Tree, LinearSolveInfo]:
    """Solve ``(A + ridge I) x = b`` by Gaussian elimination with pivoting, any square ``A``.

    The matrix of all elements of `b`, of all leaves and with all coupling between them, is
    written out by applying `matvec` to every unit vector at once (`torch.func.vmap`):
    n² numbers for n elements.

    Args:
        matvec: The product ``x -> A x``, from and to trees like `b`, of operations that
            `torch.func.vmap` knows.
        b: Any tree of real floating-point tensors.
        ridge: Added to the diagonal of ``A``, at least 0; a number or a scalar tensor.
        tol: Relative tolerance; default ``eps ** 0.8`` of the coarsest dtype in `b`. A
            residual at the level of rounding counts as reached.
        atol: Absolute tolerance.
        info: Return a `LinearSolveInfo` too.
        on_failure: What to do when the tolerance is not reached: ``"raise"`` a
            `LinearSolveError`, ``"warn"`` with a `LinearSolveWarning`, or ``"ignore"``.

    Returns:
        ``x``, shaped like `b` and in its dtypes, or ``(x, info)`` with no iterations. All
        zero where the matrix is exactly singular. Differentiable, and an example at a time
        under `torch.func.vmap`.

    Raises:
        LinearSolveError: If the matrix is singular to working precision, or NaN appears.
        TypeError: If `b` holds complex or integer tensors.
        ValueError: If `matvec` returns another shape than `b`'s.

    Example:
        >>> import torch
        >>> A = torch.tensor([[0.0, 2.0], [4.0, 1.0]])
        >>> solve_lu(lambda x: A @ x, torch.tensor([2.0, 5.0]))
        tensor([1., 1.])

    Source:
        Golub & Van Loan, *Matrix Computations*, 4th edition, 2013, algorithm 3.4.1.
    """
    solution, ended = solve_on_vectors(
        "solve_lu",
        written_out(lu),
        matvec,
        b,
        ridge=ridge,
        tol=tol,
        atol=atol,
        on_failure=on_failure,
    )
    return (solution, ended) if info else solution


@overload
def solve_cholesky(
    matvec: MatVec,
    b: Tree,
    *,
    ridge: float | Tensor = 0.0,
    tol: float | None = None,
    atol: float = 0.0,
    info: Literal[False] = False,
    on_failure: OnFailure = "raise",
) -> Tree: ...


@overload
def solve_cholesky(
    matvec: MatVec,
    b: Tree,
    *,
    ridge: float | Tensor = 0.0,
    tol: float | None = None,
    atol: float = 0.0,
    info: Literal[True],
    on_failure: OnFailure = "raise",
) -> tuple[Tree, LinearSolveInfo]: ...


@outside_graphs
def solve_cholesky(
    matvec: MatVec,
    b: Tree,
    *,
    ridge: float | Tensor = 0.0,
    tol: float | None = None,
    atol: float = 0.0,
    info: bool = False,
    on_failure: OnFailure = "raise",
) -> Tree | tuple[Tree, LinearSolveInfo]:
    """Solve ``(A + ridge I) x = b`` by Cholesky's method, ``A`` symmetric positive definite.

    Half the work of `solve_lu`, and a proof that ``A`` is positive definite.

    Args:
        matvec: The product ``x -> A x``, as for `solve_lu`.
        b: Any tree of real floating-point tensors.
        ridge: Added to the diagonal of ``A``, at least 0; a number or a scalar tensor.
        tol: Relative tolerance, as for `solve_lu`.
        atol: Absolute tolerance.
        info: Return a `LinearSolveInfo` too.
        on_failure: As for `solve_lu`.

    Returns:
        ``x``, shaped like `b`, or ``(x, info)``; differentiable, as by `solve_lu`.

    Raises:
        LinearSolveError: If the matrix is not symmetric positive definite, or NaN appears.
        TypeError: If `b` holds complex or integer tensors.
        ValueError: If `matvec` returns another shape than `b`'s.

    Example:
        >>> import torch
        >>> A = torch.tensor([[4.0, 1.0], [1.0, 3.0]])
        >>> solve_cholesky(lambda x: A @ x, torch.tensor([1.0, 2.0]))
        tensor([0.0909, 0.6364])

    Source:
        Golub & Van Loan, *Matrix Computations*, 4th edition, 2013, section 4.2.
    """
    solution, ended = solve_on_vectors(
        "solve_cholesky",
        written_out(cholesky),
        matvec,
        b,
        ridge=ridge,
        tol=tol,
        atol=atol,
        on_failure=on_failure,
    )
    return (solution, ended) if info else solution


@overload
def solve_qr(
    matvec: MatVec,
    b: Tree,
    *,
    ridge: float | Tensor = 0.0,
    tol: float | None = None,
    atol: float = 0.0,
    info: Literal[False] = False,
    on_failure: OnFailure = "raise",
) -> Tree: ...


@overload
def solve_qr(
    matvec: MatVec,
    b: Tree,
    *,
    ridge: float | Tensor = 0.0,
    tol: float | None = None,
    atol: float = 0.0,
    info: Literal[True],
    on_failure: OnFailure = "raise",
) -> tuple[Tree, LinearSolveInfo]: ...


@outside_graphs
def solve_qr(
    matvec: MatVec,
    b: Tree,
    *,
    ridge: float | Tensor = 0.0,
    tol: float | None = None,
    atol: float = 0.0,
    info: bool = False,
    on_failure: OnFailure = "raise",
) -> Tree | tuple[Tree, LinearSolveInfo]:
    """Solve ``(A + ridge I) x = b`` by Householder's triangularization, any square ``A``.

    Twice the work of `solve_lu`, without growth of rounding errors by pivoting.

    Args:
        matvec: The product ``x -> A x``, as for `solve_lu`.
        b: Any tree of real floating-point tensors.
        ridge: Added to the diagonal of ``A``, at least 0; a number or a scalar tensor.
        tol: Relative tolerance, as for `solve_lu`.
        atol: Absolute tolerance.
        info: Return a `LinearSolveInfo` too.
        on_failure: As for `solve_lu`.

    Returns:
        ``x``, shaped like `b`, or ``(x, info)``; differentiable, as by `solve_lu`.

    Raises:
        LinearSolveError: If the matrix is singular to working precision, or NaN appears.
        TypeError: If `b` holds complex or integer tensors.
        ValueError: If `matvec` returns another shape than `b`'s.

    Example:
        >>> import torch
        >>> A = torch.tensor([[0.0, 2.0], [4.0, 1.0]], dtype=torch.float64)
        >>> x = solve_qr(lambda x: A @ x, torch.tensor([2.0, 5.0], dtype=torch.float64))
        >>> bool(torch.allclose(x, torch.ones_like(x)))
        True

    Source:
        Golub & Van Loan, *Matrix Computations*, 4th edition, 2013, algorithm 5.2.1.
    """
    solution, ended = solve_on_vectors(
        "solve_qr",
        written_out(qr),
        matvec,
        b,
        ridge=ridge,
        tol=tol,
        atol=atol,
        on_failure=on_failure,
    )
    return (solution, ended) if info else solution
