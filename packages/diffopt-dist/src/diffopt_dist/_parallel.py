"""One function call spread over the processes of a world."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from diffopt_dist._dispatch import Progress
from diffopt_dist._future import Future
from diffopt_dist._partition import Partitioner, batch_partitioner
from diffopt_dist._reduce import Reducer, mean_reducer
from diffopt_dist._remote import Task, begin, mix
from diffopt_dist._request import Policy
from diffopt_dist._world import get_world_size, ranks_of


def parallelize(
    fn: Callable[..., Any] | None = None,
    *,
    partitioner: Partitioner = batch_partitioner,
    reducer: Reducer = mean_reducer,
    workers: Sequence[int] | str | None = None,
    timeout: float | None = None,
    retries: int = 1,
    allow_nan: bool = False,
    seed: int | None = None,
    lease: float = 600.0,
    progress: Progress | None = None,
) -> Any:
    """Spread a function's calls over the processes of a world; differentiable as a local call.

    Each call is cut into shards, which are its tasks. Each worker gets one task, and the next
    when it has answered, so that the faster ones take more. The results are reduced to one, in
    the order of the shards whoever made them: ordinary tensors, for which ``loss.backward()``
    or ``torch.autograd.grad`` in the caller runs the backward passes in the workers, at the
    same time as well, and ``create_graph=True`` allows further derivatives.

    A task whose worker dies, does not answer in time, raises, or gives a NaN is given to
    another worker. So is a backward pass, with the task whose graph was lost; its result is
    the same. So a function may run more than once: it should have no effects but its result.

    Args:
        fn: A function of anything that can be pickled, with tensors anywhere inside: trees,
            modules, objects. Closures, methods and lambdas are sent by value; tensors that they
            capture get their gradients too.
        partitioner: ``(args, kwargs, number of workers) -> shards``.
        reducer: ``(results, sizes of the shards) -> result``, in differentiable operations.
        workers: Ranks that do the work, or the name of their role; by default all, the
            caller's included.
        timeout: Seconds in which a worker must answer each task; by default those of the world.
        retries: How often a failed task is given to another worker.
        allow_nan: Take results and gradients that hold NaN, instead of calling them failures.
        seed: Determines torch's random numbers in the tasks, whichever worker runs them. By
            default they are other ones in each call, and follow from the caller's seed.
        lease: Seconds after its last use for which a worker keeps the graph of a task, unless
            the result has died before. It is made again when it is needed later.
        progress: Called here with ``(tasks answered, tasks in all)`` while waiting.

    Returns:
        The parallel function; a decorator, if `fn` is not given.

    Raises:
        RemoteError: When called, or differentiated, if a task fails once more than `retries`.
        RuntimeError: When called outside a world.
        ValueError: When called, if the partitioner cannot cut the arguments, there are no such
            workers, or a tensor is inside a transform of torch.func.

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
    waiting = parallelize_async(
        partitioner=partitioner,
        reducer=reducer,
        workers=workers,
        timeout=timeout,
        retries=retries,
        allow_nan=allow_nan,
        seed=seed,
        lease=lease,
        progress=progress,
    )

    def decorate(fn: Callable[..., Any]) -> Callable[..., Any]:
        started = waiting(fn)

        @functools.wraps(fn)
        def parallel(*args: Any, **kwargs: Any) -> Any:
            return started(*args, **kwargs).wait()

        return parallel

    return decorate if fn is None else decorate(fn)


def parallelize_async(
    fn: Callable[..., Any] | None = None,
    *,
    partitioner: Partitioner = batch_partitioner,
    reducer: Reducer = mean_reducer,
    workers: Sequence[int] | str | None = None,
    timeout: float | None = None,
    retries: int = 1,
    allow_nan: bool = False,
    seed: int | None = None,
    lease: float = 600.0,
    progress: Progress | None = None,
) -> Any:
    """Do as `parallelize` does, without waiting: calls return a `Future` at once.

    The arguments must not be changed in place before the result is there.

    Args:
        fn: As there.
        partitioner: As there.
        reducer: As there.
        workers: As there.
        timeout: As there.
        retries: As there.
        allow_nan: As there.
        seed: As there.
        lease: As there.
        progress: As there, called in `Future.wait`.

    Returns:
        The parallel function, whose calls return a `Future`; a decorator, if `fn` is not given.

    Raises:
        RuntimeError: As there.
        ValueError: As there.

    Example:
        >>> import torch
        >>> from diffopt_dist import get_rank, launch, parallelize_async, sum_reducer
        >>> def main():
        ...     if get_rank() == 0:
        ...         started = parallelize_async(torch.sum, reducer=sum_reducer)(torch.ones(5))
        ...         return started.wait().item()  # after other work
        >>> launch(main, nprocs=2)[0]
        5.0
    """
    policy = Policy(timeout, retries, allow_nan, lease)

    def decorate(fn: Callable[..., Any]) -> Callable[..., Future]:
        @functools.wraps(fn)
        def parallel(*args: Any, **kwargs: Any) -> Future:
            ranks = ranks_of(range(get_world_size()) if workers is None else workers)
            shards = partitioner(args, kwargs, len(ranks))
            tasks = [
                Task(
                    fn,
                    shard.args,
                    shard.kwargs,
                    ranks,
                    number=f"task {index} of {len(shards)}, ",
                    seed=None if seed is None else mix(seed, index),
                )
                for index, shard in enumerate(shards)
            ]
            sizes = [shard.size for shard in shards]
            pending = begin(tasks, policy, limit=1)
            return Future(pending, lambda results: reducer(results, sizes), progress)

        return parallel

    return decorate if fn is None else decorate(fn)
