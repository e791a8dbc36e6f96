"""Quadratic programs with equations alone: one linear system."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from pytree_core import tree_leaves, tree_map
from pytree_core.integrations.torch import tree_sub, tree_vdot
from torch import Tensor

from diffopt_implicit._condition import LinearSolver
from diffopt_implicit._coordinates import Coordinates
from diffopt_implicit._kkt import KKTSolution, kkt_optimality
from diffopt_implicit._linear_info import OnFailure
from diffopt_implicit._linear_system import Tree, safe_norm
from diffopt_implicit._saddle_point import solve_saddle_point
from diffopt_implicit._solvers._adjoints import Adjoint, AdjointName
from diffopt_implicit._solvers._solver import Solver
from diffopt_implicit._solvers._splitting_solvers import KKT_SYSTEM, ROUNDING
from diffopt_implicit._solvers._status import SolverStatus, ended, judged
from diffopt_implicit._solvers._step import OptStep

# Of systems without a solution the state tells more than an error of the linear solver.
SADDLE_POINT = partial(solve_saddle_point, on_failure="ignore")


class EqualityQPState(NamedTuple):
    """The state of `EqualityQP`.

    Attributes:
        iter_num: Int64 scalar, the systems solved.
        error: Scalar, the norm of the residual of the condition, against 1 plus that of its
            constant terms.
        status: Int64 scalar, a `SolverStatus`.
    """

    iter_num: Tensor
    error: Tensor
    status: Tensor


def product(matrix: Tensor, x: Tensor) -> Tensor:
    """Return ``matrix @ x``."""
    return matrix @ x


@dataclass(frozen=True, kw_only=True)
class EqualityQP(Solver):
    """Minimize ``<x, Q x> / 2 + <c, x>`` with ``A x = b``, by one linear system.

    It is called as ``run(init_params, params_obj, params_eq)``, with ``params_obj = (Q, c)`` and
    ``params_eq = (A, b)``, or None, and gives a `KKTSolution`, whose multipliers of what is not
    there have no elements; `init_params` is not used. ``Q``
    must be positive definite along the constraints: otherwise what is found is stationary, and
    no minimum. Constraints may depend on one another.

    Attributes:
        matvec_Q: ``(Q, x) -> Q x`` for a symmetric ``Q``, from and to trees like ``c``, where
            ``Q`` is any tree; default the product with a matrix.
        matvec_A: ``(A, x) -> A x``, to a tree like ``b``, likewise.
        solve: A linear solver for the symmetric, indefinite system of ``x`` and the multipliers,
            such as `solve_minres`; by default the matrix is written out.
        tol: The error at which the system counts as solved, or 64 rounding errors. The statuses
            ``INFEASIBLE`` and ``UNBOUNDED`` tell which half of it has no solution.

    Example:
        >>> import torch
        >>> Q, c = torch.tensor([[4.0, 1.0], [1.0, 2.0]]), torch.ones(2)
        >>> A, b = torch.ones(1, 2), torch.ones(1, requires_grad=True)
        >>> solution = EqualityQP().run(None, (Q, c), (A, b)).params
        >>> solution.primal, solution.dual_eq
        (tensor([0.2500, 0.7500], grad_fn=...), tensor([-2.7500], grad_fn=...))
        >>> torch.autograd.grad(solution.primal[0], b)
        (tensor([0.2500]),)

    Source:
        Boyd & Vandenberghe, *Convex Optimization*, 2004, section 10.1.1.
    """

    matvec_Q: Callable[[Any, Tree], Tree] = product  # noqa: N815 (the field's own name)
    matvec_A: Callable[[Any, Tree], Tree] = product  # noqa: N815
    solve: LinearSolver = SADDLE_POINT
    maxiter: int = 1
    on_failure: OnFailure = "raise"
    adjoint: AdjointName | Adjoint = KKT_SYSTEM

    def init_state(
        self,
        init_params: Tree,
        params_obj: tuple[Any, Tree],
        params_eq: tuple[Any, Tree] | None = None,
    ) -> EqualityQPState:
        """Return the state before the system is solved."""
        space = Coordinates.of(params_obj[1], "`c`")
        zero = space.vector(params_obj[1], "`c`").sum() * 0
        count = torch.zeros_like(zero, dtype=torch.int64)
        waiting = torch.full_like(count, SolverStatus.RUNNING)
        return EqualityQPState(count, torch.full_like(zero, torch.inf), waiting)

    def update(
        self,
        params: Tree,
        state: EqualityQPState,
        params_obj: tuple[Any, Tree],
        params_eq: tuple[Any, Tree] | None = None,
    ) -> OptStep:
        """Solve the system."""
        space = Coordinates.of(params_obj[1], "`c`")
        none = space.vector(params_obj[1], "`c`")[:0]
        like = KKTSolution(params_obj[1], none if params_eq is None else params_eq[1], none)
        zero = tree_map(torch.zeros_like, like)
        constant = self.optimality_fun(zero, params_obj, params_eq)

        def matvec(z: KKTSolution) -> KKTSolution:
            return tree_sub(self.optimality_fun(z, params_obj, params_eq), constant)

        found = self.solve(matvec, tree_map(torch.neg, constant))
        residual = self.optimality_fun(found, params_obj, params_eq)
        halves = size(residual.primal), size(residual.dual_eq)
        error = torch.maximum(*halves) / (1 + size(constant))
        status = judged(state.status, error, max(self.tol, ROUNDING * torch.finfo(error.dtype).eps))
        status = ended(status, halves[1] >= halves[0], SolverStatus.INFEASIBLE)
        status = ended(status, halves[1] < halves[0], SolverStatus.UNBOUNDED)
        return OptStep(found, EqualityQPState(state.iter_num + 1, error.detach(), status))

    def optimality_fun(
        self,
        params: KKTSolution,
        params_obj: tuple[Any, Tree],
        params_eq: tuple[Any, Tree] | None = None,
    ) -> KKTSolution:
        """Return the gradient of the Lagrangian, and ``A x - b``."""

        def objective(x: Tree, obj: tuple[Any, Tree], _eq: Any) -> Tensor:
            Q, c = obj
            return 0.5 * tree_vdot(x, self.matvec_Q(Q, x)) + tree_vdot(c, x)

        def equality(x: Tree, _obj: Any, eq: tuple[Any, Tree]) -> Tree:
            A, b = eq
            return tree_sub(self.matvec_A(A, x), b)

        if params_eq is None:
            condition = kkt_optimality(objective)
            found = condition(KKTSolution(params.primal), params_obj, params_eq)
            return params._replace(primal=found.primal)
        condition = kkt_optimality(objective, equality)
        found = condition(params._replace(dual_ineq=None), params_obj, params_eq)
        return found._replace(dual_ineq=params.dual_ineq)


def size(tree: Tree) -> Tensor:
    """Return the Euclidean norm of a tree of tensors."""
    leaves = [leaf.reshape(-1) for leaf in tree_leaves(tree)]
    return safe_norm(torch.cat(leaves)) if leaves else torch.zeros(())
