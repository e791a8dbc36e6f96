"""Graphs that processes keep for one another, and when they let go of them.

A worker keeps the graph of a request until the caller lets go of the result, or until it has
not been used for as long as its lease: then it is made again if it is wanted after all.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections import defaultdict, deque
from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor

from diffopt_dist import _engine

Key = tuple[int, int]  # the rank of the caller, and its number for the request
PERIOD = 0.5  # seconds between the rounds of the janitor
TELL = 10.0  # seconds that telling a worker of dead graphs may take


@dataclass
class Graph:
    """Inputs and outputs of a request, as its worker keeps them."""

    inputs: list[Tensor]
    outputs: list[Tensor]
    lease: float
    used: float


_kept: dict[Key, Graph] = {}
# Keys of graphs that no one here can ask for any more, by the worker that may keep them.
_dead: defaultdict[int, deque[Key]] = defaultdict(deque)
_janitor: threading.Thread | None = None
_leaving = threading.Event()


def keep(key: Key, inputs: list[Tensor], outputs: list[Tensor], lease: float) -> None:
    """Keep a graph here, for another process."""
    _kept[key] = Graph(inputs, outputs, lease, time.monotonic())
    _clean_up()


def find(key: Key) -> Graph | None:
    """The graph kept here under a key, whose lease begins anew."""
    graph = _kept.get(key)
    if graph is not None:
        graph.used = time.monotonic()
    return graph


def forget(keys: Iterable[Key]) -> None:
    """Let go of graphs kept here."""
    for key in keys:
        _kept.pop(key, None)


def kept_graphs() -> int:
    """How many graphs this process keeps for others."""
    return len(_kept)


def release_with(owner: object, key: Key) -> set[int]:
    """Let workers forget a graph when `owner` dies: those whose ranks are in the set by then."""
    keepers: set[int] = set()
    # Not told at once, as a finalizer may run at any moment.
    weakref.finalize(owner, _bury, key, keepers).atexit = False
    _clean_up()
    return keepers


def take_dead(rank: int) -> list[Key]:
    """The graphs that a worker need not keep any more and has not been told of."""
    keys, found = _dead[rank], []
    while keys:
        found.append(keys.popleft())
    return found


def stop_cleaning() -> None:
    """End the janitor, before its world does."""
    if _janitor is not None:
        _leaving.set()
        _janitor.join()


def _bury(key: Key, keepers: set[int]) -> None:
    for rank in keepers:
        _dead[rank].append(key)


def _clean_up() -> None:
    """See to it that there is a janitor."""
    global _janitor
    if _janitor is None or not _janitor.is_alive():
        _leaving.clear()
        _janitor = threading.Thread(target=_work, name="diffopt-dist-janitor", daemon=True)
        _janitor.start()


def _work() -> None:
    while not _leaving.wait(PERIOD) and _engine.is_joined():
        now = time.monotonic()
        forget([key for key, graph in list(_kept.items()) if now - graph.used > graph.lease])
        for rank in list(_dead):
            keys = take_dead(rank)
            if keys:
                _engine.send(rank, forget, (keys,), TELL)
