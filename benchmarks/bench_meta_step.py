"""One MAML meta-step: ours, eager and compiled, beside TorchOpt, higher, JAX and plain autograd.

The claims: with the fused Adam inside, a meta-step of a perceptron takes about half as long as
with the eager peers; compiled as a whole, no longer than with JAX; and of a convolutional
network most is the network's own passes, the floor, which is timed beside. The perceptron is
784-256-128-64-5, the other has four convolutions of 32 channels; the support set has 25 images,
the query set 75, Adam is inside, all on one thread. The meta-gradients are compared as one vector
with a float64 truth before anything is timed. (Through five steps of the convolutional network
single precision leaves an error of some percent to all, plain torch operations included.) higher
has no `eps_root`, so that its meta-gradient is another one; it is timed all the same. What is
compiled is compiled anew, without the cache on disk, and the time of the first calls is told.
Minimum and median are those of the turns. For a quick run the compiler only traces.

    nox -s bench, or python benchmarks/bench_meta_step.py [--quick] [--json FILE]
"""

from __future__ import annotations

import copy
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from typing import Any

import torch
from diffopt_explicit import MetaAdam, adam, compile_meta_step, inner_loop, unroll
from harness import WALL, arguments, one_core, report, row, turns
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

LR, EPS, EPS_ROOT = 0.01, 1e-8, 1e-8
SIZES = (784, 256, 128, 64, 5)

MetaStep = Callable[[nn.Module, "Batch", "Batch", int], tuple[Tensor, ...]]
Batch = tuple[Tensor, Tensor]


def convolutions() -> nn.Module:
    """Four convolutions, as in few-shot learning since Vinyals et al. 2016."""
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Unflatten(1, (1, 28, 28))]
    for inputs in (1, 32, 32, 32):
        convolution = nn.Conv2d(inputs, 32, 3, padding=1)
        norm = nn.BatchNorm2d(32, track_running_stats=False)
        layers += [convolution, norm, nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(32, 5))


def perceptron() -> nn.Module:
    """The perceptron, the same at every call."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(SIZES):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def loss_of(module: Callable[[Tensor], Tensor], batch: Batch) -> Tensor:
    """Cross-entropy of a batch."""
    return functional.cross_entropy(module(batch[0]), batch[1])


def by_unroll(module: nn.Module, support: Batch, query: Batch, steps: int) -> tuple[Tensor, ...]:
    """Our functional inner loop."""
    params = dict(module.named_parameters())
    loss = lambda p, batch: loss_of(lambda x: functional_call(module, p, (x,)), batch)
    end = unroll(
        lambda p: loss(p, support), adam(LR, eps=EPS, eps_root=EPS_ROOT), params, steps=steps
    ).params
    return torch.autograd.grad(loss(end, query), list(params.values()))


def by_inner_loop(
    module: nn.Module, support: Batch, query: Batch, steps: int
) -> tuple[Tensor, ...]:
    """Our inner loop in higher's idiom."""
    with inner_loop(module, adam(LR, eps=EPS, eps_root=EPS_ROOT)) as (fmodule, optimizer):
        for _ in range(steps):
            optimizer.step(loss_of(fmodule, support))
        return torch.autograd.grad(loss_of(fmodule, query), list(module.parameters()))


def by_meta_adam(module: nn.Module, support: Batch, query: Batch, steps: int) -> tuple[Tensor, ...]:
    """Our inner loop in TorchOpt's idiom."""
    start = list(module.parameters())
    optimizer = MetaAdam(module, LR, eps=EPS, eps_root=EPS_ROOT)
    for _ in range(steps):
        optimizer.step(loss_of(module, support))
    grads = torch.autograd.grad(loss_of(module, query), start)
    optimizer.reset()
    return grads


def by_autograd(module: nn.Module, support: Batch, query: Batch, steps: int) -> tuple[Tensor, ...]:
    """What one writes by hand, in torch operations."""
    start: dict[str, Tensor] = dict(module.named_parameters())
    params = start
    m = {name: torch.zeros_like(p) for name, p in start.items()}
    v = dict(m)
    for t in range(1, steps + 1):
        loss = loss_of(lambda x, params=params: functional_call(module, params, (x,)), support)
        grads = torch.autograd.grad(loss, list(params.values()), create_graph=True)
        after = {}
        for (name, p), g in zip(params.items(), grads, strict=True):
            m[name] = 0.9 * m[name] + 0.1 * g
            v[name] = 0.999 * v[name] + 0.001 * g * g
            root = (v[name] / (1 - 0.999**t) + EPS_ROOT).sqrt()
            after[name] = p - LR * m[name] / (1 - 0.9**t) / (root + EPS)
        params = after
    outer = loss_of(lambda x: functional_call(module, params, (x,)), query)
    return torch.autograd.grad(outer, list(start.values()))


def by_torchopt(accelerated: bool) -> MetaStep:
    """TorchOpt's MetaAdam, as its documentation has it."""
    import torchopt  # pyright: ignore[reportMissingImports]

    def meta_step(
        module: nn.Module, support: Batch, query: Batch, steps: int
    ) -> tuple[Tensor, ...]:
        start = list(module.parameters())
        before = torchopt.extract_state_dict(module, by="reference")
        optimizer = torchopt.MetaAdam(
            module, LR, eps=EPS, eps_root=EPS_ROOT, use_accelerated_op=accelerated
        )
        for _ in range(steps):
            optimizer.step(loss_of(module, support))
        grads = torch.autograd.grad(loss_of(module, query), start)
        torchopt.recover_state_dict(module, before)
        return grads

    return meta_step


def by_higher() -> MetaStep:
    """The inner loop of higher, as its documentation has it."""
    import higher  # pyright: ignore[reportMissingImports]

    def meta_step(
        module: nn.Module, support: Batch, query: Batch, steps: int
    ) -> tuple[Tensor, ...]:
        optimizer = torch.optim.Adam(module.parameters(), LR, eps=EPS)
        with higher.innerloop_ctx(module, optimizer) as (fmodule, inner):
            for _ in range(steps):
                inner.step(loss_of(fmodule, support))
            return torch.autograd.grad(loss_of(fmodule, query), list(fmodule.parameters(time=0)))

    return meta_step


def floor(module: nn.Module, support: Batch, query: Batch, steps: int) -> tuple[Tensor, ...]:
    """The network's own passes: forward, backward and the latter's backward, in each step."""
    start = list(module.parameters())
    for _ in range(steps):
        grads = torch.autograd.grad(loss_of(module, support), start, create_graph=True)
        torch.autograd.grad(grads, start, grads)
    return torch.autograd.grad(loss_of(module, query), start)


@cache
def compiled(module: nn.Module, steps: int, max_steps: int, backend: str) -> Callable[..., Any]:
    """Our compiled meta-step."""
    loss = lambda p, x, y: functional.cross_entropy(functional_call(module, p, (x,)), y)

    def outer(start: dict[str, Tensor], support: Batch, query: Batch) -> Tensor:
        tx = adam(LR, eps=EPS, eps_root=EPS_ROOT)
        inner = lambda p, batch: loss(p, *batch)
        end = unroll(inner, tx, start, batches=[support] * steps).params
        return loss(end, *query)

    return compile_meta_step(outer, max_steps=max_steps, backend=backend)


def by_compiled(max_steps: int, backend: str) -> MetaStep:
    """Compiled as a whole, or step by step."""

    def meta_step(
        module: nn.Module, support: Batch, query: Batch, steps: int
    ) -> tuple[Tensor, ...]:
        step = compiled(module, steps, max_steps, backend)
        return tuple(step(dict(module.named_parameters()), support, query)[1].values())

    return meta_step


def by_jax() -> MetaStep:
    """The perceptron in JAX with Optax, jitted as a whole."""
    import jax  # pyright: ignore[reportMissingImports]
    import optax  # pyright: ignore[reportMissingImports]

    tx = optax.adam(LR, eps=EPS, eps_root=EPS_ROOT)

    def loss(params: Any, batch: Any) -> Any:
        x, y = batch
        for i, (weight, bias) in enumerate(params):
            x = x @ weight.T + bias
            x = jax.nn.relu(x) if i + 1 < len(params) else x
        return optax.softmax_cross_entropy_with_integer_labels(x, y).mean()

    def outer(params: Any, support: Any, query: Any, steps: int) -> Any:
        state = tx.init(params)
        for _ in range(steps):
            updates, state = tx.update(jax.grad(loss)(params, support), state)
            params = optax.apply_updates(params, updates)
        return loss(params, query)

    gradient = jax.jit(jax.grad(outer), static_argnums=3)

    @cache
    def converted(module: nn.Module) -> Any:
        params = [jax.numpy.asarray(p.detach().numpy()) for p in module.parameters()]
        return list(zip(params[::2], params[1::2], strict=True))

    def meta_step(
        module: nn.Module, support: Batch, query: Batch, steps: int
    ) -> tuple[Tensor, ...]:
        batches = [tuple(jax.numpy.asarray(t.numpy()) for t in batch) for batch in (support, query)]
        grads = jax.block_until_ready(gradient(converted(module), *batches, steps))
        return tuple(torch.from_dlpack(grad) for layer in grads for grad in layer)

    return meta_step


def contenders(network: str, backend: str) -> dict[str, MetaStep]:
    """All that can be run here; what cannot says why."""
    found: dict[str, MetaStep] = {
        "unroll": by_unroll,
        "inner_loop": by_inner_loop,
        "MetaAdam": by_meta_adam,
        "compiled whole": by_compiled(100, backend),
        "compiled steps": by_compiled(0, backend),
        "autograd by hand": by_autograd,
    }
    peers = {
        "TorchOpt": lambda: by_torchopt(accelerated=False),
        "TorchOpt accelerated": lambda: by_torchopt(accelerated=True),
        "higher": by_higher,
    }
    if network == "perceptron":
        peers["JAX jit"] = by_jax
    for name, make in peers.items():
        try:
            found[name] = make()
        except Exception as error:  # noqa: PERF203 - that a peer fails is a result
            print(f"{name}: {type(error).__name__}: {error}")
    return found


def error(actual: tuple[Tensor, ...], truth: tuple[Tensor, ...]) -> float:
    """The relative error of a meta-gradient as one vector."""
    ours, theirs = (torch.cat([g.double().flatten() for g in grads]) for grads in (actual, truth))
    return ((ours - theirs).norm() / theirs.norm()).item()


def cold(meta_step: MetaStep, *arguments: Any) -> tuple[tuple[Tensor, ...], float]:
    """What a contender's third call gives, and how long the calls up to it take, in seconds."""
    start = time.perf_counter()
    meta_step(*arguments)  # which counts steps, or traces
    meta_step(*arguments)
    return meta_step(*arguments), time.perf_counter() - start


def measure(network: str, steps: int, quick: bool) -> dict[str, Any]:
    """Compare all contenders with the truth, then time them."""
    torch.manual_seed(1)
    support = torch.randn(25, 784), torch.randint(5, (25,))
    query = torch.randn(75, 784), torch.randint(5, (75,))
    module = {"perceptron": perceptron, "convolutions": convolutions}[network]()
    double = [(x.double(), y) for x, y in (support, query)]
    truth = by_autograd(copy.deepcopy(module).double(), double[0], double[1], steps)
    runs: dict[str, Any] = {"floor": lambda: floor(module, support, query, steps)}
    first: dict[str, float] = {}
    for name, meta_step in contenders(network, "aot_eager" if quick else "inductor").items():
        found, seconds = cold(meta_step, module, support, query, steps)
        wrong = error(found, truth)
        verdict = "" if wrong < 1e-3 else " (differs)"
        print(f"  {name:21} relative error {wrong:.1e}, first calls {seconds:6.2f} s{verdict}")
        first[name] = seconds
        runs[name + verdict] = lambda f=meta_step: f(module, support, query, steps)
    rounds, seconds = (2, 0.01) if quick else (30, 0.1)
    measured = turns(runs, rounds=rounds, seconds=seconds, clock=WALL)
    minimum = {name: min(times) for name, times in measured.items()}
    median = {name: statistics.median(times) for name, times in measured.items()}
    ours = next(name for name in runs if name.startswith("unroll"))  # maybe with its verdict
    print(f"  {ours}, minimum {row(minimum, ours)}")
    print(f"  {ours}, median  {row(median, ours)}", flush=True)
    return {"minimum": minimum, "median": median, "first calls (s)": first}


def main() -> None:
    """Compare, measure and print."""
    options = arguments(__doc__ or "")
    one_core()
    torch.set_num_threads(1)
    packages = ["diffopt-explicit", "diffopt-kernels", "torch", "torchopt", "higher", "jax"]
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder
        for network in ("perceptron", "convolutions"):
            for steps in (1,) if options.quick else (1, 5):
                print(f"\n{network}, {steps} inner steps")
                results[f"{network}, {steps} steps"] = measure(network, steps, options.quick)
                report(results, [*packages, "optax"], options.json)  # compiling takes minutes


if __name__ == "__main__":
    main()
