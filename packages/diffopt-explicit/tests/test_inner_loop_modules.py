"""Inner loops over modules with state: recurrent layers, buffers, autocast."""

import copy

import pytest
import torch
from diffopt_explicit import FunctionalModule, InnerOptimizer, inner_loop, sgd
from torch import nn


@pytest.fixture(autouse=True)
def double_precision():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


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
