"""Parity with torch.optim over its flags, models and groups; meta-gradients against differences."""

import copy

import pytest
import torch
from diffopt_explicit import adam, inner_loop, sgd
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


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(("kind", "flags"), GRID)
def test_steps_equal_those_of_torch_optim(kind, flags, model, groups):
    module, xs = build(model)
    theirs = copy.deepcopy(module)
    reference = optimizer_of(kind, flags, theirs, groups)
    for step, x in enumerate(xs):
        reference.zero_grad()
        loss_of(theirs, x, step).backward()
        reference.step()
    with inner_loop(module, optimizer_of(kind, flags, module, groups)) as (fmodule, opt):
        for step, x in enumerate(xs):
            opt.step(loss_of(fmodule, x, step))

    for (name, ours), expected in zip(fmodule.params.items(), theirs.parameters(), strict=True):
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-12, msg=name)


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
        reference = kind(moved.parameters(), **flags)
        for step, x in enumerate(xs):
            reference.zero_grad()
            loss_of(moved, x, step).backward()
            reference.step()
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


def test_the_module_is_left_as_it_was():
    module = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    before = copy.deepcopy(module.state_dict())
    params = dict(module.named_parameters())
    with inner_loop(module, adam(lr=0.1)) as (fmodule, opt):
        for _ in range(2):
            opt.step(fmodule(torch.randn(8, 4)).square().mean())

    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
    assert all(params[name] is param for name, param in module.named_parameters())
    assert all(param.grad is None for param in module.parameters())
    assert fmodule.buffers["1.num_batches_tracked"].item() == 2


def test_a_submodule_under_two_names_is_left_as_it_was():
    module = tied_in_sequential()
    params = list(module.parameters())
    with inner_loop(module, sgd(lr=0.1)) as (fmodule, opt):
        opt.step(fmodule(torch.ones(2, 4)).square().mean())
        fmodule(torch.ones(2, 4))

    assert all(a is b for a, b in zip(params, module.parameters(), strict=True))
    assert list(fmodule.params) == ["0.weight", "0.bias"]


def test_frozen_parameters_are_neither_moved_nor_seen_by_the_optimizer():
    module = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1))
    module[0].requires_grad_(False)
    with inner_loop(module, sgd(lr=0.1)) as (fmodule, opt):
        opt.step(fmodule(torch.ones(2, 4)).sum())

    assert list(fmodule.params) == ["1.weight", "1.bias"]


def test_detached_start_leads_to_hyperparameters_only():
    module, lr = nn.Linear(2, 1), torch.tensor(0.1, requires_grad=True)
    with inner_loop(module, sgd(lr=0.5), detach_initial=True, override={"lr": lr}) as (f, opt):
        opt.step(f(torch.ones(1, 2)).square().sum())
        outer = f(torch.ones(1, 2)).sum()
    outer.backward()

    assert module.weight.grad is None
    assert lr.grad is not None
    assert lr.grad != 0


def test_untracked_steps_are_the_same_and_keep_no_graph():
    module = nn.Linear(2, 1)
    x = torch.ones(3, 2)
    ends = []
    for track in (True, False):
        with inner_loop(module, adam(lr=0.1), track=track) as (fmodule, opt):
            for _ in range(3):
                opt.step(fmodule(x).square().mean())
            ends.append(fmodule.params["weight"])

    assert torch.equal(*ends)
    assert not ends[0].is_leaf
    assert ends[1].is_leaf
    assert not opt.state[0].slots[0]["weight"].requires_grad


def test_first_order_steps_leave_out_second_derivatives():
    module = nn.Linear(1, 1, bias=False)
    with inner_loop(module, sgd(lr=0.25)) as (fmodule, opt):
        opt.step(fmodule(torch.ones(1, 1)).square().sum(), first_order=True)
        fmodule.params["weight"].sum().backward()

    assert module.weight.grad.item() == 1.0


def test_a_failed_step_changes_nothing():
    module = nn.Linear(2, 1)
    with inner_loop(module, adam(lr=0.1)) as (fmodule, opt):
        params, state = fmodule.params, opt.state
        with pytest.raises(ValueError, match="depends on none of the parameters"):
            opt.step(module(torch.ones(1, 2)).detach().sum())

        assert fmodule.params is params
        assert opt.state is state


def test_a_module_without_trainable_parameters_is_refused():
    with (
        pytest.raises(ValueError, match="no parameter that requires grad"),
        inner_loop(nn.Tanh(), sgd(0.1)),
    ):
        pass
