"""Requests given to workers as these become free, and again where they fail."""

from __future__ import annotations

import pickle
import threading
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from typing import Any

import torch

from diffopt_dist import _engine, _health
from diffopt_dist._request import Request
from diffopt_dist._worker import Failure, Reply

Progress = Callable[[int, int], None]

# Told whenever something has come of a request, of any dispatch.
_changed = threading.Condition(threading.RLock())
# How many requests of this process each worker has, in all dispatches.
_load: defaultdict[int, int] = defaultdict(int)


class RemoteError(RuntimeError):
    """A call to another process failed; the cause is what it raised there, if that was sent."""


class Dispatch:
    """The requests of one batch on their way.

    A worker has at most `limit` of them at a time. The others wait here, where they cost
    nothing, and go to whoever is free first, or to the worker that has their graph. What
    fails is asked of another worker, as often as its policy allows. All this happens in the
    threads in which answers arrive. Requests that several workers can answer have the same.
    """

    def __init__(self, requests: Sequence[Request], limit: float) -> None:
        self._limit = limit
        self._total = self._missing = len(requests)
        self._awaited = 0  # how many answers may be missing when `wait` is to be woken
        self._error: BaseException | None = None
        self._busy: defaultdict[int, int] = defaultdict(int)
        ranks = dict.fromkeys(rank for request in requests for rank in request.ranks)
        self._ranks = sorted(ranks, key=lambda rank: _load[rank])
        # Requests that wait, by the worker they are meant for; None stands for any.
        self._waiting: defaultdict[int | None, deque[Request]] = defaultdict(deque)
        for request in requests:
            self._waiting[request.home].append(request)
        answering = _health.answering(self._ranks)
        for rank in self._ranks:
            if rank not in answering:
                self._free_from(rank)
        self._advance()

    def done(self) -> bool:
        """Whether `wait` returns, or raises, at once."""
        return self._missing == 0 or self._error is not None

    def wait(self, progress: Progress | None = None) -> None:
        """Return once all answers are there; tell `progress` of each, in this thread."""
        steps = range(1, self._total + 1) if progress is not None else [self._total]
        for count in steps:
            with _changed:
                self._awaited = self._total - count
                _changed.wait_for(lambda: self._error is not None or self._missing <= self._awaited)
                if self._error is not None:
                    raise self._error
            if progress is not None:
                progress(count, self._total)

    def _advance(self) -> None:
        """Send all that can be sent."""
        while pair := self._take():
            self._send(*pair, again=bool(pair[0].failures))

    def _take(self) -> tuple[Request, int] | None:
        """A request that waits, and a worker that is free for it."""
        with _changed:
            if self._error is not None or not any(self._waiting.values()):
                return None
            answering = _health.answering(self._ranks)
            for rank in self._ranks:
                if self._busy[rank] < self._limit:
                    shared = self._waiting[None] if rank in answering else None
                    queue = self._waiting[rank] or shared
                    if queue:
                        self._count(rank, 1)
                        return queue.popleft(), rank
            return None

    def _count(self, rank: int, change: int) -> None:
        with _changed:
            self._busy[rank] += change
            _load[rank] += change

    def _send(self, request: Request, rank: int, *, again: bool) -> None:
        try:
            future = request.send(rank, again=again)
        except BaseException as error:
            self._count(rank, -1)
            self._fail(error)
        else:
            future.add_done_callback(lambda future: self._receive(request, rank, future, again))

    def _receive(
        self, request: Request, rank: int, future: torch.futures.Future[Any], again: bool
    ) -> None:
        """Take an answer, in the thread in which it came."""
        try:
            answer = _engine.answer(future)
            if isinstance(answer, Failure) and answer.gone and not again:
                self._send(request, rank, again=True)  # which counts no failure: a lease has ended
                return
            self._count(rank, -1)
            if isinstance(answer, Reply):
                request.answered(rank, answer)
                with _changed:
                    self._missing -= 1
                    if self._missing <= self._awaited:
                        _changed.notify_all()
            else:
                self._retry(request, rank, answer)
        except BaseException as error:  # nobody else would hear of it
            self._fail(error)
        self._advance()

    def _retry(self, request: Request, rank: int, failure: Failure | Exception) -> None:
        """Ask another worker, or this one again if there is no other; or give up."""
        lost = isinstance(failure, Exception)
        request.failures.append((rank, _lost_text(failure) if lost else failure.text))
        with _changed:
            if lost:
                _health.report_lost(rank)
                self._free_from(rank)
            if len(request.failures) > request.policy.retries:
                self._fail(_remote_error(request, failure))
                return
            tried = {rank for rank, _ in request.failures}
            others = [rank for rank in request.ranks if rank not in tried] or request.ranks
            target = min(
                _health.answering(others),
                key=lambda rank: self._busy[rank] + len(self._waiting[rank]),
            )
            self._waiting[target].appendleft(request)

    def _free_from(self, rank: int) -> None:
        """Let other workers do what was meant for one that is lost, where they can."""
        meant, self._waiting[rank] = self._waiting[rank], deque()
        for request in meant:
            self._waiting[None if len(request.ranks) > 1 else rank].append(request)

    def _fail(self, error: BaseException) -> None:
        with _changed:
            if self._error is None:
                self._error = error
            self._waiting.clear()
            _changed.notify_all()


def wait_any(dispatches: Sequence[Dispatch], timeout: float | None) -> bool:
    """Wait until one is done; say whether that was in time."""
    with _changed:
        done = _changed.wait_for(lambda: any(each.done() for each in dispatches), timeout)
    return done


def _lost_text(error: Exception) -> str:
    line = str(error).splitlines()[0] if str(error) else type(error).__name__
    return (
        f"no answer came ({line}). The process has died, is stopped or cannot be reached, or the "
        "function takes longer than `timeout`"
    )


def _remote_error(request: Request, failure: Failure | Exception) -> RemoteError:
    attempts = ", then ".join(f"on rank {rank} failed: {text}" for rank, text in request.failures)
    message = f"{request.what[0].upper()}{request.what[1:]} {attempts}."
    if isinstance(failure, Exception):
        cause: BaseException | None = failure
    else:
        cause = pickle.loads(failure.error) if failure.error is not None else None
        message += f"\n\nOn rank {request.failures[-1][0]}:\n{failure.trace}"
    error = RemoteError(message)
    error.__cause__ = cause
    return error
