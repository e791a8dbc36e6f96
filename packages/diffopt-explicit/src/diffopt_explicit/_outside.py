"""The tensors that a step uses besides its arguments."""

from __future__ import annotations

from collections.abc import Container
from typing import Any

from torch import Tensor

from diffopt_explicit._gradient import is_inner_leaf
from diffopt_explicit._transform import Tree
from diffopt_explicit._trees import tree_leaves


class Outside:
    """Leaves of the graph that steps lead to, although none of their arguments has a graph.

    Such a tensor reaches a step by closure: a learning rate in an optimizer, a weight in a loss.
    Where it was computed itself, it is the leaves of that computation which are found.
    """

    def __init__(self) -> None:
        self._found: dict[int, Tensor] = {}

    @property
    def leaves(self) -> list[Tensor]:
        """What was found, each once."""
        return list(self._found.values())

    def find(self, results: Tree, inside: Container[int] = ()) -> None:
        """Follow the graph of what a step returned to its leaves, but for those `inside`."""

        def keep(leaf: Tensor) -> None:
            if not is_inner_leaf(leaf) and id(leaf) not in inside:
                self._found[id(leaf)] = leaf

        pending: list[Any] = []
        for leaf in tree_leaves(results):
            if isinstance(leaf, Tensor) and leaf.requires_grad:
                if leaf.grad_fn is not None:
                    pending.append(leaf.grad_fn)
                else:
                    keep(leaf)
        seen: set[Any] = set()
        while pending:
            node = pending.pop()
            if node is None or node in seen:
                continue
            seen.add(node)
            before = node.next_functions
            pending.extend([function for function, _ in before])
            leaf = None if before else getattr(node, "variable", None)
            if leaf is not None:
                keep(leaf)


def differentiable(leaf: Any) -> bool:
    """Whether a leaf of a tree is a tensor that can have a gradient."""
    return isinstance(leaf, Tensor) and (leaf.is_floating_point() or leaf.is_complex())


def differentiable_leaves(tree: Tree) -> list[Tensor]:
    """The tensors of a tree that can have gradients."""
    return list(filter(differentiable, tree_leaves(tree)))


def tensors_in_graph(*trees: Tree) -> list[Tensor]:
    """The different tensors of some trees that require grad."""
    found: dict[int, Tensor] = {}
    for tree in trees:
        for leaf in tree_leaves(tree):
            if isinstance(leaf, Tensor) and leaf.requires_grad:
                found[id(leaf)] = leaf
    return list(found.values())
