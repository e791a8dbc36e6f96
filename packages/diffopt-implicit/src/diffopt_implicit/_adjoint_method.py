"""The base of the methods for hypergradients that solve the adjoint system ``H u = v``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar

import torch
from pytree_core import tree_leaves
from torch import Tensor

from diffopt_implicit._condition import random_states, same_states
from diffopt_implicit._equation import LinearMap, attach, attach_linear, detached
from diffopt_implicit._hypergradient_method import Estimate
from diffopt_implicit._inner_problem import InnerProblem, minus
from diffopt_implicit._linear_info import (
    LinearSolveInfo,
    LinearSolveStatus,
    OnFailure,
    check_on_failure,
    report,
)
from diffopt_implicit._linear_system import MatVec, Tree, check_nonnegative
from diffopt_implicit._torch import Tensors, is_recorded

# What is no failure where the number of iterations was chosen.
CUT_SHORT = (LinearSolveStatus.MAXITER, LinearSolveStatus.STAGNATED)

RANDOM = (
    "`inner_loss` draws random numbers (dropout in training mode?), so it is another loss at each "
    "evaluation, and a hypergradient would mix them: pass the randomness as an argument, such as a "
    "mask, seed it inside `torch.random.fork_rng()`, or call `.eval()`."
)


class AdjointMethod(ABC):
    """A hypergradient by a solution of ``H u = v``, exact as far as that is."""

    differentiable: ClassVar[bool] = True

    @abstractmethod
    def solve(
        self, matvec: MatVec, b: Tree, init: Tree | None
    ) -> tuple[Tree, LinearSolveInfo | None]:
        """Solve the adjoint system, on trees like the parameters."""

    def estimate(self, problem: InnerProblem, init: Tensors | None) -> Estimate:
        """Return the hypergradient, differentiable again where that is recorded."""
        if is_recorded():
            return self.estimate_again(problem, init)
        v, direct = problem.outer_slopes(problem.params)
        with same_at_each_call():
            hessian, mixed = problem.products()
        u, ended = self.solved(problem, hessian, v, init)
        return estimate_of(u, v, direct, hessian, mixed, ended)

    def estimate_again(self, problem: InnerProblem, init: Tensors | None) -> Estimate:
        """Return the hypergradient, differentiable: also in how the minimum moves."""

        def again(matvec: LinearMap, b: Tensors) -> Tensors:
            return self.solved(problem, matvec, b, None)[0]

        x = attach(problem.inner_slope, again, detached(problem.params), problem.hparams)
        v, direct = problem.outer_slopes(x)
        values = (*x, *problem.hparams)
        with same_at_each_call():
            hessian = problem.matrix_at(detached(values), len(x))
        found, ended = self.solved(problem, hessian, detached(v), init)
        u = attach_linear(problem.matrix_at, again, found, v, values)
        mixed = problem.mixed_at(x)
        return estimate_of(u, v, direct, hessian, mixed, ended)

    def solved(
        self, problem: InnerProblem, matvec: LinearMap, b: Tensors, start: Tensors | None
    ) -> tuple[Tensors, LinearSolveInfo | None]:
        """Solve the adjoint system, on the leaves of such trees."""

        def on_trees(x: Tree) -> Tree:
            return problem.tree(matvec(tuple(tree_leaves(x))))

        first = None if start is None else problem.tree(start)
        found, ended = self.solve(on_trees, problem.tree(b), first)
        return tuple(tree_leaves(found)), ended


def estimate_of(
    u: Tensors,
    v: Tensors,
    direct: Tensors,
    hessian: LinearMap,
    mixed: LinearMap,
    ended: LinearSolveInfo | None,
) -> Estimate:
    """Return the hypergradient that an adjoint gives."""
    taken = 0 if ended is None else ended.iterations
    return Estimate(minus(direct, mixed(u)), u, v, lambda: hessian(detached(u)), mixed, taken)


@contextmanager
def same_at_each_call() -> Iterator[None]:
    """Refuse an inner loss that draws random numbers where it is evaluated within."""
    before = random_states()
    yield
    if not same_states(before):
        raise ValueError(RANDOM)


def settled(
    name: str,
    solved: tuple[Tree, LinearSolveInfo],
    on_failure: OnFailure,
    accepted: tuple[LinearSolveStatus, ...] = (),
) -> tuple[Tree, LinearSolveInfo]:
    """Return a solution whose end is reported, unless it is one of those accepted."""
    ended = solved[1]
    status = ended.status
    for end in accepted:
        status = torch.where(status == end, LinearSolveStatus.CONVERGED.value, status)
    report(name, ended._replace(status=status), on_failure)
    return solved


def check_fields(on_failure: str, **numbers: float | Tensor) -> None:
    """Refuse what no method can mean."""
    check_on_failure(on_failure)
    for name, value in numbers.items():
        check_nonnegative(name, value)
