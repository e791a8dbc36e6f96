"""Trees taken apart into their tensors and all else."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from pytree_core import tree_flatten, tree_unflatten
from torch import Tensor

from diffopt_implicit._linear_system import Tree
from diffopt_implicit._torch import Tensors


@dataclass(frozen=True)
class Form:
    """What remains of a tree without its tensors.

    Attributes:
        spec: The structure.
        static: The leaves, None in place of tensors.
        places: The positions of the tensors among the leaves.
    """

    spec: Any
    static: tuple[Any, ...]
    places: tuple[int, ...]

    @classmethod
    def of(cls, tree: Tree) -> tuple[Tensors, Form]:
        """Take a tree apart."""
        leaves, spec = tree_flatten(tree)
        places = tuple(i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor))
        static = tuple(None if isinstance(leaf, Tensor) else leaf for leaf in leaves)
        return tuple(leaves[i] for i in places), cls(spec, static, places)

    def tree(self, tensors: Iterable[Tensor]) -> Tree:
        """Put tensors in their places."""
        leaves = list(self.static)
        for place, tensor in zip(self.places, tensors, strict=True):
            leaves[place] = tensor
        return tree_unflatten(self.spec, leaves)
