import copy

import pytest
import torch
from diffopt_explicit import MetaAdam, MetaAdamW, MetaOptimizer, MetaSGD, inner_loop, sgd
from torch import nn

X = torch.linspace(-1, 1, 12).reshape(3, 4)


def tied() -> nn.Sequential:
    torch.manual_seed(0)
    layer = nn.Linear(4, 4)
    return nn.Sequential(layer, nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), layer)


@pytest.mark.parametrize(
    ("kind", "reference", "flags"),
    [
        (MetaSGD, torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
        (MetaAdam, torch.optim.Adam, {"lr": 0.1, "weight_decay": 0.1}),
        (MetaAdamW, torch.optim.AdamW, {"lr": 0.1}),
    ],
)
def test_steps_and_meta_gradients_equal_those_of_the_functional_inner_loop(kind, reference, flags):
    module = tied().double()
    x = X.double()
    initial = list(module.parameters())
    with inner_loop(module, reference(module.parameters(), **flags)) as (fmodule, opt):
        for _ in range(3):
            opt.step(fmodule(x).square().mean())
        expected = torch.autograd.grad(fmodule(x).sum(), initial)
    optimizer = kind(module, **flags)
    for _ in range(3):
        optimizer.step(module(x).square().mean())
    actual = torch.autograd.grad(module(x).sum(), initial)

    for ours, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)


def test_tied_weights_stay_tied():
    module = tied()
    module[2].weight = module[0].weight
    MetaSGD(module, lr=0.1).step(module(X).square().mean())

    assert module[0].weight is module[4].weight
    assert module[0].weight is module[2].weight
    assert not module[0].weight.is_leaf


def test_reset_gives_back_the_very_first_parameters():
    module = tied()
    before = list(module.parameters())
    optimizer = MetaAdam(module, lr=0.1)
    optimizer.step(module(X).square().mean())
    optimizer.reset()

    assert all(a is b for a, b in zip(before, module.parameters(), strict=True))
    assert optimizer.state[0].step == 0
    assert copy.deepcopy(module)(X).shape == (3, 4)
    assert torch.optim.SGD(module.parameters())


def test_frozen_parameters_and_buffers_are_left_alone():
    module = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    module[0].bias.requires_grad_(False)
    bias, mean = module[0].bias, module[1].running_mean
    MetaSGD(module, lr=0.1).step(module(X).square().mean())

    assert module[0].bias is bias
    assert module[1].running_mean is mean


def test_learning_rate_is_learned_by_the_closed_form():
    module = nn.Linear(1, 1, bias=False)
    lr = torch.tensor(0.5, requires_grad=True)
    weight = module.weight
    MetaSGD(module, lr=lr).step(module(torch.ones(1, 1)).square().sum())
    module.weight.sum().backward()

    assert lr.grad.item() == -2 * weight.item()


def test_a_failed_step_changes_nothing():
    module = tied()
    optimizer = MetaOptimizer(module, sgd(0.1, 0.9))
    params, state = optimizer.params, optimizer.state
    with pytest.raises(ValueError, match=r"0-d tensor, got shape \(3, 4\)"):
        optimizer.step(module(X))

    assert all(params[name] is param for name, param in optimizer.params.items())
    assert optimizer.state is state


def test_a_module_without_trainable_parameters_is_refused():
    with pytest.raises(ValueError, match="no parameter that requires grad"):
        MetaSGD(nn.Tanh())
