"""Trees of tensors as rows, one for each example: the working space of fixed-point solvers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from pytree_core import tree_leaves
from torch import Tensor

from diffopt_implicit._coordinates import Coordinates
from diffopt_implicit._linear_system import Tree


@dataclass(frozen=True)
class Rows:
    """The way between a tree and a matrix of shape (examples, elements of an example).

    Attributes:
        space: What the tree looks like.
        batched: Whether the first dimension of each leaf counts examples; else there is one.
    """

    space: Coordinates
    batched: bool

    @classmethod
    def of(cls, tree: Tree, batched: bool) -> Rows:
        """Describe `tree`."""
        space = Coordinates.of(tree, "`init_params`")
        counts = {shape[0] if shape else None for shape in space.shapes}
        if batched and (len(counts) != 1 or None in counts):
            raise ValueError(
                "With `batched` all leaves must have the same first dimension, the number of "
                f"examples, got shapes {[tuple(shape) for shape in space.shapes]}."
            )
        return cls(space, batched)

    def matrix(self, tree: Tree, name: str) -> Tensor:
        """Lay the elements of each example side by side."""
        vector = self.space.vector(tree, name)  # which sees to it that the tree looks alike
        if not self.batched:
            return vector[None]
        leaves = [side_by_side(leaf).to(self.space.working) for leaf in tree_leaves(tree)]
        return leaves[0] if len(leaves) == 1 else torch.cat(leaves, dim=1)

    def tree(self, matrix: Tensor) -> Tree:
        """Give rows the structure of the tree again."""
        if not self.batched:
            return self.space.tree(matrix[0])
        widths = [shape[1:].numel() for shape in self.space.shapes]
        return self.space.tree(torch.cat([part.flatten() for part in matrix.split(widths, 1)]))


def side_by_side(leaf: Tensor) -> Tensor:
    """Lay the elements of each example side by side, be there one of them, or no example."""
    return leaf.reshape(leaf.shape[0], leaf.shape[1:].numel())


def length(rows: Tensor) -> Tensor:
    """Return the Euclidean norm of each row."""
    return torch.linalg.vector_norm(rows, dim=-1)


def relative_length(rows: Tensor, of: Tensor) -> Tensor:
    """Return the norm of each row, against 1 plus the norm of another."""
    return (length(rows) / (1 + length(of))).detach()
