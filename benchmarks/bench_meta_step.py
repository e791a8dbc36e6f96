"""One MAML meta-step of a multilayer perceptron: ours beside TorchOpt, higher and plain autograd.

The claim: with the fused Adam inside, a meta-step takes about half as long as with the peers.
The network is 784-256-128-64-5, the support set 25 images, the query set 75, Adam inside, on
one thread. The meta-gradients are compared as one vector with a float64 truth before anything
is timed. higher has no `eps_root`, so that its meta-gradient is another one; it is timed all
the same.

    nox -s bench, or python benchmarks/bench_meta_step.py [--quick] [--json FILE]
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import pairwise

import torch
from diffopt_explicit import MetaAdam, adam, inner_loop, unroll
from harness import WALL, arguments, fastest, report, row
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

LR, EPS, EPS_ROOT = 0.01, 1e-8, 1e-8
SIZES = (784, 256, 128, 64, 5)

MetaStep = Callable[[nn.Module, "Batch", "Batch", int], tuple[Tensor, ...]]
Batch = tuple[Tensor, Tensor]


def network() -> nn.Module:
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


def contenders() -> dict[str, MetaStep]:
    """All that can be run here; what cannot says why."""
    found: dict[str, MetaStep] = {
        "unroll": by_unroll,
        "inner_loop": by_inner_loop,
        "MetaAdam": by_meta_adam,
        "autograd by hand": by_autograd,
    }
    peers = {
        "TorchOpt": lambda: by_torchopt(accelerated=False),
        "TorchOpt accelerated": lambda: by_torchopt(accelerated=True),
        "higher": by_higher,
    }
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


def main() -> None:
    """Compare, measure and print."""
    options = arguments(__doc__ or "")
    torch.set_num_threads(1)
    torch.manual_seed(1)
    support = torch.randn(25, 784), torch.randint(5, (25,))
    query = torch.randn(75, 784), torch.randint(5, (75,))
    module, results = network(), {}
    double = tuple((x.double(), y) for x, y in (support, query))
    for steps in (1, 5):
        truth = by_autograd(copy.deepcopy(module).double(), double[0], double[1], steps)
        print(f"\n{steps} inner steps")
        runs = {}
        for name, meta_step in contenders().items():
            wrong = error(meta_step(module, support, query, steps), truth)
            verdict = "" if wrong < 1e-3 else " (differs)"
            print(f"  {name:21} relative error of the meta-gradient {wrong:.1e}{verdict}")
            runs[name + verdict] = lambda f=meta_step: f(module, support, query, steps)  # noqa: B023
        rounds, seconds = (2, 0.01) if options.quick else (30, 0.1)
        results[f"{steps} steps"] = times = fastest(
            runs, rounds=rounds, seconds=seconds, clock=WALL
        )
        print(f"  unroll {row(times, 'unroll')}")
    packages = ["diffopt-explicit", "diffopt-kernels", "torch", "torchopt", "higher"]
    report(results, packages, options.json)


if __name__ == "__main__":
    main()
