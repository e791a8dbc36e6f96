"""How much longer `Replay` takes than `Store`, which keeps the graphs of all steps.

A MAML step of the perceptron 784-256-128-64-5, Adam inside, on one thread: the least CPU time of
interleaved turns. Recorded gradients, and compiled steps of which no graph is kept either way.
Of so small a batch `Replay` keeps all graphs of a short unroll, and is `Store` then. What a
replayed step takes more is a step without a graph, which is timed beside: all steps so, under
`torch.no_grad()`. What `Replay` saves is in bench_memory.py.

    nox -s bench, or python benchmarks/bench_replay.py [--quick] [--json FILE]
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from diffopt_explicit import Compiled, Recorded, Replay, Store, adam, unroll
from harness import CPU, arguments, fastest, report, row
from torch import Tensor
from torch.nn.functional import cross_entropy

SIZES = (784, 256, 128, 64, 5)
# Without `eps_root`, the derivative at tiny gradients is a large multiple of their rounding.
TX = adam(1e-3, eps_root=1e-8)


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


class MetaStep:
    """One meta-gradient of MAML with respect to the initial weights."""

    def __init__(self, steps: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.params = network(SIZES, generator)
        self.images = torch.randn(100, 784, generator=generator)
        self.labels = torch.randint(5, (100,), generator=generator)
        self.steps = steps

    def adapt(self, **how: Any) -> list[Tensor]:
        """The weights after all inner steps."""
        support = self.images[:25], self.labels[:25]
        loss = lambda params, batch: cross_entropy(forward(params, batch[0]), batch[1])
        return unroll(loss, TX, self.params, batches=[support] * self.steps, **how).params

    def gradient(self, **how: Any) -> tuple[Tensor, ...]:
        """The meta-gradient."""
        outer = cross_entropy(forward(self.adapt(**how), self.images[25:]), self.labels[25:])
        return torch.autograd.grad(outer, self.params)

    def untracked(self) -> None:
        """The inner steps alone."""
        with torch.no_grad():
            self.adapt()


def flat(tensors: tuple[Tensor, ...]) -> Tensor:
    """All numbers as one vector."""
    return torch.cat([tensor.flatten() for tensor in tensors])


def contenders(steps: int, backend: str) -> dict[str, Callable[[], Any]]:
    """All that is timed, after a check that the gradients agree."""
    task, calls = MetaStep(steps), {}
    for words, gradient in (("", Recorded()), (", compiled", Compiled(backend=backend))):
        for name, adjoint in (("store", Store()), ("replay", Replay())):
            calls[name + words] = partial(task.gradient, adjoint=adjoint, gradient=gradient)
    expected = flat(calls["store"]())
    for name, call in calls.items():
        error = ((flat(call()) - expected).norm() / expected.norm()).item()
        assert error < 1e-3, f"{name} differs by {error:.1e}"
    return {**calls, "steps without a graph": task.untracked}


def main() -> None:
    """Measure and print."""
    options = arguments(__doc__ or "")
    torch.set_num_threads(1)
    rounds, seconds = (3, 0.01) if options.quick else (40, 0.05)
    results: dict[str, Any] = {}
    for steps in (1, 5) if options.quick else (1, 2, 5, 10, 20, 50):
        calls = contenders(steps, "aot_eager" if options.quick else "inductor")
        found = fastest(calls, rounds=rounds, seconds=seconds, clock=CPU)
        results[f"{steps} steps"] = found
        print(f"{steps:3} steps, store {row(found, 'store')}", flush=True)
    report(results, ["diffopt-explicit", "diffopt-kernels", "torch"], options.json)


if __name__ == "__main__":
    main()
