"""How the result of a solver gets its derivatives: implicit, unrolled, or recomputed."""

from __future__ import annotations

from dataclasses import dataclass, fields
from math import isqrt
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

import torch
from pytree_core import tree_leaves
from torch import Tensor

from diffopt_implicit._arguments import without_graph
from diffopt_implicit._closure import closure_message, tracked_names
from diffopt_implicit._condition import LinearSolver, attach_root
from diffopt_implicit._linear_info import OnFailure
from diffopt_implicit._linear_system import Tree, check_positive
from diffopt_implicit._normal_cg import solve_normal_cg
from diffopt_implicit._root_check import RootCheck
from diffopt_implicit._solvers._segment import recomputed
from diffopt_implicit._solvers._status import running
from diffopt_implicit._solvers._step import OptStep
from diffopt_implicit._torch import any_true, is_tracked

if TYPE_CHECKING:
    from diffopt_implicit._solvers._solver import Solver

AdjointName = Literal["implicit", "unroll", "checkpoint"]


@runtime_checkable
class Adjoint(Protocol):
    """A way to run a solver with derivatives: a frozen value, passed as ``adjoint=``.

    Example:
        >>> isinstance(Unroll(), Adjoint)
        True
    """

    def __call__(
        self, solver: Solver, init_params: Tree, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> OptStep:
        """Return what ``solver.iterate(init_params, *args, **kwargs)`` does, with derivatives."""
        ...


@dataclass(frozen=True)
class Implicit:
    """Derivatives of the solution, whatever the iterations were, by the implicit function theorem.

    The iterations are not recorded. Both modes, to any order, as of `custom_root` for the solver's
    `optimality_fun`; nothing flows to where the search began.

    Attributes:
        solve: The linear solver. The default serves any nonsingular system; `solve_cg` is faster
            at a strict minimum without constraints.
        root_tol: As of `custom_root`.
        on_inexact_root: As of `custom_root`.

    Example:
        >>> import torch
        >>> from diffopt_implicit import FixedPointIteration, solve_gmres
        >>> solver = FixedPointIteration(
        ...     lambda x, a: (x + a / x) / 2, adjoint=Implicit(solve=solve_gmres)
        ... )
        >>> a = torch.tensor(4.0, requires_grad=True)
        >>> torch.autograd.grad(solver.run(torch.tensor(1.0), a).params, a)  # 1 / (2 sqrt(a))
        (tensor(0.2500),)

    Source:
        Blondel et al., *Efficient and modular implicit differentiation*, NeurIPS 2022, section 2.1.
    """

    solve: LinearSolver = solve_normal_cg
    root_tol: float = 0.1
    on_inexact_root: OnFailure = "warn"

    def __post_init__(self) -> None:
        RootCheck(self.root_tol, self.on_inexact_root)

    def __call__(
        self, solver: Solver, init_params: Tree, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> OptStep:
        """Iterate unrecorded, and attach the derivatives to the end."""
        with torch.no_grad():
            found = solver.iterate(
                without_graph(init_params), *without_graph(args), **without_graph(kwargs)
            )
        if not (tracked((args, kwargs)) or closed_over(solver)):
            return found
        check = RootCheck(self.root_tol, self.on_inexact_root)
        params = attach_root(solver.optimality_fun, found.params, args, kwargs, self.solve, check)
        return found._replace(params=params)


@dataclass(frozen=True)
class Unroll:
    """Derivatives of the iterations, all of them recorded by autograd.

    They flow to the arguments, to where the search began, and to what the solver closes over.
    Memory grows with the iterations. They are those of what was computed, the lengths of searched
    steps included; when to stop, and each choice between branches, is a constant.

    Example:
        >>> import torch
        >>> from diffopt_implicit import FixedPointIteration
        >>> solver = FixedPointIteration(
        ...     lambda x: x**2, maxiter=2, adjoint=Unroll(), on_failure="ignore"
        ... )
        >>> x = torch.tensor(0.5, requires_grad=True)
        >>> torch.autograd.grad(solver.run(x).params, x)  # of x^4
        (tensor(0.5000),)
    """

    def __call__(
        self, solver: Solver, init_params: Tree, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> OptStep:
        """Iterate."""
        return solver.iterate(init_params, *args, **kwargs)


@dataclass(frozen=True)
class Checkpoint:
    """The derivatives of `Unroll`, with less memory: segments are computed again on the way back.

    Only the iterates between segments are kept. With the default of about ``sqrt(maxiter)``
    updates a segment, memory is that of so many updates, at the cost of one more evaluation of
    each. Both modes, to any order.

    Attributes:
        segment: Updates between the iterates that are kept, positive; default
            ``sqrt(maxiter)``.

    Example:
        >>> import torch
        >>> from diffopt_implicit import FixedPointIteration
        >>> solver = FixedPointIteration(lambda x, a: 0.5 * x + a, adjoint=Checkpoint(segment=4))
        >>> a = torch.tensor(1.0, requires_grad=True)
        >>> (slope,) = torch.autograd.grad(solver.run(torch.tensor(0.0), a).params, a)
        >>> round(slope.item(), 3)
        2.0

    Source:
        Chen, Xu, Zhang & Guestrin, *Training deep nets with sublinear memory cost*, 2016.
    """

    segment: int | None = None

    def __post_init__(self) -> None:
        if self.segment is not None:
            check_positive("segment", self.segment)

    def __call__(
        self, solver: Solver, init_params: Tree, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> OptStep:
        """Iterate segment by segment."""
        length = self.segment or max(isqrt(solver.maxiter), 1)
        params, state = init_params, solver.init_state(init_params, *args, **kwargs)
        refuse_closures(solver, params, state, args, kwargs)
        for done in range(0, solver.maxiter, length):
            if not any_true(running(state)):
                break
            count = min(length, solver.maxiter - done)
            params, state = recomputed(solver, count, (params, state, args, kwargs))
        return solver.finished(OptStep(params, state))


NAMED: dict[str, Adjoint] = {
    "implicit": Implicit(),
    "unroll": Unroll(),
    "checkpoint": Checkpoint(),
}


def chosen_adjoint(adjoint: AdjointName | Adjoint) -> Adjoint:
    """Return the adjoint that a name stands for, or the one given."""
    if isinstance(adjoint, str) and adjoint in NAMED:
        return NAMED[adjoint]
    if isinstance(adjoint, type) or not callable(adjoint):
        raise ValueError(
            "`adjoint` must be 'implicit', 'unroll', 'checkpoint', or an adjoint such as "
            f"`Implicit(solve=solve_cg)`, got {adjoint!r}."
        )
    return adjoint


def tracked(tree: Tree) -> bool:
    """Tell whether derivatives flow into any tensor of a tree."""
    return any(isinstance(leaf, Tensor) and is_tracked(leaf) for leaf in tree_leaves(tree))


def closed_over(solver: Solver) -> list[str]:
    """Name the tensors that derivatives flow into within reach of what a solver solves."""
    apart = ("adjoint", "callback")
    names = [f.name for f in fields(solver) if f.name not in apart]
    return [found for name in names for found in tracked_names(getattr(solver, name))]


def refuse_closures(solver: Solver, params: Tree, state: Any, args: Any, kwargs: Any) -> None:
    """Refuse derivatives that would be lost between segments."""
    names = closed_over(solver)
    if not names:
        return
    inputs = without_graph((params, state, args, kwargs))
    with torch.enable_grad():
        step = solver.update(inputs[0], inputs[1], *inputs[2], **inputs[3])
    if tracked(tuple(step)):
        raise ValueError(closure_message(f"`{type(solver).__name__}`", names))
