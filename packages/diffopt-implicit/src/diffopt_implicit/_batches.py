"""Functions of vectors and matrices, applied to leading dimensions that broadcast."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from pytree_core import tree_map
from torch import Tensor


def over_batches(function: Callable[..., Any], tensors: Sequence[Tensor], ranks: Sequence[int]):
    """Call `function` on each example of a batch, by `torch.func.vmap`.

    Args:
        function: What maps tensors of these ranks to a tree of tensors.
        tensors: Its arguments, with further dimensions in front that broadcast.
        ranks: How many dimensions `function` expects of each.
    """
    fronts = [t.shape[: t.dim() - rank] for t, rank in zip(tensors, ranks, strict=True)]
    batch = torch.broadcast_shapes(*fronts)
    if not batch:
        return function(*tensors)
    # What all examples share is not repeated.
    shared = [front.numel() == 1 for front in fronts]
    flat = [
        t.reshape(t.shape[t.dim() - rank :])
        if alone
        else t.expand(batch + t.shape[t.dim() - rank :]).reshape(-1, *t.shape[t.dim() - rank :])
        for t, rank, alone in zip(tensors, ranks, shared, strict=True)
    ]
    if all(shared):
        found = function(*flat)
        return tree_map(lambda leaf: leaf.expand(batch + leaf.shape), found)
    in_dims = tuple(None if alone else 0 for alone in shared)
    found = torch.func.vmap(function, in_dims=in_dims)(*flat)
    return tree_map(lambda leaf: leaf.reshape(batch + leaf.shape[1:]), found)
