"""What processes keep for one another, and when they let go of it.

A worker keeps the graph of a request, or a tensor that requests share, until the caller lets go
of it, or until it has not been used for as long as its lease: then it is made, or sent, again if
it is wanted after all.
"""

from __future__ import annotations

import itertools
import threading
import time
import weakref
from collections import defaultdict, deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from diffopt_dist import _engine

Key = tuple[int, int]  # the rank of the caller, and its number for what is kept
PERIOD = 0.5  # seconds between the rounds of the janitor
TELL = 10.0  # seconds that telling a worker of dead keys may take


@dataclass
class Graph:
    """Inputs and outputs of a request, as its worker keeps them."""

    inputs: list[Tensor]
    outputs: list[Tensor]


@dataclass
class _Kept:
    value: Any
    lease: float
    used: float


class GoneError(RuntimeError):
    """What an earlier step has left here is not here any more."""


_numbers = itertools.count()
_kept: dict[Key, _Kept] = {}
# Keys of what no one here can ask for any more, by the worker that may keep it.
_dead: defaultdict[int, deque[Key]] = defaultdict(deque)
_janitor: threading.Thread | None = None
_leaving = threading.Event()
# Of the janitor; a finalizer may come here again in the same thread.
_lock = threading.RLock()


def new_key() -> Key:
    """A key for what other processes are to keep for this one."""
    return _engine.rank(), next(_numbers)


def keep(key: Key, value: Any, lease: float) -> None:
    """Keep something here, for another process."""
    _kept[key] = _Kept(value, lease, time.monotonic())
    _clean_up()


def find(key: Key) -> Any:
    """What is kept here under a key, whose lease begins anew.

    Raises:
        GoneError: If there is nothing.
    """
    kept = _kept.get(key)
    if kept is None:
        raise GoneError("What an earlier message has left here is not kept any more.")
    kept.used = time.monotonic()
    return kept.value


def forget(keys: Iterable[Key]) -> None:
    """Let go of what is kept here."""
    for key in keys:
        _kept.pop(key, None)


def release_with(owner: object, key: Key) -> set[int]:
    """Let workers forget a key when `owner` dies: those whose ranks are in the set by then."""
    keepers: set[int] = set()
    # Not told at once, as a finalizer may run at any moment.
    weakref.finalize(owner, _bury, key, keepers).atexit = False
    _clean_up()
    return keepers


def take_dead(rank: int) -> list[Key]:
    """The keys that a worker need not keep any more and has not been told of."""
    keys, found = _dead[rank], []
    while keys:
        found.append(keys.popleft())
    return found


def start_cleaning() -> None:
    """Let there be a janitor, in a new world."""
    _leaving.clear()


def stop_cleaning() -> None:
    """End the janitor before its world does, which may answer calls for a while yet."""
    with _lock:
        _leaving.set()
        janitor = _janitor
    if janitor is not None:
        janitor.join()


def _bury(key: Key, keepers: set[int]) -> None:
    for rank in keepers:
        _dead[rank].append(key)


def _clean_up() -> None:
    """See to it that there is a janitor, unless the world is being left."""
    global _janitor
    with _lock:  # Calls are answered in many threads, while another one leaves.
        if _leaving.is_set() or (_janitor is not None and _janitor.is_alive()):
            return
        _janitor = threading.Thread(target=_work, name="diffopt-dist-janitor", daemon=True)
        _janitor.start()


def _work() -> None:
    while not _leaving.wait(PERIOD) and _engine.is_joined():
        now = time.monotonic()
        forget([key for key, kept in list(_kept.items()) if now - kept.used > kept.lease])
        for rank in list(_dead):
            keys = take_dead(rank)
            if keys:
                _engine.send(rank, forget, (keys,), TELL)
