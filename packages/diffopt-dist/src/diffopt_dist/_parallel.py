"""One function call spread over the processes of a world."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from pytree_core import tree_map

from diffopt_dist._dispatch import Progress, wait_any
from diffopt_dist._partition import Partitioner, batch_partitioner
from diffopt_dist._remote import Pending, Task, begin, mix
from diffopt_dist._request import Policy
from diffopt_dist._world import get_world_size, ranks_of

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


class Future:
    """The result of a parallel call that is still to come."""

    def __init__(
        self,
        pending: Pending,
        finish: Callable[[list[Any]], Any],
        progress: Progress | None = None,
    ) -> None:
        self._pending, self._finish, self._progress = pending, finish, progress

    def done(self) -> bool:
        """Whether `wait` returns, or raises, at once."""
        return self._pending.dispatch.done()

    def wait(self) -> Any:
        """Return the result once it is there, part of the graph of the call's arguments.

        Raises:
            RemoteError: If a task failed, once more than its retries.
            RuntimeError: If an argument was changed in place meanwhile.
        """
        return self._finish(self._pending.wait(self._progress))


def as_completed(futures: Iterable[Future], timeout: float | None = None) -> Iterator[Future]:
    """Yield futures as they are done, the first first.

    Args:
        futures: What to wait for.
        timeout: Seconds in which all must be done.

    Raises:
        TimeoutError: If they are not.

    Example:
        >>> from diffopt_dist import as_completed, get_rank, launch, remote_async_call
        >>> def main():
        ...     if get_rank() == 0:
        ...         calls = [remote_async_call(pow, (base, 2), to=1) for base in (3, 4)]
        ...         return sorted(call.wait() for call in as_completed(calls))
        >>> launch(main, nprocs=2)[0]
        [9, 16]
    """
    waiting = list(dict.fromkeys(futures))
    end = math.inf if timeout is None else time.monotonic() + timeout
    while waiting:
        left = None if timeout is None else max(end - time.monotonic(), 0)
        if not wait_any([future._pending.dispatch for future in waiting], left):
            raise TimeoutError(f"{len(waiting)} calls were not done after {timeout:g} s.")
        for future in [future for future in waiting if future.done()]:
            waiting.remove(future)
            yield future


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


def remote_async_call(
    fn: Callable[..., Any],
    args: Sequence[Any] = (),
    kwargs: dict[str, Any] | None = None,
    *,
    to: int | str,
    timeout: float | None = None,
    retries: int = 0,
    allow_nan: bool = False,
) -> Future:
    """Call a function in one other process, without waiting for its result.

    Args:
        fn: Any function; closures, methods and lambdas are sent by value.
        args: Its arguments, of anything that can be pickled, with tensors anywhere inside. They
            must not be changed in place before the result is there.
        kwargs: Its keyword arguments, likewise.
        to: The rank that runs it, or a role: that one of its processes that has least to do.
        timeout: Seconds in which it must answer; by default those of the world.
        retries: How often a failed call is made again, by another process of the role if there
            is one.
        allow_nan: Take a result, or gradients, that hold NaN.

    Returns:
        Its result to come: tensors in it are part of the graph of the arguments, and their
        backward pass runs where the function did.

    Raises:
        RuntimeError: Outside a world.
        ValueError: If there is no such rank or role, or a tensor is inside a transform of
            torch.func.

    Example:
        >>> import torch
        >>> from diffopt_dist import get_rank, launch, remote_async_call
        >>> def main():
        ...     if get_rank() == 0:
        ...         x = torch.tensor(3.0, requires_grad=True)
        ...         square = remote_async_call(lambda x: x * x, (x,), to=1)
        ...         return torch.autograd.grad(square.wait(), x)[0].item()
        >>> launch(main, nprocs=2)[0]
        6.0
    """
    policy = Policy(timeout, retries, allow_nan)
    task = Task(fn, tuple(args), kwargs or {}, ranks_of(to))
    return Future(begin([task], policy, limit=math.inf), lambda results: results[0])


def remote_sync_call(
    fn: Callable[..., Any],
    args: Sequence[Any] = (),
    kwargs: dict[str, Any] | None = None,
    *,
    to: int | str,
    timeout: float | None = None,
    retries: int = 0,
    allow_nan: bool = False,
) -> Any:
    """Call a function in one other process, and wait for its result; see `remote_async_call`.

    Args:
        fn: As there.
        args: As there.
        kwargs: As there.
        to: As there.
        timeout: As there.
        retries: As there.
        allow_nan: As there.

    Returns:
        The result.

    Raises:
        RemoteError: If the call failed, once more than `retries`.
        RuntimeError: As there.
        ValueError: As there.

    Example:
        >>> from diffopt_dist import get_rank, launch, remote_sync_call
        >>> launch(lambda: remote_sync_call(get_rank, to=1), nprocs=2)
        [1, 1]
    """
    settings = {"timeout": timeout, "retries": retries, "allow_nan": allow_nan}
    return remote_async_call(fn, args, kwargs, to=to, **settings).wait()
