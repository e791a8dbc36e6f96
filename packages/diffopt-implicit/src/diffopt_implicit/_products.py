"""Products with the derivative of a root, for those who hold the root already."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pytree_core import tree_flatten, tree_leaves, tree_structure, tree_unflatten
from torch import Tensor

from diffopt_implicit._arguments import normalized
from diffopt_implicit._condition import LinearSolver, attach_root
from diffopt_implicit._coordinates import Coordinates
from diffopt_implicit._linear_info import OnFailure
from diffopt_implicit._linear_system import Tree
from diffopt_implicit._normal_cg import solve_normal_cg
from diffopt_implicit._root_check import RootCheck
from diffopt_implicit._torch import Tensors, outside_graphs, vjp


@outside_graphs
def root_vjp(
    optimality_fun: Callable[..., Tree],
    root: Tree,
    args: tuple[Any, ...],
    cotangent: Tree,
    *,
    argnums: int | Sequence[int] | None = None,
    solve: LinearSolver = solve_normal_cg,
    root_tol: float = 0.1,
    on_inexact_root: OnFailure = "warn",
) -> tuple[Tree, ...]:
    """Pull a cotangent of a root back to the arguments of its condition.

    With ``A = d optimality / dx`` and ``B = d optimality / d args`` at the root::

        A^T u = cotangent,   result = -B^T u

    Args:
        optimality_fun: ``(x, *args) ->`` a tree like ``x``, zero at the root.
        root: Any tree of real floating-point tensors.
        args: The arguments of the condition after ``x``, any trees.
        cotangent: A tree of `root`'s structure and shapes.
        argnums: Which arguments to differentiate, numbered as for `custom_root`: 1 is the
            first of `args`. Default: all.
        solve: The linear solver, called as ``solve(matvec, b)``.
        root_tol: The largest relative error of `root`, as for `custom_root`.
        on_inexact_root: What to do beyond it, as for `custom_root`.

    Returns:
        For each chosen argument, in the order of `args`, a tree like it, with None in the
        place of leaves that are no floating-point tensors, real or complex. Differentiable again.

    Raises:
        InexactRootError: If `root` is far from one, and told to raise.
        LinearSolveError: If `solve` fails.
        ValueError: If shapes or structures disagree, or a tensor's gradient would be lost.

    Example:
        >>> import torch
        >>> condition = lambda x, a: x**3 - a
        >>> root, a = torch.tensor(2.0), torch.tensor(8.0)
        >>> root_vjp(condition, root, (a,), torch.tensor(12.0))
        (tensor(1.),)

    Source:
        Blondel et al., *Efficient and modular implicit differentiation*, NeurIPS 2022, section 2.1.
    """
    selection = Selection.of(args, argnums)
    space = Coordinates.of(root, "the root")
    v = space.tree(space.vector(cotangent, "`cotangent`"))
    check = RootCheck(root_tol, on_inexact_root)
    function = root_as_function(optimality_fun, root, selection, solve, check)
    _, pull = vjp(function, *selection.tensors())
    return selection.like_args(pull(tuple(tree_leaves(v))))


@outside_graphs
def root_jvp(
    optimality_fun: Callable[..., Tree],
    root: Tree,
    args: tuple[Any, ...],
    tangents: tuple[Any, ...],
    *,
    argnums: int | Sequence[int] | None = None,
    solve: LinearSolver = solve_normal_cg,
    root_tol: float = 0.1,
    on_inexact_root: OnFailure = "warn",
) -> Tree:
    """Push tangents of the arguments of a condition forward to its root.

    With ``A = d optimality / dx`` and ``B = d optimality / d args`` at the root::

        A result = -B tangents

    Args:
        optimality_fun: ``(x, *args) ->`` a tree like ``x``, zero at the root.
        root: Any tree of real floating-point tensors.
        args: The arguments of the condition after ``x``, any trees.
        tangents: For each chosen argument a tree like it; what stands in the place of leaves
            that are no floating-point tensors is ignored.
        argnums: Which arguments `tangents` belong to, numbered as for `custom_root`: 1 is the
            first of `args`. Default: all.
        solve: The linear solver, called as ``solve(matvec, b)``.
        root_tol: The largest relative error of `root`, as for `custom_root`.
        on_inexact_root: What to do beyond it, as for `custom_root`.

    Returns:
        A tree like `root`. Differentiable again.

    Raises:
        InexactRootError: If `root` is far from one, and told to raise.
        LinearSolveError: If `solve` fails.
        ValueError: If shapes or structures disagree, or a tensor's gradient would be lost.

    Example:
        >>> import torch
        >>> condition = lambda x, a: x**3 - a
        >>> root, a = torch.tensor(2.0), torch.tensor(8.0)
        >>> root_jvp(condition, root, (a,), (torch.tensor(12.0),))
        tensor(1.)

    Source:
        Blondel et al., *Efficient and modular implicit differentiation*, NeurIPS 2022, section 2.1.
    """
    selection = Selection.of(args, argnums)
    check = RootCheck(root_tol, on_inexact_root)
    function = root_as_function(optimality_fun, root, selection, solve, check)
    pushed = torch.func.jvp(function, selection.tensors(), selection.from_args(tangents))[1]
    return tree_unflatten(tree_structure(root), pushed)


def root_as_function(
    optimality_fun: Callable[..., Tree],
    root: Tree,
    selection: Selection,
    solve: LinearSolver,
    check: RootCheck,
) -> Callable[..., Tensors]:
    """Return the leaves of a root as a function of the selected tensors."""

    def attached(*tensors: Tensor) -> Tensors:
        args = selection.with_tensors(tensors)
        return tuple(tree_leaves(attach_root(optimality_fun, root, args, {}, solve, check)))

    return attached


@dataclass(frozen=True)
class Selection:
    """The floating-point tensors, real or complex, in the chosen arguments of a condition.

    Attributes:
        args: All arguments.
        numbers: Which are chosen, the first being 1.
    """

    args: tuple[Any, ...]
    numbers: tuple[int, ...]

    @classmethod
    def of(cls, args: tuple[Any, ...], argnums: int | Sequence[int] | None) -> Selection:
        """Check the numbers."""
        chosen = normalized(argnums)
        numbers = tuple(range(1, len(args) + 1)) if chosen is None else tuple(sorted(chosen))
        if numbers and numbers[-1] > len(args):
            raise ValueError(
                f"`argnums` names argument {numbers[-1]}, but `args` has only {len(args)}."
            )
        return cls(args, numbers)

    def chosen(self) -> tuple[Any, ...]:
        """Return the chosen arguments."""
        return tuple(self.args[number - 1] for number in self.numbers)

    def tensors(self) -> Tensors:
        """Return the tensors to differentiate in."""
        return tuple(leaf for leaf in tree_leaves(self.chosen()) if differentiable(leaf))

    def with_tensors(self, tensors: Tensors) -> tuple[Any, ...]:
        """Return all arguments, with the tensors replaced by others."""
        leaves, spec = tree_flatten(self.chosen())
        new = iter(tensors)
        replaced = tree_unflatten(
            spec, [next(new) if differentiable(leaf) else leaf for leaf in leaves]
        )
        args = list(self.args)
        for number, value in zip(self.numbers, replaced, strict=True):
            args[number - 1] = value
        return tuple(args)

    def like_args(self, tensors: Tensors) -> tuple[Tree, ...]:
        """Return trees like the chosen arguments, None where there is no derivative."""
        leaves, spec = tree_flatten(self.chosen())
        new = iter(tensors)
        return tree_unflatten(
            spec, [next(new) if differentiable(leaf) else None for leaf in leaves]
        )

    def from_args(self, trees: tuple[Tree, ...]) -> Tensors:
        """Take the tensors out of trees like the chosen arguments."""
        leaves, spec = tree_flatten(self.chosen())
        given, given_spec = tree_flatten(tuple(trees))
        if given_spec != spec:
            raise ValueError(
                f"`tangents` must have the structure of the chosen arguments, {spec}, got "
                f"{given_spec}."
            )
        return tuple(t for leaf, t in zip(leaves, given, strict=True) if differentiable(leaf))


def differentiable(leaf: Any) -> bool:
    """Tell whether a leaf is a floating-point tensor, real or complex."""
    return isinstance(leaf, Tensor) and (leaf.is_floating_point() or leaf.is_complex())
