"""The replay adjoint against stored graphs, and what it leaves behind."""

import gc
import math
import weakref

import pytest
import torch
from diffopt_explicit import (
    Forward,
    Replay,
    Store,
    adam,
    replay,
    sgd,
    unroll,
)
from replay_problems import OPTIMIZERS, gradients
from torch import nn, tensor

POLICIES = [Replay(snapshots=n) for n in (1, 2, 3, 100)] + [
    Replay(),
    Replay(graphs=1),
    Replay(graphs=2, verify="always"),
    Replay(snapshots=2, graphs=3),
]


@pytest.fixture(autouse=True)
def _float64():
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("adjoint", POLICIES, ids=str)
def test_replay_gives_what_storing_gives(adjoint, optimizer):
    expected_value, expected, stored = gradients(Store(), OPTIMIZERS[optimizer])
    value, found, replayed = gradients(adjoint, OPTIMIZERS[optimizer])

    torch.testing.assert_close(value, expected_value, rtol=0, atol=0)
    torch.testing.assert_close(replayed.params, stored.params, rtol=0, atol=0)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)
    assert all(gradient is not None for gradient in found)


@pytest.mark.parametrize("options", [{"truncate": 3}, {"first_order": True}])
def test_truncated_and_first_order_unrolls_are_replayed_too(options):
    _, expected, _ = gradients(Store(), adam, **options)
    _, found, _ = gradients(Replay(snapshots=2), adam, **options)

    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


def test_what_the_loss_returns_besides_is_differentiable():
    def gradient(adjoint):
        w = tensor(1.0, requires_grad=True)
        loss = lambda w, x: ((w * x).sin(), {"twice": 2 * w, "name": "x"})
        result = unroll(loss, sgd(0.1), w, batches=[1.0, 2.0, 3.0], aux=True, adjoint=adjoint)
        assert [entry["name"] for entry in result.aux] == ["x"] * 3
        total = sum(entry["twice"] * i for i, entry in enumerate(result.aux))
        return torch.autograd.grad(total, w)

    assert gradient(Replay(snapshots=1)) == gradient(Store())


def test_dropout_is_replayed_and_random_numbers_go_on_as_if_nothing_was():
    def gradient(adjoint):
        torch.manual_seed(3)
        w = torch.ones(20, requires_grad=True)
        loss = lambda w: nn.functional.dropout(w, 0.5, training=True).square().sum()
        result = unroll(loss, adam(0.1), w, steps=9, adjoint=adjoint)
        after = torch.rand(3)
        (found,) = torch.autograd.grad(result.params.sum(), w)
        return found, after, torch.rand(3)

    for found, expected in zip(gradient(Replay(snapshots=2)), gradient(Store()), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


def test_running_statistics_of_named_modules_are_put_back():
    def gradient(adjoint_of):
        torch.manual_seed(4)
        norm = nn.BatchNorm1d(3)
        w, x = torch.ones(3, requires_grad=True), torch.randn(8, 3)

        def loss(w):
            norm(x * w.detach())
            return (w.sin() - norm.running_mean).square().sum()

        result = unroll(loss, sgd(0.1), w, steps=6, adjoint=adjoint_of(norm))
        statistics = norm.running_mean.clone()
        (found,) = torch.autograd.grad(result.params.square().sum(), w)
        assert torch.equal(norm.running_mean, statistics)
        return found, statistics

    expected = gradient(lambda _: Store())
    found = gradient(lambda norm: Replay(snapshots=2, modules=(norm,), verify="always"))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("verify", ["last", "always", "first"])
def test_a_step_that_is_no_function_is_found_out(verify):
    calls = []

    def loss(w):
        calls.append(None)
        return (w * len(calls)).square()

    w = tensor(1.0, requires_grad=True)
    # The graph of step 3 is kept; step 2 is the first to be taken again, but on demand.
    found_at = 0 if verify == "first" else 2
    with pytest.raises(RuntimeError, match=f"Step {found_at} of the unroll gave another result"):
        unroll(
            loss, sgd(0.01), w, steps=4, adjoint=Replay(graphs=1, verify=verify)
        ).params.backward()
    assert len(calls) == (2 if verify == "first" else 5)  # at once, before the long run


def test_a_large_tensor_that_changes_is_found_out_too():
    generator = torch.Generator().manual_seed(0)  # not among what is put back
    w = torch.ones(50_001, requires_grad=True)
    loss = lambda w: (w * torch.rand(w.shape, generator=generator)).square().sum()
    with pytest.raises(RuntimeError, match="Step 2 of the unroll gave another result"):
        unroll(loss, sgd(0.01), w, steps=4, adjoint=Replay(graphs=1)).params.sum().backward()


def test_what_is_not_a_number_is_the_same_again():
    w = torch.tensor([1.0, math.nan], requires_grad=True)
    end = unroll(lambda w: w.square().sum(), sgd(0.1), w, steps=3, adjoint=Replay(graphs=1)).params
    assert torch.autograd.grad(end[0], w)[0][0].item() == pytest.approx(0.8**3)


def test_a_schedule_of_a_learned_tensor_counts_its_graph_once_a_step():
    def gradient(adjoint):
        raw, w = tensor(-2.0, requires_grad=True), tensor(1.0)
        result = unroll(lambda w: w**2, sgd(raw.exp()), w, steps=5, adjoint=adjoint)
        return torch.autograd.grad(result.params, raw)

    torch.testing.assert_close(gradient(Replay(graphs=1)), gradient(Store()), rtol=1e-14, atol=0)


def test_a_loss_may_close_over_the_start_itself():
    def gradient(adjoint, steps):
        start = torch.tensor([1.0, 2.0], requires_grad=True)
        loss = lambda w: w.prod() + (w - start).square().sum()
        result = unroll(loss, sgd(0.1), start, steps=steps, adjoint=adjoint)
        return torch.autograd.grad(result.params.square().sum(), start)

    for steps in (1, 4):
        expected = gradient(Store(), steps)
        torch.testing.assert_close(gradient(Replay(graphs=1), steps), expected, rtol=1e-14, atol=0)


def test_the_gradient_can_be_differentiated_in_turn():
    def second(adjoint):
        w, lr = tensor(1.0, requires_grad=True), tensor(0.1, requires_grad=True)
        result = unroll(lambda w: w.sin(), adam(lr), w, steps=4, adjoint=adjoint)
        first = torch.autograd.grad(result.params**2, [w, lr], create_graph=True)
        return torch.autograd.grad(first[0] * first[1], [w, lr])

    torch.testing.assert_close(second(Replay(snapshots=2)), second(Store()), rtol=1e-12, atol=0)


def test_random_numbers_are_the_same_in_second_derivatives_too():
    def second(adjoint):
        torch.manual_seed(5)
        w = torch.ones(20, requires_grad=True)
        loss = lambda w: nn.functional.dropout(w.sin(), 0.5, training=True).square().sum()
        result = unroll(loss, sgd(0.1), w, steps=3, adjoint=adjoint)
        torch.rand(7)
        (first,) = torch.autograd.grad(result.params.square().sum(), w, create_graph=True)
        return torch.autograd.grad(first.square().sum(), w)

    torch.testing.assert_close(second(Replay(graphs=1)), second(Store()), rtol=1e-12, atol=0)


def test_a_graph_that_is_kept_can_be_gone_back_twice():
    w = tensor(1.0, requires_grad=True)
    result = unroll(lambda w: w.sin(), sgd(0.3), w, steps=10, adjoint=Replay(snapshots=3))
    first = torch.autograd.grad(result.params, w, retain_graph=True)

    assert torch.autograd.grad(result.params, w) == first


def test_a_tensor_changed_before_the_way_back_is_noticed():
    lr = tensor(0.1, requires_grad=True)
    result = unroll(lambda w: w**2, sgd(lr), tensor(1.0), steps=3, adjoint=Replay(graphs=1))
    with torch.no_grad():
        lr.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        result.params.backward()


@pytest.mark.parametrize("steps", [0, 1])
def test_short_unrolls_need_no_snapshots(steps):
    w = tensor(2.0, requires_grad=True)
    result = unroll(lambda w: w**2 / 2, sgd(0.5), w, steps=steps, adjoint=Replay(graphs=1))

    assert result.losses.shape == (steps,)
    assert torch.autograd.grad(result.params, w) == (tensor(0.5**steps),)


def test_nothing_is_recorded_where_nothing_is_differentiated():
    plain = unroll(lambda w: w**2, sgd(0.1), tensor(1.0), steps=3, adjoint=Replay(graphs=1))
    w = tensor(1.0, requires_grad=True)
    with torch.no_grad():
        quiet = unroll(lambda w: w**2, sgd(0.1), w, steps=3, adjoint=Replay(graphs=1))

    for result in (plain, quiet):
        assert not result.params.requires_grad
        assert not result.losses.requires_grad
    assert torch.equal(plain.params, quiet.params)


def test_snapshots_may_lie_in_files_or_on_a_device(tmp_path):
    w = torch.ones(3, requires_grad=True)
    loss = lambda w: w.sin().sum()
    (expected,) = torch.autograd.grad(unroll(loss, adam(0.1), w, steps=9).params.sum(), w)
    for home in (tmp_path, "cpu"):
        replay = Replay(snapshots=3, offload=home)
        result = unroll(loss, adam(0.1), w, steps=9, adjoint=replay)
        assert len(list(tmp_path.iterdir())) == (4 if home == tmp_path else 0)
        (found,) = torch.autograd.grad(result.params.sum(), w)
        torch.testing.assert_close(found, expected, rtol=1e-14, atol=0)
        del result
        gc.collect()
        assert list(tmp_path.iterdir()) == []


def test_the_run_is_released_with_its_result():
    w = torch.ones(3, requires_grad=True)

    class Loss:
        def __call__(self, w):
            return w.square().sum()

    loss = Loss()
    seen = weakref.ref(loss)
    result = unroll(loss, sgd(0.1), w, steps=4, adjoint=Replay(graphs=1))
    result.params.sum().backward()
    gc.disable()
    del loss, result
    gone = seen() is None
    gc.enable()
    assert gone


def test_an_interrupted_way_back_leaves_nothing_behind():
    calls = []

    def loss(w):
        calls.append(None)
        if len(calls) == 12:
            raise KeyboardInterrupt
        return (w + torch.rand(())).square()

    w = tensor(1.0, requires_grad=True)
    result = unroll(loss, sgd(0.1), w, steps=8, adjoint=Replay(snapshots=2))
    before = torch.get_rng_state()
    with pytest.raises(KeyboardInterrupt):
        result.params.backward(retain_graph=True)
    assert torch.equal(torch.get_rng_state(), before)
    assert w.grad is None
    result.params.backward()
    assert w.grad is not None


@pytest.mark.parametrize("adjoint", [Store(), Replay(snapshots=2), Forward(limit=200)])
def test_steps_of_any_kind_can_be_replayed(adjoint):
    cell = nn.GRUCell(2, 3)
    xs = torch.randn(9, 4, 2, requires_grad=True)
    state = torch.zeros(4, 3, requires_grad=True)

    def outcome(last, seen):
        total = last.square().sum() + sum(i * out.sum() for i, out in enumerate(seen))
        return torch.autograd.grad(total, [state, xs, *cell.parameters()])

    last, seen = replay(lambda h, x: (cell(x, h), h), state, xs, adjoint=adjoint)
    plain, outputs = state, []
    for x in xs:
        outputs.append(plain)
        plain = cell(x, plain)
    torch.testing.assert_close(outcome(last, seen), outcome(plain, outputs))
