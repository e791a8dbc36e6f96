"""Which processes there are, and which one this is."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from diffopt_dist import _engine, _store

F = TypeVar("F", bound=Callable[..., Any])
Roles = Mapping[str, Sequence[int]]

_state: dict[str, Any] = {}


@dataclass(frozen=True)
class Membership:
    """How a process joins a world.

    Attributes:
        rank: Its number.
        world_size: How many there are.
        rpc_timeout: Seconds after which a call between processes fails.
        roles: The ranks of each role.
        collectives: The backend of a process group to make as well, if any.
    """

    rank: int
    world_size: int
    rpc_timeout: float
    roles: Roles | None
    collectives: str | None

    def __post_init__(self) -> None:
        given = [rank for ranks in (self.roles or {}).values() for rank in ranks]
        for rank in given:
            if given.count(rank) > 1 or not 0 <= rank < self.world_size:
                raise ValueError(
                    f"`roles` gives rank {rank} {given.count(rank)} roles in a world of "
                    f"{self.world_size} processes: each rank of it may have one."
                )
        for name in self.roles or {}:
            if not re.fullmatch(r"[A-Za-z0-9-][A-Za-z0-9_-]*", name):
                raise ValueError(
                    f"A role's name is made of letters, digits, - and _, and starts with none of "
                    f"the last; got {name!r}."
                )

    def enter(self, meeting: str, collective_meeting: str) -> None:
        """Join, and wait for the others at the places where they meet."""
        roles = {rank: name for name, ranks in (self.roles or {}).items() for rank in ranks}
        _store.start_cleaning()
        _engine.join(
            self.rank,
            self.world_size,
            role=roles.get(self.rank),
            init_method=meeting,
            rpc_timeout=self.rpc_timeout,
        )
        if self.collectives is not None:
            _engine.join_collectives(
                self.collectives, self.rank, self.world_size, init_method=collective_meeting
            )


def leave(*, wait: bool, timeout: float = 0.0) -> None:
    """Leave the world; see `_engine.leave`."""
    _store.stop_cleaning()
    _state.clear()
    _engine.leave(wait=wait, timeout=timeout)


def local_state() -> dict[str, Any]:
    """What this process keeps between calls: a dictionary that lives as long as its world.

    Functions are sent by value and start anew in each call; what an agent or a worker is to
    remember goes here.

    Example:
        >>> from diffopt_dist import launch, local_state, remote_sync_call
        >>> def count():
        ...     local_state()["calls"] = local_state().get("calls", 0) + 1
        ...     return local_state()["calls"]
        >>> launch(lambda: [remote_sync_call(count, to=0) for _ in range(3)], nprocs=1)
        [[1, 2, 3]]
    """
    return _state


def is_initialized() -> bool:
    """Whether this process is one of a world.

    Example:
        >>> from diffopt_dist import is_initialized
        >>> is_initialized()
        False
    """
    return _engine.is_joined()


def get_rank() -> int:
    """The number of this process in its world, from 0.

    Raises:
        RuntimeError: Outside a world.

    Example:
        >>> from diffopt_dist import get_rank
        >>> get_rank()
        Traceback (most recent call last):
        RuntimeError: There is no world here: run this inside `launch` or `auto_init_rpc`.
    """
    _require_world()
    return _engine.rank()


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
    return len(_engine.roles())


def get_local_rank() -> int:
    """The number of this process among those of its machine, from 0.

    Raises:
        RuntimeError: Outside a world.

    Example:
        >>> from diffopt_dist import get_local_rank, launch
        >>> launch(get_local_rank, nprocs=2)
        [0, 1]
    """
    _require_world()
    return int(os.environ.get("LOCAL_RANK", _engine.rank()))


def get_role() -> str | None:
    """The role that `launch` or `auto_init_rpc` gave this process, or None.

    Raises:
        RuntimeError: Outside a world.

    Example:
        >>> from diffopt_dist import get_role, launch
        >>> launch(get_role, nprocs=3, roles={"actor": [1, 2]})
        [None, 'actor', 'actor']
    """
    return _engine.roles()[get_rank()]


def get_worker_id() -> str:
    """The name of this process in messages: its rank, and where it runs.

    Raises:
        RuntimeError: Outside a world.

    Example:
        >>> from diffopt_dist import get_worker_id, launch
        >>> launch(lambda: get_worker_id().split(" ")[0:2], nprocs=1)
        [['rank', '0']]
    """
    return f"rank {get_rank()} (process {os.getpid()} on {os.uname().nodename})"


def on_rank(*ranks: int) -> Callable[[F], F]:
    """Let a function run on these ranks alone; on the others its calls return None at once.

    Args:
        ranks: Their numbers.

    Raises:
        RuntimeError: When called outside a world.
        ValueError: When called, if there is no such rank.

    Example:
        >>> from diffopt_dist import get_rank, launch, on_rank
        >>> launch(lambda: on_rank(1)(get_rank)(), nprocs=3)
        [None, 1, None]
    """
    return _where(lambda rank: rank in ranks, ranks)


def not_on_rank(*ranks: int) -> Callable[[F], F]:
    """Let a function run on all ranks but these; see `on_rank`.

    Example:
        >>> from diffopt_dist import get_rank, launch, not_on_rank
        >>> launch(lambda: not_on_rank(1)(get_rank)(), nprocs=3)
        [0, None, 2]
    """
    return _where(lambda rank: rank not in ranks, ranks)


def on_role(*roles: str) -> Callable[[F], F]:
    """Let a function run on the processes of these roles alone; see `on_rank`.

    Args:
        roles: Their names.

    Raises:
        RuntimeError: When called outside a world.
        ValueError: When called, if no process has such a role.

    Example:
        >>> from diffopt_dist import get_rank, launch, on_role
        >>> launch(lambda: on_role("actor")(get_rank)(), nprocs=3, roles={"actor": [1, 2]})
        [None, 1, 2]
    """

    def decorate(fn: Any) -> Any:
        @functools.wraps(fn)
        def called(*args: Any, **kwargs: Any) -> Any:
            ranks = [rank for role in roles for rank in ranks_of(role)]
            return fn(*args, **kwargs) if get_rank() in ranks else None

        return called

    return decorate


def rank_zero_only(fn: F) -> F:
    """Let a function run on rank 0 alone; see `on_rank`.

    Example:
        >>> from diffopt_dist import launch, rank_zero_only
        >>> launch(lambda: rank_zero_only(lambda: "logged")(), nprocs=2)
        ['logged', None]
    """
    return on_rank(0)(fn)


def rank_non_zero_only(fn: F) -> F:
    """Let a function run on all ranks but 0; see `on_rank`.

    Example:
        >>> from diffopt_dist import launch, rank_non_zero_only
        >>> launch(lambda: rank_non_zero_only(lambda: "worked")(), nprocs=2)
        [None, 'worked']
    """
    return not_on_rank(0)(fn)


def _where(runs: Callable[[int], bool], ranks: tuple[int, ...]) -> Callable[[F], F]:
    def decorate(fn: Any) -> Any:
        @functools.wraps(fn)
        def called(*args: Any, **kwargs: Any) -> Any:
            for rank in ranks:
                ranks_of(rank)
            return fn(*args, **kwargs) if runs(get_rank()) else None

        return called

    return decorate


def ranks_of(where: int | str | Iterable[int]) -> list[int]:
    """The ranks that a rank, the name of a role, or several ranks stand for.

    Raises:
        RuntimeError: Outside a world.
        ValueError: If there is no such rank or role.
    """
    _require_world()
    roles = _engine.roles()
    if isinstance(where, str):
        ranks = [rank for rank, role in enumerate(roles) if role == where]
        if not ranks:
            known = sorted({role for role in roles if role is not None})
            raise ValueError(
                f"No process has the role {where!r}: there are {known}. Roles are given by "
                "`launch(..., roles={'name': [ranks]})` or `auto_init_rpc(roles=...)`."
            )
        return ranks
    ranks = [where] if isinstance(where, int) else list(where)
    if not ranks:
        raise ValueError("There must be a rank to do the work; got none.")
    for rank in ranks:
        if not 0 <= rank < len(roles):
            raise ValueError(f"There is no rank {rank}: the world has {len(roles)} processes.")
    return ranks


def _require_world() -> None:
    if not is_initialized():
        raise RuntimeError("There is no world here: run this inside `launch` or `auto_init_rpc`.")
