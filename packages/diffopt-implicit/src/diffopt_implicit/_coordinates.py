"""Trees of tensors as vectors of one dtype, for iterations that think in vectors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pytree_core import tree_flatten, tree_paths, tree_unflatten
from torch import Tensor

Tree = Any


@dataclass(frozen=True)
class Coordinates:
    """The way between a tree of real tensors and the vector of all its elements.

    Attributes:
        spec: The structure of the tree.
        shapes: The shape of each leaf.
        dtypes: The dtype of each leaf.
        working: The dtype of the vector: the widest of the leaves', and at least float32, so
            that inner products of half-precision trees keep their digits.
    """

    spec: Any
    shapes: tuple[torch.Size, ...]
    dtypes: tuple[torch.dtype, ...]
    working: torch.dtype

    @classmethod
    def of(cls, tree: Tree, name: str) -> Coordinates:
        """Describe `tree`, called `name` in errors."""
        leaves, spec = tree_flatten(tree)
        working = torch.float32 if leaves else torch.get_default_dtype()
        for i, leaf in enumerate(leaves):
            if not isinstance(leaf, Tensor):
                raise TypeError(
                    f"The leaves of {name} must be tensors, got {type(leaf).__name__}"
                    f"{place(tree, i)}. Wrap numbers with `torch.tensor`; register classes with "
                    "`pytree_core.register_pytree_node`."
                )
            if leaf.is_complex():
                raise TypeError(
                    f"{name} holds a complex tensor ({leaf.dtype}){place(tree, i)}, and only real "
                    "ones are supported. Split it with `torch.view_as_real`."
                )
            if not leaf.is_floating_point():
                raise TypeError(
                    f"{name} must hold floating-point tensors, got {leaf.dtype}{place(tree, i)}. "
                    "Convert it with `.double()` or `.float()`."
                )
            working = torch.promote_types(working, leaf.dtype)
        return cls(
            spec,
            tuple(leaf.shape for leaf in leaves),
            tuple(leaf.dtype for leaf in leaves),
            working,
        )

    @property
    def size(self) -> int:
        """The number of elements of all leaves."""
        return sum(shape.numel() for shape in self.shapes)

    @property
    def eps(self) -> float:
        """The relative rounding error of the coarsest leaf."""
        dtypes = self.dtypes or (self.working,)
        return max(torch.finfo(dtype).eps for dtype in dtypes)

    def vector(self, tree: Tree, name: str) -> Tensor:
        """Lay the leaves of `tree` end to end; it must look as these coordinates say."""
        pieces = self.pieces(tree, name)
        if len(pieces) == 1:
            return pieces[0]
        return torch.cat(pieces) if pieces else torch.zeros(0, dtype=self.working)

    def pieces(self, tree: Tree, name: str) -> list[Tensor]:
        """Return the leaves of `tree` as pieces of a vector."""
        leaves, spec = tree_flatten(tree)
        shapes = tuple(getattr(leaf, "shape", None) for leaf in leaves)
        if spec != self.spec or shapes != self.shapes:
            raise ValueError(
                f"{name} must have the structure and shapes "
                f"{self.spec}, {[tuple(shape) for shape in self.shapes]}; got "
                f"{spec}, {[None if shape is None else tuple(shape) for shape in shapes]}."
            )
        return [leaf.reshape(-1).to(self.working) for leaf in leaves]

    def cut(self, vector: Tensor) -> Sequence[Tensor]:
        """Cut `vector` into such pieces again."""
        sizes = [shape.numel() for shape in self.shapes]
        return vector.split(sizes) if len(sizes) > 1 else [vector] * len(sizes)

    def tree(self, vector: Tensor) -> Tree:
        """Give the elements of `vector` the form of the tree."""
        return tree_unflatten(
            self.spec,
            [
                piece.reshape(shape).to(dtype)
                for piece, shape, dtype in zip(
                    self.cut(vector), self.shapes, self.dtypes, strict=True
                )
            ],
        )


def place(tree: Tree, index: int) -> str:
    """Tell where in a tree its leaf of an index is; nothing where it is the only one."""
    path = tree_paths(tree)[index]
    return f" at {''.join(f'[{key!r}]' for key in path)}" if path else ""
