"""The figures in docs/explanation/which-mode.md are those that were measured."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "docs"))

import figures  # noqa: E402

PAGE = figures.PAGE.read_text("utf-8")
PROSE = " ".join(PAGE.split())


def test_tables_have_the_figures_of_the_last_run():
    assert figures.written(PAGE) == PAGE, "`python docs/figures.py` writes them"
    assert [name for _, name in figures.TABLE.findall(PAGE)] == [*figures.TABLES]


def test_memory_of_the_longest_unrolls():
    small = figures.measured("memory")["small, 100000 steps"]["replay"]
    million = figures.measured("memory")["million, 10000 steps"]["replay 33"]

    assert f"100,000 steps {figures.short(small['MiB'])} MiB" in PROSE
    assert f"10,000 steps {figures.short(million['MiB'])} MiB" in PROSE


@pytest.mark.parametrize("ours", ["replay", "replay, compiled"])
def test_time_of_replaying(ours):
    found = [figures.measured("replay")[f"{steps} steps"] for steps in (1, 2, 5, 20, 50)]
    *ratios, last = [f"{times[ours] / times['store']:.1f}" for times in found]

    assert f"{', '.join(ratios)} and {last}" in PROSE


def test_where_peers_are_better():
    of_lbfgs = figures.measured("lbfgs")["times"]["to 1e-09"]
    times = {name: round(us / 1e3) for name, us in of_lbfgs.items()}
    zero_order = figures.measured("zero_order")
    small = {name: us / 1e3 for name, us in zero_order["time, 10^3"].items()}
    memory = zero_order["MiB, 10^6"]
    spread = figures.measured("distributed")["distributed"]

    assert (
        f"takes {times['zoom']} ms with the zoom line search and {times['backtracking']}" in PROSE
    )
    assert f"{times['torch.optim']} in torch.optim, {times['SciPy']} in SciPy" in PROSE
    assert f"{times['JAXopt, zoom']} in JAXopt" in PROSE
    assert f"{small['ours']:.2f} ms, and TorchOpt's {small['TorchOpt']:.2f};" in PROSE
    assert f"TorchOpt's take {memory['TorchOpt']:.0f} MiB, ours {memory['ours']:.0f}" in PROSE
    for tasks in ("long tasks", "short tasks"):
        ours = spread[tasks]["sequential"] / spread[tasks]["two workers"]
        theirs = spread[tasks]["speed-up of two workers, TorchOpt"]
        assert f"{ours:.2f} times" in PROSE
        assert f"{theirs:.2f}" in PROSE
