"""Fast weights of modules of all kinds, what becomes of the module, and of the graph."""

import copy
import gc
import sys
import weakref

import pytest
import torch
from diffopt_explicit import FunctionalModule, InnerOptimizer, adam, inner_loop, sgd
from torch import nn
from torch.autograd import forward_ad
from torch.nn import functional


@pytest.fixture(autouse=True)
def double_precision():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def tied_in_sequential() -> nn.Module:
    first = nn.Linear(4, 4)
    return nn.Sequential(first, nn.Tanh(), first)


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


def convolutional() -> nn.Sequential:
    torch.manual_seed(0)
    blocks = [
        nn.Sequential(nn.Conv2d(c, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2))
        for c in (1, 4, 4)
    ]
    module = nn.Sequential(*blocks, nn.Flatten(), nn.Linear(4, 3))
    module[0].requires_grad_(False)
    return module


def convolutional_by_hand(p: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    for block in range(3):
        x = functional.conv2d(x, p[f"{block}.0.weight"], p[f"{block}.0.bias"], padding=1)
        scale, shift = p[f"{block}.1.weight"], p[f"{block}.1.bias"]
        x = functional.batch_norm(x, None, None, scale, shift, training=True)
        x = functional.max_pool2d(functional.relu(x), 2)
    return functional.linear(x.flatten(1), p["4.weight"], p["4.bias"])


def test_ten_steps_of_a_convolutional_network_equal_those_by_hand():
    """O-10, with the first block frozen."""
    module, reference = convolutional(), convolutional()
    x, y = torch.randn(10, 6, 1, 8, 8), torch.randint(3, (10, 6))
    params, expected, gradients = dict(reference.named_parameters()), [], []
    for step in range(10):
        expected.append(functional.cross_entropy(convolutional_by_hand(params, x[step]), y[step]))
        names = [name for name, param in params.items() if param.requires_grad]
        grads = torch.autograd.grad(expected[-1], [params[n] for n in names], create_graph=True)
        gradients.append(dict(zip(names, grads, strict=True)))
        params = {**params, **{n: params[n] - 0.1 * g for n, g in gradients[-1].items()}}
    functional.cross_entropy(convolutional_by_hand(params, x[0]), y[0]).backward()

    frozen = [param.clone() for param in module[0].parameters()]
    seen = []
    with inner_loop(module, sgd(lr=0.1)) as (fmodule, opt):
        for step in range(10):
            loss = functional.cross_entropy(fmodule(x[step]), y[step])
            opt.step(loss, grad_callback=lambda grads: seen.append(grads) or grads)
            torch.testing.assert_close(loss, expected[step], rtol=1e-12, atol=0)
        functional.cross_entropy(fmodule(x[0]), y[0]).backward()

    for name, param in fmodule.params.items():
        torch.testing.assert_close(param, params[name], rtol=0, atol=1e-12)
        for ours, theirs in zip(seen, gradients, strict=True):
            torch.testing.assert_close(ours[name], theirs[name], rtol=1e-9, atol=1e-12)
    for (name, ours), theirs in zip(module.named_parameters(), reference.parameters(), strict=True):
        if ours.requires_grad:
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-9, atol=1e-12, msg=name)
    assert all(torch.equal(a, b) for a, b in zip(frozen, module[0].parameters(), strict=True))


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


def test_untracked_steps_refuse_tangents_that_they_would_lose():
    module, lr = nn.Linear(2, 1), torch.tensor(0.1)

    def end(lr, track):
        with inner_loop(module, sgd(lr=lr), track=track) as (fmodule, opt):
            opt.step(fmodule(torch.ones(3, 2)).square().mean())
            return fmodule.params["weight"]

    with forward_ad.dual_level():
        dual = forward_ad.make_dual(lr, torch.ones(()))
        assert forward_ad.unpack_dual(end(dual, True)).tangent.abs().min() > 0
        with pytest.raises(RuntimeError, match=r"`track=False` keep no derivative.*Track them"):
            end(dual, False)
        assert end(lr, False).shape == (1, 2)


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


def test_steps_under_autocast_equal_those_by_hand():
    torch.manual_seed(0)
    module, x = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 1)).float(), torch.randn(6, 4).float()
    params = dict(module.named_parameters())
    with torch.autocast("cpu", torch.bfloat16):
        for _ in range(2):
            loss = torch.func.functional_call(module, params, (x,)).float().square().mean()
            grads = torch.autograd.grad(loss, list(params.values()), create_graph=True)
            steps = zip(params.items(), grads, strict=True)
            params = {name: param - 0.1 * grad for (name, param), grad in steps}
        with inner_loop(module, sgd(lr=0.1)) as (fmodule, opt):
            for _ in range(2):
                opt.step(fmodule(x).float().square().mean())
    expected, actual = (
        torch.autograd.grad(sum(p.sum() for p in end.values()), module[0].weight)
        for end in (params, fmodule.params)
    )

    assert fmodule.params["0.weight"].dtype == torch.float32
    torch.testing.assert_close(actual, expected)
    for name, param in fmodule.params.items():
        torch.testing.assert_close(param, params[name])


def test_statistics_of_batch_norm_stay_in_their_loop():
    module = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    with inner_loop(module, sgd(0.1)) as (first, _), inner_loop(module, sgd(0.1)) as (second, _):
        first(torch.ones(3, 4))

        assert first.buffers["1.num_batches_tracked"] == 1
        assert second.buffers["1.num_batches_tracked"] == 0
        assert module[1].num_batches_tracked == 0


class Counting(nn.Module):
    """A module that puts new tensors in the place of its buffer."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls = self.calls + 1
        return self.weight * x * self.calls


def test_buffers_that_are_replaced_stay_in_their_loop_too():
    module = Counting()
    buffer = module.calls
    with inner_loop(module, sgd(0.1)) as (fmodule, _):
        for _ in range(3):
            fmodule(torch.ones(2))

        assert fmodule.buffers["calls"] == 3
        assert module.calls is buffer
        assert buffer == 0


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


@pytest.mark.parametrize(
    "transform", [torch.func.grad, lambda f: lambda lr: torch.func.vmap(f)(lr[None])]
)
def test_a_loss_under_a_transform_of_torch_func_is_refused_with_a_way_out(transform):
    module, x = nn.Linear(2, 1), torch.ones(1, 2)

    def end(lr):
        with inner_loop(module, sgd(0.1), override={"lr": lr}) as (fmodule, opt):
            for _ in range(2):
                opt.step(fmodule(x).square().sum())
            return fmodule(x).sum()

    with pytest.raises(ValueError, match=r"under a transform of `torch.func`, .* Use `unroll`"):
        transform(end)(torch.tensor(0.1))


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


def test_what_is_neither_a_transform_nor_an_optimizer_is_refused():
    with (
        pytest.raises(TypeError, match=r"`tx` must be a transform, .* got 0\.1"),
        inner_loop(nn.Linear(2, 1), 0.1),
    ):
        pass


def test_a_module_without_trainable_parameters_is_refused():
    with (
        pytest.raises(ValueError, match="no parameter that requires grad"),
        inner_loop(nn.Tanh(), sgd(0.1)),
    ):
        pass
