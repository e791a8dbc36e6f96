"""All ways to differentiate an unroll, against each other and against the world they must leave."""

import gc
import itertools

import numpy as np
import pytest
import torch
from diffopt_explicit import (
    Forward,
    KAry,
    Progress,
    Replay,
    Store,
    adam,
    chain,
    clip_by_global_norm,
    exponential_decay,
    rmsprop,
    sgd,
    unroll,
)
from every_optimizer import EVERY, loss_of, start_of
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn, tensor
from torch.func import functional_call

ADJOINTS = st.one_of(
    st.builds(Replay, snapshots=st.none() | st.integers(1, 9)),
    st.builds(Replay, snapshots=st.builds(KAry, st.integers(2, 4))),
    st.just(Forward()),
)


@settings(max_examples=60)
@given(
    adjoint=ADJOINTS,
    name=st.sampled_from(sorted(EVERY)),
    steps=st.integers(0, 9),
    dtype=st.sampled_from([torch.float64, torch.float32]),
    known=st.booleans(),
)
def test_any_adjoint_gives_what_storing_gives(adjoint, name, steps, dtype, known):
    entry = EVERY[name]

    def outcome(adjoint, **options):
        start = {key: w.requires_grad_() for key, w in start_of(entry, dtype).items()}
        numbers = [tensor(v, dtype=dtype, requires_grad=True) for v in entry.values.values()]
        tx = entry.make(**dict(zip(entry.values, numbers, strict=True)))
        result = unroll(loss_of, tx, start, adjoint=adjoint, **options)
        outer = sum(w.sum() for w in result.params.values()) + result.losses.sum() / 10
        inputs = [*start.values(), *numbers]
        found = torch.autograd.grad(outer, inputs, allow_unused=True, materialize_grads=True)
        return result, found

    options = {"steps": steps}
    if not known and not (isinstance(adjoint, Replay) and isinstance(adjoint.snapshots, KAry)):
        counter = itertools.count(1)
        until = lambda params, loss: next(counter) == steps
        options = {"steps": 10**6 if steps else 0, "until": until}
    stored, expected = outcome(Store(), steps=steps)
    result, found = outcome(adjoint, **options)
    rtol = 1e-9 if dtype == torch.float64 else 2e-3

    torch.testing.assert_close(result.params, stored.params, rtol=0, atol=0)
    torch.testing.assert_close(result.losses, stored.losses, rtol=0, atol=0)
    for here, there in zip(found, expected, strict=True):  # whole vectors
        assert (here - there).norm() <= rtol * there.norm() + 1e-5 * rtol


def logistic_regression():
    """The problem of HyperTorch's notebook: losses of weights and penalties."""
    random = np.random.RandomState(1)
    truth, x = random.randn(20), random.randn(1000, 20)
    y = (x @ truth + 0.1 * random.randn(1000) > 0).astype(float)
    x, y = torch.from_numpy(x), torch.from_numpy(y)
    cross_entropy = nn.functional.binary_cross_entropy_with_logits

    def inner(w, penalties):
        return cross_entropy(x[:500] @ w, y[:500]) + (penalties * w * w).sum() / 2

    return inner, lambda w: cross_entropy(x[500:] @ w, y[500:])


def test_where_snapshots_stand_makes_no_difference_and_replay_differs_by_rounding():
    inner, outer = logistic_regression()

    def hypergradient(adjoint):
        penalties = torch.ones(20, dtype=torch.float64, requires_grad=True)
        start = torch.zeros(20, dtype=torch.float64)
        options = {"steps": 100, "meta_params": penalties, "adjoint": adjoint}
        end = unroll(inner, sgd(0.1), start, **options).params
        return torch.autograd.grad(outer(end), penalties)[0]

    stored = hypergradient(Store())
    replayed = [hypergradient(Replay(snapshots=n, graphs=1)) for n in (None, 3, 100, KAry(3))]
    assert all(torch.equal(found, replayed[0]) for found in replayed)
    torch.testing.assert_close(replayed[0], stored, rtol=1e-13, atol=1e-17)  # sums in other order
    torch.testing.assert_close(hypergradient(Forward()), stored, rtol=1e-12, atol=1e-16)


class Net(nn.Sequential):
    """Convolution, normalization with running statistics, dropout."""

    def __init__(self):
        super().__init__(
            nn.Conv2d(1, 3, 3),
            nn.BatchNorm2d(3),
            nn.Tanh(),
            nn.AvgPool2d(2),
            nn.Dropout(0.3),
            nn.Flatten(),
            nn.Linear(12, 2),
        )


def train(adjoint_of):
    """Everything at once: batches drawn in the loss, a schedule, clipping, an end that depends."""
    torch.manual_seed(5)
    net = Net().double()
    images = torch.randn(40, 1, 6, 6, dtype=torch.float64)
    targets = torch.randn(40, 2, dtype=torch.float64)
    start = dict(net.named_parameters())
    lr, weights = (
        tensor(0.05, dtype=torch.float64, requires_grad=True),
        torch.zeros(40, 1, dtype=torch.float64, requires_grad=True),
    )

    def loss(params, weights):
        chosen = torch.randint(40, (8,))
        hard = (functional_call(net, params, (images[chosen],)) - targets[chosen]).square()
        late = net[1].num_batches_tracked.item() % 3 == 0  # what a step does depends on a buffer
        return (hard * weights[chosen].exp()).mean() * (2 if late else 1)

    until = lambda params, loss: loss < 0.55
    tx = chain(clip_by_global_norm(1.0), rmsprop(exponential_decay(lr, steps=5, rate=0.9)))
    result = unroll(
        loss, tx, start, meta_params=weights, steps=60, until=until, adjoint=adjoint_of(net)
    )
    after = torch.rand(3), [buffer.clone() for buffer in net.buffers()]
    outer = sum(p.square().sum() for p in result.params.values())
    found = torch.autograd.grad(outer, [*start.values(), lr, weights], allow_unused=True)
    now = torch.rand(3), [buffer.clone() for buffer in net.buffers()]
    return len(result.losses), found, after, now


@pytest.mark.parametrize("snapshots", [1, 3, None])
def test_batches_buffers_dropout_and_the_end_are_the_same_again(snapshots):
    steps, expected, after, now = train(lambda _: Store())
    adjoint_of = lambda net: Replay(snapshots=snapshots, modules=(net,), verify="always")
    steps_again, found, after_again, now_again = train(adjoint_of)

    assert 5 < steps == steps_again < 60
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close((after_again, now_again), (after, now), rtol=0, atol=0)


@pytest.mark.parametrize("phase", ["backward", "again"])
def test_a_way_back_that_fails_leaves_nothing_behind(phase, tmp_path):
    net, w = nn.BatchNorm1d(2), torch.ones(2, requires_grad=True)

    def interrupt(progress: Progress) -> None:
        if progress.phase == phase and progress.step == 4:
            raise KeyboardInterrupt

    def loss(w):
        net(torch.randn(3, 2) * w.detach())
        return (w.sin() - net.running_mean + torch.rand(2)).square().sum()

    adjoint = Replay(snapshots=2, modules=(net,), offload=tmp_path, watch=interrupt)
    result = unroll(loss, adam(0.1), w, steps=9, adjoint=adjoint)
    random, buffers = torch.get_rng_state(), [buffer.clone() for buffer in net.buffers()]
    with pytest.raises(KeyboardInterrupt):
        result.params.sum().backward()

    assert torch.equal(torch.get_rng_state(), random)
    assert all(map(torch.equal, net.buffers(), buffers))
    assert w.grad is None
    del result
    gc.collect()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "adjoint", [Store(), Replay(graphs=1), Forward()], ids=["store", "replay", "forward"]
)
def test_a_thousand_outer_steps_take_no_more_memory_than_a_hundred(adjoint):
    w, lr = torch.ones(3), tensor(0.1, requires_grad=True)
    outer = torch.optim.SGD([lr], lr=1e-4)
    held = {}
    for count in range(1, 1001):
        end = unroll(lambda w: w.sin().sum(), adam(lr), w, steps=2, adjoint=adjoint).params
        outer.zero_grad()
        end.square().sum().backward()
        outer.step()
        if count in (100, 1000):
            gc.collect()
            held[count] = len(gc.get_objects())

    assert held[1000] - held[100] < 100  # objects, of which one outer step makes hundreds
