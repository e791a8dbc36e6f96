"""The engine: all that is asked of `torch.distributed.rpc`; another could take its place."""

from __future__ import annotations

import ctypes
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import distributed
from torch._C._distributed_rpc import _get_current_rpc_agent, _is_current_rpc_agent_set
from torch.distributed import rpc
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import register_rendezvous_handler, rendezvous
from torch.distributed.rpc.constants import UNSET_RPC_TIMEOUT

M_ARENA_MAX = -8  # of malloc.h
NO_ROLE = "_"
# A scheme of URLs, like tcp://, for meetings that torchrun may start again.
RESTARTABLE = "diffopt-restartable"


def _meet(url: str, **settings: Any) -> Iterator[tuple[Store, int, int]]:
    """Meet at a store where each attempt of torchrun has its own place.

    Torchrun keeps its store from one attempt to the next, where members of the new world would
    find addresses of the old one.
    """
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    for store, rank, size in rendezvous(url.replace(RESTARTABLE, "tcp"), **settings):
        yield PrefixStore(f"attempt{attempt}", store), rank, size


register_rendezvous_handler(RESTARTABLE, _meet)


def join(
    rank: int, world_size: int, *, role: str | None, init_method: str, rpc_timeout: float
) -> None:
    """Make this process a member of a world, and wait for the others."""
    _share_memory_between_threads()
    options = rpc.TensorPipeRpcBackendOptions(
        # Not shared memory, whose thread polls for ever: on as many cores as processes it takes
        # half of their time, to spare a fifth of a millisecond for each call.
        _transports=["ibv", "uv"],
        # Threads that answer calls: enough that calls from all ranks at once cannot block.
        num_worker_threads=max(16, 2 * world_size),
        rpc_timeout=rpc_timeout,
        init_method=init_method,
    )
    name = f"{role or NO_ROLE}:{rank}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch about its own process groups
        rpc.init_rpc(name, rank=rank, world_size=world_size, rpc_backend_options=options)


def _share_memory_between_threads() -> None:
    """Let the threads that answer calls, each time another one, use the same freed memory.

    glibc gives each an arena of its own, whose pages it gives back to the system and has to ask for
    again: up to a fifth of the time of tasks that allocate, such as unrolled steps. Who has set
    MALLOC_ARENA_MAX has chosen already.
    """
    if "MALLOC_ARENA_MAX" in os.environ:
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(M_ARENA_MAX, 1)


def join_collectives(backend: str, rank: int, world_size: int, *, init_method: str) -> None:
    """Make a process group of the world, for `torch.distributed`'s collectives."""
    distributed.init_process_group(
        backend, rank=rank, world_size=world_size, init_method=init_method
    )


def leave(*, wait: bool, timeout: float = 0.0) -> None:
    """Leave the world, with `wait` once the others do, at most so many seconds later (0: ever).

    Raises:
        RuntimeError: If some do not leave in time; this process has left all the same.
    """
    try:
        rpc.shutdown(graceful=wait, timeout=timeout)
    finally:
        if distributed.is_initialized():
            distributed.destroy_process_group()


def is_joined() -> bool:
    """Whether this process is a member of a world."""
    return _is_current_rpc_agent_set()


def rank() -> int:
    """The number of this process."""
    return rpc.get_worker_info().id


def roles() -> list[str | None]:
    """The role of each process, by rank."""
    members = sorted(_get_current_rpc_agent().get_worker_infos(), key=lambda member: member.id)
    found = [member.name.rpartition(":")[0] for member in members]
    return [role if role and role != NO_ROLE else None for role in found]


def send(
    rank: int, serve: Callable[..., Any], arguments: tuple[Any, ...], timeout: float | None
) -> torch.futures.Future[Any]:
    """Call a function in another process, without waiting; every error is that of the future."""
    seconds = UNSET_RPC_TIMEOUT if timeout is None else timeout
    try:
        return rpc.rpc_async(rank, serve, args=arguments, timeout=seconds)
    except Exception as error:
        failed: torch.futures.Future[Any] = torch.futures.Future()
        failed.set_exception(error)
        return failed


def answer(future: torch.futures.Future[Any]) -> Any:
    """What came of a call that is done: an answer, or the exception that there is none."""
    try:
        return future.value()
    except Exception as error:
        return error
