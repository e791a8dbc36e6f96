"""Worlds of processes that torchrun has started, on one machine or many."""

from __future__ import annotations

import functools
import ipaddress
import os
import socket
import sys
import threading
import time
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

from diffopt_dist import _engine
from diffopt_dist._world import Membership, Roles, is_initialized, leave

T = TypeVar("T")
NEEDED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
WATCH = 1.0  # seconds between looks at torchrun


def auto_init_rpc(
    worker_init_fn: Callable[[], None] | None = None,
    *,
    backend: str = "tensorpipe",
    rpc_timeout: float = 60.0,
    shutdown_timeout: float = 300.0,
    interface: str | None = None,
    roles: Roles | None = None,
    collectives: str | None = None,
) -> Callable[[Callable[..., T]], Callable[..., T]]:
    """Make the processes that torchrun has started a world, while a function runs in each.

    When the function returns, its process goes on answering the others' calls until all have
    returned. If it raises, or its process dies, torchrun ends the others, and starts all again
    if it has restarts left (``--max-restarts``): a world is as new then, and goes on from where
    a `Checkpoint` was saved. No process outlives torchrun, however that ends. Without torchrun,
    `launch` starts processes itself.

    RPC trusts its network: whoever reaches a port of it can run code. So processes bind to the
    loopback interface, and a world of several machines has to name another, inside a network
    that can be trusted.

    Args:
        worker_init_fn: Called in each process once the world is there.
        backend: The engine; torch has ``"tensorpipe"`` alone.
        rpc_timeout: Seconds after which a call from one process to another fails.
        shutdown_timeout: Seconds to wait for the others at the end; after them, or once one of
            them has died, there is a warning, and the function's result.
        interface: The network interface of a world of several machines, such as ``"eth0"``.
        roles: The ranks of each role, by name; the same in all processes. See `on_role`.
        collectives: Make a process group of ``torch.distributed`` as well, of this backend:
            ``"gloo"``, or ``"nccl"`` for GPUs.

    Returns:
        A decorator of the function that each process runs.

    Raises:
        RuntimeError: When called, if torchrun has not started this process, or a world is there.
        ValueError: For another backend; when called, if the world spans several machines and no
            `interface` is given.

    Example:
        >>> from diffopt_dist import auto_init_rpc, get_rank
        >>> @auto_init_rpc(rpc_timeout=30.0)
        ... def main():
        ...     if get_rank() == 0:
        ...         ...  # the others answer calls
        >>> main()  # torchrun --nproc-per-node 4 script.py
        Traceback (most recent call last):
        RuntimeError: The environment has no RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT: start the \
script by `torchrun --nproc-per-node ... script.py`, or use `launch`.
    """
    if backend != "tensorpipe":
        raise ValueError(f"`backend` must be 'tensorpipe', the only one of torch, got {backend!r}.")

    def decorate(fn: Callable[..., T]) -> Callable[..., T]:
        @functools.wraps(fn)
        def main(*args: Any, **kwargs: Any) -> T:
            _join(interface, rpc_timeout, roles, collectives)
            try:
                if worker_init_fn is not None:
                    worker_init_fn()
                result = fn(*args, **kwargs)
            except BaseException:
                leave(wait=False)
                raise
            try:
                leave(wait=True, timeout=shutdown_timeout)
            except RuntimeError as error:
                line = str(error).splitlines()[0]
                warnings.warn(f"Not all processes have left in time: {line}", stacklevel=2)
            return result

        return main

    return decorate


def _join(
    interface: str | None, rpc_timeout: float, roles: Roles | None, collectives: str | None
) -> None:
    missing = [name for name in NEEDED if name not in os.environ]
    if missing:
        raise RuntimeError(
            f"The environment has no {', '.join(missing)}: start the script by "
            "`torchrun --nproc-per-node ... script.py`, or use `launch`."
        )
    if is_initialized():
        raise RuntimeError("This process is a member of a world already.")
    rank, size, address, port = (os.environ[name] for name in NEEDED)
    if interface is None and not _is_here(address):
        raise ValueError(
            f"The world meets at {address}, which is not this machine's loopback interface. Name "
            "the interface of the network that all machines share, which must be one to be "
            "trusted: `auto_init_rpc(interface='eth0')`."
        )
    member = Membership(int(rank), int(size), rpc_timeout, roles, collectives)
    chosen = interface or ("lo" if sys.platform == "linux" else None)
    if chosen is not None:
        os.environ["TP_SOCKET_IFNAME"] = os.environ["GLOO_SOCKET_IFNAME"] = chosen
    if "TORCHELASTIC_RUN_ID" in os.environ:
        threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    meeting = f"{_engine.RESTARTABLE}://{address}:{port}"
    member.enter(meeting, meeting)


def _end_with(parent: int) -> None:
    """End this process when torchrun is killed, which leaves its processes behind."""
    while os.getppid() == parent:
        time.sleep(WATCH)
    os._exit(2)


def _is_here(address: str) -> bool:
    """Whether an address is that of the loopback interface."""
    try:
        found = {info[4][0] for info in socket.getaddrinfo(address, None)}
    except OSError:
        return False
    return all(ipaddress.ip_address(str(ip)).is_loopback for ip in found)
