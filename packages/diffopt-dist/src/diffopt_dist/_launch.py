"""Many processes on one machine, without a launcher."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import cloudpickle

from diffopt_dist._code import dumps
from diffopt_dist._world import Membership, Roles

POLL = 0.02  # seconds between looks at the processes
GRACE = 5.0  # seconds that processes have to end once one has failed, or all have returned

# What processes are told in the end: to wait for one another, or not.
TOGETHER, ALONE = b"t", b"a"


class LaunchError(RuntimeError):
    """A process of a launched world failed or did not end in time."""


def launch(
    fn: Callable[..., Any],
    nprocs: int = 2,
    args: Sequence[Any] = (),
    *,
    threads: int | None = 1,
    timeout: float = 300.0,
    rpc_timeout: float = 60.0,
    expendable: Iterable[int] = (),
    roles: Roles | None = None,
    collectives: str | None = None,
) -> list[Any]:
    """Run a function in several new processes that can call one another, and wait for all.

    Each process is a member of one world of ``torch.distributed.rpc``, on the loopback
    interface. It runs ``fn(*args)`` and then goes on answering the others' calls until
    all have returned, so that it is enough if rank 0 does something (see `get_rank`).
    Works in scripts, notebooks and tests; no process outlives the call.

    Args:
        fn: Any function, also a lambda or a local one. It is sent by value (cloudpickle).
        nprocs: How many processes to start.
        args: Arguments of `fn`, the same in each process.
        threads: Threads that torch may use in each process; `None` leaves it to torch.
        timeout: Seconds after which all processes are ended.
        rpc_timeout: Seconds after which a call from one process to another fails.
        expendable: Ranks that may die: the others go on, and do their tasks (see
            `parallelize`). The world ends when all others have returned.
        roles: The ranks of each role, by name; see `on_role`.
        collectives: Make a process group of ``torch.distributed`` as well, of this backend,
            such as ``"gloo"``.

    Returns:
        What `fn` returned, by rank; None for an expendable rank that died, or had not returned.

    Raises:
        LaunchError: If `fn` raises in a process, with that process's traceback; if a process
            ends by itself; or at the time-out.
        ValueError: If there is no process to start, or a rank is none of theirs.

    Example:
        >>> from diffopt_dist import get_rank, launch
        >>> launch(lambda base: base + get_rank(), nprocs=2, args=(10,))
        [10, 11]
    """
    if nprocs < 1:
        raise ValueError(f"`nprocs` must be at least 1, got {nprocs}.")
    may_die = frozenset(expendable)
    if not may_die < frozenset(range(nprocs)):
        raise ValueError(
            f"`expendable` must name some of the ranks 0 to {nprocs - 1}, and not all; got "
            f"{sorted(may_die)}."
        )
    members = [Membership(i, nprocs, rpc_timeout, roles, collectives) for i in range(nprocs)]
    with tempfile.TemporaryDirectory(prefix="diffopt-dist-") as name:
        folder = Path(name)
        # Twice, because what it takes to read the function (the path) must be read before it.
        job = dumps((fn, tuple(args)))
        (folder / "job").write_bytes(cloudpickle.dumps((sys.path, members, threads, job)))
        processes = [_Process(folder, rank) for rank in range(nprocs)]
        try:
            _wait(processes, may_die, timeout)
            results = [process.result() for process in processes]
            _end(processes)
            return results
        finally:
            for process in processes:
                process.kill()


class _Process:
    """One process of the world, and what it leaves in the folder."""

    def __init__(self, folder: Path, rank: int) -> None:
        self.rank = rank
        self._result, self._error = folder / f"result{rank}", folder / f"error{rank}"
        command = [sys.executable, "-m", "diffopt_dist._launched", str(folder), str(rank)]
        loopback = {"TP_SOCKET_IFNAME": "lo", "GLOO_SOCKET_IFNAME": "lo"}
        here = loopback if sys.platform == "linux" else {}
        environment = {**here, **os.environ, "LOCAL_RANK": str(rank)}
        # The pipe to its standard input tells the process when this one dies, however it dies.
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, env=environment)

    def runs(self) -> bool:
        return self._process.poll() is None

    def has_returned(self) -> bool:
        return self._result.exists()

    def failure(self) -> str | None:
        """How it has failed, if it has."""
        code = self._process.poll()
        if code is None or self.has_returned():
            return None
        if self._error.exists():
            return f"Rank {self.rank} raised:\n{self._error.read_text()}"
        return f"Rank {self.rank} ended by itself, with exit code {code}."

    def raised(self) -> bool:
        return self._error.exists()

    def result(self) -> Any:
        return cloudpickle.loads(self._result.read_bytes()) if self.has_returned() else None

    def tell_to_end(self, word: bytes) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):  # it has ended
            self._process.stdin.write(word)
            self._process.stdin.flush()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()


def _wait(processes: list[_Process], may_die: frozenset[int], timeout: float) -> None:
    """Wait until all have returned but the expendable ones; raise if one has not."""
    needed = [process for process in processes if process.rank not in may_die]
    end, failed = time.monotonic() + timeout, False
    while any(not process.has_returned() for process in needed) and time.monotonic() < end:
        failures = [p for p in processes if p.failure() and (p in needed or p.raised())]
        if failures and not failed:
            failed, end = True, time.monotonic() + GRACE  # for the others to tell theirs
        if failed and not any(p.runs() and not p.has_returned() for p in processes):
            break
        time.sleep(POLL)
    found = [process for process in processes if process.failure()]
    errors = [process.failure() for process in found if process.raised()]
    deaths = [process.failure() for process in found if process in needed]
    if errors or deaths:
        raise LaunchError("\n".join(str(text) for text in errors or deaths[:1]))
    for process in needed:
        if not process.has_returned():
            raise LaunchError(
                f"Rank {process.rank} of {len(processes)} was still running after {timeout:g} s "
                "and was ended. Raise `timeout`, or find what it waits for."
            )


def _end(processes: list[_Process]) -> None:
    """Let the processes leave the world."""
    all_here = all(process.runs() and process.has_returned() for process in processes)
    for process in processes:
        process.tell_to_end(TOGETHER if all_here else ALONE)
    end = time.monotonic() + GRACE
    while any(process.runs() for process in processes) and time.monotonic() < end:
        time.sleep(POLL)
