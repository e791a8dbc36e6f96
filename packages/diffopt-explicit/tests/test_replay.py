"""The replay adjoint against stored graphs, and its bookkeeping against theory."""

import gc
import math
import weakref
from functools import cache

import pytest
import torch
from diffopt_explicit import (
    Forward,
    Replay,
    Store,
    adam,
    chain,
    clip_by_global_norm,
    exponential_decay,
    linear,
    replay,
    rmsprop,
    scale_by_adam,
    scale_by_learning_rate,
    sgd,
    unroll,
)
from diffopt_explicit import _binomial as binomial
from diffopt_explicit._fused import FusedStep
from torch import nn, tensor

POLICIES = [Replay(snapshots=n) for n in (1, 2, 3, 100)] + [Replay(), Replay(verify="always")]


@pytest.fixture(autouse=True)
def _float64():
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)


def gradients(adjoint, optimizer, *, steps=7, outer=None, **options):
    """Meta-gradients of everything there is, through a small network's training."""
    generator = torch.Generator().manual_seed(1)
    random = lambda *shape: torch.randn(*shape, generator=generator)
    start = {"a": random(3, 4), "b": [random(4), None], "c": random(())}
    start = {k: v.requires_grad_() if isinstance(v, torch.Tensor) else v for k, v in start.items()}
    start["b"][0].requires_grad_()
    data = [(random(5, 3), random(5).requires_grad_()) for _ in range(steps)]
    weights = random(5).requires_grad_()
    lr, outside = tensor(0.05, requires_grad=True), random(4).requires_grad_()

    def loss(params, weights, batch):
        x, y = batch
        hidden = torch.tanh(x @ params["a"] + params["b"][0] * outside.exp())
        return ((hidden.sum(1) + params["c"] - y) ** 2 * weights.sigmoid()).mean()

    result = unroll(
        loss, optimizer(lr), start, batches=data, meta_params=weights, adjoint=adjoint, **options
    )
    value = sum(leaf.square().sum() for leaf in (result.params["a"], result.params["c"]))
    value = value + (result.losses * torch.linspace(1, 2, steps)).sum()
    inputs = [start["a"], start["b"][0], start["c"], weights, lr, outside, *(y for _, y in data)]
    return value, torch.autograd.grad(value, inputs, allow_unused=True), result


OPTIMIZERS = {
    "sgd": sgd,
    "momentum": lambda lr: sgd(lr, momentum=0.9, nesterov=True, weight_decay=0.1),
    "adam": adam,
    "schedule": lambda lr: adam(exponential_decay(lr, steps=2, rate=0.5)),
    "clipped": lambda lr: chain(clip_by_global_norm(0.1), rmsprop(lr, momentum=0.9)),
    "learned schedule": lambda lr: sgd(linear(lr, 0.5 * lr, steps=4)),
}


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
        unroll(loss, sgd(0.01), w, steps=4, adjoint=Replay(verify=verify)).params.backward()
    assert len(calls) == (2 if verify == "first" else 5)  # at once, before the long run


def test_a_large_tensor_that_changes_is_found_out_too():
    generator = torch.Generator().manual_seed(0)  # not among what is put back
    w = torch.ones(50_001, requires_grad=True)
    loss = lambda w: (w * torch.rand(w.shape, generator=generator)).square().sum()
    with pytest.raises(RuntimeError, match="Step 2 of the unroll gave another result"):
        unroll(loss, sgd(0.01), w, steps=4, adjoint=Replay()).params.sum().backward()


def test_what_is_not_a_number_is_the_same_again():
    w = torch.tensor([1.0, math.nan], requires_grad=True)
    end = unroll(lambda w: w.square().sum(), sgd(0.1), w, steps=3, adjoint=Replay()).params
    assert torch.autograd.grad(end[0], w)[0][0].item() == pytest.approx(0.8**3)


def test_a_schedule_of_a_learned_tensor_counts_its_graph_once_a_step():
    def gradient(adjoint):
        raw, w = tensor(-2.0, requires_grad=True), tensor(1.0)
        result = unroll(lambda w: w**2, sgd(raw.exp()), w, steps=5, adjoint=adjoint)
        return torch.autograd.grad(result.params, raw)

    torch.testing.assert_close(gradient(Replay()), gradient(Store()), rtol=1e-14, atol=0)


def test_a_loss_may_close_over_the_start_itself():
    def gradient(adjoint, steps):
        start = torch.tensor([1.0, 2.0], requires_grad=True)
        loss = lambda w: w.prod() + (w - start).square().sum()
        result = unroll(loss, sgd(0.1), start, steps=steps, adjoint=adjoint)
        return torch.autograd.grad(result.params.square().sum(), start)

    for steps in (1, 4):
        expected = gradient(Store(), steps)
        torch.testing.assert_close(gradient(Replay(), steps), expected, rtol=1e-14, atol=0)


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

    torch.testing.assert_close(second(Replay()), second(Store()), rtol=1e-12, atol=0)


def test_a_graph_that_is_kept_can_be_gone_back_twice():
    w = tensor(1.0, requires_grad=True)
    result = unroll(lambda w: w.sin(), sgd(0.3), w, steps=10, adjoint=Replay(snapshots=3))
    first = torch.autograd.grad(result.params, w, retain_graph=True)

    assert torch.autograd.grad(result.params, w) == first


def test_a_tensor_changed_before_the_way_back_is_noticed():
    lr = tensor(0.1, requires_grad=True)
    result = unroll(lambda w: w**2, sgd(lr), tensor(1.0), steps=3, adjoint=Replay())
    with torch.no_grad():
        lr.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        result.params.backward()


@pytest.mark.parametrize("steps", [0, 1])
def test_short_unrolls_need_no_snapshots(steps):
    w = tensor(2.0, requires_grad=True)
    result = unroll(lambda w: w**2 / 2, sgd(0.5), w, steps=steps, adjoint=Replay())

    assert result.losses.shape == (steps,)
    assert torch.autograd.grad(result.params, w) == (tensor(0.5**steps),)


def test_nothing_is_recorded_where_nothing_is_differentiated():
    plain = unroll(lambda w: w**2, sgd(0.1), tensor(1.0), steps=3, adjoint=Replay())
    w = tensor(1.0, requires_grad=True)
    with torch.no_grad():
        quiet = unroll(lambda w: w**2, sgd(0.1), w, steps=3, adjoint=Replay())

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
    result = unroll(loss, sgd(0.1), w, steps=4, adjoint=Replay())
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


@cache
def least_advances(steps, slots):
    """The truth by trying every place for the next snapshot."""
    if steps <= 1:
        return 0
    if slots == 1:
        return steps * (steps - 1) // 2
    return min(
        j + least_advances(steps - j, slots - 1) + least_advances(j, slots) for j in range(1, steps)
    )


def test_snapshots_stand_where_they_save_the_most_steps():
    for slots in range(1, 7):
        for steps in range(1, 50):
            assert binomial.advances(steps, slots) == least_advances(steps, slots)


@pytest.mark.parametrize(("slots", "sweeps", "steps"), [(3, 2, 10), (5, 3, 56), (10, 3, 286)])
def test_so_many_steps_can_be_reversed(slots, sweeps, steps):
    assert binomial.reversible(slots, sweeps) == steps
    assert binomial.sweeps(steps, slots) == sweeps
    assert binomial.sweeps(steps + 1, slots) == sweeps + 1


@pytest.mark.parametrize("snapshots", [1, 2, 3, 5, None])
@pytest.mark.parametrize("steps", [1, 2, 10, 37])
def test_steps_are_taken_as_often_as_promised(snapshots, steps):
    replay, calls = Replay(snapshots=snapshots), []

    def loss(w):
        calls.append(None)
        return w.square()

    w = tensor(1.0, requires_grad=True)
    unroll(loss, sgd(0.1), w, steps=steps, adjoint=replay).params.backward()

    assert len(calls) == replay.advances(steps) + steps


def test_of_short_unrolls_every_state_is_kept_and_of_long_ones_few():
    for steps in (1, 2, 10, 17):
        assert Replay().advances(steps) == steps - 1
    assert Replay().slots(64) == 16
    assert Replay().slots(10_000) == 200


def test_wrong_settings_are_refused():
    with pytest.raises(ValueError, match="`snapshots` must be at least 1, got 0"):
        Replay(snapshots=0)
    with pytest.raises(ValueError, match="`verify` must be 'never', 'first', 'last' or"):
        Replay(verify="once")


def test_the_memory_of_a_long_unroll_is_that_of_a_few_states():
    w = torch.ones(1000, requires_grad=True)
    live = lambda: sum(type(thing) is torch.Tensor for thing in gc.get_objects())
    before = live()
    result = unroll(lambda w: w.sin().sum(), adam(0.1), w, steps=400, adjoint=Replay())

    assert live() - before < 4 * Replay().slots(400) + 40  # parameters, two moments, random numbers
    result.params.sum().backward()
    assert math.isfinite(w.grad.sum())


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


def test_the_optimizer_takes_no_step_again_whose_result_is_known(monkeypatch):
    known, take = [], FusedStep.take

    def noting(self, grads, arguments):
        known.append("known" in arguments)
        return take(self, grads, arguments)

    def gradient(adjoint):
        w = {"a": torch.tensor([1.0, 2.0], requires_grad=True), "b": torch.tensor(0.5)}
        lr = torch.tensor(0.1, requires_grad=True)
        loss = lambda w: w["a"].sin().sum() * w["b"].square()
        tx = chain(scale_by_adam(eps_root=1e-4), scale_by_learning_rate(lr))
        end = unroll(loss, tx, w, steps=8, adjoint=adjoint).params
        return torch.autograd.grad(end["a"].square().sum() + end["b"], [w["a"], lr])

    expected = gradient(Store())
    monkeypatch.setattr(FusedStep, "take", noting)
    found = gradient(Replay())
    # Seven without a graph, one with; then one that is compared, and six on the way back.
    assert known == [*[False] * 8, False, *[True] * 6]
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)
    known.clear()
    gradient(Replay(verify="always"))
    assert not any(known)
