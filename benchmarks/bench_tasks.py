"""The meta-gradient of many small tasks: all at once, in a loop, and by the peers.

The claim: the inner loops of 32 sine waves run many times faster together, by `torch.func.vmap`
of whole loops, with one fused update of stacked parameters, or all as one graph, than one after the
other; those of a perceptron whose layers are wide enough to fill the processor gain little by that,
and more by one graph of a task, whose arrays stay in the caches. The networks are 1-40-40-1, for
support and query sets of 10 points each, and 784-256-128-64-5, for sets of 25 and 75; Adam inside
for 5 steps, on one thread. The meta-gradients are compared as one vector with a float64 truth
before anything is timed. higher has no `eps_root`, so that its meta-gradient is another one.

    nox -s bench, or python benchmarks/bench_tasks.py [--quick] [--json FILE]
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from typing import Any

import torch
from diffopt_explicit import MetaAdam, adam, compile_meta_step, unroll, unroll_tasks
from diffopt_explicit.tasks import Sinusoid, Task
from harness import WALL, arguments, fastest, report, row
from torch import Tensor, nn
from torch.func import functional_call, vmap

LR, EPS, EPS_ROOT, STEPS, TASKS, FEW = 0.01, 1e-8, 1e-8, 5, 32, 4

MetaGradient = Callable[[nn.Module, Task], tuple[Tensor, ...]]


def network(*sizes: int) -> nn.Module:
    """A perceptron, the same at every call."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.Tanh()]
    return nn.Sequential(*layers[:-1])


def random_tasks(shots: int, queries: int, inputs: int, outputs: int) -> Task:
    """Tasks of noise: what is learned does not matter here."""
    generator = torch.Generator().manual_seed(1)
    draw = lambda *shape: torch.randn(TASKS, *shape, generator=generator)
    support, query = ((draw(n, inputs), draw(n, outputs)) for n in (shots, queries))
    return Task(*support, *query)


def error_of(function: Callable[[Tensor], Tensor], x: Tensor, y: Tensor) -> Tensor:
    """The mean squared error."""
    return (function(x) - y).square().mean()


def one_by_one(tasks: Task) -> list[Task]:
    """The tasks of a stack."""
    return [Task(*parts) for parts in zip(*tasks, strict=True)]


def adapted(module: nn.Module, params: dict[str, Tensor], task: Task) -> Tensor:
    """The query loss of one task after the inner loop."""
    call = lambda p: lambda x: functional_call(module, p, (x,))
    tx = adam(LR, eps=EPS, eps_root=EPS_ROOT)
    inner = lambda p: error_of(call(p), task.support_x, task.support_y)
    end = unroll(inner, tx, params, steps=STEPS).params
    return error_of(call(end), task.query_x, task.query_y)


def by_loop(module: nn.Module, tasks: Task) -> tuple[Tensor, ...]:
    """One task after the other."""
    params: dict[str, Tensor] = dict(module.named_parameters())
    losses = [adapted(module, params, task) for task in one_by_one(tasks)]
    return torch.autograd.grad(torch.stack(losses).mean(), list(params.values()))


def by_vmap(module: nn.Module, tasks: Task) -> tuple[Tensor, ...]:
    """All loops at once."""
    params: dict[str, Tensor] = dict(module.named_parameters())
    losses = vmap(lambda task: adapted(module, params, task))(tasks)
    return torch.autograd.grad(losses.mean(), list(params.values()))


def of_stack(module: nn.Module, params: dict[str, Tensor], tasks: Task) -> Tensor:
    """The mean query loss after one loop over stacked parameters."""
    error = lambda p, x, y: error_of(lambda x: functional_call(module, p, (x,)), x, y)
    inner = lambda p, task: error(p, task.support_x, task.support_y)
    tx = adam(LR, eps=EPS, eps_root=EPS_ROOT)
    end = unroll_tasks(inner, tx, params, tasks, steps=STEPS).params
    return vmap(error)(end, tasks.query_x, tasks.query_y).mean()


def by_stack(module: nn.Module, tasks: Task) -> tuple[Tensor, ...]:
    """One loop over stacked parameters."""
    params: dict[str, Tensor] = dict(module.named_parameters())
    return torch.autograd.grad(of_stack(module, params, tasks), list(params.values()))


def by_small_stacks(module: nn.Module, tasks: Task) -> tuple[Tensor, ...]:
    """Loops over stacks of a few tasks, differentiated one after the other."""
    params: dict[str, Tensor] = dict(module.named_parameters())
    gradients = []
    for first in range(0, TASKS, FEW):
        some = Task(*(part[first : first + FEW] for part in tasks))
        loss = of_stack(module, params, some) * FEW / TASKS
        gradients.append(torch.autograd.grad(loss, list(params.values())))
    return tuple(torch.stack(parts).sum(0) for parts in zip(*gradients, strict=True))


def by_compiled_stack(backend: str) -> MetaGradient:
    """The same as one graph."""

    @cache
    def compiled(module: nn.Module) -> Callable[..., Any]:
        whole = lambda params, tasks: of_stack(module, params, tasks)
        return compile_meta_step(whole, max_steps=100, backend=backend)

    def meta_gradient(module: nn.Module, tasks: Task) -> tuple[Tensor, ...]:
        return tuple(compiled(module)(dict(module.named_parameters()), tasks)[1].values())

    return meta_gradient


def by_compiled_loop(backend: str) -> MetaGradient:
    """One task after the other, by the graph of one."""

    @cache
    def compiled(module: nn.Module) -> Callable[..., Any]:
        one = lambda params, *task: adapted(module, params, Task(*task))
        return compile_meta_step(one, max_steps=100, backend=backend)

    def meta_gradient(module: nn.Module, tasks: Task) -> tuple[Tensor, ...]:
        params = dict(module.named_parameters())
        gradients = [compiled(module)(params, *task)[1].values() for task in one_by_one(tasks)]
        return tuple(torch.stack(parts).mean(0) for parts in zip(*gradients, strict=True))

    return meta_gradient


def by_meta_adam(module: nn.Module, tasks: Task) -> tuple[Tensor, ...]:
    """One task after the other in TorchOpt's idiom."""
    start, losses = list(module.parameters()), []
    for task in one_by_one(tasks):
        with MetaAdam(module, LR, eps=EPS, eps_root=EPS_ROOT) as optimizer:
            for _ in range(STEPS):
                optimizer.step(error_of(module, task.support_x, task.support_y))
            losses.append(error_of(module, task.query_x, task.query_y))
    return torch.autograd.grad(torch.stack(losses).mean(), start)


def by_torchopt() -> MetaGradient:
    """TorchOpt's MetaAdam, as its documentation has it."""
    import torchopt  # pyright: ignore[reportMissingImports]

    def meta_gradient(module: nn.Module, tasks: Task) -> tuple[Tensor, ...]:
        start, losses = list(module.parameters()), []
        before = torchopt.extract_state_dict(module, by="reference")
        for task in one_by_one(tasks):
            optimizer = torchopt.MetaAdam(module, LR, eps=EPS, eps_root=EPS_ROOT)
            for _ in range(STEPS):
                optimizer.step(error_of(module, task.support_x, task.support_y))
            losses.append(error_of(module, task.query_x, task.query_y))
            torchopt.recover_state_dict(module, before)
        return torch.autograd.grad(torch.stack(losses).mean(), start)

    return meta_gradient


def by_higher() -> MetaGradient:
    """The inner loop of higher, as its documentation has it."""
    import higher  # pyright: ignore[reportMissingImports]

    def meta_gradient(module: nn.Module, tasks: Task) -> tuple[Tensor, ...]:
        losses = []
        for task in one_by_one(tasks):
            optimizer = torch.optim.Adam(module.parameters(), LR, eps=EPS)
            with higher.innerloop_ctx(module, optimizer, copy_initial_weights=False) as (f, inner):
                for _ in range(STEPS):
                    inner.step(error_of(f, task.support_x, task.support_y))
                losses.append(error_of(f, task.query_x, task.query_y))
        return torch.autograd.grad(torch.stack(losses).mean(), list(module.parameters()))

    return meta_gradient


def contenders(backend: str) -> dict[str, MetaGradient]:
    """All that can be run here; what cannot says why."""
    found: dict[str, MetaGradient] = {
        "stacked": by_stack,
        "stacks of 4": by_small_stacks,
        "stacked, compiled": by_compiled_stack(backend),
        "vmap of loops": by_vmap,
        "loop": by_loop,
        "loop, compiled": by_compiled_loop(backend),
        "loop, MetaAdam": by_meta_adam,
    }
    for name, make in {"TorchOpt": by_torchopt, "higher": by_higher}.items():
        try:
            found[name] = make()
        except Exception as error:  # noqa: PERF203 - that a peer fails is a result
            print(f"{name}: {type(error).__name__}: {error}")
    return found


def distance(actual: tuple[Tensor, ...], truth: tuple[Tensor, ...]) -> float:
    """The relative error of a meta-gradient as one vector."""
    ours, theirs = (torch.cat([g.double().flatten() for g in grads]) for grads in (actual, truth))
    return ((ours - theirs).norm() / theirs.norm()).item()


def measure(module: nn.Module, tasks: Task, *, quick: bool) -> dict[str, float]:
    """Compare all contenders with the truth, then time them."""
    truth = by_loop(copy.deepcopy(module).double(), Task(*(part.double() for part in tasks)))
    runs = {}
    for name, meta_gradient in contenders("aot_eager" if quick else "inductor").items():
        meta_gradient(module, tasks)  # which counts steps, where it is compiled
        wrong = distance(meta_gradient(module, tasks), truth)
        verdict = "" if wrong < 1e-3 else " (differs)"
        print(f"  {name:17} relative error of the meta-gradient {wrong:.1e}{verdict}")
        runs[name + verdict] = lambda f=meta_gradient: f(module, tasks)
    rounds, seconds = (2, 0.01) if quick else (12, 0.1)
    times = fastest(runs, rounds=rounds, seconds=seconds, clock=WALL)
    print(f"  stacked {row(times, 'stacked')}", flush=True)
    return times


def main() -> None:
    """Compare, measure and print."""
    options = arguments(__doc__ or "")
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(1)
    waves = Sinusoid(shots=10, queries=10, generator=generator).sample_many(TASKS)
    settings = {
        "32 sine waves": (network(1, 40, 40, 1), waves),
        "32 tasks of a perceptron": (
            network(784, 256, 128, 64, 5),
            random_tasks(shots=25, queries=75, inputs=784, outputs=5),
        ),
    }
    results = {}
    for name, (module, tasks) in settings.items():
        print(f"\n{name}")
        results[name] = measure(module, tasks, quick=options.quick)
    packages = ["diffopt-explicit", "diffopt-kernels", "torch", "torchopt", "higher"]
    report(results, packages, options.json)


if __name__ == "__main__":
    main()
