"""Which processes there are, and which one this is."""

from __future__ import annotations

from torch._C._distributed_rpc import _get_current_rpc_agent, _is_current_rpc_agent_set
from torch.distributed import rpc


def is_initialized() -> bool:
    """Whether this process is one of a world.

    Example:
        >>> from diffopt_dist import is_initialized
        >>> is_initialized()
        False
    """
    return _is_current_rpc_agent_set()


def get_rank() -> int:
    """The number of this process in its world, from 0.

    Raises:
        RuntimeError: Outside a world.

    Example:
        >>> from diffopt_dist import get_rank
        >>> get_rank()
        Traceback (most recent call last):
        RuntimeError: There is no world here: run this inside `diffopt_dist.launch`.
    """
    _require_world()
    return rpc.get_worker_info().id


def get_world_size() -> int:
    """The number of processes in this process's world.

    Raises:
        RuntimeError: Outside a world.

    Example:
        >>> from diffopt_dist import get_world_size, launch
        >>> launch(get_world_size, nprocs=2)
        [2, 2]
    """
    _require_world()
    return len(_get_current_rpc_agent().get_worker_infos())


def worker_name(rank: int) -> str:
    """The name under which RPC knows the process of this rank."""
    return f"worker{rank}"


def _require_world() -> None:
    if not is_initialized():
        raise RuntimeError("There is no world here: run this inside `diffopt_dist.launch`.")
