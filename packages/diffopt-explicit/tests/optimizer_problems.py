"""Optimizers in place beside those of torch.optim, and a network to train."""

import diffopt_explicit as ours
import torch
from torch import nn

GRID = [
    (ours.SGD, torch.optim.SGD, {"lr": 0.1}),
    (ours.SGD, torch.optim.SGD, {"lr": 0.1, "weight_decay": 0.05, "maximize": True}),
    (ours.SGD, torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "dampening": 0.3}),
    (ours.SGD, torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
    (ours.Adam, torch.optim.Adam, {"lr": 0.1}),
    (ours.Adam, torch.optim.Adam, {"lr": 0.1, "weight_decay": 0.05, "maximize": True}),
    (ours.AdamW, torch.optim.AdamW, {"lr": 0.1, "weight_decay": 0.3}),
    (ours.AMSGrad, torch.optim.Adam, {"lr": 0.1, "betas": (0.5, 0.5), "weight_decay": 0.05}),
    (
        ours.AMSGrad,
        torch.optim.AdamW,
        {"lr": 0.1, "betas": (0.5, 0.5), "weight_decay": 0.3, "decoupled_weight_decay": True},
    ),
    (ours.Adamax, torch.optim.Adamax, {"lr": 0.1, "betas": (0.5, 0.5), "weight_decay": 0.05}),
    (ours.NAdam, torch.optim.NAdam, {"lr": 0.1, "decoupled_weight_decay": True}),
    (ours.RAdam, torch.optim.RAdam, {"lr": 0.1, "betas": (0.5, 0.9), "weight_decay": 0.05}),
    (ours.RMSProp, torch.optim.RMSprop, {"lr": 0.1, "weight_decay": 0.05}),
    (ours.RMSProp, torch.optim.RMSprop, {"lr": 0.1, "momentum": 0.9}),
    (ours.RMSProp, torch.optim.RMSprop, {"lr": 0.1, "alpha": 0.5, "momentum": 0.9, "centered": 1}),
    (ours.Adagrad, torch.optim.Adagrad, {"lr": 0.1, "weight_decay": 0.05, "lr_decay": 0.1}),
    (ours.Adagrad, torch.optim.Adagrad, {"lr": 0.1, "initial_accumulator_value": 0.1}),
    (ours.Adadelta, torch.optim.Adadelta, {"lr": 0.5, "rho": 0.5, "weight_decay": 0.05}),
    (ours.Rprop, torch.optim.Rprop, {"lr": 0.1, "etas": (0.4, 1.3), "step_sizes": (0.05, 0.12)}),
]

ONE_WAY = [  # whose states torch.optim has in another form
    (ours.ASGD, torch.optim.ASGD, {"lr": 0.1, "lambd": 0.1, "t0": 2, "weight_decay": 0.05}),
    (ours.Adafactor, torch.optim.Adafactor, {"lr": 0.1, "weight_decay": 0.05}),
]

X = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(3, 4)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2), nn.Linear(7, 7))


def train(module: nn.Module, optimizer, steps: int, scheduler=None, first: int = 0) -> None:
    """Steps whose loss leaves one layer out, and another one in odd steps."""
    for step in range(first, first + steps):
        optimizer.zero_grad()
        out = module[0](X)
        out = out if step % 2 else module[2](module[1](out))
        (out.square().mean() + out.sin().sum()).backward()
        optimizer.step()
        if scheduler:
            scheduler.step()


def torch_flags(theirs, kind, flags: dict) -> dict:
    decoupled = {} if theirs is not torch.optim.AdamW else {"decoupled_weight_decay": None}
    own = {name: value for name, value in flags.items() if name not in decoupled}
    return {**own, "amsgrad": True} if kind is ours.AMSGrad else own


def groups(module: nn.Module) -> list[dict]:
    params = list(module.parameters())
    return [{"params": params[:1], "lr": 0.2}, {"params": params[1:]}]


def assert_same(module: nn.Module, other: nn.Module) -> None:
    for (name, param), expected in zip(module.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(param, expected, rtol=0, atol=1e-12, msg=name)
