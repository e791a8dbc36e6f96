"""Results that are still to come."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from diffopt_dist._dispatch import Progress, wait_any
from diffopt_dist._remote import Pending


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
