"""Solvers of ``x = T(x)``: plain iteration, and Anderson's acceleration."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from diffopt_implicit._fixed_point import FixedPointResidual
from diffopt_implicit._linear_system import Tree, check_nonnegative, check_positive
from diffopt_implicit._rows import Rows, length, relative_length
from diffopt_implicit._solvers._solver import Solver
from diffopt_implicit._solvers._status import SolverStatus, judged, running
from diffopt_implicit._solvers._step import OptStep


class FixedPointState(NamedTuple):
    """The state of `FixedPointIteration`.

    Attributes:
        iter_num: Int64 (examples,), the updates that each has taken.
        error: (examples,), ``|T(x) - x| / (1 + |x|)`` before the last update.
        status: Int64 (examples,), a `SolverStatus`.
        num_fun_eval: Int64 (examples,), calls of the function.
    """

    iter_num: Tensor
    error: Tensor
    status: Tensor
    num_fun_eval: Tensor


@dataclass(frozen=True)
class FixedPointIteration(Solver):
    """Iterate ``x <- (1 - damping) T(x) + damping x``.

    Attributes:
        fixed_point_fun: ``(x, *args, **kwargs) ->`` a tree like ``x``.
        damping: Share of ``x`` that is kept, in [0, 1).
        tol: Stop at ``|T(x) - x| <= tol (1 + |x|)``.
        batched: Whether the first dimension of each leaf counts examples, which converge one
            by one.

    Example:
        >>> import torch
        >>> theta = torch.tensor(0.0, requires_grad=True)
        >>> solver = FixedPointIteration(lambda x, theta: x.cos() + theta)
        >>> x = solver.run(torch.tensor(1.0), theta).params
        >>> torch.autograd.grad(x, theta)  # 1 / (1 + sin x)
        (tensor(0.5975),)

    Source:
        Ortega & Rheinboldt, *Iterative Solution of Nonlinear Equations*, 1970, chapter 12.
    """

    fixed_point_fun: Callable[..., Tree]
    damping: float = 0.0
    batched: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share("damping", self.damping)

    def init_state(self, init_params: Tree, *args: Any, **kwargs: Any) -> FixedPointState:
        """Return the state before the first update."""
        x = Rows.of(init_params, self.batched).matrix(init_params, "`init_params`")
        return FixedPointState(*nothing_yet(x))

    def update(self, params: Tree, state: FixedPointState, *args: Any, **kwargs: Any) -> OptStep:
        """Apply ``T`` once."""
        rows = Rows.of(params, self.batched)
        x = rows.matrix(params, "`params`")
        image = rows.matrix(self.fixed_point_fun(params, *args, **kwargs), "`fixed_point_fun`")
        live = running(state)
        error = torch.where(live, relative_length(image - x, x), state.error)
        moves = live & error.isfinite()
        moved = torch.where(moves[:, None], image + self.damping * (x - image), x)
        return OptStep(rows.tree(moved), FixedPointState(*counted(state, error, live, self.tol)))

    def optimality_fun(self, params: Tree, *args: Any, **kwargs: Any) -> Tree:
        """Return ``x - T(x)``."""
        return FixedPointResidual(self.fixed_point_fun)(params, *args, **kwargs)


class AndersonState(NamedTuple):
    """The state of `AndersonAcceleration`.

    Attributes:
        iter_num: Int64 (examples,), the updates that each has taken.
        error: (examples,), ``|T(x) - x| / (1 + |x|)`` before the last update.
        status: Int64 (examples,), a `SolverStatus`.
        num_fun_eval: Int64 (examples,), calls of the function.
        last: The last point and its residual ``T(x) - x``, each (examples, elements).
        steps: The last differences of points, (memory, examples, elements).
        changes: The last differences of residuals, the same.
        mark: (examples,), the length of the residual that is to be halved.
        since: Int64 (examples,), updates since that was set.
    """

    iter_num: Tensor
    error: Tensor
    status: Tensor
    num_fun_eval: Tensor
    last: tuple[Tensor, Tensor]
    steps: Tensor
    changes: Tensor
    mark: Tensor
    since: Tensor


@dataclass(frozen=True)
class AndersonAcceleration(Solver):
    """Iterate to the combination of the last points whose residuals cancel best.

    With the residual ``f = T(x) - x``, and ``dX``, ``dF`` the last differences of points and of
    residuals::

        gamma = argmin |f - dF gamma|,   x <- x + beta f - (dX + beta dF) gamma

    It needs no contraction, and takes the memory of `memory` pairs of points. Where ``2 memory``
    updates have not halved an example's residual, as near a Jacobian with an eigenvalue near 1,
    plain steps ``x + beta f`` follow until it is halved, ``6 memory`` at most.

    Attributes:
        fixed_point_fun: ``(x, *args, **kwargs) ->`` a tree like ``x``.
        memory: How many differences are kept, positive.
        beta: Share of the residual that is added, in (0, 1].
        ridge: Tikhonov's regularization of ``gamma``, for ``dF`` of columns of length 1; at
            least 0. With 0 nearly parallel differences may spoil the step.
        tol: Stop at ``|T(x) - x| <= tol (1 + |x|)``.
        batched: As of `FixedPointIteration`; each example has a ``gamma`` of its own.

    Example:
        >>> import torch
        >>> turn = torch.tensor([[0.0, -1.0], [1.0, 0.0]])  # a rotation: no contraction
        >>> solver = AndersonAcceleration(lambda x: turn @ x + 1, tol=1e-4)
        >>> solver.run(torch.zeros(2)).params.round(decimals=3) + 0.0
        tensor([0., 1.])

    Source:
        Walker & Ni, *Anderson acceleration for fixed-point iterations*, SIAM J. Numer. Anal.
        49, 2011, section 2; type II.
    """

    fixed_point_fun: Callable[..., Tree]
    memory: int = 5
    beta: float = 1.0
    ridge: float = 1e-8
    batched: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive("memory", self.memory)
        check_nonnegative("ridge", self.ridge)
        if not 0 < self.beta <= 1:
            raise ValueError(f"`beta` must be in (0, 1], got {self.beta}.")

    def init_state(self, init_params: Tree, *args: Any, **kwargs: Any) -> AndersonState:
        """Return the state before the first update."""
        x = Rows.of(init_params, self.batched).matrix(init_params, "`init_params`").detach()
        none, common = x.new_zeros(self.memory, *x.shape), nothing_yet(x)
        return AndersonState(*common, (x, torch.zeros_like(x)), none, none, common[1], common[0])

    def update(self, params: Tree, state: AndersonState, *args: Any, **kwargs: Any) -> OptStep:
        """Take one accelerated step."""
        rows = Rows.of(params, self.batched)
        x = rows.matrix(params, "`params`")
        f = rows.matrix(self.fixed_point_fun(params, *args, **kwargs), "`fixed_point_fun`") - x
        live, begun = running(state), state.iter_num > 0
        error = torch.where(live, relative_length(f, x), state.error)
        live = live & error.isfinite()
        step, change = (
            torch.where((live & begun)[:, None], now - before, 0.0)
            for now, before in zip((x, f), state.last, strict=True)
        )
        mark, since = self._progress(state, length(f.detach()))
        fresh = (since <= 2 * self.memory)[:, None]
        steps = torch.where(fresh, torch.cat([state.steps[1:], step[None]]), 0.0)
        changes = torch.where(fresh, torch.cat([state.changes[1:], change[None]]), 0.0)
        gamma = combination(changes, f, self.ridge)
        away = torch.einsum("mbn,mb->bn", steps + self.beta * changes, gamma)
        moved = torch.where(live[:, None], x + self.beta * f - away, x)
        common = counted(state, error, running(state), self.tol)
        return OptStep(
            rows.tree(moved), AndersonState(*common, (x, f), steps, changes, mark, since)
        )

    def _progress(self, state: AndersonState, now: Tensor) -> tuple[Tensor, Tensor]:
        """Return the next `mark` and `since`, given the lengths of the residuals."""
        patience = 2 * self.memory
        mark = torch.where(state.since == patience, now, state.mark)
        ends = (now < 0.5 * mark) | (state.since > 4 * patience)
        return torch.where(ends, now, mark), torch.where(ends, 0, state.since + 1)

    def optimality_fun(self, params: Tree, *args: Any, **kwargs: Any) -> Tree:
        """Return ``x - T(x)``."""
        return FixedPointResidual(self.fixed_point_fun)(params, *args, **kwargs)


def combination(changes: Tensor, f: Tensor, ridge: float) -> Tensor:
    """Return the ``gamma`` (memory, examples) that makes ``f - dF gamma`` shortest."""
    memory, examples, _ = changes.shape
    size = length(changes)
    size = torch.where(size > 0, size, 1.0)  # columns of length 1, or 0 where there is none yet
    columns = (changes / size[:, :, None]).permute(1, 2, 0)
    # By orthogonal factors of the stacked matrix: the normal equations would square its
    # condition number, which is large just before convergence.
    bottom = torch.eye(memory, dtype=f.dtype, device=f.device).expand(examples, -1, -1)
    slack = max(ridge, torch.finfo(f.dtype).eps) ** 0.5
    q, r = torch.linalg.qr(torch.cat([columns, slack * bottom], dim=1))
    right = q[:, : f.shape[1]].mT @ f[:, :, None]
    return torch.linalg.solve_triangular(r, right, upper=True)[:, :, 0].T / size


def nothing_yet(x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the common fields of a state of nothing yet, for each row."""
    count = torch.zeros_like(x[:, 0] if x.shape[1] else x.sum(1), dtype=torch.int64)
    error = torch.full_like(count, torch.inf, dtype=x.dtype)
    return count, error, torch.full_like(count, SolverStatus.RUNNING), count


def counted(
    state: Any, error: Tensor, live: Tensor, tol: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the common fields of a state after one more evaluation."""
    status = judged(state.status, error, tol)
    return state.iter_num + live, error, status, state.num_fun_eval + live


def check_share(name: str, value: float) -> None:
    """Refuse what is not in [0, 1)."""
    if not 0 <= value < 1:
        raise ValueError(f"`{name}` must be in [0, 1), got {value}.")
