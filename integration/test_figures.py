"""The figures in the tables of docs/explanation/which-mode.md are those that were measured."""

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "explanation" / "which-mode.md").read_text("utf-8")


def measured(name):
    return json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text("utf-8"))[
        "results"
    ]


def short(value):
    return f"{value:.1f}" if value < 20 else f"{value:,.0f}"


def row(*cells):
    return f"| {' | '.join(cells)} |"


@pytest.mark.parametrize("steps", [100, 1000, 4096])
def test_memory_of_long_unrolls(steps):
    found = measured("memory")[f"small, {steps} steps"]
    ways = [found[way] for way in ("store", "replay", "replay tree of 4", "torchopt", "higher")]
    seconds = [f"{way['s']:.1f}" if way["s"] < 20 else f"{way['s']:.0f}" for way in ways]
    cells = [f"{short(way['MiB'])}, {s} s" for way, s in zip(ways, seconds, strict=True)]

    assert row(f"{steps:,}", *cells) in PAGE


def test_memory_of_the_longest_unrolls():
    small = measured("memory")["small, 100000 steps"]["replay"]
    million = measured("memory")["million, 10000 steps"]["replay 33"]

    assert f"100,000 steps {short(small['MiB'])} MiB" in " ".join(PAGE.split())
    assert f"10,000 steps {short(million['MiB'])} MiB" in " ".join(PAGE.split())


@pytest.mark.parametrize(
    ("label", "key"),
    [
        ("recorded, the default", "recorded"),
        ("`Recomputed()`", "recomputed"),
        ("`Segmentwise()`", "segmentwise"),
        ("`Replay()` and `Segmentwise()`", "replay, segmentwise"),
        ("TorchOpt", "TorchOpt"),
        ("no second derivatives at all", "first order"),
    ],
)
def test_memory_of_a_large_step(label, key):
    found = measured("transformer_memory")[key]

    assert row(label, f"{found['MiB'] + 1e-9:,.0f}", f"{found['s']:.1f}") in PAGE


def test_time_of_replaying():
    found = [measured("replay")[f"{steps} steps"] for steps in (1, 2, 5, 20, 50)]
    for ours in ("replay", "replay, compiled"):
        *ratios, last = [f"{times[ours] / times['store']:.1f}" for times in found]
        assert f"{', '.join(ratios)} and {last}" in " ".join(PAGE.split())


def test_time_of_a_meta_step():
    found = measured("meta_step")["perceptron, 5 steps"]["minimum"]
    ways = ["compiled whole", "JAX jit", "inner_loop", "MetaAdam", "unroll", "TorchOpt"]
    ways += ["autograd by hand", "higher (differs)"]

    assert row(*(f"{found[way] / 1e3:.1f}" for way in ways)) in PAGE


@pytest.mark.parametrize(
    ("label", "key"),
    [("32 sine waves", "32 sine waves"), ("a perceptron's 32", "32 tasks of a perceptron")],
)
def test_time_of_many_tasks(label, key):
    found = measured("tasks")[key]
    ways = ["stacked, compiled", "stacked", "vmap of loops", "loop", "TorchOpt", "higher (differs)"]

    assert row(label, *(short(found[way] / 1e3) for way in ways)) in PAGE


def test_time_of_a_hypergradient():
    found = measured("hypergradient")

    def cells(kind, ways):
        whole, each = found[kind]["whole"], found[kind]["each iteration"]
        return [f"{whole[way] / 1e3:.0f}, {each[way] / 1e3:.1f}" for way in ways]

    cg = cells("cg", ["compiled", "JAXopt, jit", "hypergradient", "TorchOpt", "Betty (differs)"])
    ours, *others = cells("series", ["compiled", "hypergradient", "TorchOpt", "Betty"])
    assert row("`CG(10)`", *cg[:-1], f"{cg[-1]}, and a wrong result") in PAGE
    assert f"| `Neumann(10)` | {ours} | | {' | '.join(others)} |" in PAGE


@pytest.mark.parametrize("k", ["1", "5", "10", "20", "100"])
def test_error_of_hypergradients(k):
    found = measured("hypergradient_error")
    ways = ["CG", "Neumann", "truncated reverse", "F2SA", "Betty cg"]

    assert row(k, *(f"{found[way][k]:.1e}" for way in ways)) in PAGE


def test_where_peers_are_better():
    page = " ".join(PAGE.split())
    times = {name: round(us / 1e3) for name, us in measured("lbfgs")["times"]["to 1e-09"].items()}
    small = {name: us / 1e3 for name, us in measured("zero_order")["time, 10^3"].items()}
    memory = measured("zero_order")["MiB, 10^6"]
    spread = measured("distributed")["distributed"]

    assert f"takes {times['zoom']} ms with the zoom line search and {times['backtracking']}" in page
    assert f"{times['torch.optim']} in torch.optim, {times['SciPy']} in SciPy" in page
    assert f"{times['JAXopt, zoom']} in JAXopt" in page
    assert f"{small['ours']:.2f} ms, and TorchOpt's {small['TorchOpt']:.2f};" in page
    assert f"TorchOpt's take {memory['TorchOpt']:.0f} MiB, ours {memory['ours']:.0f}" in page
    for tasks in ("long tasks", "short tasks"):
        ours = spread[tasks]["sequential"] / spread[tasks]["two workers"]
        theirs = spread[tasks]["speed-up of two workers, TorchOpt"]
        assert f"{ours:.2f} times" in page
        assert f"{theirs:.2f}" in page
