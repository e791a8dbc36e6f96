"""Where snapshots stand, against theory; and unrolls whose end is not known."""

import itertools
import math

import pytest
import torch
from diffopt_explicit import KAry, Placement, Progress, Replay, Report, Store, adam, sgd, unroll
from diffopt_explicit import _binomial as binomial
from diffopt_explicit._course import Course
from diffopt_explicit._placement import Binomial, Online
from torch import tensor


@pytest.fixture(autouse=True)
def _float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def times_taken(placement, held, steps):
    """How often each step is taken on the way back, without a graph, and the most states held."""
    held, taken, most = list(held), [0] * steps, len(held)
    for index in reversed(range(steps)):
        while held[-1] > index:
            held.pop()
        start = held[-1]
        held += [i for i in placement.between(start, index, len(held)) if i < index]
        most = max(most, len(held))
        for i in range(start, index):
            taken[i] += 1
    return taken, most


def held_online(slots, steps):
    online = Online()
    for index in range(steps):
        online.dropped(index, slots)
        assert len(online.levels) <= slots
    return sorted(online.levels)


@pytest.mark.parametrize("slots", [1, 2, 3, 7])
def test_counting_a_placements_steps_gives_the_binomial_formula(slots):
    for steps in range(1, 40):  # and one more, whose graph is kept on the way there
        advances = Course(Binomial(slots), steps + 1).cost().advances
        assert advances == 1 + binomial.advances(steps, slots)


@pytest.mark.parametrize(("branches", "depth"), [(2, 1), (2, 5), (3, 3), (4, 3)])
def test_a_tree_takes_each_step_as_often_as_its_depth_says(branches, depth):
    steps, tree = branches**depth, KAry(branches)
    held = [0, *tree.between(0, steps - 1, 1)]
    _, most = times_taken(tree, held, steps)

    advances, states = Course(tree, steps + 1).cost()
    assert advances == 1 + depth * (branches - 1) * steps // branches
    assert most == depth * (branches - 1) + 1
    assert states <= most + 1  # the last step's besides


@pytest.mark.parametrize("steps", [2, 3, 11, 37])
@pytest.mark.parametrize("branches", [2, 3, 50])
def test_replay_over_a_tree_gives_what_storing_gives_in_so_many_steps(branches, steps):
    calls, tree = [], Replay(snapshots=KAry(branches), verify="always")

    def meta_gradient(adjoint):
        calls.clear()
        w = torch.tensor([1.0, -0.5], requires_grad=True)

        def loss(w):
            calls.append(None)
            return w.sin().sum()

        end = unroll(loss, adam(0.1), w, steps=steps, adjoint=adjoint).params
        return torch.autograd.grad(end.square().sum(), w)

    expected = meta_gradient(Store())
    assert torch.equal(*meta_gradient(tree), *expected)
    assert len(calls) == tree.advances(steps) + steps


@pytest.mark.parametrize("slots", [1, 2, 3, 5, 10])
@pytest.mark.parametrize("steps", [1, 4, 10, 56, 286, 1000])
def test_online_no_step_is_taken_more_often_than_if_the_end_were_known(slots, steps):
    taken, most = times_taken(Binomial(slots), held_online(slots, steps), steps)

    assert max(taken) <= binomial.sweeps(steps, slots)  # that has one of the way there besides
    assert most <= slots


@pytest.mark.parametrize("adjoint", [Store(), *(Replay(snapshots=n) for n in (None, 1, 2, 5))])
def test_an_unroll_ends_when_a_condition_holds(adjoint):
    lr, asked = tensor(0.05, requires_grad=True), []

    def endless():
        for i in itertools.count():
            asked.append(i)
            yield tensor(1.0 + i / 100)

    def train(adjoint, **options):
        start = tensor([1.0, 0.5], requires_grad=True)
        loss = lambda w, x: (w.sin() * x).sum()
        result = unroll(loss, adam(lr), start, adjoint=adjoint, **options)
        return result, torch.autograd.grad(result.params.sum() + result.losses[-1], [start, lr])

    stop = lambda params, loss: params.sum() < -0.5 and loss < 0.5
    result, found = train(adjoint, batches=endless(), until=stop)
    steps = len(result.losses)
    assert steps > 10
    assert len(asked) == steps  # no batch more
    again, expected = train(Store(), batches=[tensor(1.0 + i / 100) for i in range(steps)])
    assert stop(again.params, again.losses[-1])
    torch.testing.assert_close(result.losses, again.losses, rtol=0, atol=0)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


def test_an_unroll_of_unknown_length_keeps_as_many_states_as_it_may(tmp_path):
    w = tensor(1.0, requires_grad=True)
    held = []

    def until(params, loss):
        held.append(len(list(tmp_path.iterdir())))
        return len(held) == 200

    adjoint = Replay(snapshots=4, offload=tmp_path)
    options = {"steps": 10**9, "until": until, "adjoint": adjoint}
    result = unroll(lambda w: w.sin(), sgd(0.01), w, **options)
    (found,) = torch.autograd.grad(result.params, w)
    (expected,) = torch.autograd.grad(unroll(lambda w: w.sin(), sgd(0.01), w, steps=200).params, w)

    assert max(held) == 3  # the latest is not moved to its file before it stays
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=0)


def test_a_placement_of_ones_own_is_used():
    class Ends:
        def between(self, first, last, kept):
            return iter(range(first + 1, last + 1, 3))

    assert isinstance(Ends(), Placement)
    w = tensor(1.0, requires_grad=True)
    end = unroll(lambda w: w.sin(), sgd(0.3), w, steps=9, adjoint=Replay(snapshots=Ends())).params
    expected = unroll(lambda w: w.sin(), sgd(0.3), w, steps=9).params
    assert torch.autograd.grad(end, w) == torch.autograd.grad(expected, w)


def test_what_happens_is_told_step_by_step():
    told, w = [], tensor(1.0, requires_grad=True)
    adjoint = Replay(snapshots=2, watch=told.append)
    result = unroll(lambda w: w.sin(), sgd(0.3), w, steps=6, adjoint=adjoint)
    assert [(t.phase, t.step, t.steps) for t in told] == [("forward", i, 6) for i in range(6)]
    told.clear()
    result.params.backward()

    assert all(isinstance(t, Progress) and t.seconds > 0 for t in told)
    assert [t.step for t in told if t.phase == "backward"] == [5, 4, 3, 2, 1, 0]
    again = sum(t.phase == "again" for t in told)
    assert again + 5 == adjoint.advances(6)


def test_a_report_sums_up_by_phase():
    report, w = Report(), tensor(1.0, requires_grad=True)
    adjoint = Replay(snapshots=2, watch=report)
    unroll(lambda w: w.sin(), sgd(0.3), w, steps=6, adjoint=adjoint).params.backward()
    steps = {phase: spent.steps for phase, spent in report.phases.items()}

    assert steps == {"forward": 6, "backward": 6, "again": adjoint.advances(6) - 5}
    assert all(math.isfinite(s.seconds) and s.peak_bytes >= 0 for s in report.phases.values())
    assert str(report).splitlines()[0].split()[:3] == ["forward", "6", "steps"]


@pytest.mark.parametrize("snapshots", [1, 3, None, KAry(3)])
def test_a_plan_says_what_will_be_kept_and_taken(snapshots, tmp_path):
    params, held = {"w": torch.ones(10), "b": [torch.zeros(2)]}, []
    watch = lambda progress: held.append(len(list(tmp_path.iterdir())))
    replay = Replay(snapshots=snapshots, offload=tmp_path, watch=watch)
    plan = replay.plan(params, adam(0.1), 30)
    lr = tensor(0.1, requires_grad=True)
    loss = lambda p: p["w"].sin().sum() + p["b"][0].sum()
    unroll(loss, adam(lr), params, steps=30, adjoint=replay).params["w"].sum().backward()

    assert plan.states == max(held)
    assert plan.state_bytes == 3 * 12 * 8  # parameters and two moments
    assert plan.bytes == plan.states * plan.state_bytes
    assert plan.advances == replay.advances(30) == len(held) - 30 - 1  # one of 30 had a graph
    assert f"{plan.states} states of 0.0 MiB" in repr(plan)


def test_what_cannot_be_placed_is_refused():
    with pytest.raises(ValueError, match="`branches` must be at least 2, got 1"):
        KAry(1)
    w = tensor(1.0, requires_grad=True)
    options = {"steps": 5, "until": lambda w, loss: False}
    with pytest.raises(ValueError, match="needs to know the number of steps"):
        unroll(lambda w: w.sin(), sgd(0.3), w, adjoint=Replay(snapshots=KAry()), **options)
    with pytest.raises(ValueError, match="`truncate` counts steps from the last one"):
        unroll(lambda w: w.sin(), sgd(0.3), w, truncate=2, **options)


@pytest.mark.parametrize("which", ["start", "batch"])
def test_a_constant_changed_before_the_way_back_is_noticed(which):
    start, batch, lr = tensor(1.0), tensor(2.0), tensor(0.1, requires_grad=True)
    loss = lambda w, x: (w + x).square()
    result = unroll(loss, sgd(lr), start, batches=[batch] * 4, adjoint=Replay(snapshots=1))
    {"start": start, "batch": batch}[which].mul_(2)
    with pytest.raises(RuntimeError, match="was changed in place before the way back"):
        result.params.backward()
