"""Optimizers in place against torch.optim: numbers, groups, schedulers, states that travel."""

import copy
import inspect
import io
import pickle

import diffopt_explicit as ours
import pytest
import torch
from diffopt_explicit import _fused, _optimizer
from diffopt_explicit._in_place import in_place
from torch import nn
from torch.optim import lr_scheduler

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


@pytest.fixture(autouse=True)
def double_precision():
    """Also for the numbers that torch.optim keeps in the default dtype (a product in NAdam)."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


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
    ("kind", "theirs", "flags", "theirs_first"),
    [(*row, first) for row in GRID for first in (True, False)] + [(*row, True) for row in ONE_WAY],
)
def test_either_goes_on_from_the_state_of_the_other(kind, theirs, flags, theirs_first):
    def of(module, is_ours):
        flags_of = (kind, flags) if is_ours else (theirs, torch_flags(theirs, kind, flags))
        return flags_of[0](groups(module), **flags_of[1])

    module, reference = network(), network()
    train(reference, of(reference, True), 5)
    before = of(module, not theirs_first)
    train(module, before, 3)
    after = of(module, theirs_first)
    after.load_state_dict(copy.deepcopy(before.state_dict()))
    train(module, after, 2, first=3)

    assert_same(module, reference)


@pytest.mark.parametrize("kind", [ours.NAdam, ours.SGD, ours.Adam])
def test_a_saved_state_is_gone_on_from(kind, path):
    module, reference = network(), network()
    flags = {"momentum": 0.9} if kind is ours.SGD else {}
    train(reference, kind(reference.parameters(), lr=0.1, **flags), 5)
    before = kind(module.parameters(), lr=0.1, **flags)
    train(module, before, 3)
    file = io.BytesIO()
    torch.save(before.state_dict(), file)
    file.seek(0)
    after = kind(module.parameters())
    after.load_state_dict(torch.load(file, weights_only=True))
    train(module, after, 2, first=3)

    assert_same(module, reference)


@pytest.mark.parametrize("travel", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_module_and_optimizer_travel_together(travel, path):
    module, reference = network(), network()
    flags = {"lr": 0.1, "momentum": 0.9}
    train(reference, ours.SGD(groups(reference), **flags), 5)
    optimizer = ours.SGD(groups(module), **flags)
    train(module, optimizer, 3)
    module, optimizer = travel((module, optimizer))
    train(module, optimizer, 2, first=3)

    assert_same(module, reference)


def test_a_state_is_cast_to_the_parameters_that_it_is_loaded_for():
    module = network()
    optimizer = ours.Adam(module.parameters())
    train(module, optimizer, 1)
    narrow = network().float()
    loaded = ours.Adam(narrow.parameters())
    loaded.load_state_dict(optimizer.state_dict())

    assert loaded.state[narrow[0].weight]["exp_avg"].dtype == torch.float32
    assert loaded.state[narrow[0].weight]["step"] == 1


CLIPPED = ours.chain(ours.trace(0.5), ours.clip_by_global_norm(1.0), ours.adam(0.1))
APART = ours.partition(
    {"a": CLIPPED, "b": ours.sgd(ours.linear(0.1, 0.0, 10), 0.9)}, ["a", "b", "a", "b", "b", "b"]
)


@pytest.mark.parametrize(
    "tx",
    [CLIPPED, ours.chain(ours.trace(0.3), APART), ours.chain(ours.trace(0.5), ours.sgd(0.1, 0.3))],
)
def test_any_transform_has_a_state_that_travels(tx):
    def optimizer_of(module):
        return ours.Optimizer(module.parameters(), tx)

    module, reference = network(), network()
    train(reference, optimizer_of(reference), 5)
    before = optimizer_of(module)
    train(module, before, 3)
    after = optimizer_of(module)
    after.load_state_dict(pickle.loads(pickle.dumps(before.state_dict())))
    train(module, after, 2, first=3)

    assert_same(module, reference)


@pytest.mark.parametrize(
    "tx",
    [
        ours.lookahead(ours.sgd(0.1, 0.5), sync_period=2),
        ours.accumulate(ours.adam(0.1), 2),
        ours.apply_if_finite(ours.adam(0.1), 3),
        ours.inject(ours.adam(), lr=0.1),
        ours.chain(ours.trace(0.5), ours.sgd(0.1, 0.3)),
    ],
    ids=lambda tx: type(tx).__name__,
)
@pytest.mark.parametrize("travels", [False, True])
def test_wrappers_do_in_place_what_they_do_to_values(tx, travels):
    start = torch.linspace(1, 2, 4)
    expected = ours.unroll(lambda w: w.sin().sum(), tx, start, steps=5).params
    param = start.clone().requires_grad_()
    optimizer = ours.Optimizer([param], tx)
    for _ in range(5):
        if travels:
            state = pickle.loads(pickle.dumps(optimizer.state_dict()))
            optimizer = ours.Optimizer([param], tx)
            optimizer.load_state_dict(state)
        optimizer.zero_grad()
        param.sin().sum().backward()
        optimizer.step()

    torch.testing.assert_close(param, expected, rtol=1e-12, atol=0)


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


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: ours.Optimizer([w()], 0.1), TypeError, "`tx` must be a transform"),
        (lambda: ours.Adam([w()], lr=-1.0), ValueError, r"`lr` must be at least 0, got -1\.0"),
        (lambda: ours.Adam([w()], lr=float("nan")), ValueError, "`lr` must be at least 0, got nan"),
        (lambda: ours.SGD([{"params": w(), "lr": -1.0}]), ValueError, "`lr` must be at least 0"),
        (lambda: ours.SGD([w()], momentun=0.9), TypeError, "momentun"),
        (
            lambda: ours.SGD([torch.ones(2, dtype=torch.int64)]),
            TypeError,
            r"Parameter 0 of group 0 has dtype torch\.int64",
        ),
        (
            lambda: ours.SGD([w()], lr=torch.tensor(0.1, requires_grad=True)),
            ValueError,
            "`lr` of group 0 requires grad",
        ),
    ],
)
def test_what_no_step_could_be_taken_with_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_a_refused_group_is_not_added():
    optimizer = ours.SGD([w()])
    with pytest.raises(ValueError, match="`lr` must be"):
        optimizer.add_param_group({"params": w(), "lr": -1.0})

    assert len(optimizer.param_groups) == 1


def test_a_sparse_gradient_is_refused_before_anything_moves():
    layer, other = nn.Embedding(3, 2, sparse=True), w()
    (layer(torch.tensor([1])).sum() + other.sum()).backward()
    optimizer = ours.SGD([{"params": other}, {"params": layer.parameters()}], lr=0.1)
    with pytest.raises(ValueError, match="gradient of parameter 0 of group 1 is sparse"):
        optimizer.step()

    assert other.tolist() == [1, 1]


@pytest.mark.parametrize(
    ("saved", "loading", "message"),
    [
        (ours.SGD, ours.Adam, r"has \['momentum_buffer', 'step'\], but the optimizer remembers"),
        (torch.optim.AdamW, ours.Adam, "`decoupled_weight_decay=True`, which Adam does not do"),
    ],
)
def test_the_state_of_another_kind_is_refused_and_changes_nothing(saved, loading, message):
    module = network()
    other = saved(module.parameters(), **({"momentum": 0.9} if saved is ours.SGD else {}))
    train(module, other, 1)
    optimizer = loading(module.parameters(), lr=0.5)
    with pytest.raises(ValueError, match=message):
        optimizer.load_state_dict(other.state_dict())

    assert optimizer.param_groups[0]["lr"] == 0.5
    assert not optimizer.state


def test_the_state_of_other_parameters_is_refused():
    narrow, wide = w(), torch.ones(3, requires_grad=True)
    narrow.sum().backward()
    optimizer = ours.Adam([narrow])
    optimizer.step()
    message = r"`exp_avg` of .* must have shape \(3,\), got shape \(2,\)"
    with pytest.raises(ValueError, match=message):
        ours.Adam([wide]).load_state_dict(optimizer.state_dict())
