"""Solvers of quadratic programs by operator splitting."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from pytree_core import tree_map
from torch import Tensor

from diffopt_implicit._kkt import KKTSolution
from diffopt_implicit._linear_info import OnFailure
from diffopt_implicit._linear_system import Tree, check_positive
from diffopt_implicit._quadratic_program import Pair, Program, condition
from diffopt_implicit._saddle_point import solve_saddle_point
from diffopt_implicit._solvers._adjoints import Adjoint, AdjointName, Implicit
from diffopt_implicit._solvers._program_arguments import (
    bounds,
    checked_objective,
    checked_rows,
    equation,
)
from diffopt_implicit._solvers._solver import Solver
from diffopt_implicit._solvers._status import SolverStatus, ended, judged, running
from diffopt_implicit._solvers._step import OptStep
from diffopt_implicit._splitting import (
    Splitting,
    adapted,
    begun,
    dual_ray,
    is_convex,
    polished,
    primal_ray,
    rescaled,
    scaling,
    sweep,
)
from diffopt_implicit._torch import any_true

KKT_SYSTEM = Implicit(solve=solve_saddle_point)
# An error below this many rounding errors counts as reached.
ROUNDING = 64


class QPState(NamedTuple):
    """The state of `OSQP` and `BoxQP`.

    Attributes:
        iter_num: Int64 scalar, the updates taken.
        error: Scalar, the largest violation of the optimality condition in the scaled program,
            against 1 plus the largest of its terms.
        status: Int64 scalar, a `SolverStatus`.
        ray: With the status ``INFEASIBLE`` multipliers ``y`` which prove that no point is
            feasible, ``C^T y = 0`` and ``upper y+ - lower y- < 0``; with ``UNBOUNDED`` a
            direction in which the objective falls for ever.
        splitting: Where the iterations are, in the scaled program.
        scale: The scaling of its columns and rows.
    """

    iter_num: Tensor
    error: Tensor
    status: Tensor
    ray: KKTSolution
    splitting: Splitting
    scale: Tensor


@dataclass(frozen=True, kw_only=True)
class SplittingSolver(Solver):
    """The base of solvers by operator splitting, one for each way to write a program.

    Attributes:
        sweeps: How many steps of the splitting an update takes, before it looks at the error.
    """

    tol: float = 1e-6
    on_failure: OnFailure = "raise"
    maxiter: int = 400
    adjoint: AdjointName | Adjoint = KKT_SYSTEM
    sweeps: int = 25

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive("sweeps", self.sweeps)

    @abstractmethod
    def program(self, *args: Any, **kwargs: Any) -> Program:
        """Write the arguments of `run` as one program."""

    @abstractmethod
    def solution(self, pair: Pair, *args: Any, **kwargs: Any) -> KKTSolution:
        """Name the parts of a solution."""

    def init_state(self, init_params: Tree, *args: Any, **kwargs: Any) -> QPState:
        """Return the state before the first update."""
        program = self.program(*args, **kwargs)
        scale = scaling(program)
        inner = rescaled(program, scale)
        if any_true(~is_convex(inner.program)):
            raise ValueError(
                f"`{type(self).__name__}` minimizes convex objectives, and the matrix `Q` is not "
                "positive semidefinite. Check its sign, or add a multiple of the identity."
            )
        pair = self._start(init_params, program)
        splitting = begun(inner.program, inner.to_scaled(pair))
        count = torch.zeros_like(splitting.penalty, dtype=torch.int64)
        error = torch.full_like(splitting.penalty, torch.inf)
        ray = self.solution(tree_map(torch.zeros_like, pair), *args, **kwargs)
        running_now = torch.full_like(count, SolverStatus.RUNNING)
        return QPState(count, error, running_now, ray, splitting, scale)

    def update(
        self, params: KKTSolution | None, state: QPState, *args: Any, **kwargs: Any
    ) -> OptStep:
        """Take some steps of the splitting, and try the constraints that it finds active."""
        program = self.program(*args, **kwargs)
        inner = rescaled(program, state.scale)
        at, live = state.splitting, running(state)
        for _ in range(self.sweeps):
            at = sweep(inner.program, at)
        pair, error = polished(inner.program, at)
        least = ROUNDING * torch.finfo(error.dtype).eps
        status = judged(state.status, error, max(self.tol, least))
        x, falls = primal_ray(inner.program, at.x - state.splitting.x)
        y, proves = dual_ray(inner.program, at.y - state.splitting.y)
        status = ended(status, proves, SolverStatus.INFEASIBLE)
        status = ended(status, falls, SolverStatus.UNBOUNDED)
        x, y = torch.where(falls & ~proves, x, 0.0), torch.where(proves, y, 0.0)
        after = QPState(
            state.iter_num + 1,
            error.detach(),
            status,
            self.solution(inner.to_given(Pair(x, y)), *args, **kwargs),
            adapted(inner.program, at),
            state.scale,
        )
        found = self.solution(inner.to_given(pair), *args, **kwargs)
        if params is None:  # at the first update, of all examples
            return OptStep(found, after)
        return tree_map(partial(torch.where, live), OptStep(found, after), OptStep(params, state))

    def optimality_fun(self, params: KKTSolution, *args: Any, **kwargs: Any) -> KKTSolution:
        """Return the gradient of the Lagrangian, and the violation of each constraint."""
        residual = condition(self.program(*args, **kwargs), paired(params))
        return self.solution(residual, *args, **kwargs)

    def _start(self, init_params: Tree, program: Program) -> Pair:
        if init_params is None:
            return Pair(torch.zeros_like(program.c), torch.zeros_like(program.C[:, 0]))
        return paired(init_params)


@dataclass(frozen=True, kw_only=True)
class OSQP(SplittingSolver):
    """Minimize ``x^T Q x / 2 + c^T x`` with ``A x = b`` and ``lower <= G x <= upper``.

    By operator splitting. At the end of each update the constraints that it finds active are
    taken for equations, and their solution for that of the program where it has the smaller
    error: so the result is exact to rounding once they are the right ones. Programs without a
    feasible point, and those that fall for ever, end with a proof in the state.

    It is called as ``run(init_params, params_obj, params_eq, params_ineq)``, with

    - ``init_params``: a `KKTSolution` to start from, or None;
    - ``params_obj``: ``(Q, c)`` of the shapes (n, n) and (n,), with positive semidefinite ``Q``;
    - ``params_eq``: ``(A, b)`` of the shapes (p, n) and (p,), or None;
    - ``params_ineq``: ``(G, upper)`` or ``(G, lower, upper)`` of the shapes (m, n), (m,), (m,),
      where bounds may be infinite, or None;

    and gives a `KKTSolution`: ``primal`` (n,), ``dual_eq`` (p,), ``dual_ineq`` (m,), with
    ``Q x + c + A^T dual_eq + G^T dual_ineq = 0``. A multiplier in ``dual_ineq`` is positive at
    an upper bound, negative at a lower one, and 0 elsewhere. Multipliers of what is None have no
    elements. Batches by `torch.func.vmap`.

    Derivatives are those of the program whose constraints with multipliers are equations. A
    constraint that is touched, and has the multiplier 0, counts as absent: of the one-sided
    derivatives there it is the one of moving away from it. Active constraints may depend on one
    another; a derivative that does not exist, as of a minimum that is not unique, is a
    `LinearSolveError`.

    Attributes:
        tol: Stop once the state's `error` is at most this, or 64 rounding errors.
        sweeps: Steps of the splitting in an update.

    Example:
        >>> import torch
        >>> Q, c = torch.eye(2), torch.tensor([-1.0, -2.0], requires_grad=True)
        >>> G, h = torch.tensor([[1.0, 1.0]]), torch.tensor([2.0])
        >>> solution = OSQP().run(None, (Q, c), None, (G, h)).params
        >>> solution.primal, solution.dual_ineq
        (tensor([0.5000, 1.5000], grad_fn=...), tensor([0.5000], grad_fn=...))
        >>> torch.autograd.grad(solution.primal[0], c)
        (tensor([-0.5000,  0.5000]),)

    Source:
        Stellato, Banjac, Goulart, Bemporad & Boyd, *OSQP: an operator splitting solver for
        quadratic programs*, Mathematical Programming Computation 12, 2020, algorithm 1 and
        sections 3 to 5; derivatives as Amos & Kolter, *OptNet*, ICML 2017, section 3.1.
    """

    def program(
        self,
        params_obj: tuple[Tensor, Tensor],
        params_eq: tuple[Tensor, Tensor] | None = None,
        params_ineq: tuple[Tensor, ...] | None = None,
    ) -> Program:
        """Put equations on top of inequalities."""
        Q, c = checked_objective(params_obj)
        rows = [] if params_eq is None else [checked_rows("params_eq", c, *equation(params_eq))]
        if params_ineq is not None:
            rows.append(checked_rows("params_ineq", c, *bounds(params_ineq)))
        none = c.new_zeros(0)
        C, lower, upper = zip(*rows, strict=True) if rows else ((Q[:0],), (none,), (none,))
        return Program(Q, c, torch.cat(C), torch.cat(lower), torch.cat(upper))

    def solution(
        self,
        pair: Pair,
        params_obj: tuple[Tensor, Tensor],
        params_eq: tuple[Tensor, Tensor] | None = None,
        params_ineq: tuple[Tensor, ...] | None = None,
    ) -> KKTSolution:
        """Tell the multipliers of equations from those of inequalities."""
        del params_obj, params_ineq
        count = 0 if params_eq is None else len(params_eq[1])
        return KKTSolution(pair.x, pair.y[:count], pair.y[count:])


@dataclass(frozen=True, kw_only=True)
class BoxQP(SplittingSolver):
    """Minimize ``x^T Q x / 2 + c^T x`` with ``lower <= x <= upper``.

    As `OSQP`, and called as ``run(init_params, params_obj, params_ineq)``, with
    ``params_obj = (Q, c)`` and ``params_ineq = (lower, upper)``, both of the shape (n,), numbers
    that broadcast to it, or infinite. The multipliers ``dual_ineq`` (n,) of the `KKTSolution` are
    ``-(Q x + c)``: positive at an upper bound, negative at a lower one.

    Attributes:
        tol: As of `OSQP`.
        sweeps: As of `OSQP`.

    Example:
        >>> import torch
        >>> Q, c = torch.eye(2), torch.tensor([-3.0, -0.5], requires_grad=True)
        >>> x = BoxQP().run(None, (Q, c), (0.0, 1.0)).params.primal
        >>> x
        tensor([1.0000, 0.5000], grad_fn=...)
        >>> torch.autograd.grad(x[1], c)[0][1]
        tensor(-1.)
    """

    def program(self, params_obj: tuple[Tensor, Tensor], params_ineq: tuple[Any, Any]) -> Program:
        """Bound each element."""
        Q, c = checked_objective(params_obj)
        eye = torch.eye(len(c), dtype=c.dtype, device=c.device)
        lower, upper = (
            torch.as_tensor(bound, dtype=c.dtype, device=c.device).expand_as(c)
            for bound in params_ineq
        )
        return Program(Q, c, *checked_rows("params_ineq", c, eye, lower, upper))

    def solution(
        self, pair: Pair, params_obj: tuple[Tensor, Tensor], params_ineq: tuple[Any, Any]
    ) -> KKTSolution:
        """Name the multipliers."""
        del params_obj, params_ineq
        return KKTSolution(pair.x, pair.y[:0], pair.y)


def paired(solution: KKTSolution) -> Pair:
    """Put the parts of a solution together."""
    return Pair(solution.primal, torch.cat([solution.dual_eq, solution.dual_ineq]))
