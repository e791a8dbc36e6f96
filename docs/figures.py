"""The figures that were measured, in the tables of a page: `python docs/figures.py` writes them.

A comment before a table, such as `<!-- figures: memory -->`, names who fills the rows in.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "explanation" / "which-mode.md"
TABLE = re.compile(r"(<!-- figures: ([\w -]+) -->\n\n(?:\|.*\n){2})(?:\|.*\n)+")
Rows = Iterator[list[str]]


def measured(name: str) -> dict[str, Any]:
    """What a benchmark has found."""
    path = ROOT / "benchmarks" / "results" / f"{name}.json"
    return json.loads(path.read_text("utf-8"))["results"]


def written(page: str) -> str:
    """The page with the present figures in its tables."""

    def table(found: re.Match[str]) -> str:
        rows = TABLES[found[2]]()
        return found[1] + "".join(f"| {' | '.join(row)} |\n".replace("|  |", "| |") for row in rows)

    return TABLE.sub(table, page)


def short(value: float) -> str:
    """Two or three digits."""
    return f"{value:.1f}" if value < 20 else f"{value:,.0f}"


def memory() -> Rows:
    """MiB and seconds, by steps."""
    for steps in (100, 1000, 4096):
        found = measured("memory")[f"small, {steps} steps"]
        ways = [found[way] for way in ("store", "replay", "replay tree of 4", "torchopt", "higher")]
        yield [f"{steps:,}", *(f"{short(way['MiB'])}, {short(way['s'])} s" for way in ways)]


def large_step() -> Rows:
    """MiB and seconds, by ways to take the gradient."""
    ways = {
        "recorded, the default": "recorded",
        "`Recomputed()`": "recomputed",
        "`Segmentwise()`": "segmentwise",
        "`Replay()` and `Segmentwise()`": "replay, segmentwise",
        "TorchOpt": "TorchOpt",
        "no second derivatives at all": "first order",
    }
    for label, way in ways.items():
        found = measured("transformer_memory")[way]
        yield [label, f"{found['MiB']:,.0f}", f"{found['s']:.1f}"]


def meta_step() -> Rows:
    """Milliseconds, in one row."""
    found = measured("meta_step")["perceptron, 5 steps"]["minimum"]
    ways = ["compiled whole", "JAX jit", "inner_loop", "MetaAdam", "unroll", "TorchOpt"]
    ways += ["autograd by hand", "higher (differs)"]
    yield [f"{found[way] / 1e3:.1f}" for way in ways]


def tasks() -> Rows:
    """Milliseconds, by networks."""
    names = {"32 sine waves": "32 sine waves", "a perceptron's 32": "32 tasks of a perceptron"}
    ways = ["stacked, compiled", "loop, compiled", "stacked", "vmap of loops", "loop"]
    ways += ["TorchOpt", "higher (differs)"]
    for label, name in names.items():
        found = measured("tasks")[name]
        yield [label, *(short(found[way] / 1e3) for way in ways)]


def hypergradient() -> Rows:
    """Milliseconds in all and of each step, by methods."""
    found = measured("hypergradient")
    ways = ["compiled", "JAXopt, jit", "hypergradient", "TorchOpt", "Betty"]
    for label, method in (("`CG(10)`", "cg"), ("`Neumann(10)`", "series")):
        whole, each = found[method]["whole"], found[method]["each iteration"]
        yield [label, *(_both(whole, each, way) for way in ways)]


def _both(whole: dict[str, float], each: dict[str, float], way: str) -> str:
    wrong = f"{way} (differs)"
    if wrong in whole:
        return f"{_both(whole, each, wrong)}, and a wrong result"
    return f"{whole[way] / 1e3:.0f}, {each[way] / 1e3:.1f}" if way in whole else ""


def hypergradient_error() -> Rows:
    """Relative errors, by numbers of products."""
    found = measured("hypergradient_error")
    ways = ["CG", "Neumann", "truncated reverse", "F2SA", "Betty cg"]
    for k in ("1", "5", "10", "20", "100"):
        yield [k, *(f"{found[way][k]:.1e}" for way in ways)]


TABLES: dict[str, Callable[[], Rows]] = {
    "memory": memory,
    "large step": large_step,
    "meta-step": meta_step,
    "tasks": tasks,
    "hypergradient": hypergradient,
    "hypergradient error": hypergradient_error,
}

if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text("utf-8")), "utf-8")
