"""One differentiable optimizer step, forward and backward: fused, composed, compiled, TorchOpt's.

The claims: the fused Adam step of diffopt-kernels is several times faster than the same formula in
torch operations, and than TorchOpt's, where that is installed, and no slower than torch.compile
makes it; large tensors take about as long as a copy of the bytes that are moved; the other rules
take no longer than Adam for a byte. All candidates take the same fresh inputs, their results are
compared before anything is timed, and rounds are interleaved. Only ratios mean anything.

The last column is a floor: one node with as many inputs and outputs that allocates and computes
nothing. It is the time of torch's own bookkeeping, which no step in one node can be below.

    python benchmarks/bench_optimizer_step.py [--quick] [--threads N] [--device D] [--json FILE]
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffopt_kernels import build_info
from harness import report
from optimizer_steps import (
    CASES,
    DEVICE,
    RULES,
    Step,
    bytes_moved,
    candidates,
    compare,
    forward_and_backward,
    fused,
    make_inputs,
    nothing,
)

# The row that nothing with one autograd node can be below: `nothing`, which computes nothing.
FLOOR = "an empty node"
PAGE = 4096  # bytes


def on_gpu() -> bool:
    """Return whether the tensors are made on a GPU."""
    return DEVICE[0].type == "cuda"


@contextmanager
def timed(times: list[float], repeats: int = 1) -> Iterator[None]:
    """Append the seconds that one of some repeats took, until the device had done it."""
    if on_gpu():
        torch.cuda.synchronize()
    start = time.perf_counter()
    yield
    if on_gpu():
        torch.cuda.synchronize()
    times.append((time.perf_counter() - start) / repeats)


def measure(
    steps: dict[str, Step], shapes: list[tuple[int, ...]], rounds: int, seconds: float
) -> dict[str, float]:
    """Return the median time of each candidate in microseconds, over interleaved rounds."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    inputs = make_inputs(shapes, 1)
    weights = [torch.randn_like(t) for column in inputs for t in column]
    repeats = {}
    for name, step in steps.items():
        forward_and_backward(step, inputs, weights)  # warm-up
        with timed(trial := []):
            forward_and_backward(step, inputs, weights)
        repeats[name] = max(1, round(seconds / trial[0]))
    for _ in range(rounds):
        for name, step in steps.items():
            with timed(times[name], repeats[name]):
                for _ in range(repeats[name]):
                    forward_and_backward(step, inputs, weights)
    return {name: 1e6 * statistics.median(values) for name, values in times.items()}


def measure_rules(size: int, rounds: int) -> dict[str, float]:
    """Return each rule's median time, forward and backward, in nanoseconds for a byte it moves.

    Beside it, a copy to new memory.
    """
    generator = torch.Generator(DEVICE[0]).manual_seed(0)
    options: dict[str, Any] = {"generator": generator, "device": DEVICE[0]}
    arrays = [torch.rand(size, **options).requires_grad_() for _ in range(4)]
    weights = [torch.rand(size, **options) for _ in range(4)]
    times: dict[str, list[float]] = {name: [] for name in ("copy", *RULES)}
    for _ in range(rounds):
        for name, (states, step) in RULES.items():
            inputs, cotangents = arrays[: 1 + states], weights[: 1 + states]
            with timed(times[name], bytes_moved(size, states)):
                columns = step(inputs[:1], [[x] for x in inputs[1:]])
                torch.autograd.grad([x for column in columns for x in column], inputs, cotangents)
        with timed(times["copy"], 2 * 4 * size * len(arrays)):
            copies = [x.detach().clone() for x in arrays]
        del copies
    return {name: 1e9 * statistics.median(values) for name, values in times.items()}


def page_faults() -> int:
    """Return how often this process has touched memory that it had not been given yet."""
    try:
        from resource import RUSAGE_SELF, getrusage
    except ImportError:
        return 0
    return getrusage(RUSAGE_SELF).ru_minflt


def measure_memory(size: int, rounds: int) -> dict[str, float]:
    """Return the bandwidth that Adam's step reaches, and what fresh memory costs.

    Returns:
        `GB/s`; `of a copy to fresh memory` and `of a copy to used memory`, the shares of the
        bandwidths that copies of one tensor reach; `page faults` of a step; and `of the time in
        page faults`, at the cost of one that the two copies tell, if one of them has many.
    """
    inputs = make_inputs([(size,)], 0)
    weights = [torch.randn(size, device=DEVICE[0]) for _ in range(3)]
    used = torch.empty(size, device=DEVICE[0])
    step, fresh, again = [], [], []
    faults, faults_of_copy = [], []
    for _ in range(rounds):
        before = page_faults()
        with timed(step):
            forward_and_backward(fused, inputs, weights)
        faults.append(page_faults() - before)
        before = page_faults()
        with timed(fresh):
            copy = inputs[0][0].detach().clone()
        faults_of_copy.append(page_faults() - before)
        del copy
        with timed(again), torch.no_grad():
            used.copy_(inputs[0][0])
    seconds, to_fresh, to_used = (statistics.median(x) for x in (step, fresh, again))
    moved, copied = bytes_moved(size, 2), 2 * 4 * size
    found = {
        "GB/s": moved / seconds / 1e9,
        "of a copy to fresh memory": moved / seconds / (copied / to_fresh),
        "of a copy to used memory": moved / seconds / (copied / to_used),
        "page faults": statistics.median(faults),
    }
    of_copy = statistics.median(faults_of_copy)
    if of_copy > 4 * size / PAGE / 2:  # else the copy's memory was there as well
        cost = max(to_fresh - to_used, 0.0) / of_copy
        found["of the time in page faults"] = cost * found["page faults"] / seconds
    return found


def measure_overhead(rounds: int) -> dict[str, float]:
    """Return the least time of steps on 8 tiny tensors, in microseconds, and torch's part of it."""
    inputs = make_inputs(CASES["8 tiny tensors"], 0)
    weights = [torch.randn_like(t) for column in inputs for t in column]
    runs: dict[str, Callable[[], object]] = {}
    for name, step in (("", fused), (", torch's part", nothing)):
        runs[f"forward{name}"] = lambda step=step: step(*inputs)
        runs[f"forward and backward{name}"] = lambda step=step: forward_and_backward(
            step, inputs, weights
        )
    runs["forward without grad"] = lambda: torch.no_grad()(fused)(*inputs)
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(10 * rounds):
        for name, run in runs.items():
            with timed(times[name], 100):
                for _ in range(100):
                    run()
    return {name: 1e6 * min(values) for name, values in times.items()}


def setting(threads: int) -> str:
    """Return what a figure cannot be read without, beside versions and date."""
    device = torch.cuda.get_device_name() if on_gpu() else "cpu"
    return f"threads: {threads}, device: {device}, kernels: {build_info()}"


def measure_cases(
    steps: dict[str, Step], failed: dict[str, str], quick: bool
) -> dict[str, dict[str, float]]:
    """Print and return the times of all candidates that are right, in microseconds."""
    rounds, seconds = (1, 0.0) if quick else (15, 0.1)
    print(f"{'microseconds, median':34}", *(f"{name:>22}" for name in (*steps, FLOOR)))
    found = {}
    for case, shapes in CASES.items():
        right: dict[str, Step] = {}
        for name, step in steps.items():
            if quick and name == "compiled" and len(shapes) > 1:
                continue  # long lists take minutes to compile
            try:
                compare(name, step, shapes)
                right[name] = step
            except Exception as error:
                failed[f"{name}, {case}"] = f"{type(error).__name__}: {error}"
        right[FLOOR] = nothing
        times = found[case] = measure(right, shapes, rounds, seconds)
        cells = [
            f"{times[n]:.0f} ({times[n] / times['fused']:.2f}x)" if n in times else "-"
            for n in (*steps, FLOOR)
        ]
        print(f"{case:34}", *(f"{cell:>22}" for cell in cells), flush=True)
    for name, why in failed.items():
        print(f"{name}: {why}")
    return found


def main() -> None:
    """Measure, print a table of ratios, and write it where asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="a smoke run: figures mean nothing")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    DEVICE[0] = torch.device(arguments.device)
    quick = arguments.quick
    rounds = 1 if quick else 15

    print(setting(arguments.threads))
    steps, failed = candidates()
    results: dict[str, Any] = {"Adam": measure_cases(steps, failed, quick)}

    overhead = results["8 tiny tensors"] = measure_overhead(rounds)
    print("\n8 tiny tensors, least time")
    for name, value in overhead.items():
        print(f"{name:40} {value:8.1f} us")

    size = 2**12 if quick else 2**22
    per_byte = results["rules, nanoseconds a byte"] = measure_rules(size, rounds)
    print(f"\n{f'one tensor of {size}':34} {'ns a byte':>10} {'over Adam':>10} {'over a copy':>12}")
    for name, value in per_byte.items():
        over = (value / per_byte["Adam"], value / per_byte["copy"])
        print(f"{name:34} {value:10.3f} {over[0]:9.2f}x {over[1]:11.2f}x")

    print("\nAdam and memory")
    memory: dict[str, dict[str, float]] = {}
    for exponent in (12,) if quick else (20, 22, 24):
        row = memory[f"2^{exponent}"] = measure_memory(2**exponent, rounds)
        print(f"2^{exponent}:", ", ".join(f"{name} {value:.3g}" for name, value in row.items()))
    results["memory"] = memory
    unit = f"microseconds, or as named; {setting(arguments.threads)}"
    report(results, ["torch", "torchopt", "diffopt-kernels"], arguments.json, unit)


if __name__ == "__main__":
    main()
