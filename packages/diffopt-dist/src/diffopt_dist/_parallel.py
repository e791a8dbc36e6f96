"""One function call spread over the processes of a world."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pytree_core import tree_leaves, tree_map
from torch import Tensor

from diffopt_dist._remote import Call, call_all
from diffopt_dist._world import get_world_size


@dataclass(frozen=True)
class Shard:
    """The share of one worker in a call.

    Attributes:
        args: Its arguments.
        kwargs: Its keyword arguments.
        size: How many examples it holds: the weight of its result in a mean.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    size: int


@dataclass(frozen=True)
class _Replicated:
    """Marks a value that every shard gets whole."""

    value: Any


def replicate(value: Any) -> Any:
    """Mark an argument of a parallel function that every worker gets whole.

    Args:
        value: A tree, of parameters for instance. Its gradient is the sum over the workers.

    Example:
        >>> import torch
        >>> from diffopt_dist import batch_partitioner, replicate
        >>> shards = batch_partitioner((replicate(torch.ones(3)), torch.arange(4)), {}, 2)
        >>> [shard.args for shard in shards]
        [(tensor([1., 1., 1.]), tensor([0, 1])), (tensor([1., 1., 1.]), tensor([2, 3]))]
    """
    return _Replicated(value)


Partitioner = Callable[[tuple[Any, ...], dict[str, Any], int], Sequence[Shard]]
Reducer = Callable[[list[Any], list[int]], Any]


def batch_partitioner(args: tuple[Any, ...], kwargs: dict[str, Any], parts: int) -> list[Shard]:
    """Cut every tensor along its first dimension into nearly equal parts.

    Whole to every shard go: what is marked by `replicate`, tensors without dimensions, and
    what is no tensor.

    Args:
        args: The arguments of the call.
        kwargs: Its keyword arguments.
        parts: How many shards to make at most; there are fewer for fewer examples.

    Raises:
        ValueError: If the tensors differ in length, or there is none to cut.

    Example:
        >>> import torch
        >>> from diffopt_dist import batch_partitioner
        >>> [shard.size for shard in batch_partitioner((torch.zeros(5, 2),), {}, 2)]
        [3, 2]
    """
    leaves = tree_leaves((args, kwargs), is_leaf=_is_replicated)
    lengths = {leaf.shape[0] for leaf in leaves if _is_cut(leaf)}
    if len(lengths) != 1:
        found = f"lengths {sorted(lengths)}" if lengths else "no tensor with a dimension"
        raise ValueError(
            f"The tensors to be cut along their first dimension must agree in length: there are "
            f"{found}. Mark what every worker needs whole by `replicate(...)`."
        )
    (length,) = lengths
    shards, start = [], 0
    for indices in torch.arange(length).tensor_split(min(parts, max(length, 1))):
        end = start + len(indices)

        def share(leaf: Any, start: int = start, end: int = end) -> Any:
            if _is_replicated(leaf):
                return leaf.value
            return leaf[start:end] if _is_cut(leaf) else leaf

        own_args, own_kwargs = tree_map(share, (args, kwargs), is_leaf=_is_replicated)
        shards.append(Shard(own_args, own_kwargs, end - start))
        start = end
    return shards


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


def parallelize(
    fn: Callable[..., Any] | None = None,
    *,
    partitioner: Partitioner = batch_partitioner,
    reducer: Reducer = mean_reducer,
    workers: Sequence[int] | None = None,
    timeout: float | None = None,
) -> Any:
    """Spread a function's calls over the processes of a world; differentiable as a local call.

    Each call is cut into shards, one a worker, run there at the same time, and the results
    are reduced to one. They are ordinary tensors: ``loss.backward()`` or
    ``torch.autograd.grad`` in the caller runs the backward passes in the workers, at the
    same time as well, and ``create_graph=True`` allows further derivatives. A worker keeps
    the graph of a call until the result has died.

    Args:
        fn: A function of trees of tensors; closures and lambdas are sent by value. Tensors
            that require grad must be arguments.
        partitioner: ``(args, kwargs, number of workers) -> shards``.
        reducer: ``(results, sizes of the shards) -> result``, in differentiable operations.
        workers: Ranks that do the work; by default all, the caller's included.
        timeout: Seconds after which a call to a worker fails; by default that of the world.

    Returns:
        The parallel function; a decorator, if `fn` is not given.

    Raises:
        RemoteError: When called, if a worker raises or does not answer in time.
        RuntimeError: When called outside a world.
        ValueError: When called, if the partitioner cannot cut the arguments, or a tensor that
            requires grad is captured.

    Example:
        >>> import torch
        >>> from diffopt_dist import get_rank, launch, parallelize
        >>> def main():
        ...     if get_rank() == 0:
        ...         x = torch.arange(5.0, requires_grad=True)
        ...         loss = parallelize(lambda x: x.square().mean())(x)
        ...         return loss.item(), torch.autograd.grad(5 * loss, x)[0].tolist()
        >>> launch(main, nprocs=2)[0]
        (6.0, [0.0, 2.0, 4.0, 6.0, 8.0])
    """
    if fn is None:
        settings = {"partitioner": partitioner, "reducer": reducer}
        return functools.partial(parallelize, **settings, workers=workers, timeout=timeout)

    @functools.wraps(fn)
    def parallel(*args: Any, **kwargs: Any) -> Any:
        ranks = range(get_world_size()) if workers is None else workers
        shards = partitioner(args, kwargs, len(ranks))
        calls = [
            Call(ranks[index % len(ranks)], fn, shard.args, shard.kwargs)
            for index, shard in enumerate(shards)
        ]
        return reducer(call_all(calls, timeout=timeout), [shard.size for shard in shards])

    return parallel


def _is_replicated(leaf: Any) -> bool:
    return isinstance(leaf, _Replicated)


def _is_cut(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.dim() > 0
