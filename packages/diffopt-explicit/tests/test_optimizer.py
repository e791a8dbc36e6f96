"""Optimizers in place against torch.optim: numbers, groups, schedulers, states that travel."""

import inspect

import diffopt_explicit as ours
import pytest
import torch
from diffopt_explicit import _fused, _optimizer
from diffopt_explicit._in_place import in_place
from optimizer_problems import GRID, ONE_WAY, X, assert_same, groups, network, torch_flags, train
from torch import nn
from torch.optim import lr_scheduler


@pytest.fixture(autouse=True)
def double_precision():
    """Also for the numbers that torch.optim keeps in the default dtype (a product in NAdam)."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(("kind", "theirs", "flags"), GRID + ONE_WAY)
def test_steps_equal_those_of_torch_optim_in_every_group(kind, theirs, flags, path):
    module, reference = network(), network()
    optimizer = kind(groups(module), **flags)
    train(module, optimizer, 5)
    train(reference, theirs(groups(reference), **torch_flags(theirs, kind, flags)), 5)

    assert isinstance(optimizer, torch.optim.Optimizer)
    assert_same(module, reference)


def test_lion_equals_its_differentiable_steps(path):
    module = nn.Linear(4, 3)
    tx = ours.lion(lr=0.1, weight_decay=0.1)

    def loss(params):
        return (X @ params["weight"].T + params["bias"]).sin().sum()

    params = {name: p.detach().clone() for name, p in module.named_parameters()}
    expected = ours.unroll(loss, tx, params, steps=3).params
    optimizer = ours.Lion(module.parameters(), lr=0.1, weight_decay=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        loss(dict(module.named_parameters())).backward()
        optimizer.step()

    torch.testing.assert_close(module.weight, expected["weight"], rtol=0, atol=1e-12)
    torch.testing.assert_close(module.bias, expected["bias"], rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("kind", "flags"),
    [
        (ours.SGD, {"lr": 0.1, "momentum": 0.5}),
        (ours.Adam, {"lr": 0.1}),
        (ours.AMSGrad, {"lr": 0.3}),
        (ours.Adamax, {"lr": 0.3}),
        (ours.NAdam, {"lr": 0.1}),
        (ours.RAdam, {"lr": 0.3}),
        (ours.RMSProp, {"lr": ours.linear(0.1, 0.001, 350)}),
        (ours.Adagrad, {"lr": 2.0}),
        (ours.Adadelta, {"lr": 20.0}),
        (ours.Rprop, {"lr": 0.1}),
        (ours.Lion, {"lr": ours.linear(0.2, 0.001, 350)}),
        (ours.ASGD, {"lr": 0.1}),
        (ours.Adafactor, {"lr": ours.linear(0.5, 0.01, 350)}),
        (ours.LAMB, {"lr": ours.linear(0.1, 0.001, 350)}),
        (ours.LARS, {"lr": ours.linear(50.0, 1.0, 350)}),
    ],
)
def test_a_parabola_is_descended_to_its_bottom(kind, flags):
    """O-20."""
    goal = torch.tensor([1.0, -1.0, 1.0])
    point = torch.tensor([-1.0, 10.0, 1.0], requires_grad=True)
    optimizer = kind([point], **flags)
    for _ in range(400):
        optimizer.zero_grad()
        (point - goal).square().sum().backward()
        optimizer.step()

    torch.testing.assert_close(point, goal, rtol=0, atol=3e-2)


FUSED = ["SGD", "Adam", "AdamW", "AMSGrad", "RMSProp", "Adagrad", "Lion"]


@pytest.mark.skipif(not _fused.KERNELS, reason="needs diffopt_kernels")
@pytest.mark.parametrize("name", FUSED)
@pytest.mark.parametrize("generic", [False, True])
def test_rules_with_a_kernel_are_written_over_in_place(name, generic, monkeypatch):
    module, calls = network(), []
    monkeypatch.setattr(
        _optimizer, "in_place", lambda *args: calls.append(in_place(*args)) or calls[-1]
    )
    kind = getattr(ours, name)
    optimizer = (
        ours.Optimizer(module.parameters(), kind.recipe(weight_decay=0.1))
        if generic
        else kind(module.parameters(), weight_decay=0.1)
    )
    train(module, optimizer, 1)

    assert len(calls) == 1
    assert calls[0] is not None


@pytest.mark.parametrize(
    "schedule",
    [
        lambda opt: lr_scheduler.StepLR(opt, 2, 0.5),
        lambda opt: lr_scheduler.OneCycleLR(opt, 0.5, total_steps=8),
        lambda opt: lr_scheduler.CyclicLR(opt, 0.05, 0.5, step_size_up=2),
        lambda opt: lr_scheduler.LambdaLR(
            opt, [lambda step: 0.9**step, lambda step: 1 / (1 + step)]
        ),
    ],
)
@pytest.mark.parametrize("kind", ["SGD", "Adam"])
def test_schedulers_of_torch_are_followed(schedule, kind, path):
    flags = {"lr": 0.1, "momentum": 0.9} if kind == "SGD" else {"lr": 0.1}
    module, reference = network(), network()
    optimizer = getattr(ours, kind)(groups(module), **flags)
    train(module, optimizer, 6, schedule(optimizer))
    expected = getattr(torch.optim, kind)(groups(reference), **flags)
    train(reference, expected, 6, schedule(expected))

    assert_same(module, reference)


def test_schedules_of_ours_count_the_steps(path):
    module, reference = network(), network()
    schedule = ours.linear(0.4, 0.1, 3)
    train(module, ours.Adam(module.parameters(), lr=schedule), 4)
    expected = torch.optim.Adam(reference.parameters(), lr=1.0)
    scheduler = lr_scheduler.LambdaLR(expected, lambda step: schedule(step))
    train(reference, expected, 4, scheduler)

    assert_same(module, reference)


def test_a_closure_is_called_with_grad_and_its_loss_returned():
    w = torch.ones(2, requires_grad=True)
    optimizer = ours.SGD([w], lr=0.25)

    def closure():
        optimizer.zero_grad()
        loss = w.square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 2
    assert w.tolist() == [0.5, 0.5]


@pytest.mark.parametrize("kind", [ours.SGD, ours.Adam])
def test_parameters_may_have_rates_of_their_own(kind, path):
    start, rates = torch.linspace(1, 2, 4), [0.1, torch.tensor([0.1, 0.2, 0.3, 0.4])]
    params = [start.clone().requires_grad_() for _ in rates]
    optimizer = kind(params, lr=rates)
    for _ in range(3):
        optimizer.zero_grad()
        sum(param.sin().sum() for param in params).backward()
        optimizer.step()
    loss = lambda params: sum(param.sin().sum() for param in params)
    expected = ours.unroll(loss, kind.recipe(lr=rates), [start, start], steps=3).params

    torch.testing.assert_close([p.detach() for p in params], expected, rtol=1e-12, atol=0)


def test_hooks_are_called():
    w, seen = torch.ones(2, requires_grad=True), []
    optimizer = ours.SGD([w], lr=0.25)
    optimizer.register_step_pre_hook(lambda *_: seen.append(w.tolist()))
    optimizer.register_step_post_hook(lambda *_: seen.append(w.tolist()))
    optimizer.register_state_dict_post_hook(lambda _, state: {**state, "more": 1})
    w.grad = torch.ones(2)
    optimizer.step()
    optimizer.zero_grad()

    assert seen == [[1, 1], [0.75, 0.75]]
    assert optimizer.state_dict()["more"] == 1
    assert w.grad is None


def test_gradients_are_unscaled_by_a_scaler():
    w = torch.ones(2, requires_grad=True)
    optimizer, scaler = ours.SGD([w], lr=0.25), torch.amp.GradScaler("cpu")
    for loss in (w.sum(), (w / 0).sum()):
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()

    assert w.tolist() == [0.75, 0.75]


def test_a_switched_on_momentum_starts_from_zero():
    module, reference = network(), network()
    for kind, net in ((ours.SGD, module), (torch.optim.SGD, reference)):
        optimizer = kind(net.parameters(), lr=0.1)
        train(net, optimizer, 2)
        optimizer.param_groups[0]["momentum"] = 0.9
        train(net, optimizer, 3)

    assert_same(module, reference)


def test_gradients_with_a_graph_are_taken_as_numbers(path):
    w = torch.ones(2, requires_grad=True)
    (w.grad,) = torch.autograd.grad(w.square().sum(), w, create_graph=True)
    ours.Adam([w], lr=0.5, eps=0.0).step()

    assert w.is_leaf
    assert w.tolist() == [0.5, 0.5]
    w.grad = None  # which makes a cycle with its graph


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_parameters_move_as_in_single_precision(dtype):
    w = torch.ones(2, dtype=dtype, requires_grad=True)
    w.grad = torch.tensor([1.0, 0.0], dtype=dtype)
    optimizer = ours.Adam([w], lr=0.5)
    optimizer.step()
    optimizer.load_state_dict(optimizer.state_dict())

    assert w.tolist() == [0.5, 1.0]
    assert optimizer.state[w]["exp_avg_sq"].dtype == torch.float32


def test_the_signature_is_that_of_the_recipe():
    names = list(inspect.signature(ours.AdamW).parameters)

    assert names == ["params", *inspect.signature(ours.adamw).parameters]


def test_a_group_holds_the_numbers_of_its_transform():
    tx = ours.chain(ours.clip_by_global_norm(2.0), ours.sgd(0.1, 0.9))
    (group,) = ours.Optimizer([torch.ones(1, requires_grad=True)], tx).param_groups

    assert {**group, "params": None} == {
        "params": None,
        "max_norm": 2.0,
        "lr": 0.1,
        "momentum": 0.9,
        "dampening": 0.0,
        "nesterov": False,
    }


def test_a_number_with_two_values_stays_in_the_transform():
    param = torch.ones(1, requires_grad=True)
    optimizer = ours.Optimizer([param], ours.chain(ours.scale(2.0), ours.scale(3.0)))
    param.grad = torch.ones(1)
    optimizer.step()

    assert "factor" not in optimizer.param_groups[0]
    assert param.item() == 7


def w() -> torch.Tensor:
    return torch.ones(2, requires_grad=True)
