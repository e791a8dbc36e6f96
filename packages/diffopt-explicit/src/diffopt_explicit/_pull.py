"""Gradients of a part of a computation, which has tensors of its own as leaves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from diffopt_explicit._outside import differentiable, tensors_in_graph
from diffopt_explicit._transform import Tree
from diffopt_explicit._trees import tree_flatten, tree_leaves, tree_map, tree_unflatten


class Sums:
    """A sum for each of some tensors, of what is added."""

    def __init__(self, tensors: list[Tensor]) -> None:
        self._places = {id(tensor): place for place, tensor in enumerate(tensors)}
        self.values: list[Tensor | None] = [None] * len(tensors)

    def take(self, tensor: Tensor) -> Tensor | None:
        """Take the sum of a tensor, which begins anew."""
        place = self._places.get(id(tensor))
        if place is None:
            return None
        value, self.values[place] = self.values[place], None
        return value

    def add(self, tensor: Tensor, value: Tensor | None) -> None:
        """Add to the sum of a tensor, if it has one."""
        place = self._places.get(id(tensor))
        if place is None or value is None:
            return
        old = self.values[place]
        self.values[place] = value if old is None else old + value


def with_graph(tree: Tree, like: Tree = None) -> tuple[Tree, list[Tensor]]:
    """The tree with leaves that gradients can be taken of, and these.

    If another tree is given, then only of those that require grad there.
    """
    leaves, spec = tree_flatten(tree)
    models = leaves if like is None else tree_leaves(like)
    leaves = [
        t.detach().requires_grad_(like is None or model.requires_grad) if differentiable(t) else t
        for t, model in zip(leaves, models, strict=True)
    ]
    return tree_unflatten(spec, leaves), list(filter(differentiable, leaves))


def with_proxies(tree: Tree, proxies: dict[Tensor, Tensor]) -> Tree:
    """The tree with tensors of its own for those that are in a graph; new ones join `proxies`."""
    for tensor in tensors_in_graph(tree):
        if tensor not in proxies:
            proxies[tensor] = tensor.detach().requires_grad_()

    def proxy(leaf: Any) -> Any:
        return proxies.get(leaf, leaf) if isinstance(leaf, Tensor) else leaf

    return tree_map(proxy, tree)


def gradients_of(
    outputs: Sequence[Tensor | None],
    cotangents: Sequence[Tensor | None],
    inputs: Sequence[Tensor | None],
    **options: bool,
) -> list[Tensor | None]:
    """`torch.autograd.grad`, where some of all may be missing, and have no graph."""
    pairs = [
        (output, cotangent)
        for output, cotangent in zip(outputs, cotangents, strict=True)
        if output is not None and cotangent is not None and output.requires_grad
    ]
    chosen = [tensor for tensor in inputs if tensor is not None and tensor.requires_grad]
    if not pairs or not chosen:
        return [None] * len(inputs)
    wanted, given = zip(*pairs, strict=True)
    gradients = torch.autograd.grad(wanted, chosen, given, allow_unused=True, **options)
    found = dict(zip(map(id, chosen), gradients, strict=True))
    return [found.get(id(tensor)) for tensor in inputs]
