"""Inner loops of many tasks at once, against a loop over the tasks."""

import diffopt_explicit as ours
import pytest
import torch
from diffopt_explicit import (
    Compiled,
    Recomputed,
    Replay,
    adam,
    chain,
    clip,
    clip_by_global_norm,
    identity,
    muon,
    partition,
    sgd,
    unroll,
    unroll_tasks,
)
from diffopt_explicit._elementwise import is_elementwise
from diffopt_explicit._unroll_tasks import _OfAll
from torch import nn, tensor
from torch.func import functional_call

ELEMENTWISE = [
    *("sgd", "adam", "adamw", "amsgrad", "adamax", "nadam", "radam"),
    *("rmsprop", "adagrad", "adadelta", "rprop", "lion", "asgd"),
]
NORMED = ["adafactor", "lamb", "lars"]  # which look at a parameter as a whole
torch.manual_seed(0)
MODULE = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
START = {name: param.detach() for name, param in MODULE.named_parameters()}
TASKS = {"x": torch.randn(5, 6, 3).double(), "y": torch.randn(5, 6).double()}


def loss(params, weights, task, *batch):
    x, y = task["x"], task["y"]
    if batch:
        x = x * batch[0]
    errors = functional_call(MODULE, params, (x,)).squeeze(1) - y
    return (errors.square() * weights.exp()).mean()


def leaves():
    """Fresh leaves: initial parameters, meta-parameters, and a learning rate."""
    start = {name: p.clone().requires_grad_() for name, p in START.items()}
    weights = torch.linspace(-0.5, 0.5, 6, dtype=torch.float64).requires_grad_()
    return start, weights, tensor(0.05, dtype=torch.float64, requires_grad=True)


def by_loop(make, start, weights, lr, batches=None, **options):
    results = []
    for k in range(5):
        task = {name: part[k] for name, part in TASKS.items()}
        many = {"steps": 3} if batches is None else {"batches": [batch[k] for batch in batches]}
        tx = make(lr if lr.dim() == 0 else lr[k])
        mine = {n: p[k] for n, p in start.items()} if start["0.bias"].dim() == 2 else start
        inner = lambda p, w, *batch, task=task: loss(p, w, task, *batch)
        results.append(unroll(inner, tx, mine, meta_params=weights, **many, **options))
    params = {name: torch.stack([r.params[name] for r in results]) for name in START}
    return params, torch.stack([r.losses for r in results])


def outcome(params, losses, *inputs):
    factors = torch.arange(1.0, 6.0, dtype=torch.float64)
    total = sum((p.square().flatten(1).sum(1) * factors).sum() for p in params.values())
    total = total + (losses.sum(1) * factors).sum()
    return torch.autograd.grad(total, inputs)


def check(make, *, rtol=1e-10, **options):
    expected = leaves()
    params, losses = by_loop(make, *expected)
    gradients = outcome(params, losses, *expected[0].values(), *expected[1:])
    start, weights, lr = leaves()
    options = {"steps": 3, "meta_params": weights, **options}
    result = unroll_tasks(loss, make(lr), start, TASKS, **options)
    found = outcome(result.params, result.losses, *start.values(), weights, lr)

    assert result.losses.shape == (5, 3)
    torch.testing.assert_close(result.params, params, rtol=rtol, atol=1e-13)
    torch.testing.assert_close(result.losses, losses, rtol=rtol, atol=1e-13)
    torch.testing.assert_close(found, gradients, rtol=rtol, atol=1e-12)


@pytest.mark.parametrize("chunk_size", [None, 2])
@pytest.mark.parametrize("name", ELEMENTWISE + NORMED)
def test_every_optimizer_gives_what_a_loop_over_tasks_gives(name, chunk_size, path):
    make = lambda lr: getattr(ours, name)(lr=lr)
    assert is_elementwise(make(0.1)) == (name in ELEMENTWISE)
    check(make, chunk_size=chunk_size)


def masked_decay(lr):
    return ours.adamw(lr, mask=lambda params: {k: p.dim() == 2 for k, p in params.items()})


def in_part(lr):
    kinds = lambda params: {k: "matrix" if p.dim() == 2 else "rest" for k, p in params.items()}
    return partition({"matrix": muon(lr), "rest": sgd(lr)}, kinds)


@pytest.mark.parametrize(
    ("make", "elementwise"),
    [
        (lambda lr: chain(clip_by_global_norm(0.1), adam(lr)), False),
        (lambda lr: chain(clip(0.05), adam(lr)), True),
        (lambda lr: chain(identity(), sgd(lr, momentum=0.9, nesterov=True)), True),
        (masked_decay, False),  # by the shape of each parameter, of which a stack has another
        (in_part, False),
        (lambda lr: adam({k: lr * (1 + i) for i, k in enumerate(START)}), True),
    ],
)
def test_what_looks_at_more_than_an_element_is_never_stacked(make, elementwise):
    assert is_elementwise(make(tensor(0.1))) == elementwise
    check(make)


@pytest.mark.parametrize("make", [adam, lambda lr: chain(clip_by_global_norm(0.1), sgd(lr))])
@pytest.mark.parametrize("adjoint", [Replay(), Replay(graphs=1), Replay(snapshots=1, graphs=2)])
def test_tasks_are_replayed(make, adjoint):
    check(make, adjoint=adjoint, rtol=1e-9)


@pytest.mark.parametrize("gradient", [Recomputed(), Compiled(backend="eager")], ids=repr)
def test_stacked_steps_take_other_gradients(gradient):
    check(adam, gradient=gradient, rtol=1e-9)


def test_the_first_order_is_that_of_each_task():
    expected, found = leaves(), leaves()
    params, losses = by_loop(sgd, *expected, first_order=True)
    start, weights, lr = found
    options = {"meta_params": weights, "first_order": True}
    result = unroll_tasks(loss, sgd(lr), start, TASKS, steps=3, **options)

    one = outcome(result.params, result.losses, *start.values(), weights, lr)
    other = outcome(params, losses, *expected[0].values(), *expected[1:])
    torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("chunk_size", [None, 3])
@pytest.mark.parametrize("make", [adam, lambda lr: chain(clip_by_global_norm(0.1), adam(lr))])
def test_tasks_may_start_apart_with_batches_and_rates_of_their_own(make, chunk_size):
    def inputs():
        start = {name: torch.stack([(1 + k) * p for k in range(5)]) for name, p in START.items()}
        start = {name: p.requires_grad_() for name, p in start.items()}
        rates = torch.linspace(0.01, 0.1, 5, dtype=torch.float64).requires_grad_()
        return start, leaves()[1], rates

    batches = [1 + 0.1 * torch.randn(5, 6, 3).double() for _ in range(4)]
    expected, found = inputs(), inputs()
    params, losses = by_loop(make, *expected, batches=batches)
    start, weights, rates = found
    result = unroll_tasks(
        loss, make, start, TASKS, batches=batches, meta_params=weights, hyperparams=rates,
        starts_apart=True, chunk_size=chunk_size,
    )  # fmt: skip

    one = outcome(result.params, result.losses, *start.values(), weights, rates)
    other = outcome(params, losses, *expected[0].values(), *expected[1:])
    torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def test_random_numbers_differ_from_task_to_task():
    start = torch.ones(4)
    drop = lambda w, _: nn.functional.dropout(w, 0.5, training=True).square().sum()
    for tx in (sgd(0.1), chain(clip_by_global_norm(1e3), sgd(0.1))):
        ends = unroll_tasks(drop, tx, start, torch.zeros(16), steps=1).params
        assert len({tuple(end.tolist()) for end in ends}) > 1


def test_a_state_goes_with_its_tasks():
    for tx in (adam(0.1), ours.nadam(0.1), chain(clip_by_global_norm(1.0), adam(0.1))):
        for chunk_size in (None, 2):
            options = {"steps": 3, "meta_params": leaves()[1], "chunk_size": chunk_size}
            state = unroll_tasks(loss, tx, START, TASKS, **options).opt_state
            shapes = {x.shape[:1] for x in ours_leaves(state) if x.dim()}
            assert shapes == {(5,)}


def ours_leaves(tree):
    from pytree_core import tree_leaves

    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda f: f(sgd(0.1), tensor(1.0), {}), ValueError, "`tasks` must have tensors"),
        (lambda f: f(sgd(0.1), tensor(1.0), torch.ones(0)), ValueError, "`tasks` must have"),
        (
            lambda f: f(sgd(0.1), tensor(1.0), [torch.ones(2), torch.ones(3)]),
            ValueError,
            r"`tasks\[1\]` must have a first dimension of 2 tasks.*its shape is \(3,\)",
        ),
        (
            lambda f: f(sgd(0.1), tensor(1.0), torch.ones(2), starts_apart=True),
            ValueError,
            r"`params` must have a first dimension of 2 tasks.*its shape is \(\)",
        ),
        (lambda f: f(sgd(0.1), tensor(1.0), [torch.ones(2), 3]), TypeError, r"`tasks\[1\]` must"),
        (lambda f: f(sgd, tensor(1.0), torch.ones(2)), TypeError, "`tx` must be a transform"),
        (
            lambda f: f(sgd(0.1), tensor(1.0), torch.ones(2), hyperparams=torch.ones(2)),
            TypeError,
            "`tx` must be a function of the `hyperparams`",
        ),
        (
            lambda f: f(sgd(0.1), tensor(1.0), torch.ones(2), chunk_size=0),
            ValueError,
            "`chunk_size` must be a number of tasks, at least 1, got 0",
        ),
    ],
)
def test_what_cannot_be_done_is_said(call, error, message):
    inner = lambda w, task: (w - task).square()
    with pytest.raises(error, match=message):
        call(lambda *given, **options: unroll_tasks(inner, *given, steps=2, **options))


@pytest.mark.parametrize("tx", [sgd(0.1), chain(clip_by_global_norm(1.0), sgd(0.1))])
def test_losses_that_are_no_numbers_are_refused(tx):
    with pytest.raises(ValueError, match=r"0-d tensor, got one of shape \(2,\)"):
        unroll_tasks(lambda w, t: w * t, tx, torch.ones(2), torch.ones(3), steps=1)
    with pytest.raises((TypeError, ValueError), match="Parameters must be tensors"):
        unroll_tasks(lambda w, t: w["a"] * t, tx, {"a": 1.0}, torch.ones(3), steps=1)


def test_compiled_losses_are_told_apart():
    ends = []
    for loss in (lambda w, t: (w - t).square(), lambda w, t: (w + t).square()):
        how = {"steps": 2, "gradient": Compiled(backend="eager")}
        ends.append(unroll_tasks(loss, sgd(0.25), tensor(0.0), torch.ones(3), **how).params)
    assert torch.equal(ends[0], torch.full((3,), 0.75))
    assert torch.equal(ends[1], torch.full((3,), -0.75))
    assert _OfAll(loss).__code__ is loss.__code__  # by which graphs are kept apart


def test_no_steps_leave_each_task_at_its_start():
    result = unroll_tasks(lambda w, t: (w - t) ** 2, sgd(0.1), tensor(1.0), torch.ones(3), steps=0)
    assert torch.equal(result.params, torch.ones(3))
    assert result.losses.shape == (3, 0)
