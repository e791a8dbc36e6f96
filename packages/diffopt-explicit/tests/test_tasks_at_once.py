"""Inner loops of many tasks at once by `torch.func.vmap`, against the loop over the tasks."""

import diffopt_explicit as ours
import pytest
import torch
from diffopt_explicit import chain, clip_by_global_norm, unroll
from torch import nn
from torch.func import functional_call, grad, vmap

RECIPES = [
    *("sgd", "adam", "adamw", "amsgrad", "adamax", "nadam", "radam"),
    *("rmsprop", "adagrad", "adadelta", "rprop", "lion", "asgd"),
]
NORMED = ["adafactor", "lamb", "lars"]  # which look at a parameter as a whole
torch.manual_seed(0)
MODULE = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
START = {name: param.detach() for name, param in MODULE.named_parameters()}
TASKS = torch.randn(5, 6, 3).double(), torch.randn(5, 6, 1).double()


def loss(params, task):
    x, y = task
    return (functional_call(MODULE, params, (x,)) - y).square().mean()


def each():
    return list(zip(*TASKS, strict=True))


def adapting_with(tx):
    return lambda params, task: unroll(lambda p: loss(p, task), tx, params, steps=3).params


def assert_same(stacked, one_by_one):
    for name, params in stacked.items():
        expected = torch.stack([single[name] for single in one_by_one])
        torch.testing.assert_close(params, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("clipped", [False, True])
@pytest.mark.parametrize("recipe", RECIPES + NORMED)
def test_whole_loops_by_vmap_equal_the_loop_over_tasks(recipe, clipped, path):
    tx = getattr(ours, recipe)(lr=0.05)
    adapt = adapting_with(chain(clip_by_global_norm(0.1), tx) if clipped else tx)
    ends = vmap(adapt, in_dims=(None, 0))(START, TASKS)

    assert_same(ends, [adapt(START, task) for task in each()])


@pytest.mark.parametrize("recipe", RECIPES + NORMED)
def test_meta_gradients_by_vmap_equal_the_loop_over_tasks(recipe):
    adapt = adapting_with(getattr(ours, recipe)(lr=0.05))

    def at_once(params):
        return vmap(loss)(vmap(adapt, in_dims=(None, 0))(params, TASKS), TASKS).sum()

    def one_by_one(params):
        return sum(loss(adapt(params, task), task) for task in each())

    expected = grad(one_by_one)(START)
    params = {name: param.clone().requires_grad_() for name, param in START.items()}
    by_autograd = torch.autograd.grad(at_once(params), list(params.values()))
    for name, found, other in zip(START, grad(at_once)(START).values(), by_autograd, strict=True):
        torch.testing.assert_close(found, expected[name], rtol=1e-11, atol=1e-13)
        torch.testing.assert_close(other, expected[name], rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("recipe", RECIPES)
def test_one_update_of_the_stack_equals_the_loop_over_tasks(recipe, path):
    """These rules work element by element, so that stacked parameters take the fused step."""
    tx = getattr(ours, recipe)(lr=0.05)
    stack = {name: param.expand(5, *param.shape) for name, param in START.items()}
    ends = unroll(lambda p: vmap(loss)(p, TASKS).sum(), tx, stack, steps=3).params

    assert_same(ends, [adapting_with(tx)(START, task) for task in each()])


def test_tasks_may_start_apart_and_have_rates_of_their_own():
    starts = {name: torch.stack([(1 + k) * p for k in range(5)]) for name, p in START.items()}
    rates = torch.linspace(0.01, 0.1, 5, dtype=torch.float64)

    def adapt(params, task, rate):
        return adapting_with(ours.adam(rate))(params, task)

    ends = vmap(adapt)(starts, TASKS, rates)
    singles = [{name: param[k] for name, param in starts.items()} for k in range(5)]

    assert_same(ends, list(map(adapt, singles, each(), rates)))


def test_losses_come_task_by_task():
    tx = ours.sgd(0.05)
    losses = vmap(lambda task: unroll(lambda p: loss(p, task), tx, START, steps=3).losses)(TASKS)

    assert losses.shape == (5, 3)
    torch.testing.assert_close(losses[:, 0], torch.stack([loss(START, task) for task in each()]))
