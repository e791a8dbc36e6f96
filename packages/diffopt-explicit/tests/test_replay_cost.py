"""How often the replay adjoint takes a step, and what it keeps, against theory."""

import gc
import math
from functools import cache

import pytest
import torch
from diffopt_explicit import (
    Replay,
    Store,
    adam,
    chain,
    scale_by_adam,
    scale_by_learning_rate,
    sgd,
    unroll,
)
from diffopt_explicit import _binomial as binomial
from diffopt_explicit._fused import FusedStep
from torch import tensor


@pytest.fixture(autouse=True)
def _float64():
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)


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
    replay, calls = Replay(snapshots=snapshots, graphs=1), []

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
        Replay(graphs=1, verify="once")


def test_the_memory_of_a_long_unroll_is_that_of_a_few_states():
    w = torch.ones(1000, requires_grad=True)
    live = lambda: sum(type(thing) is torch.Tensor for thing in gc.get_objects())
    before = live()
    result = unroll(lambda w: w.sin().sum(), adam(0.1), w, steps=400, adjoint=Replay(graphs=1))

    assert live() - before < 4 * Replay().slots(400) + 40  # parameters, two moments, random numbers
    result.params.sum().backward()
    assert math.isfinite(w.grad.sum())


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
    found = gradient(Replay(graphs=1))
    # Seven without a graph, one with; then one that is compared, and six on the way back.
    assert known == [*[False] * 8, False, *[True] * 6]
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)
    known.clear()
    gradient(Replay(graphs=1, verify="always"))
    assert not any(known)
