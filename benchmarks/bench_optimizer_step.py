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
import importlib
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffopt_kernels import (
    _composed,
    adagrad_step,
    adam_step,
    amsgrad_step,
    build_info,
    lion_step,
    nadam_step,
    rmsprop_step,
    sgd_step,
)
from diffopt_kernels._adam import ADAM
from diffopt_kernels._check import check
from harness import report
from torch import Tensor

NUMBERS: dict[str, Any] = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8}
STEP = 3
# Where tensors are made. Not `torch.set_default_device`, which slows each operation of all.
DEVICE = [torch.device("cpu")]

Column = list[Tensor]
Step = Callable[[Column, Column, Column], list[Tensor]]

# The row that nothing with one autograd node can be below: `nothing`, which computes nothing.
FLOOR = "an empty node"


def resnet18_like() -> list[tuple[int, ...]]:
    """Return 62 shapes, 11.2 million elements: convolutions, batch norms, a linear layer."""
    shapes: list[tuple[int, ...]] = [(64, 3, 7, 7), (64,), (64,)]
    width = 64
    for out in (64, 128, 256, 512):
        for block in range(2):
            shapes += [(out, width, 3, 3), (out,), (out,), (out, out, 3, 3), (out,), (out,)]
            if block == 0 and out != width:
                shapes += [(out, width, 1, 1), (out,), (out,)]
            width = out
    return [*shapes, (5, 512), (5,)]


CASES: dict[str, list[tuple[int, ...]]] = {
    "8 tiny tensors": [(4, 4)] * 8,
    "one tensor of 2^12": [(2**12,)],
    "MLP, 8 tensors, 242 k": [
        *[(256, 784), (256,), (128, 256), (128,)],
        *[(64, 128), (64,), (5, 64), (5,)],
    ],
    "conv net, 18 tensors, 112 k": [
        (64, 1, 3, 3),
        *[(64,)] * 3,
        *([(64, 64, 3, 3), (64,), (64,), (64,)] * 3),
        (5, 64),
        (5,),
    ],
    "one tensor of 2^20": [(2**20,)],
    "ResNet-18-like, 62 tensors, 11 M": resnet18_like(),
}


def fused(grads: Column, exp_avgs: Column, exp_avg_sqs: Column) -> list[Tensor]:
    """Take the step as users do."""
    columns = adam_step(grads, exp_avgs, exp_avg_sqs, STEP, **NUMBERS)
    return [t for column in columns for t in column]


def composed(grads: Column, exp_avgs: Column, exp_avg_sqs: Column) -> list[Tensor]:
    """Take the composed path where the fused one would be taken."""
    numbers = (NUMBERS["lr"], *NUMBERS["betas"], NUMBERS["eps"], 0.0)
    call, inputs, _ = check(
        ADAM, 0, grads, (exp_avgs, exp_avg_sqs), STEP, numbers, 0.0, None, False, False,
        lambda *_: None,
    )  # fmt: skip
    return _composed.step(call, inputs)


def torchopt_step(accelerated: bool) -> Step:
    """Return TorchOpt's transform, its state set to the moments given."""
    transforms = importlib.import_module("torchopt").transform
    transform = transforms.scale_by_accelerated_adam if accelerated else transforms.scale_by_adam
    b1, b2 = NUMBERS["betas"]
    scale = transform(b1=b1, b2=b2, eps=NUMBERS["eps"], moment_requires_grad=True)

    def step(grads: Column, exp_avgs: Column, exp_avg_sqs: Column) -> list[Tensor]:
        state = scale.init(grads)
        count = [torch.full_like(c, STEP - 1) for c in state.count]
        state = state._replace(mu=exp_avgs, nu=exp_avg_sqs, count=count)
        updates, state = scale.update(grads, state, inplace=False)
        return [*(-NUMBERS["lr"] * u for u in updates), *state.mu, *state.nu]

    return step


def candidates() -> tuple[dict[str, Step], dict[str, str]]:
    """Return what can be timed here, and why the rest cannot."""
    compiled = torch.compile(composed, dynamic=False)
    found: dict[str, Step] = {"fused": fused, "composed": composed, "compiled": compiled}
    failed = {}
    for name, accelerated in (("TorchOpt", False), ("TorchOpt accelerated", True)):
        try:
            found[name] = torchopt_step(accelerated)
        except Exception as error:  # noqa: PERF203 - a peer's failure is a result
            failed[name] = f"{type(error).__name__}: {error}"
    return found, failed


def make_inputs(shapes: list[tuple[int, ...]], seed: int) -> tuple[Column, Column, Column]:
    """Return gradients and moments that require grad, as in the middle of an unrolled loop."""
    generator = torch.Generator(DEVICE[0]).manual_seed(seed)
    g, m, v = (
        [torch.randn(s, generator=generator, device=DEVICE[0]) for s in shapes] for _ in range(3)
    )
    v = [x.abs() + 1e-3 for x in v]
    for x in (*g, *m, *v):
        x.requires_grad_()
    return g, m, v


def forward_and_backward(
    step: Step, inputs: tuple[Column, Column, Column], weights: list[Tensor]
) -> tuple[Tensor, ...]:
    """Take the step and its vector-Jacobian product in all inputs."""
    flat = [t for column in inputs for t in column]
    return torch.autograd.grad(step(*inputs), flat, weights)


def compare(name: str, actual: Step, shapes: list[tuple[int, ...]]) -> None:
    """Raise unless a candidate's values and derivatives are those of the composed step."""
    inputs = make_inputs(shapes, 0)
    weights = [torch.randn_like(t) for column in inputs for t in column]
    pairs = zip(
        (*actual(*inputs), *forward_and_backward(actual, inputs, weights)),
        (*composed(*inputs), *forward_and_backward(composed, inputs, weights)),
        strict=True,
    )
    for a, b in pairs:
        error = (a - b).norm() / b.norm().clamp_min(1e-30)
        if not error < 1e-5:
            raise ArithmeticError(f"{name} is off by {error:.1e}")


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


# Rules by the number of their states. Where an average of squares is asked for, any state that
# is positive will do.
RULES: dict[str, tuple[int, Callable[[Any, Any], Any]]] = {
    "Adam": (2, lambda g, s: adam_step(g, s[0], s[1], STEP, **NUMBERS)),
    "AMSGrad": (3, lambda g, s: amsgrad_step(g, s[0], s[1], s[2], STEP, **NUMBERS)),
    "NAdam": (2, lambda g, s: nadam_step(g, s[0], s[1], 0.5, STEP, **NUMBERS)[:3]),
    "SGD": (0, lambda g, s: sgd_step(g, None, STEP, lr=0.1)),
    "SGD, momentum": (1, lambda g, s: sgd_step(g, s[0], STEP, lr=0.1, momentum=0.9)),
    "RMSProp": (1, lambda g, s: rmsprop_step(g, *s, lr=0.1, alpha=0.9, eps=1e-8)),
    "RMSProp, all": (
        3,
        lambda g, s: rmsprop_step(g, *s, lr=0.1, alpha=0.9, eps=1e-8, centered=True, momentum=0.9),
    ),
    "AdaGrad": (1, lambda g, s: adagrad_step(g, s[0], STEP, lr=0.1, eps=1e-8)),
    "Lion": (1, lambda g, s: lion_step(g, *s, lr=0.1, betas=NUMBERS["betas"])),
}


def bytes_moved(size: int, states: int) -> int:
    """Return the bytes of float32 that both passes of a step read and write.

    The forward pass reads gradient and states and writes update and states; the backward pass
    reads these inputs and the cotangents and writes cotangents.
    """
    return 5 * (1 + states) * 4 * size


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
        bandwidths that copies of one tensor reach; `page faults` of a step; `of the time in page
        faults`, at the cost of one that the two copies tell.
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
    cost = (to_fresh - to_used) / max(statistics.median(faults_of_copy), 1)
    moved, copied = bytes_moved(size, 2), 2 * 4 * size
    return {
        "GB/s": moved / seconds / 1e9,
        "of a copy to fresh memory": moved / seconds / (copied / to_fresh),
        "of a copy to used memory": moved / seconds / (copied / to_used),
        "page faults": statistics.median(faults),
        "of the time in page faults": max(cost, 0.0) * statistics.median(faults) / seconds,
    }


class Nothing(torch.autograd.Function):
    """A node with the inputs, outputs and saved tensors of a step, which only allocates."""

    @staticmethod
    def forward(ctx: Any, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Allocate the outputs."""
        ctx.save_for_backward(*inputs)
        ctx.set_materialize_grads(False)
        return tuple(map(torch.empty_like, inputs))

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor, ...]:
        """Allocate the cotangents."""
        return tuple(map(torch.empty_like, ctx.saved_tensors))


def nothing(grads: Column, exp_avgs: Column, exp_avg_sqs: Column) -> list[Tensor]:
    """Take the step without computing anything: what torch itself needs for one node."""
    bare = super(torch.autograd.Function, Nothing)  # without what function transforms need
    return list(bare.apply(*grads, *exp_avgs, *exp_avg_sqs))  # type: ignore[attr-defined]


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
