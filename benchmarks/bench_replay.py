"""Long unrolls: the replay adjoint beside stored graphs, TorchOpt and higher.

Two questions. Time: how much longer `Replay` takes than `Store`, which keeps all graphs (MAML
step, MLP 784-256-128-64-5, Adam inside; interleaved, one thread, medians). Memory: it stays that
of a few states while the number of steps grows, where stored graphs grow with every step (small
MLP with per-example weights; the peak of a process of its own, over the peak before the unroll).

    nox -s bench, or python benchmarks/bench_replay.py [--quick] [--json FILE]
"""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from diffopt_explicit import Replay, Store, adam, unroll
from harness import arguments, report
from torch import Tensor
from torch.nn.functional import cross_entropy, softplus

SIZES = (784, 256, 128, 64, 5)


def network(sizes: tuple[int, ...], generator: torch.Generator) -> list[Tensor]:
    """Weights and biases in turn."""
    params: list[Tensor] = []
    for rows, columns in pairwise(sizes):
        weight = torch.randn(rows, columns, generator=generator) / rows**0.5
        params += [weight, torch.zeros(columns)]
    return [param.requires_grad_() for param in params]


def forward(params: list[Tensor], x: Tensor) -> Tensor:
    """The network's outputs."""
    for i in range(0, len(params), 2):
        x = x @ params[i] + params[i + 1]
        x = torch.relu(x) if i + 2 < len(params) else x
    return x


def meta_step(adjoint: Any, steps: int) -> Callable[[], tuple[Tensor, ...]]:
    """One meta-gradient of MAML with respect to the initial weights."""
    generator = torch.Generator().manual_seed(0)
    params = network(SIZES, generator)
    images = torch.randn(100, 784, generator=generator)
    labels = torch.randint(5, (100,), generator=generator)

    def run() -> tuple[Tensor, ...]:
        inner = lambda p: cross_entropy(forward(p, images[:25]), labels[:25])
        adapted = unroll(inner, adam(1e-3), params, steps=steps, adjoint=adjoint).params
        outer = cross_entropy(forward(adapted, images[25:]), labels[25:])
        return torch.autograd.grad(outer, params)

    return run


def times(steps: int, rounds: int) -> dict[str, float]:
    """The median of each adjoint, in microseconds, after a check that they agree."""
    adjoints = {"store": Store(), "replay": Replay(), "replay all": Replay(snapshots=steps)}
    calls = {name: meta_step(adjoint, steps) for name, adjoint in adjoints.items()}
    results = {name: call() for name, call in calls.items()}
    for name, found in results.items():
        torch.testing.assert_close(found, results["store"], msg=f"{name} differs")
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            taken[name].append((time.perf_counter() - start) * 1e6)
    return {name: statistics.median(values) for name, values in taken.items()}


def weighted_run(way: str, steps: int) -> Tensor:
    """The gradient of a validation loss with respect to 512 weights of examples.

    The labels are noise, more of it than the network can learn by heart: where the loss reaches
    zero, thousands of steps of Adam amplify rounding until nothing is left of a gradient.
    """
    generator = torch.Generator().manual_seed(0)
    params = network((8, 32, 32, 1), generator)
    x, y = torch.randn(512, 8, generator=generator), torch.randn(512, 1, generator=generator)
    held_out = torch.randn(64, 8, generator=generator), torch.randn(64, 1, generator=generator)
    weights = torch.zeros(512, 1, requires_grad=True)

    def inner(params: list[Tensor]) -> Tensor:
        return (softplus(weights) * (forward(params, x) - y).square()).mean()

    if way == "torchopt":
        params = torchopt_steps(inner, params, steps)
    elif way == "higher":
        params = higher_steps(weights, params, x, y, steps)
    else:
        adjoint = Store() if way == "store" else Replay()
        params = unroll(inner, adam(1e-4), params, steps=steps, adjoint=adjoint).params
    outer = (forward(params, held_out[0]) - held_out[1]).square().mean()
    return torch.autograd.grad(outer, weights)[0]


def torchopt_steps(inner: Any, params: Any, steps: int) -> Any:
    """The same by TorchOpt's functional Adam."""
    import torchopt  # pyright: ignore[reportMissingImports]

    optimizer = torchopt.adam(1e-4, eps_root=1e-16)
    params, state = tuple(params), None
    state = optimizer.init(params)
    for _ in range(steps):
        grads = torch.autograd.grad(inner(list(params)), params, create_graph=True)
        updates, state = optimizer.update(grads, state, inplace=False)
        params = torchopt.apply_updates(params, updates, inplace=False)
    return list(params)


def higher_steps(weights: Tensor, start: Any, x: Tensor, y: Tensor, steps: int) -> Any:
    """The same by higher's inner loop."""
    import higher  # pyright: ignore[reportMissingImports]

    layers = [torch.nn.Linear(8, 32), torch.nn.ReLU(), torch.nn.Linear(32, 32)]
    module = torch.nn.Sequential(*layers, torch.nn.ReLU(), torch.nn.Linear(32, 1))
    for param, value in zip(module.parameters(), start, strict=True):
        param.data.copy_(value.t() if value.dim() == 2 else value)
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-4)
    with higher.innerloop_ctx(module, optimizer) as (fast, steps_of):
        for _ in range(steps):
            steps_of.step((softplus(weights) * (fast(x) - y).square()).mean())
        found = list(fast.parameters())
    return [p.t() if p.dim() == 2 else p for p in found]


def peak(way: str, steps: int) -> None:
    """Print the memory that one gradient takes beyond that before it, in MiB, and seconds."""
    torch.set_num_threads(1)
    weighted_run(way, 2)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    gradient = weighted_run(way, steps)
    seconds = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"{(after - before) / 1024:.1f} {seconds:.3f} {gradient.norm():.9g}")


def main() -> None:
    """Measure and print."""
    if sys.argv[1:2] == ["--peak"]:
        peak(sys.argv[2], int(sys.argv[3]))
        return
    options = arguments(__doc__ or "")
    torch.set_num_threads(1)
    results: dict[str, Any] = {}
    for steps in (1, 5) if options.quick else (1, 5, 10, 20):
        found = times(steps, rounds=3 if options.quick else 25)
        results[f"meta-step, {steps} steps (us)"] = found
        ratios = ", ".join(f"{n} {t / found['store']:.2f}x" for n, t in found.items())
        print(f"{steps:3} steps: store {found['store'] / 1e3:.1f} ms; {ratios}", flush=True)
    for steps in (10, 100) if options.quick else (10, 100, 1_000, 4_096):
        row: dict[str, Any] = {}
        for way in ("replay", "store", "torchopt", "higher"):
            command = [sys.executable, __file__, "--peak", way, str(steps)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            values = done.stdout.split()
            row[way] = dict(zip(("MiB", "s", "norm"), map(float, values), strict=False))
            row[way] = row[way] or done.stderr.strip().splitlines()[-1]
        results[f"memory, {steps} steps"] = row
        print(f"{steps:6} steps: {row}", flush=True)
    report(results, ["diffopt-explicit", "torch", "torchopt", "higher"], options.json)


if __name__ == "__main__":
    main()
