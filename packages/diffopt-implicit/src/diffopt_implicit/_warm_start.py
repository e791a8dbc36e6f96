"""A linear solver that begins where it last ended."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pytree_core import tree_flatten, tree_unflatten

from diffopt_implicit._coordinates import Coordinates
from diffopt_implicit._linear_system import MatVec, Tree
from diffopt_implicit._normal_cg import solve_normal_cg
from diffopt_implicit._torch import Tensors, alive, is_wrapped, outside_graphs


class WarmStart:
    """Wrap a linear solver so that each solve begins at the solution of the last.

    Made for the ``solve=`` of a decorated solver in an outer loop: where the problem changes
    little from one outer step to the next, so does the adjoint. What is found stays within the
    solver's tolerance, wherever it began. A right-hand side of another structure or shape
    begins afresh, and so does every solve under `torch.func.vmap`, `grad` or `jvp`, whose
    tensors must not outlive them.

    Attributes:
        solve: The solver, called as ``solve(matvec, b, init=..., **options)``.
        last: Its last solution, None at first.

    Example:
        >>> import torch
        >>> from diffopt_implicit import solve_cg
        >>> solve = WarmStart(solve_cg)
        >>> b = torch.tensor([1.0, 2.0, 3.0])
        >>> [solve(lambda x: b * x, b, info=True)[1].iterations.item() for _ in range(2)]
        [3, 0]
    """

    def __init__(self, solve: Callable[..., Any] = solve_normal_cg) -> None:
        self.solve = solve
        self.last: Tree | None = None

    @outside_graphs
    def __call__(self, matvec: MatVec, b: Tree, **options: Any) -> Any:
        """Solve ``A x = b`` from the last solution, and remember this one."""
        space = Coordinates.of(b, "`b`")
        fits = self.last is not None and looks(self.last) == looks(b)
        solved = self.solve(matvec, b, **{"init": self.last if fits else None, **options})
        leaves, _ = tree_flatten(solved[0] if options.get("info") else solved)
        kept: Tensors = tuple(leaf.detach() for leaf in alive(leaves))
        if not any(is_wrapped(leaf) for leaf in kept):
            self.last = tree_unflatten(space.spec, kept)
        return solved


def looks(tree: Tree) -> tuple[Any, ...]:
    """Return the structure, shapes, dtypes and devices of a tree of tensors."""
    leaves, spec = tree_flatten(tree)
    return spec, *((leaf.shape, leaf.dtype, leaf.device) for leaf in leaves)
