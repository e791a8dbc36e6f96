"""Optimizers of diffopt-explicit are the same by the kernels as by composed operations."""

import pytest
import torch
from diffopt_explicit import (
    _fused,
    adagrad,
    adam,
    adamw,
    amsgrad,
    apply_updates,
    chain,
    lion,
    nadam,
    rmsprop,
    scale_by_learning_rate,
    sgd,
    trace,
    unroll,
)
from diffopt_explicit._step import updated
from pytree_core import tree_leaves, tree_structure

# For each recipe all its hyperparameters, at values where none is without effect.
RECIPES = {
    "sgd": (lambda lr, wd: sgd(lr, weight_decay=wd), (0.1, 0.2)),
    "momentum": (lambda *numbers: sgd(*numbers, maximize=True), (0.01, 0.7, 0.3, 0.2)),
    "nesterov": (lambda lr, mu, wd: sgd(lr, mu, 0.0, wd, True), (0.1, 0.7, 0.2)),
    "adam": (lambda lr, b1, b2, *rest: adam(lr, (b1, b2), *rest), (0.1, 0.8, 0.9, 1e-2, 0.1)),
    "adamw": (lambda lr, b1, b2, *rest: adamw(lr, (b1, b2), *rest), (0.1, 0.8, 0.9, 1e-2, 0.1)),
    "eps_root": (lambda lr, root: adam(lr, eps_root=root, maximize=True), (0.1, 0.1)),
    "amsgrad": (
        lambda lr, b1, b2, *rest: amsgrad(lr, (b1, b2), *rest),
        (0.1, 0.8, 0.5, 1e-2, 0.1),
    ),
    "decoupled amsgrad": (
        lambda lr, wd: amsgrad(lr, (0.8, 0.5), 1e-2, wd, decoupled_weight_decay=True),
        (0.1, 0.1),
    ),
    "nadam": (
        lambda lr, b1, b2, *rest: nadam(lr, (b1, b2), *rest),
        (0.1, 0.8, 0.9, 1e-2, 0.1, 0.3),
    ),
    "decoupled nadam": (
        lambda lr, wd: nadam(lr, weight_decay=wd, decoupled_weight_decay=True, maximize=True),
        (0.1, 0.1),
    ),
    "rmsprop": (rmsprop, (0.05, 0.8, 0.1, 0.1)),
    "rmsprop with momentum": (rmsprop, (0.05, 0.8, 0.1, 0.1, 0.7)),
    "centered": (lambda *numbers: rmsprop(*numbers, centered=True), (0.05, 0.8, 0.3, 0.1, 0.7)),
    "adagrad": (lambda lr, decay, wd, eps: adagrad(lr, decay, wd, 0.1, eps), (0.1, 0.2, 0.1, 0.1)),
    "lion": (lambda lr, b1, b2, wd: lion(lr, (b1, b2), wd), (0.1, 0.8, 0.9, 0.1)),
}


@pytest.fixture
def composed(monkeypatch):
    """A switch to composed operations."""
    return lambda: monkeypatch.setattr(_fused, "KERNELS", {})


def derivatives(name, dtype):
    """The end of three steps, its gradient and a second derivative, for all inputs."""
    generator = torch.Generator().manual_seed(0)
    start = {
        "w": torch.randn(7, 5, generator=generator, dtype=dtype),
        "b": torch.randn(5, generator=generator, dtype=dtype),
        "unused": torch.ones(2, dtype=dtype),
    }
    recipe, values = RECIPES[name]
    hyperparameters = [torch.tensor(value, dtype=dtype, requires_grad=True) for value in values]
    inputs = [start["w"].requires_grad_(), start["b"].requires_grad_(), *hyperparameters]
    x = torch.randn(9, 7, generator=generator, dtype=dtype)
    tx = recipe(*hyperparameters)
    end = unroll(lambda p: (x @ p["w"] + p["b"]).tanh().square().sum(), tx, start, steps=3).params
    outer = end["w"].sin().sum() + end["b"].square().sum()
    first = torch.autograd.grad(outer, inputs, create_graph=True, materialize_grads=True)
    second = torch.autograd.grad(sum(g.square().sum() for g in first), inputs)
    return [outer.detach(), *(g.detach() for g in first), *second]


@pytest.mark.parametrize("name", RECIPES)
def test_values_and_two_derivatives_agree_in_double_precision(name, composed):
    fused = derivatives(name, torch.float64)
    composed()
    expected = derivatives(name, torch.float64)

    for ours, theirs in zip(fused, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("name", RECIPES)
def test_values_and_first_derivatives_agree_in_single_precision(name, composed):
    fused = derivatives(name, torch.float32)
    composed()
    expected = derivatives(name, torch.float32)

    for ours, theirs in zip(fused[: len(fused) // 2 + 1], expected, strict=False):
        assert (ours - theirs).norm() <= 1e-4 * theirs.norm().clamp_min(1e-3)


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_takes_the_kernel_and_has_the_same_state_with_it(name, monkeypatch):
    recipe, values = RECIPES[name]
    tx, calls = recipe(*values), []
    params = {"w": torch.randn(3), "half": torch.randn(2, dtype=torch.float16), "unused": [None]}
    spied = {
        key: kernel._replace(step=lambda *a, of=kernel.step, **k: calls.append(of) or of(*a, **k))
        for key, kernel in _fused.KERNELS.items()
    }
    steps = {}
    for which in (spied, {}):
        monkeypatch.setattr(_fused, "KERNELS", which)
        state, moved = tx.init(params), params
        for _ in range(2):
            updates, state = tx.update({**moved, "unused": [None]}, state, moved)
            moved = apply_updates(moved, updates)
        steps[bool(which)] = (updates, state)

    assert len(calls) == 2
    assert tree_structure(steps[True]) == tree_structure(steps[False])
    for ours, theirs in zip(tree_leaves(steps[True]), tree_leaves(steps[False]), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=2e-3, atol=1e-4)


def step_from(params, tx, by_hand):
    """The parameters after a step from the gradients ``1 / p``, and the state after it."""
    grads = {name: None if name == "unused" else 1 / p for name, p in params.items()}
    state = tx.init(params)
    if not by_hand:
        return updated(tx, grads, state, params)
    updates, state = tx.update(grads, state, params)
    return apply_updates(params, updates), state


@pytest.mark.parametrize("name", RECIPES)
def test_a_step_gives_the_sum_of_parameters_and_updates_to_the_bit_by_one_node(name):
    recipe, values = RECIPES[name]
    params = {"w": torch.rand(7, 5) + 0.5, "b": torch.rand(()) + 0.5, "unused": torch.ones(2)}
    params = {key: p.requires_grad_() for key, p in params.items()}
    moved, state = step_from(params, recipe(*values), by_hand=False)
    expected, expected_state = step_from(params, recipe(*values), by_hand=True)

    assert moved["w"].grad_fn is moved["b"].grad_fn
    assert moved["unused"] is params["unused"]
    assert tree_structure(state) == tree_structure(expected_state)
    pairs = zip(tree_leaves((moved, state)), tree_leaves((expected, expected_state)), strict=True)
    assert all(torch.equal(*map(torch.as_tensor, pair)) for pair in pairs)
    inputs = list(params.values())[:2]
    grads, right = (
        torch.autograd.grad(p["w"].cos().sum() + p["b"], inputs) for p in (moved, expected)
    )
    assert all(torch.equal(a, b) for a, b in zip(grads, right, strict=True))


@pytest.mark.parametrize(
    ("tx", "dtype"),
    [
        (adam(0.1), torch.bfloat16),  # whose updates are rounded before they are added
        (adam({"w": torch.tensor([0.1, 0.2])}), torch.float32),
        (chain(sgd(0.1), scale_by_learning_rate(2.0)), torch.float32),
    ],
    ids=["half precision", "rates for each weight", "another chain"],
)
def test_other_steps_add_the_updates_afterwards(tx, dtype):
    params = {"w": torch.tensor([1.0, 3.0], dtype=dtype)}
    moved, _ = step_from(params, tx, by_hand=False)
    expected, _ = step_from(params, tx, by_hand=True)

    assert moved["w"].dtype == dtype
    assert torch.equal(moved["w"], expected["w"])


@pytest.mark.parametrize(
    "tx",
    [
        chain(trace(0.9, 0.5), trace(0.9), scale_by_learning_rate(0.1)),
        chain(scale_by_learning_rate(0.1), trace(0.9)),
        sgd(0.1, weight_decay={"w": torch.tensor([0.1, 0.2])}),  # a rate for each weight
        chain(*rmsprop().transforms[:1], trace(0.9, nesterov=True), scale_by_learning_rate(0.1)),
    ],
    ids=repr,
)
def test_other_chains_are_composed(tx, monkeypatch):
    params = {"w": torch.ones(2)}
    with monkeypatch.context() as patch:
        patch.setattr(_fused, "KERNELS", {})
        expected, _ = tx.update(params, tx.init(params), params)
    updates, _ = tx.update(params, tx.init(params), params)

    assert torch.equal(updates["w"], expected["w"])


def test_learning_rates_of_a_tree_are_learned_by_the_kernel(composed):
    params = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor(3.0)}
    rates = {"a": torch.tensor([0.1, 0.2], requires_grad=True), "b": torch.tensor(0.3)}

    def gradient():
        end = unroll(lambda p: p["a"].prod() * p["b"], adam(rates), params, steps=2).params
        return torch.autograd.grad(end["a"].prod(), rates["a"])[0]

    fused = gradient()
    composed()

    torch.testing.assert_close(fused, gradient())


@pytest.mark.parametrize("name", RECIPES)
def test_trees_of_hyperparameters_are_learned_by_the_kernel(name, monkeypatch):
    recipe, values = RECIPES[name]
    params = ({"a": torch.tensor([1.0, -2.0])}, torch.tensor(0.5), torch.tensor(3.0))
    trees = [
        ({"a": torch.tensor(x, requires_grad=True)}, 1.1 * x, torch.tensor(x, requires_grad=True))
        for x in values
    ]
    learned = [leaf for leaf in tree_leaves(trees) if isinstance(leaf, torch.Tensor)]
    calls, results = [], []
    spied = {
        key: kernel._replace(step=lambda *a, of=kernel.step, **k: calls.append(of) or of(*a, **k))
        for key, kernel in _fused.KERNELS.items()
    }
    for which in (spied, {}):
        monkeypatch.setattr(_fused, "KERNELS", which)
        loss = lambda p: (p[0]["a"] ** 4).sum() + p[2] ** 2 * p[0]["a"].prod()
        end = unroll(loss, recipe(*trees), params, steps=3).params
        outer = end[0]["a"].sum() - 2 * end[2]
        results.append([outer, *torch.autograd.grad(outer, learned, materialize_grads=True)])

    assert len(calls) == 3
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)
