"""Broyden's method for ``F(x) = 0``, of limited memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from diffopt_implicit._linear_system import Tree, check_positive
from diffopt_implicit._rows import Rows, length, relative_length
from diffopt_implicit._solvers._fixed_point_solvers import counted, nothing_yet
from diffopt_implicit._solvers._solver import Solver
from diffopt_implicit._solvers._status import running
from diffopt_implicit._solvers._step import OptStep


class BroydenState(NamedTuple):
    """The state of `Broyden`; the inverse Jacobian is near ``I + sum_i u_i v_i^T``.

    Attributes:
        iter_num: Int64 (examples,), the updates that each has taken.
        error: (examples,), ``|F(x)| / (1 + |x|)`` after the last update.
        status: Int64 (examples,), a `SolverStatus`.
        num_fun_eval: Int64 (examples,), calls of the function.
        value: ``F(x)``, (examples, elements).
        left: The ``u_i``, (memory, examples, elements).
        right: The ``v_i``, the same.
    """

    iter_num: Tensor
    error: Tensor
    status: Tensor
    num_fun_eval: Tensor
    value: Tensor
    left: Tensor
    right: Tensor


@dataclass(frozen=True)
class Broyden(Solver):
    """Newton's method with an inverse Jacobian learned from the steps ("good" Broyden).

    The inverse begins as the identity, which suits ``F(x) = x - T(x)``, and forgets its oldest
    updates when there are more than `memory`. There is no line search: start near a root, or
    where the identity is not far off.

    Attributes:
        fun: ``(x, *args, **kwargs) ->`` a tree like ``x``, zero at the root.
        memory: How many updates are kept, positive.
        tol: Stop at ``|F(x)| <= tol (1 + |x|)``.
        batched: Whether the first dimension of each leaf counts examples, which converge one
            by one with inverses of their own.

    Example:
        >>> import torch
        >>> a = torch.tensor([2.0, 8.0], requires_grad=True)
        >>> x = Broyden(lambda x, a: x**2 - a).run(torch.tensor([1.5, 2.5]), a).params
        >>> torch.autograd.grad(x.sum(), a)  # 1 / (2 sqrt(a))
        (tensor([0.3536, 0.1768]),)

    Source:
        Broyden, *A class of methods for solving nonlinear simultaneous equations*, Math. Comp.
        19, 1965, method 1, by the formula of Sherman and Morrison.
    """

    fun: Callable[..., Tree]
    memory: int = 30
    batched: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive("memory", self.memory)

    def init_state(self, init_params: Tree, *args: Any, **kwargs: Any) -> BroydenState:
        """Return the state before the first update."""
        rows = Rows.of(init_params, self.batched)
        value = rows.matrix(self.fun(init_params, *args, **kwargs), "The result of `fun`")
        none = value.new_zeros(self.memory, *value.shape)
        iter_num, error, status, calls = nothing_yet(value)
        return BroydenState(iter_num, error, status, calls + 1, value, none, none)

    def update(self, params: Tree, state: BroydenState, *args: Any, **kwargs: Any) -> OptStep:
        """Take one step, and learn from it."""
        rows = Rows.of(params, self.batched)
        x, live = rows.matrix(params, "`params`"), running(state)
        step = -applied(state.left, state.right, state.value)
        moved = torch.where(live[:, None], x + step, x)
        after = rows.tree(moved)
        value = rows.matrix(self.fun(after, *args, **kwargs), "The result of `fun`")
        seen = applied(state.left, state.right, value - state.value)
        # (s - H y) (s^T H) / (s^T H y); where that divides by nothing, nothing is learned.
        overlap = (step * seen).sum(-1, keepdim=True)
        scale = (length(step) * length(seen))[:, None]
        learns = (overlap.abs() > 1e-8 * scale) & live[:, None]
        left = torch.where(learns, (step - seen) / torch.where(learns, overlap, 1.0), 0.0)
        right = applied(state.right, state.left, step)
        error = torch.where(live, relative_length(value, moved), state.error)
        return OptStep(
            after,
            BroydenState(
                *counted(state, error, live, self.tol),
                torch.where(live[:, None], value, state.value),
                torch.cat([state.left[1:], left[None]]),
                torch.cat([state.right[1:], right[None]]),
            ),
        )

    def optimality_fun(self, params: Tree, *args: Any, **kwargs: Any) -> Tree:
        """Return ``F(x)``."""
        return self.fun(params, *args, **kwargs)


def applied(left: Tensor, right: Tensor, vectors: Tensor) -> Tensor:
    """Return ``(I + sum_i u_i v_i^T) x`` for each row."""
    shares = torch.einsum("mbn,bn->mb", right, vectors)
    return vectors + torch.einsum("mb,mbn->bn", shares, left)
