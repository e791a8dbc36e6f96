"""The meta-steps that `bench_distributed.py` and TorchOpt's world take alike."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from harness import turns
from torch import Tensor

TASKS = 8


def params_and_tasks() -> tuple[list[Tensor], Tensor]:
    """Weights of a perceptron that require grad, and images of all tasks."""
    generator = torch.Generator().manual_seed(0)
    sizes = [(256, 256), (256, 256), (256, 64)]
    params = [torch.randn(*size, generator=generator) / 16 for size in sizes]
    return [p.requires_grad_() for p in params], torch.randn(TASKS, 100, 256, generator=generator)


def network(params: list[Tensor], x: Tensor) -> Tensor:
    """The network's outputs."""
    return torch.tanh(torch.tanh(x @ params[0]) @ params[1]) @ params[2]


def meta_loss(steps: int, params: list[Tensor], tasks: Tensor) -> Tensor:
    """Mean over some tasks of the loss after inner steps."""
    losses = []
    for x in tasks:
        fast = list(params)
        for _ in range(steps):
            loss = network(fast, x).square().mean()
            gradients = torch.autograd.grad(loss, fast, create_graph=True)
            fast = [p - 0.1 * g for p, g in zip(fast, gradients, strict=True)]
        losses.append((network(fast, x) - 1).square().mean())
    return torch.stack(losses).mean()


def step(loss: Callable[..., Tensor]) -> Callable[[], tuple[Tensor, ...]]:
    """A meta-step, which returns the meta-gradient."""
    params, tasks = params_and_tasks()
    return lambda: torch.autograd.grad(loss(params, tasks), params)


def medians(contenders: dict[str, Callable[[], Any]], rounds: int, clock: Any) -> dict[str, float]:
    """The median time of each, in seconds, taken in turns."""
    measured = turns(contenders, rounds=rounds, seconds=0.0, clock=clock)
    return {name: median(times) / 1e6 for name, times in measured.items()}
