"""The memory of long unrolls: `Replay` and `Forward` beside stored graphs, TorchOpt and higher.

Stored graphs grow with every step, a few states do not. Two tasks: the gradient of a validation
loss by the weights of 512 examples (MLP 8-32-32-1), and by those of 64 (MLP 256-1024-704-10, one
million parameters); Adam inside. Each row is a process of its own: the peak of its resident set
over that before the unroll, and its seconds. Whatever wants more than 4 GiB is stopped there, and
its row says so.

    nox -s bench, or python benchmarks/bench_memory.py [--quick] [--heavy] [--json FILE]
"""

from __future__ import annotations

import math
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from bench_replay import forward, network
from diffopt_explicit import Forward, KAry, Replay, Store, adam, unroll
from harness import arguments, report
from torch import Tensor
from torch.nn.functional import softplus

LIMIT = 4 * 2**30  # bytes beyond those before the unroll
# Large, as training reaches a loss of 0: where gradients vanish, Adam's step divides by this, and
# the derivative of thousands of such steps would overflow.
EPS = 1e-3


class Task(NamedTuple):
    """Examples and a network for them."""

    sizes: tuple[int, ...]
    examples: int


TASKS = {"small": Task((8, 32, 32, 1), 512), "million": Task((256, 1024, 704, 10), 64)}
ADJOINTS: dict[str, Callable[[], Any]] = {
    "store": Store,
    "replay": Replay,
    "replay 33": lambda: Replay(snapshots=33),
    "replay tree of 4": lambda: Replay(snapshots=KAry(4)),
    "forward": Forward,  # by the learning rate instead
}
PEERS = ("torchopt", "higher")


def weighted_run(task: Task, way: str, steps: int) -> Tensor:
    """The gradient of a validation loss with respect to weights of examples.

    The labels are noise, more of it than the network can learn by heart: where the loss reaches
    zero, thousands of steps of Adam amplify rounding until nothing is left of a gradient.
    """
    generator = torch.Generator().manual_seed(0)
    random = lambda *shape: torch.randn(*shape, generator=generator)
    params = [param.detach() for param in network(task.sizes, generator)]
    first, last = task.sizes[0], task.sizes[-1]
    x, y = random(task.examples, first), random(task.examples, last)
    held_out = random(64, first), random(64, last)
    weights, lr = torch.zeros(task.examples, 1), torch.tensor(1e-4)
    learned = (lr if way == "forward" else weights).requires_grad_()

    def inner(params: list[Tensor]) -> Tensor:
        return (softplus(weights) * (forward(params, x) - y).square()).mean()

    if way in ADJOINTS:
        adjoint = ADJOINTS[way]()
        tx = adam(lr, eps=EPS, eps_root=1e-16)  # as TorchOpt needs it
        params = unroll(inner, tx, params, steps=steps, adjoint=adjoint).params
    else:
        by_peer = torchopt_steps if way == "torchopt" else higher_steps
        params = by_peer(task, weights, params, x, y, steps)
    outer = (forward(params, held_out[0]) - held_out[1]).square().mean()
    return torch.autograd.grad(outer, learned)[0]


def torchopt_steps(
    task: Task, weights: Tensor, start: Any, x: Tensor, y: Tensor, steps: int
) -> Any:
    """The same by TorchOpt's functional Adam."""
    import torchopt  # pyright: ignore[reportMissingImports]

    optimizer = torchopt.adam(1e-4, eps=EPS, eps_root=1e-16)
    params = tuple(param.requires_grad_() for param in start)
    state = optimizer.init(params)
    for _ in range(steps):
        loss = (softplus(weights) * (forward(list(params), x) - y).square()).mean()
        grads = torch.autograd.grad(loss, params, create_graph=True)
        updates, state = optimizer.update(grads, state, inplace=False)
        params = torchopt.apply_updates(params, updates, inplace=False)
    return list(params)


def higher_steps(task: Task, weights: Tensor, start: Any, x: Tensor, y: Tensor, steps: int) -> Any:
    """The same by higher's inner loop."""
    import higher  # pyright: ignore[reportMissingImports]

    layers: list[torch.nn.Module] = []
    for rows, columns in zip(task.sizes[:-1], task.sizes[1:], strict=True):
        layers += [torch.nn.Linear(rows, columns), torch.nn.ReLU()]
    module = torch.nn.Sequential(*layers[:-1])
    for param, value in zip(module.parameters(), start, strict=True):
        param.data.copy_(value.t() if value.dim() == 2 else value)
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-4, eps=EPS)
    with higher.innerloop_ctx(module, optimizer) as (fast, steps_of):
        for _ in range(steps):
            steps_of.step((softplus(weights) * (fast(x) - y).square()).mean())
        found = list(fast.parameters())
    return [p.t() if p.dim() == 2 else p for p in found]


def peak(name: str, way: str, steps: int) -> None:
    """Print the memory that one gradient takes beyond that before it, in MiB, and seconds."""
    torch.set_num_threads(1)
    task = TASKS[name]
    weighted_run(task, way, 2)
    weighted_run(task, "replay 33", 3)  # loads what torch loads when it is first used
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + LIMIT
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    start = time.perf_counter()
    gradient = weighted_run(task, way, steps)
    seconds = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"{(after - before) / 1024:.1f} {seconds:.3f} {gradient.norm():.9g}")


def measured(name: str, way: str, steps: int) -> dict[str, Any]:
    """One row, by a process of its own."""
    command = [sys.executable, __file__, "--peak", name, way, str(steps)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        mebibytes, seconds, norm = map(float, done.stdout.split())
        return {"MiB": mebibytes, "s": seconds, "norm": norm}
    last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
    memory = "allocate memory" in done.stderr or "MemoryError" in done.stderr
    return {"stopped at 4 GiB": True} if memory else {"failed": last}


def rows(options: Any) -> list[tuple[str, str, int]]:
    """Which task, way and number of steps to measure."""
    ways = [*ADJOINTS, *PEERS]
    if options.quick:
        return [(name, way, steps) for name in TASKS for steps in (10, 50) for way in ways]
    lengths = {"small": (10, 100, 1_000, 4_096), "million": (10, 100, 1_000)}
    chosen = [(name, way, n) for name, several in lengths.items() for n in several for way in ways]
    chosen += [("small", "replay", 100_000), ("million", "replay 33", 10_000)]
    if options.heavy:
        chosen += [("small", way, 100_000) for way in ("replay 33", "replay tree of 4", "forward")]
        others = ("replay tree of 4", "forward", "torchopt", "higher", "store")
        chosen += [("million", way, 10_000) for way in others]
    return chosen


def main() -> None:
    """Measure and print."""
    if sys.argv[1:2] == ["--peak"]:
        peak(sys.argv[2], sys.argv[3], int(sys.argv[4]))
        return
    options = arguments(__doc__ or "", heavy="the longest runs by all ways; takes an hour")
    results: dict[str, dict[str, Any]] = {}
    stopped: set[tuple[str, str]] = set()
    for name, way, steps in rows(options):
        found = {"stopped at 4 GiB": True}
        if (name, way) not in stopped:  # more steps would not take less
            found = measured(name, way, steps)
        if "stopped at 4 GiB" in found:
            stopped.add((name, way))
        results.setdefault(f"{name}, {steps} steps", {})[way] = found
        print(f"{name:8} {steps:7} steps {way:17} {found}", flush=True)
    check(results)
    packages = ["diffopt-explicit", "torch", "torchopt", "higher"]
    report(results, packages, options.json, "MiB and seconds, as named")


def check(results: dict[str, dict[str, Any]]) -> None:
    """All that gave the same gradient gave the same norm; rounding grows with the steps."""
    for title, row in results.items():
        norms = {way: found["norm"] for way, found in row.items() if "norm" in found}
        expected = norms.get("replay", norms.get("replay 33"))
        for way, norm in norms.items():
            # higher's Adam has no `eps_root`, so that its gradient is another one.
            if way not in ("forward", "higher") and expected is not None:
                assert math.isclose(norm, expected, rel_tol=1e-2), (title, way, norm, expected)


if __name__ == "__main__":
    main()
