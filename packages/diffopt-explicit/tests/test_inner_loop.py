"""Fast weights of modules of all kinds, what becomes of the module, and of the graph."""

import copy
import gc
import sys
import weakref

import pytest
import torch
from diffopt_explicit import adam, inner_loop, sgd
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
