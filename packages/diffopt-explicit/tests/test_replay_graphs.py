"""Replayed unrolls that are gone back many steps at once."""

import gc
import math
from functools import cache

import pytest
import torch
from diffopt_explicit import Replay, Store, adam, replay, sgd, unroll
from diffopt_explicit._course import Course
from diffopt_explicit._placement import Binomial
from diffopt_explicit._snapshots import Unchanged
from hypothesis import given, settings
from hypothesis import strategies as st
from replay_problems import OPTIMIZERS, gradients
from torch import nn, tensor
from torch.func import grad, vmap


@pytest.fixture(autouse=True)
def _float64():
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)


@settings(max_examples=40, deadline=None)
@given(
    optimizer=st.sampled_from(sorted(OPTIMIZERS)),
    steps=st.integers(1, 12),
    graphs=st.integers(1, 14),
    snapshots=st.sampled_from([None, 1, 2, 3, 20]),
    verify=st.sampled_from(["never", "first", "last", "always"]),
)
def test_how_many_steps_go_back_at_once_makes_no_difference(
    optimizer, steps, graphs, snapshots, verify
):
    adjoint = Replay(snapshots=snapshots, graphs=graphs, verify=verify)
    value, found, _ = gradients(adjoint, OPTIMIZERS[optimizer], steps=steps)
    expected_value, expected, _ = gradients(Store(), OPTIMIZERS[optimizer], steps=steps)

    torch.testing.assert_close(value, expected_value, rtol=0, atol=0)
    rates, expected_rates = found[4], expected[4]  # a schedule has a graph of its own
    torch.testing.assert_close(rates, expected_rates, rtol=1e-12, atol=1e-14)
    for one, other in zip(found[:4] + found[5:], expected[:4] + expected[5:], strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("snapshots", [1, 2, 3, 40])
@pytest.mark.parametrize("graphs", [1, 2, 5, 36, 37, 50])
def test_steps_are_taken_as_often_as_promised(graphs, snapshots):
    adjoint, calls = Replay(snapshots=snapshots, graphs=graphs), []

    def loss(w):
        calls.append(None)
        return w.square()

    w = tensor(1.0, requires_grad=True)
    unroll(loss, sgd(0.1), w, steps=37, adjoint=adjoint).params.backward()

    assert len(calls) == adjoint.advances(37) + 37
    if snapshots == 40:  # every state that a stretch begins with
        assert adjoint.advances(37) == max(0, 37 - graphs)


@cache
def least_advances(steps, slots, size):
    """The truth by trying every place for the next snapshot."""
    if steps <= size:
        return 0
    if slots == 1:
        return steps - size + least_advances(steps - size, 1, size)
    return min(
        j + least_advances(steps - j, slots - 1, size) + least_advances(j, slots, size)
        for j in range(1, steps)
    )


@pytest.mark.parametrize("slots", [1, 2, 3, 5])
@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_stretches_stand_where_they_save_the_most_steps(slots, size):
    for steps in range(size + 1, 60):
        found = Course(Binomial(min(slots, steps - 1)), steps, size).cost().advances
        rest = steps - size  # the state that the way back begins with is kept in any case
        assert found == min(size, rest) + least_advances(rest, slots, size)


@pytest.mark.parametrize("slots", [1, 2, 5])
@pytest.mark.parametrize("size", [1, 3, 10])
def test_stretches_are_reversed_as_steps_are(slots, size):
    for stretches in range(2, 20):
        one_by_one = Course(Binomial(slots), stretches).cost()
        at_once = Course(Binomial(slots), stretches * size, size).cost()
        assert at_once == (one_by_one.advances * size, one_by_one.states)


@pytest.mark.parametrize("graphs", [2, 3])
def test_dropout_and_running_statistics_are_put_back_for_each_stretch(graphs):
    def gradient(adjoint_of):
        torch.manual_seed(4)
        norm = nn.BatchNorm1d(3)
        w, x = torch.ones(3, requires_grad=True), torch.randn(8, 3)

        def loss(w):
            norm(nn.functional.dropout(x, 0.5) * w.detach())
            return (nn.functional.dropout(w.sin(), 0.5) - norm.running_mean).square().sum()

        result = unroll(loss, sgd(0.1), w, steps=7, adjoint=adjoint_of(norm))
        (found,) = torch.autograd.grad(result.params.square().sum(), w)
        return found, norm.running_mean.clone(), torch.rand(2)

    expected = gradient(lambda _: Store())
    options = {"graphs": graphs, "verify": "always"}
    found = gradient(lambda norm: Replay(modules=(norm,), **options))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("adjoint", [Replay(graphs=3), Replay(snapshots=2, graphs=2)])
def test_steps_until_a_condition_holds_go_back_many_at_once(adjoint):
    def gradient(adjoint):
        w, lr = tensor(1.0, requires_grad=True), tensor(0.1, requires_grad=True)
        loss = lambda w, x: (w - x).square()
        until = lambda w, value: value < 0.05
        result = unroll(loss, adam(lr), w, batches=iter([0.1] * 50), until=until, adjoint=adjoint)
        assert len(result.losses) > 8
        return torch.autograd.grad(result.params + result.losses.sum(), [w, lr])

    torch.testing.assert_close(gradient(adjoint), gradient(Store()), rtol=1e-12, atol=0)


@pytest.mark.parametrize("adjoint", [Replay(), Replay(graphs=2)], ids=repr)
def test_transforms_go_back_many_steps_at_once(adjoint):
    def outer(adjoint):
        def value(x, lr):
            loss = lambda w, x: (w * x).sin().sum()
            end = unroll(loss, adam(lr), torch.ones(3), steps=5, meta_params=x, adjoint=adjoint)
            return end.params.square().sum()

        return value

    xs, lr = torch.randn(4, 3), tensor(0.1)
    for transform in (
        lambda f: grad(f, argnums=(0, 1))(xs[0], lr),
        lambda f: vmap(grad(f), (0, None))(xs, lr),
        lambda f: grad(lambda x: grad(f)(x, lr).square().sum())(xs[0]),
    ):
        expected = transform(outer(Store()))
        torch.testing.assert_close(transform(outer(adjoint)), expected, rtol=1e-11, atol=1e-13)


def test_any_step_goes_back_many_at_once():
    cell = nn.GRUCell(2, 3)
    xs, state = torch.randn(9, 4, 2, requires_grad=True), torch.zeros(4, 3, requires_grad=True)

    def gradient(adjoint):
        last, seen = replay(lambda h, x: (cell(x, h), h), state, xs, adjoint=adjoint)
        total = last.square().sum() + sum(i * out.sum() for i, out in enumerate(seen))
        return torch.autograd.grad(total, [state, xs, *cell.parameters()])

    for graphs in (2, 4, 9):
        torch.testing.assert_close(gradient(Replay(graphs=graphs)), gradient(Store()))


def test_what_leads_to_a_closed_over_tensor_is_differentiated_with_each_stretch():
    def gradient(adjoint):
        raw = torch.tensor([0.3, -0.2], requires_grad=True)
        features, w = raw.exp().cumsum(0), torch.ones(2)
        loss = lambda w: (w * features).sin().sum()
        end = unroll(loss, sgd(0.1), w, steps=7, adjoint=adjoint).params
        return torch.autograd.grad(end.prod(), raw)

    for graphs in (2, 7):
        torch.testing.assert_close(gradient(Replay(graphs=graphs)), gradient(Store()))


def test_each_step_is_told_once_on_the_way_back():
    told = []
    adjoint = Replay(graphs=3, watch=told.append)
    w = tensor(1.0, requires_grad=True)
    unroll(lambda w: w.sin(), sgd(0.3), w, steps=7, adjoint=adjoint).params.backward()

    of = lambda phase: [progress.step for progress in told if progress.phase == phase]
    assert of("forward") == list(range(7))
    assert of("backward") == list(reversed(range(7)))
    assert of("again") == []


@pytest.mark.parametrize("adjoint", [Replay(), Replay(graphs=2), Replay(graphs=2, snapshots=1)])
def test_the_gradient_can_be_taken_twice_and_differentiated(adjoint):
    def derivatives(adjoint):
        w, lr = tensor(1.0, requires_grad=True), tensor(0.1, requires_grad=True)
        result = unroll(lambda w: w.sin(), adam(lr), w, steps=5, adjoint=adjoint)
        twice = [torch.autograd.grad(result.params, [w, lr], retain_graph=True) for _ in range(2)]
        first = torch.autograd.grad(result.params**2, [w, lr], create_graph=True)
        return *twice, torch.autograd.grad(first[0] * first[1], [w, lr])

    torch.testing.assert_close(derivatives(adjoint), derivatives(Store()), rtol=1e-12, atol=0)


def test_graphs_are_let_go_on_the_way_back():
    alive = lambda: sum(type(thing) is torch.Tensor for thing in gc.get_objects())
    w = torch.ones(3, requires_grad=True)
    result = unroll(lambda w: w.sin().sum(), adam(0.1), w, steps=40, adjoint=Replay(graphs=40))
    end, before = result.params.detach(), None
    for _ in range(3):
        torch.autograd.grad(result.params.sum(), w, retain_graph=True)
        gc.collect()
        before = before or alive()
    assert alive() == before
    assert math.isfinite(end.sum())


def test_arguments_that_were_changed_are_no_longer_those_that_are_held():
    x, y = torch.ones(2), torch.ones(2)
    held = Unchanged((x, "name"))
    assert held.holds((x, "name"))
    assert not held.holds((y, "name"))
    assert not held.holds((x,))
    x.add_(1)
    assert not held.holds((x, "name"))
