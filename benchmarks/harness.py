"""Measuring contenders beside one another, and keeping the result."""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import re
import time
from collections.abc import Callable
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

Contenders = dict[str, Callable[[], Any]]


def arguments(description: str, **switches: str) -> argparse.Namespace:
    """The options that every benchmark has, and switches of its own with what they mean."""
    parser = argparse.ArgumentParser(description=description)
    for name, meaning in switches.items():
        parser.add_argument(f"--{name}", action="store_true", help=meaning)
    parser.add_argument("--quick", action="store_true", help="few rounds: to see that it runs")
    parser.add_argument("--json", type=Path, help="write the results to this file")
    return parser.parse_args()


def one_core() -> None:
    """Keep the process on one core; to be called before JAX is imported.

    Its CPU backend takes a thread for each core that it finds, and no option keeps it from that.
    """
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def fastest(
    contenders: Contenders, *, rounds: int, seconds: float, clock: Callable[[], int]
) -> dict[str, float]:
    """The least time of a call, in microseconds: the minimum of `turns`."""
    measured = turns(contenders, rounds=rounds, seconds=seconds, clock=clock)
    return {name: min(times) for name, times in measured.items()}


def turns(
    contenders: Contenders, *, rounds: int, seconds: float, clock: Callable[[], int]
) -> dict[str, list[float]]:
    """The mean times of a call, in microseconds, in rounds in random order.

    Args:
        contenders: Functions that do the same.
        rounds: How often each has its turn.
        seconds: How long a turn should take, about.
        clock: ``time.thread_time_ns`` for what one thread computes, ``time.perf_counter_ns``
            for what a user waits.
    """
    repeats = {}
    for name, call in contenders.items():
        call()
        start = clock()
        call()
        repeats[name] = max(1, int(seconds * 1e9 / max(clock() - start, 100)))
    measured: dict[str, list[float]] = {name: [] for name in contenders}
    order, shuffle = list(contenders), random.Random(0).shuffle
    for _ in range(rounds):
        shuffle(order)
        for name in order:
            call, repeat = contenders[name], range(repeats[name])
            start = clock()
            for _ in repeat:
                call()
            measured[name].append((clock() - start) / len(repeat) / 1e3)
    return measured


def row(times: dict[str, float], ours: str) -> str:
    """One line of a table: our time, and how many times longer each peer takes."""
    peers = ", ".join(
        f"{name} {value / times[ours]:.2f}x" for name, value in times.items() if name != ours
    )
    return f"{times[ours]:11.3f} us | {peers}"


def report(
    results: dict[str, Any],
    packages: list[str],
    path: Path | None,
    unit: str = "microseconds a call",
) -> None:
    """Write results to a JSON file, with their unit and what they were measured with."""
    if path is None:
        return
    setting = {
        "date": date.today().isoformat(),
        "machine": _processor(),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        "versions": {package: _version(package) for package in packages},
        "unit": unit,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**setting, "results": results}, indent=1) + "\n")


def _processor() -> str:
    """The processor's name, where Linux tells it."""
    try:
        told = Path("/proc/cpuinfo").read_text("utf-8")
    except OSError:
        return platform.machine()
    found = re.search(r"^model name\s*: (.+)", told, re.MULTILINE)
    return f"{found[1]}, {platform.machine()}" if found else platform.machine()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


CPU, WALL = time.thread_time_ns, time.perf_counter_ns
