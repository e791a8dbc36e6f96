"""Derivatives by a graph of autograd that is made once and used as often as asked."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from diffopt_implicit._equation import LinearMap
from diffopt_implicit._torch import Tensors, is_transforming


def fresh(tensors: Tensors) -> Tensors:
    """Return the same values as leaves of a new graph."""
    return tuple(tensor.detach().requires_grad_() for tensor in tensors)


def pulled(results: Tensors, leaves: Tensors, cotangents: Tensors) -> Tensors:
    """Pull cotangents of results back to leaves of their graph, which is kept."""
    used = [i for i, result in enumerate(results) if result.requires_grad]
    if not used or not leaves:
        return tuple(torch.zeros_like(leaf) for leaf in leaves)
    return torch.autograd.grad(
        [results[i] for i in used],
        leaves,
        [cotangents[i] for i in used],
        retain_graph=True,
        allow_unused=True,
        materialize_grads=True,
    )


def gradients(
    value: Tensor, leaves: Tensors, create_graph: bool = False
) -> tuple[Tensor | None, ...]:
    """Return the derivatives of a scalar in leaves of its graph, None where it has no path."""
    if not value.requires_grad or not leaves:
        return (None,) * len(leaves)
    return torch.autograd.grad(value, leaves, create_graph=create_graph, allow_unused=True)


def symmetric(product: LinearMap, many: LinearMap | None = None) -> LinearMap:
    """Return a product with a symmetric matrix that transforms can transpose and map.

    Args:
        product: With one vector, by a kept graph, which no transform can enter.
        many: The same for stacked vectors; default, all at once.
    """
    together: LinearMap = torch.func.vmap(product) if many is None else many

    def multiplied(u: Tensors) -> Tensors:
        if not is_transforming():
            return product(u)
        return _Symmetric.apply(product, together, *u)  # type: ignore[no-any-return]

    return multiplied


class _Symmetric(torch.autograd.Function):
    """A product with a symmetric matrix, which is its own transpose."""

    @staticmethod
    def forward(product: LinearMap, together: LinearMap, *u: Tensor) -> Tensors:
        return product(u)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensors) -> None:
        ctx.maps = inputs[:2]

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *_Symmetric.apply(*ctx.maps, *cotangents)

    @staticmethod
    def vmap(  # type: ignore[override]
        info: Any, in_dims: tuple[Any, ...], product: LinearMap, together: LinearMap, *u: Tensor
    ) -> tuple[Tensors, tuple[int, ...]]:
        batched = tuple(
            part.expand(info.batch_size, *part.shape) if dim is None else part.movedim(dim, 0)
            for part, dim in zip(u, in_dims[2:], strict=True)
        )
        return together(batched), (0,) * len(u)
