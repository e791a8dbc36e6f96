"""Parity with torch.optim over its flags, models and groups; meta-gradients against differences."""

import copy
import gc
import sys
import weakref

import pytest
import torch
from diffopt_explicit import FunctionalModule, InnerOptimizer, MetaOptimizer, adam, inner_loop, sgd
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


def test_the_inner_gradient_is_that_of_the_fast_weights_alone():
    """As a loss with the start in it, by distance or else, asks for: here ``w * start``."""
    module = nn.Linear(1, 1, bias=False)
    with inner_loop(module, sgd(lr=0.25)) as (fmodule, opt):
        opt.step((fmodule.params["weight"] * module.weight).sum())
        end = fmodule.params["weight"]

    assert end.item() == 0.75 * module.weight.item()
    assert torch.autograd.grad(end.sum(), module.weight) == (0.75,)


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


def recurrent(kind: str) -> nn.Module:
    torch.manual_seed(0)
    if kind.endswith("Cell"):
        return getattr(nn, kind)(4, 4)
    return getattr(nn, kind)(4, 4, num_layers=2, bidirectional=True)


def output(module, kind: str, x: torch.Tensor) -> torch.Tensor:
    """The outputs at all times, or, of a cell, its state in the end."""
    if not kind.endswith("Cell"):
        return module(x)[0]
    state = None
    for now in x:
        state = module(now, state)
    return state[0] if isinstance(state, tuple) else state


@pytest.mark.parametrize("kind", ["RNN", "LSTM", "GRU", "RNNCell", "LSTMCell", "GRUCell"])
def test_recurrent_modules_are_stepped_and_left_as_torch_has_them(kind):
    module, x = recurrent(kind), torch.randn(3, 5, 4)
    reference = copy.deepcopy(module)
    optimizer = torch.optim.SGD(reference.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        output(reference, kind, x).square().mean().backward()
        optimizer.step()
    with inner_loop(module, sgd(lr=0.1)) as (fmodule, opt):
        for _ in range(3):
            opt.step(output(fmodule, kind, x).square().mean())
        output(fmodule, kind, x).sum().backward()

    for ours, expected in zip(fmodule.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-12)
    assert all(weight.is_leaf for weight in getattr(module, "_flat_weights", []))
    assert all(parameter.grad is not None for parameter in module.parameters())


@pytest.mark.parametrize("kind", ["LSTM", "GRUCell"])
def test_the_meta_gradient_of_a_recurrent_module_is_exact(kind):
    x = torch.linspace(-1, 1, 8).reshape(1, 2, 4)

    def end(bias):
        module = recurrent(kind)
        name = next(name for name, _ in module.named_parameters() if "bias" in name)
        start = {**dict(module.named_parameters()), name: bias}
        fmodule = FunctionalModule(module, start)
        opt = InnerOptimizer(fmodule, sgd(lr=0.1), track=True)
        opt.step(output(fmodule, kind, x).square().mean())
        return output(fmodule, kind, x).sum()

    size = {"LSTM": 16, "GRUCell": 12}[kind]

    assert torch.autograd.gradcheck(end, torch.zeros(size, requires_grad=True))


def test_statistics_of_batch_norm_stay_in_their_loop():
    module = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    with inner_loop(module, sgd(0.1)) as (first, _), inner_loop(module, sgd(0.1)) as (second, _):
        first(torch.ones(3, 4))

        assert first.buffers["1.num_batches_tracked"] == 1
        assert second.buffers["1.num_batches_tracked"] == 0
        assert module[1].num_batches_tracked == 0


def test_the_weights_of_every_time_are_kept():
    module, x = nn.Linear(2, 1), torch.ones(3, 2)
    seen = []
    with inner_loop(module, sgd(lr=0.1)) as (fmodule, opt):
        for _ in range(3):
            seen.append(fmodule.params["weight"])
            opt.step(fmodule(x).square().mean())

        assert all(next(fmodule.parameters(time=t)) is seen[t] for t in range(3))
        assert torch.equal(next(fmodule.parameters(time=0)), module.weight)
        assert next(fmodule.parameters(time=3)) is next(fmodule.parameters())
        with pytest.raises(IndexError, match=r"no fast weights of time 4: .* times 0 to 3"):
            fmodule.parameters(time=4)


def test_an_untracked_loop_keeps_the_present_weights_only():
    module = nn.Linear(2, 1)
    with inner_loop(module, sgd(lr=0.1), track=False) as (fmodule, opt):
        opt.step(fmodule(torch.ones(3, 2)).square().mean())
        with pytest.raises(IndexError, match="without `track` only the last ones are kept"):
            fmodule.parameters(time=1)


def test_an_override_lasts_for_its_step():
    module = nn.Linear(1, 1, bias=False)
    rates = torch.tensor([0.1, 0.2], requires_grad=True)
    with inner_loop(module, sgd(lr=0.3)) as (fmodule, opt):
        for rate in rates:
            opt.step(fmodule(torch.ones(1, 1)).sum(), override={"lr": rate})
        opt.step(fmodule(torch.ones(1, 1)).sum())
        moved = fmodule.params["weight"] - module.weight
    moved.sum().backward()

    assert moved.item() == pytest.approx(-0.6)
    assert rates.grad.tolist() == [-1, -1]


def test_a_callback_changes_the_gradients_as_part_of_the_graph():
    module, scale = nn.Linear(1, 1), torch.tensor(2.0, requires_grad=True)
    seen = []

    def callback(grads):
        seen.append(grads)
        return {name: None if name == "bias" else scale * grad for name, grad in grads.items()}

    with inner_loop(module, sgd(lr=0.5)) as (fmodule, opt):
        opt.step(fmodule(torch.full((1, 1), 3.0)).sum(), grad_callback=callback)

    fmodule.params["weight"].sum().backward()
    assert scale.grad.item() == -1.5
    assert torch.equal(fmodule.params["bias"], module.bias)
    assert {name: grad.item() for name, grad in seen[0].items()} == {"weight": 3.0, "bias": 1.0}


def test_nothing_of_the_graph_outlives_the_loop():
    module = nn.Sequential(nn.LSTM(4, 4), nn.Tanh())
    module[1].forward = lambda out: out[0].tanh()
    dead = []

    def loop():
        with inner_loop(module, adam(lr=0.1)) as (fmodule, opt):
            for _ in range(2):
                opt.step(fmodule(torch.randn(3, 4)).square().mean())
                dead.extend(weakref.ref(param) for param in fmodule.parameters())
            fmodule(torch.randn(3, 4)).sum().backward()
        dead.append(weakref.ref(fmodule))

    gc.collect()
    gc.disable()  # what is freed is freed by itself, not by the collector of cycles
    try:
        loop()
        assert [ref() for ref in dead] == [None] * len(dead)
    finally:
        gc.enable()


def test_a_thousand_loops_take_constant_memory():
    resource = pytest.importorskip("resource")  # not on Windows
    unit = 1 if sys.platform == "darwin" else 1024
    module = nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64), nn.Linear(64, 64)).float()
    x = torch.randn(8, 64, dtype=torch.float32)

    def resident(loops: int) -> int:
        for _ in range(loops):
            with inner_loop(module, sgd(lr=0.1, momentum=0.9)) as (fmodule, opt):
                opt.step(fmodule(x).square().mean())
                opt.step(fmodule(x).square().mean())
                fmodule(x).sum().backward()
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit

    before = resident(100)

    assert resident(900) - before < 20 * 2**20  # the graphs of 900 loops are over 150 MiB


def test_a_loss_that_has_lost_its_graph_is_refused():
    module = nn.Linear(2, 1)
    with inner_loop(module, adam(lr=0.1)) as (fmodule, opt):
        loss = fmodule(torch.ones(1, 2)).square().sum()
        loss.backward()
        params, state = fmodule.params, opt.state
        with pytest.raises(ValueError, match="The graph of the loss is gone"):
            opt.step(loss)

        assert fmodule.params is params
        assert opt.state is state


@pytest.mark.parametrize("where", ["override", "callback"])
def test_an_error_in_a_step_changes_nothing(where):
    module = nn.Linear(2, 1)

    def callback(grads):
        raise ZeroDivisionError

    with inner_loop(module, adam(lr=0.1)) as (fmodule, opt):
        params, state = fmodule.params, opt.state
        loss = fmodule(torch.ones(1, 2)).square().sum()
        if where == "override":
            with pytest.raises(ValueError, match="no hyperparameter `momentum`"):
                opt.step(loss, override={"momentum": 0.9})
        else:
            with pytest.raises(ZeroDivisionError):
                opt.step(loss, grad_callback=callback)

        assert fmodule.params is params
        assert opt.state is state


def test_a_module_without_trainable_parameters_is_refused():
    with (
        pytest.raises(ValueError, match="no parameter that requires grad"),
        inner_loop(nn.Tanh(), sgd(0.1)),
    ):
        pass
