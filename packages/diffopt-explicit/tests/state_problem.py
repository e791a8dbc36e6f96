"""A small network that is optimized."""

import torch
from diffopt_explicit import MetaAdam
from torch import nn

X = torch.linspace(-1, 1, 12).reshape(3, 4)


def network() -> nn.Sequential:
    """Tied weights, statistics, a frozen bias and a recurrent layer."""
    torch.manual_seed(0)
    first = nn.Linear(4, 4)
    module = nn.Sequential(first, nn.BatchNorm1d(4), nn.Linear(4, 4), nn.GRU(4, 4))
    module[2].weight = first.weight
    module[2].bias.requires_grad_(False)
    return module


def loss(module: nn.Module) -> torch.Tensor:
    return module(X)[0].square().mean()


def stepped() -> tuple[nn.Sequential, MetaAdam]:
    module = network()
    optimizer = MetaAdam(module, lr=0.1)
    optimizer.step(loss(module))
    return module, optimizer
