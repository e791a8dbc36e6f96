"""Parity with torch.optim over its flags, models and groups; meta-gradients against differences."""

import copy

import pytest
import torch
from diffopt_explicit import MetaOptimizer, inner_loop
from torch import nn
from torch.nn import functional

GRID = [
    (torch.optim.SGD, {"lr": 0.1}),
    (torch.optim.SGD, {"lr": 0.1, "weight_decay": 0.05}),
    (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}),
    (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "dampening": 0.3, "weight_decay": 0.05}),
    (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
    (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "maximize": True, "weight_decay": 0.05}),
    (torch.optim.Adam, {"lr": 0.1}),
    (torch.optim.Adam, {"lr": 0.1, "weight_decay": 0.05, "betas": (0.7, 0.9), "eps": 1e-3}),
    (torch.optim.Adam, {"lr": 0.1, "weight_decay": 0.05, "maximize": True}),
    (torch.optim.AdamW, {"lr": 0.1}),
    (torch.optim.AdamW, {"lr": 0.1, "weight_decay": 0.3, "maximize": True}),
    (torch.optim.Adam, {"lr": 0.1, "weight_decay": 0.3, "decoupled_weight_decay": True}),
    (torch.optim.Adam, {"lr": 0.1, "amsgrad": True, "betas": (0.5, 0.5)}),
    (torch.optim.AdamW, {"lr": 0.1, "amsgrad": True, "betas": (0.5, 0.5), "weight_decay": 0.1}),
    (torch.optim.Adamax, {"lr": 0.1, "betas": (0.5, 0.5), "weight_decay": 0.05}),
    (torch.optim.Adamax, {"lr": 0.1, "maximize": True}),
    (torch.optim.NAdam, {"lr": 0.1, "weight_decay": 0.05, "momentum_decay": 0.1}),
    (torch.optim.NAdam, {"lr": 0.1, "weight_decay": 0.05, "decoupled_weight_decay": True}),
    (torch.optim.RAdam, {"lr": 0.1, "weight_decay": 0.05, "betas": (0.5, 0.5)}),
    (torch.optim.RAdam, {"lr": 0.1, "betas": (0.5, 0.9), "decoupled_weight_decay": True}),
    (torch.optim.RMSprop, {"lr": 0.1, "weight_decay": 0.05}),
    (torch.optim.RMSprop, {"lr": 0.1, "alpha": 0.5, "momentum": 0.9, "centered": True}),
    (torch.optim.Adagrad, {"lr": 0.1, "weight_decay": 0.05, "lr_decay": 0.1}),
    (torch.optim.Adagrad, {"lr": 0.1, "initial_accumulator_value": 0.1, "maximize": True}),
    (torch.optim.Adadelta, {"lr": 0.5, "rho": 0.5, "weight_decay": 0.05}),
    (torch.optim.Rprop, {"lr": 0.1, "etas": (0.4, 1.3), "step_sizes": (0.05, 0.12)}),
    (torch.optim.ASGD, {"lr": 0.1, "lambd": 0.1, "t0": 2, "weight_decay": 0.05}),
    (torch.optim.Adafactor, {"lr": 0.1, "weight_decay": 0.05}),
]


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.encode, self.decode = nn.Linear(4, 4), nn.Linear(4, 4)
        self.decode.weight = self.encode.weight

    def forward(self, x):
        return self.decode(torch.tanh(self.encode(x)))


class PartlyUsed(nn.Module):
    """The second layer is used in even steps only, the third never."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))

    def forward(self, x, step=0):
        x = self.layers[0](x)
        return x if step % 2 else self.layers[1](torch.tanh(x))


def tied_in_sequential() -> nn.Module:
    first = nn.Linear(4, 4)
    return nn.Sequential(first, nn.Tanh(), first)


MODELS = {
    "mlp": lambda: nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 4)),
    "tied": Tied,
    "tied in sequential": tied_in_sequential,
    "partly used": PartlyUsed,
}


@pytest.fixture(autouse=True)
def double_precision():
    """Also for the numbers that torch.optim keeps in the default dtype (a product in NAdam)."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def build(model: str) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    return MODELS[model]().double(), torch.randn(3, 5, 4, dtype=torch.float64)


def loss_of(module, x, step):
    out = module(x, step) if "layers.2.weight" in names(module) else module(x)
    return functional.mse_loss(out, x.sin()) + out.square().mean()


def names(module) -> list[str]:
    module = getattr(module, "module", module)
    return [name for name, _ in module.named_parameters()]


def optimizer_of(kind, flags, module, groups):
    params = list(module.parameters())
    if groups == 1:
        return kind(params, **flags)
    return kind([{"params": params[:1], "lr": 0.2}, {"params": params[1:]}], **flags)


def train(module, optimizer, xs):
    for step, x in enumerate(xs):
        optimizer.zero_grad()
        loss_of(module, x, step).backward()
        optimizer.step()


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(("kind", "flags"), GRID)
def test_steps_equal_those_of_torch_optim(kind, flags, model, groups):
    module, xs = build(model)
    theirs = copy.deepcopy(module)
    reference = optimizer_of(kind, flags, theirs, groups)
    train(theirs, reference, xs)
    with inner_loop(module, optimizer_of(kind, flags, module, groups)) as (fmodule, opt):
        for step, x in enumerate(xs):
            opt.step(loss_of(fmodule, x, step))

    for (name, ours), expected in zip(fmodule.params.items(), theirs.parameters(), strict=True):
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-12, msg=name)


@pytest.mark.parametrize(("kind", "flags"), GRID)
@pytest.mark.parametrize("wrap", ["inner loop", "meta-optimizer"])
def test_a_live_optimizer_is_gone_on_with(kind, flags, wrap):
    module, xs = build("partly used")
    optimizer = optimizer_of(kind, flags, module, 2)
    train(module, optimizer, xs)
    reference = copy.deepcopy((module, optimizer))
    train(*reference, xs)
    if wrap == "inner loop":
        with inner_loop(module, optimizer) as (fmodule, opt):
            for step, x in enumerate(xs):
                opt.step(loss_of(fmodule, x, step))
        ends = list(fmodule.parameters())
    else:
        opt = MetaOptimizer(module, optimizer)
        for step, x in enumerate(xs):
            opt.step(loss_of(module, x, step))
        ends = list(module.parameters())

    for ours, expected in zip(ends, reference[0].parameters(), strict=True):
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(
    ("kind", "flags"),
    [
        *(GRID[index] for index in (3, 4, 7, 10)),
        (torch.optim.Adam, {"lr": 0.05, "amsgrad": True, "betas": (0.5, 0.5), "eps": 1e-2}),
        (torch.optim.NAdam, {"lr": 0.05, "eps": 1e-2}),
        (torch.optim.RAdam, {"lr": 0.05, "betas": (0.5, 0.5), "eps": 1e-2}),
        (torch.optim.RMSprop, {"lr": 0.05, "eps": 1e-1, "centered": True, "momentum": 0.5}),
        (torch.optim.Adagrad, {"lr": 0.05, "eps": 1e-2}),
        (torch.optim.Adadelta, {"lr": 0.5, "eps": 1e-2}),
    ],
)
def test_meta_gradient_equals_central_differences_of_torch_optim(kind, flags, model):
    module, xs = build(model)
    torch.manual_seed(1)
    direction = [torch.randn_like(p) for p in module.parameters()]

    def end_of_torch_optim(shift: float) -> float:
        moved = copy.deepcopy(module)
        with torch.no_grad():
            for p, d in zip(moved.parameters(), direction, strict=True):
                p += shift * d
        train(moved, kind(moved.parameters(), **flags), xs)
        return loss_of(moved, xs[0], 0).item()

    with inner_loop(module, kind(module.parameters(), **flags)) as (fmodule, opt):
        for step, x in enumerate(xs):
            opt.step(loss_of(fmodule, x, step))
        outer = loss_of(fmodule, xs[0], 0)
    grads = torch.autograd.grad(outer, list(module.parameters()), materialize_grads=True)
    exact = sum((g * d).sum() for g, d in zip(grads, direction, strict=True)).item()
    h = 1e-5  # four points, because a small eps makes the third derivative large
    near, far = (end_of_torch_optim(k * h) - end_of_torch_optim(-k * h) for k in (1, 2))
    central = (8 * near - far) / (12 * h)

    assert exact == pytest.approx(central, rel=1e-6)
