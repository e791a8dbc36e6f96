"""Calls of functions in named processes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from diffopt_dist._future import Future
from diffopt_dist._remote import Task, begin
from diffopt_dist._request import Policy
from diffopt_dist._world import ranks_of


@dataclass(frozen=True)
class Call:
    """A function call to be made by a worker.

    Attributes:
        rank: Which worker.
        fn: The function. It is sent by value where pickle cannot send it by name.
        args: Its arguments, of anything that can be pickled, with tensors anywhere inside.
        kwargs: Its keyword arguments, likewise.
    """

    rank: int
    fn: Callable[..., Any]
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)


def call_all(
    calls: Sequence[Call], *, timeout: float | None = None, allow_nan: bool = False
) -> list[Any]:
    """Make all calls at the same time, and return their results in order.

    Results are ordinary tensors, part of the graph of the calls' arguments; their backward
    pass runs in the workers, at the same time, to any order.

    Args:
        calls: What to call, and where.
        timeout: Seconds in which each must be answered; by default that of the world.
        allow_nan: Let results and gradients hold NaN.

    Raises:
        RemoteError: If a call raises, is not answered in time, or has a NaN in its result.
        ValueError: If there is no such rank, or a tensor is inside a transform of torch.func.

    Example:
        >>> from diffopt_dist import Call, call_all, get_rank, launch
        >>> def main():
        ...     if get_rank() == 0:
        ...         return call_all([Call(1, max, (3, 4)), Call(0, min, (3, 4))])
        >>> launch(main, nprocs=2)[0]
        [4, 3]
    """
    for call in calls:
        ranks_of(call.rank)
    policy = Policy(timeout=timeout, allow_nan=allow_nan)
    tasks = [Task(call.fn, call.args, call.kwargs, (call.rank,)) for call in calls]
    return begin(tasks, policy, limit=math.inf).wait()


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
