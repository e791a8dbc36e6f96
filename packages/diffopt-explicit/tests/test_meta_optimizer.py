import copy
import gc
import inspect
import weakref

import diffopt_explicit as ours
import pytest
import torch
from diffopt_explicit import MetaAdam, MetaOptimizer, MetaSGD, inner_loop, sgd
from torch import nn

X = torch.linspace(-1, 1, 12).reshape(3, 4)


def tied() -> nn.Sequential:
    torch.manual_seed(0)
    layer = nn.Linear(4, 4)
    return nn.Sequential(layer, nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), layer)


NAMES = [
    *("SGD", "Adam", "AdamW", "AMSGrad", "Adamax", "NAdam", "RAdam"),
    *("RMSProp", "Adagrad", "Adadelta", "Rprop", "Lion", "ASGD", "Adafactor", "LAMB", "LARS"),
]


@pytest.mark.parametrize("name", NAMES)
def test_steps_and_meta_gradients_equal_those_of_the_functional_inner_loop(name):
    recipe, kind = getattr(ours, name.lower()), getattr(ours, f"Meta{name}")
    flags = {"lr": 0.1} if name == "Rprop" else {"lr": 0.1, "weight_decay": 0.1}
    module = tied().double()
    x = X.double()
    initial = list(module.parameters())
    with inner_loop(module, recipe(**flags)) as (fmodule, opt):
        for _ in range(3):
            opt.step(fmodule(x).square().mean())
        expected = torch.autograd.grad(fmodule(x).sum(), initial)
    optimizer = kind(module, **flags)
    for _ in range(3):
        optimizer.step(module(x).square().mean())
    actual = torch.autograd.grad(module(x).sum(), initial)

    assert kind.recipe is recipe
    for grad, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(grad, other, rtol=1e-12, atol=1e-14)


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


def test_parameters_instead_of_their_module_are_refused():
    with pytest.raises(TypeError, match=r"must be an `nn.Module`, got a generator"):
        MetaSGD(nn.Linear(2, 1).parameters())


def test_what_is_no_transform_is_refused():
    with pytest.raises(TypeError, match=r"`tx` must be a transform, .* got 0\.1"):
        MetaOptimizer(nn.Linear(2, 1), 0.1)


def test_a_module_without_trainable_parameters_is_refused():
    with pytest.raises(ValueError, match="no parameter that requires grad"):
        MetaSGD(nn.Tanh())


def test_the_signature_is_that_of_the_recipe():
    names = list(inspect.signature(ours.MetaAdamW).parameters)

    assert names == ["module", *inspect.signature(ours.adamw).parameters]


def test_the_block_gives_the_module_back_whatever_happens():
    module = nn.LSTM(4, 4)
    params = list(module.parameters())

    def failing():
        with MetaSGD(module, lr=0.1) as optimizer:
            optimizer.step(module(X)[0].sum())
            module(X)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        failing()

    assert all(a is b for a, b in zip(params, module.parameters(), strict=True))
    assert all(a is b for a, b in zip(params, module._flat_weights, strict=True))


def test_finished_inner_loops_are_forgotten():
    module = nn.Sequential(nn.Linear(4, 4), nn.Tanh())
    optimizer, dead = MetaAdam(module, lr=0.1), []
    gc.collect()
    gc.disable()  # what is freed is freed by itself, not by the collector of cycles
    try:
        for _ in range(3):
            with optimizer:
                for _ in range(2):
                    optimizer.step(module(X).square().mean())
                    dead.extend(weakref.ref(param) for param in module.parameters())
                module(X).sum().backward()
        assert [ref() for ref in dead] == [None] * len(dead)
    finally:
        gc.enable()


def test_the_options_of_a_step_are_those_of_the_inner_loop():
    module = nn.Linear(1, 1, bias=False)
    weight, rate = module.weight, torch.tensor(0.5, requires_grad=True)
    MetaSGD(module, lr=0.1).step(
        module(torch.ones(1, 1)).square().sum(),
        first_order=True,
        override={"lr": rate},
        grad_callback=lambda grads: {name: 3 * grad for name, grad in grads.items()},
    )
    module.weight.sum().backward()

    assert weight.grad.item() == 1.0
    assert rate.grad.item() == -6 * weight.item()


def test_a_loss_that_has_lost_its_graph_is_refused():
    module = nn.Linear(2, 1)
    optimizer = MetaSGD(module, lr=0.1)
    loss = module(torch.ones(1, 2)).square().sum()
    loss.backward()
    weight = module.weight
    with pytest.raises(ValueError, match="The graph of the loss is gone"):
        optimizer.step(loss)

    assert module.weight is weight


def test_steps_go_on_after_the_graph_of_earlier_ones_was_freed():
    module = nn.Linear(2, 1)
    optimizer = MetaSGD(module, lr=0.1)
    optimizer.step(module(torch.ones(1, 2)).square().sum())
    module(torch.ones(1, 2)).square().sum().backward()
    ours.stop_gradient(module)
    start, before = module.weight, module(torch.ones(1, 2)).detach()
    optimizer.step(module(torch.ones(1, 2)).square().sum())
    (found,) = torch.autograd.grad(module(torch.ones(1, 2)).square().sum(), start)

    # A step leaves 1 - 2 * 0.1 * 3 = 0.4 of the output, so that 2 * 0.4 ** 2 of it is the slope.
    torch.testing.assert_close(found, 0.32 * before.expand(1, 2))
