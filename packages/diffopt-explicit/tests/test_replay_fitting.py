"""How many graphs a replayed unroll keeps by default, as its first step tells."""

import pytest
import torch
from diffopt_explicit import Compiled, Recorded, Replay, Store, adam, sgd, unroll
from diffopt_explicit._course import Course
from diffopt_explicit._fitting import Fitting, at_once, most_data
from diffopt_explicit._graph_bytes import graph_bytes
from torch import nn, tensor

MIB = 2**20


@pytest.fixture(autouse=True)
def _float64():
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)


def test_of_an_unroll_whose_graphs_are_small_all_are_kept_after_the_first_was_measured():
    calls = []

    def loss(w):
        calls.append(None)
        return w.sin().sum()

    w = torch.ones(1000, requires_grad=True)
    unroll(loss, adam(0.1), w, steps=30, adjoint=Replay()).params.sum().backward()

    assert len(calls) == 30


@pytest.fixture
def sizes(monkeypatch):
    """How many graphs were decided on, in turn."""
    found, fit = [], Fitting._fit

    def noting(self, inputs):
        fit(self, inputs)
        found.append(self.size)

    monkeypatch.setattr(Fitting, "_fit", noting)
    return found


def test_large_graphs_are_kept_one_by_one(sizes):
    w, x, calls = torch.ones(2, requires_grad=True), torch.ones(2**17, 2), []

    def loss(w):
        calls.append(None)
        return (x @ w).sin().exp().mean()  # 1 MiB for each of at least three results

    def gradient(adjoint):
        calls.clear()
        return torch.autograd.grad(unroll(loss, sgd(0.1), w, steps=9, adjoint=adjoint).params[0], w)

    expected, found = gradient(Store()), gradient(Replay())
    assert 1 <= sizes[0] <= 2
    assert len(calls) == 1 + 9 + 9 - sizes[0]  # the first, all, and all but the last ones again
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=0)


def test_what_only_the_measured_step_closes_over_has_a_gradient(sizes):
    w, x = torch.ones(2, requires_grad=True), torch.ones(2**17, 2)
    outside = torch.tensor(0.5, requires_grad=True)
    loss = lambda w, first: (x @ w * (outside if first else 1)).sin().exp().mean()

    def gradient(adjoint):
        batches = [True, *[False] * 8]
        end = unroll(loss, sgd(0.1), w, batches=batches, adjoint=adjoint).params
        return torch.autograd.grad(end[0], [w, outside])

    expected, found = gradient(Store()), gradient(Replay())
    assert sizes[0] < 9  # its graph was not kept
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=0)


def test_random_numbers_and_buffers_are_as_if_no_step_had_been_measured(sizes):
    def gradient(adjoint_of):
        torch.manual_seed(4)
        norm = nn.BatchNorm1d(2).double()
        w, x = torch.ones(2, requires_grad=True), torch.randn(2**16, 2)
        loss = lambda w: nn.functional.dropout(norm(x) @ w, 0.5).sin().square().mean()
        result = unroll(loss, sgd(0.1), w, steps=9, adjoint=adjoint_of(norm))
        after = torch.rand(2)
        (found,) = torch.autograd.grad(result.params.square().sum(), w)
        return found, norm.running_mean.clone(), norm.num_batches_tracked.clone(), after

    expected = gradient(lambda _: Store())
    found = gradient(lambda norm: Replay(modules=(norm,), verify="always"))
    assert sizes[0] < 9  # the first step was taken once more
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(("way", "many"), [(Recorded(), True), (Compiled(backend="eager"), False)])
def test_compiled_steps_go_back_one_by_one_if_not_all_at_once(sizes, way, many):
    w = torch.ones(2**17, requires_grad=True)  # 1 MiB
    options = {"steps": 40, "adjoint": Replay(), "gradient": way}
    end = unroll(lambda w: w.sin().mean(), sgd(0.1), w, **options).params
    (found,) = torch.autograd.grad(end[0], w)

    assert (sizes[0] > 1) == many
    assert found.isfinite().all()


def test_later_steps_of_more_data_count_as_larger(sizes):
    w, small, large = torch.ones(2, requires_grad=True), torch.ones(8, 2), torch.ones(2**17, 2)
    loss = lambda w, x: (x @ w).sin().exp().mean()
    for batches in ([small] * 9, [small, *[large] * 8], [small] * 8 + [large], [large] * 9):
        unroll(loss, sgd(0.1), w, batches=batches, adjoint=Replay())

    assert sizes[0] == 9
    assert sizes[3] in (1, 2)
    assert sizes[1:3] == [sizes[3]] * 2


def test_most_data():
    a, b, c = torch.ones(2), torch.ones(4), torch.ones(6)
    assert most_data([(a, c), (a, c)]) == 1
    assert most_data([(a, c), (b, c)]) == 2  # without what both get
    assert most_data([(b, c), (a, c), (torch.ones(12), c)]) == 3
    assert most_data([(b, None), (a, 1.0)]) == 1
    assert most_data([(c,), (c, a)]) == a.numel() * 8  # there was nothing in its place


@pytest.mark.parametrize(
    ("steps", "graph", "state", "expected"),
    [
        (20, 4 * MIB, 3 * MIB, 20),  # less than twice the 48 MiB of states
        (20, 6 * MIB, 3 * MIB, 7),  # and 2 states: 48 MiB, where 60 fit
        (50, 3 * MIB, 3 * MIB, 17),  # and 2 states: 57 MiB, where 60 fit
        (9, 100 * MIB, 3 * MIB, 1),
        (9, 4 * MIB, 1, 2),  # 8 MiB in any case
        (10_000, 15 * MIB, 12 * MIB, 145),  # and 68 states: 2,991 MiB, where 3,000 fit
        (10, 0, 10, 10),
    ],
)
def test_so_many_graphs_fit(steps, graph, state, expected):
    adjoint = Replay()
    assert adjoint.graphs_that_fit(steps, graph, state) == expected
    course = Course(adjoint.placement(steps), steps, expected)
    besides = max(adjoint.slots(steps) * state // 4, 8 * MIB)
    if 1 < expected < steps:
        states = max(0, course.cost().states - 1)  # without the first, which the caller has
        assert expected * graph + states * state <= adjoint.slots(steps) * state + besides


def test_who_says_what_to_keep_gets_no_more():
    assert Replay().graphs_at_once is None
    assert Replay(snapshots=40).graphs_at_once == 1
    assert Replay(offload="cpu").graphs_at_once == 1
    assert Replay(snapshots=40, graphs=7).graphs_at_once == 7
    with pytest.raises(ValueError, match="`graphs` must be at least 1, got 0"):
        Replay(graphs=0)


def test_bytes_of_a_graph():
    x = torch.ones(1000, requires_grad=True)
    with_exp = x.exp()  # saves its result
    assert graph_bytes([with_exp], [x]) == 8000
    assert graph_bytes([x.sin()], []) == 16_000  # its argument besides
    assert graph_bytes([x.sin()], [x]) == 8000
    assert graph_bytes([(x * 2).sum()], [x]) == 16  # the 2, and the result
    both = with_exp[:500] * with_exp[500:]  # views of one storage
    assert graph_bytes([both], [x]) == 8000 + 4000
    stacked = torch.stack([x.sin(), x.cos()])
    assert graph_bytes([stacked], [x]) == 16_000

    class Keeping(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x.clone())
            ctx.kept = x.clone(), "name"
            return x.clone()

    assert graph_bytes([Keeping.apply(x)], [x]) == 24_000


def test_what_steps_are_given_is_not_counted_as_their_graph(monkeypatch):
    told = []
    monkeypatch.setattr(Replay, "graphs_that_fit", lambda self, *sizes: told.append(sizes) or 1)
    raw = torch.ones(100, requires_grad=True)
    w, x, y = raw.sin(), torch.ones(1000, 100), torch.ones(1000, requires_grad=True)
    step = lambda w, batch, _: (w * 2, (batch[0] @ w).dot(batch[1]), None)
    at_once(Replay(), step, w, [(x, y)] * 3)
    # The result, the product and its loss, and the 2; but neither the batch nor what led to `w`.
    assert told == [(3, 8 * (100 + 1000 + 1 + 1), 8 * 100)]


def test_whoever_watches_is_told_of_graphs_that_are_all_kept():
    told, calls = [], []

    def loss(w):
        calls.append(None)
        return w.sin()

    w = tensor(1.0, requires_grad=True)
    unroll(loss, sgd(0.3), w, steps=4, adjoint=Replay(watch=told.append)).params.backward()
    assert [progress.step for progress in told] == [0, 1, 2, 3, 3, 2, 1, 0]
    assert len(calls) == 1 + 4  # the first is taken to be measured


@pytest.mark.filterwarnings("ignore:Sparse CS")
@pytest.mark.parametrize("layout", ["sparse", "sparse_csr", "sparse_csc"])
def test_steps_with_sparse_tensors_are_measured_too(layout):
    x = getattr(torch.eye(5), f"to_{layout}")()

    def gradient(adjoint):
        w = torch.arange(5.0).view(5, 1).requires_grad_()
        loss = lambda w: (x @ w).sin().sum()
        end = unroll(loss, sgd(0.1), w, steps=3, adjoint=adjoint).params
        return torch.autograd.grad(end.sum(), w)

    torch.testing.assert_close(gradient(Replay()), gradient(Store()), rtol=0, atol=0)
    assert graph_bytes([], [x]) == 0


def test_a_graph_that_is_gone_can_be_measured():
    x = torch.ones(1000, requires_grad=True)
    y = x.sin()
    z = y.exp()
    y.sum().backward()
    assert graph_bytes([z], [x]) == 8000
