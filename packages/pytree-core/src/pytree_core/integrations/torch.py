"""Trees of torch tensors as vectors: raveling, arithmetic, norms. All differentiable."""

import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pytree_core._broadcast import tree_broadcast_prefix
from pytree_core._core import (
    TreeSpec,
    tree_flatten_with_path,
    tree_leaves,
    tree_map,
    tree_map_with_path,
)
from pytree_core.integrations._arithmetic import tree_add as tree_add
from pytree_core.integrations._arithmetic import tree_add_scalar_mul as tree_add_scalar_mul
from pytree_core.integrations._arithmetic import tree_mul as tree_mul
from pytree_core.integrations._arithmetic import tree_scalar_mul as tree_scalar_mul
from pytree_core.integrations._arithmetic import tree_sub as tree_sub
from pytree_core.integrations._torch_trees import register_with_dynamo as register_with_dynamo
from pytree_core.integrations._torch_trees import register_with_torch as register_with_torch


@dataclass(frozen=True)
class Unravel:
    """Rebuild a tree of tensors from one vector, as `tree_ravel` laid it out.

    Attributes:
        treespec: The structure of the tree.
        shapes: The shape of each leaf.
        dtypes: The dtype of each leaf, which it gets back.
        dtype: The dtype that the vector must have.
    """

    treespec: TreeSpec
    shapes: tuple[torch.Size, ...]
    dtypes: tuple[torch.dtype, ...]
    dtype: torch.dtype

    def __call__(self, vector: Tensor) -> Any:
        """Return the tree whose leaves are the pieces of `vector`."""
        sizes = [shape.numel() for shape in self.shapes]
        if vector.shape != (sum(sizes),) or vector.dtype != self.dtype:
            raise ValueError(
                f"expected a vector of {sum(sizes)} {self.dtype}, "
                f"got {vector.dtype} of shape {tuple(vector.shape)}"
            )
        pieces = zip(torch.split(vector, sizes), self.shapes, self.dtypes, strict=True)
        return self.treespec.unflatten(_as(piece.reshape(s), dtype) for piece, s, dtype in pieces)


def tree_ravel(tree: Any, /) -> tuple[Tensor, Unravel]:
    """Lay all tensors of a tree end to end in one vector.

    Args:
        tree: A tree of tensors on one device. Mixed dtypes are promoted to one.

    Returns:
        The vector, and the function that turns such a vector into a tree like `tree`, with
        its dtypes.

    Raises:
        TypeError: If a leaf is not a tensor.

    Example:
        >>> import torch
        >>> vector, unravel = tree_ravel({"b": torch.ones(2), "a": torch.zeros(())})
        >>> vector
        tensor([0., 1., 1.])
        >>> unravel(2 * vector)
        {'b': tensor([2., 2.]), 'a': tensor(0.)}
    """
    paths, leaves, treespec = tree_flatten_with_path(tree)
    for path, leaf in zip(paths, leaves, strict=True):
        if not isinstance(leaf, Tensor):
            raise TypeError(f"at {path}: expected a tensor, got {leaf!r}")
    dtypes = tuple(leaf.dtype for leaf in leaves)
    dtype = functools.reduce(torch.promote_types, dtypes) if dtypes else torch.get_default_dtype()
    unravel = Unravel(treespec, tuple(leaf.shape for leaf in leaves), dtypes, dtype)
    if not leaves:
        return torch.zeros(0, dtype=dtype), unravel
    return torch.cat([leaf.reshape(-1).to(dtype) for leaf in leaves]), unravel


def tree_vdot(a: Any, b: Any, /) -> Tensor:
    """Compute ``sum(conj(a) * b)`` over all elements of two trees.

    Args:
        a: A tree of tensors.
        b: A tree of tensors with the structure and the shapes of `a`.

    Returns:
        A tensor without dimensions; zero if there are no leaves.

    Raises:
        ValueError: If the structures or the shapes differ.

    Example:
        >>> import torch
        >>> tree_vdot([torch.ones(2), torch.ones(())], [torch.ones(2), torch.tensor(5.0)])
        tensor(7.)
    """

    def vdot(path: tuple[Any, ...], x: Tensor, y: Tensor) -> Tensor:
        if x.shape != y.shape:
            raise ValueError(f"at {path}: the shapes {tuple(x.shape)} and {tuple(y.shape)} differ")
        return (x.conj() * y).sum()

    products = tree_leaves(tree_map_with_path(vdot, a, b))
    return functools.reduce(torch.add, products) if products else torch.zeros(())


def tree_l2_norm(tree: Any, /, *, squared: bool = False) -> Tensor:
    """Compute the Euclidean norm of all elements of a tree.

    Args:
        tree: A tree of tensors.
        squared: Return the square of the norm.

    Returns:
        A tensor without dimensions. At zero its derivative is zero, not NaN.

    Example:
        >>> import torch
        >>> tree_l2_norm({"a": torch.tensor([3.0]), "b": torch.tensor(4.0)})
        tensor(5.)
    """
    if squared:
        return tree_vdot(tree, tree).real
    linalg: Any = torch.linalg  # whose functions have no types
    norms: list[Tensor] = [linalg.vector_norm(leaf) for leaf in tree_leaves(tree)]
    return linalg.vector_norm(torch.stack(norms)) if norms else torch.zeros(())


def tree_zeros_like(tree: Any, /) -> Any:
    """Make a tree of zeros like a tree of tensors.

    Args:
        tree: A tree of tensors.

    Example:
        >>> import torch
        >>> tree_zeros_like((torch.ones(2), None))
        (tensor([0., 0.]), None)
    """
    return tree_map(torch.zeros_like, tree)


def tree_ones_like(tree: Any, /) -> Any:
    """Make a tree of ones like a tree of tensors.

    Args:
        tree: A tree of tensors.

    Example:
        >>> import torch
        >>> tree_ones_like((torch.zeros(2), None))
        (tensor([1., 1.]), None)
    """
    return tree_map(torch.ones_like, tree)


def tree_where(condition: Any, a: Any, b: Any, /) -> Any:
    """Choose the elements of one tree where a condition holds, and of another elsewhere.

    Args:
        condition: A boolean tensor, or a tree of them that is a prefix of `a`.
        a: A tree of tensors.
        b: A tree shaped like `a`.

    Raises:
        ValueError: If the structures differ.

    Example:
        >>> import torch
        >>> tree_where(torch.tensor(False), [torch.ones(2)], [torch.zeros(2)])
        [tensor([0., 0.])]
    """
    return tree_map(torch.where, tree_broadcast_prefix(condition, a), a, b)


def _as(leaf: Tensor, dtype: torch.dtype) -> Tensor:
    return (leaf.real if leaf.is_complex() and not dtype.is_complex else leaf).to(dtype)
