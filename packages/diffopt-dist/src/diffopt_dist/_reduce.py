"""Putting the results of shards together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pytree_core import tree_map

Reducer = Callable[[list[Any], list[int]], Any]


def mean_reducer(results: list[Any], sizes: list[int]) -> Any:
    """The mean of the shards' results, each weighted by its number of examples.

    Of means over uneven shards this is the mean over all examples.

    Example:
        >>> import torch
        >>> from diffopt_dist import mean_reducer
        >>> mean_reducer([torch.tensor(1.0), torch.tensor(3.5)], [3, 2])
        tensor(2.)
    """
    total = sum(sizes)
    return tree_map(
        lambda *leaves: sum(r * size for r, size in zip(leaves, sizes, strict=True)) / total,
        *results,
    )


def sum_reducer(results: list[Any], sizes: list[int]) -> Any:
    """The sum of the shards' results, in their order.

    Example:
        >>> import torch
        >>> from diffopt_dist import sum_reducer
        >>> sum_reducer([{"loss": torch.tensor(1.0)}, {"loss": torch.tensor(3.5)}], [3, 2])
        {'loss': tensor(4.5000)}
    """
    return tree_map(lambda *leaves: sum(leaves[1:], leaves[0]), *results)
