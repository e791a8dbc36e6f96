"""Which workers do not answer, as far as this process knows."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

import torch

from diffopt_dist import _engine

PING = 5.0  # seconds in which a worker must answer to be there again
PAUSE = 0.5  # seconds between pings to one

_lock = threading.Lock()
_lost: dict[int, tuple[torch.futures.Future[None], float]] = {}  # the last ping, and its time


def report_lost(rank: int) -> None:
    """Give a worker no work, where others can do it, until it answers again."""
    with _lock:
        _lost[rank] = _ping(rank)


def answering(ranks: Sequence[int]) -> list[int]:
    """Those workers that are not lost, or all if none is left."""
    if not _lost:
        return list(ranks)
    with _lock:
        for rank, (ping, sent) in list(_lost.items()):
            if ping.done() and _engine.answer(ping) is None:
                del _lost[rank]
            elif ping.done() and time.monotonic() > sent + PAUSE:
                _lost[rank] = _ping(rank)
        return [rank for rank in ranks if rank not in _lost] or list(ranks)


def _ping(rank: int) -> tuple[torch.futures.Future[None], float]:
    return _engine.send(rank, _pong, (), PING), time.monotonic()


def _pong() -> None:
    return None
