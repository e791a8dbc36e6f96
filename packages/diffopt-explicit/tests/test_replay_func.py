"""The replay adjoint under the transforms of `torch.func`, against stored graphs."""

import pytest
import torch
from diffopt_explicit import (
    Forward,
    Replay,
    Report,
    Store,
    adam,
    exponential_decay,
    replay,
    sgd,
    unroll,
)
from torch import nn, tensor
from torch.func import functional_call, grad, jacrev, jvp, vmap


@pytest.fixture(autouse=True)
def _float64():
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)


def numbers():
    """Weights, a learning rate, and the data of four tasks."""
    torch.manual_seed(0)
    return torch.randn(3), tensor(0.1), torch.randn(4, 5, 3), torch.randn(4, 5)


def closing_over(adjoint, optimizer):
    """An outer loss of weights, learning rate and data, which reach the steps by closure."""

    def outer(w, lr, x, y):
        loss = lambda w: ((x @ w).tanh() - y).square().mean() + 0.01 * (w.square() * lr.exp()).sum()
        result = unroll(loss, optimizer(lr), w, steps=6, adjoint=adjoint)
        return result.params.sin().sum() + (result.losses * torch.arange(6)).sum()

    return outer


def passing(adjoint, optimizer):
    """The same, but that they are passed."""

    def outer(w, lr, x, y):
        def loss(w, meta, factor):
            x, y, lr = meta
            error = ((x @ w).tanh() - y).square().mean()
            return (error + 0.01 * (w.square() * lr.exp()).sum()) * factor, (w[0], error)

        result = unroll(
            loss,
            optimizer(0.1),
            w,
            meta_params=(x, y, lr),
            batches=[lr + i for i in range(6)],
            adjoint=adjoint,
            aux=True,
        )
        total = sum(i * a + b for i, (a, b) in enumerate(result.aux))
        return result.params.sin().sum() + (result.losses * torch.arange(6)).sum() + total

    return outer


def decaying(lr):
    """An optimizer whose learning rate is a function of a number."""
    return sgd(exponential_decay(lr, steps=2, rate=0.5))


w, lr, xs, ys = (t.double() for t in numbers())
TRANSFORMS = {
    "grad": lambda f: grad(f, (0, 1, 2, 3))(w, lr, xs[0], ys[0]),
    "grad of grad": lambda f: grad(
        lambda w, lr: grad(f, 0)(w, lr, xs[0], ys[0]).square().sum(), (0, 1)
    )(w, lr),
    "vmap": lambda f: vmap(f, (None, None, 0, 0))(w, lr, xs, ys),
    "grad of vmap": lambda f: grad(
        lambda w, lr: vmap(f, (None, None, 0, 0))(w, lr, xs, ys).square().mean(), (0, 1)
    )(w, lr),
    "vmap of grad": lambda f: vmap(grad(f, (0, 1, 3)), (None, None, 0, 0))(w, lr, xs, ys),
    "vmap of vmap of grad": lambda f: vmap(
        vmap(grad(f, (0, 1)), (None, 0, None, None)), (None, None, 0, 0)
    )(w, tensor([0.1, 0.2]), xs, ys),
    "vmap of grad of grad": lambda f: vmap(
        lambda x, y: grad(lambda w: grad(f, 0)(w, lr, x, y).square().sum())(w)
    )(xs, ys),
    "jacrev": lambda f: jacrev(f, (0, 1))(w, lr, xs[0], ys[0]),
}


@pytest.mark.parametrize("outer", [closing_over, passing])
@pytest.mark.parametrize("optimizer", [adam, decaying])
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_every_transform_gives_what_storing_gives(transform, optimizer, outer):
    expected = TRANSFORMS[transform](outer(Store(), optimizer))
    found = TRANSFORMS[transform](outer(Replay(snapshots=2), optimizer))

    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-13)


def test_a_loop_over_tasks_and_vmap_reach_the_weights_of_a_module_alike():
    module = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))

    def after_adapting(params, x, y):
        loss = lambda p: (functional_call(module, p, (x,))[:, 0] - y).square().mean()
        return loss(unroll(loss, adam(0.1), params, steps=5, adjoint=Replay(graphs=1)).params)

    params = dict(module.named_parameters())
    _, _, xs, ys = numbers()
    loop = torch.stack([after_adapting(params, x, y) for x, y in zip(xs, ys, strict=True)])
    together = vmap(after_adapting, (None, 0, 0))(params, xs, ys)
    expected = torch.autograd.grad(loop.square().sum(), list(params.values()))
    found = torch.autograd.grad(together.square().sum(), list(params.values()))

    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("adjoint", [Store(), Replay(snapshots=1)])
def test_a_plain_tensor_in_a_graph_is_reached_through_transforms(adjoint):
    rate = tensor(0.3, requires_grad=True)
    after = lambda w: unroll(
        lambda w: (w * rate.exp()).sum() ** 2, sgd(0.02), w, steps=4, adjoint=adjoint
    ).params.sum()
    (found,) = torch.autograd.grad(grad(after)(torch.ones(3)).sum(), rate)

    # 2 a w b b' with a = exp(rate), three weights: the sum shrinks by 1 - 0.12 a ** 2 a step.
    a = rate.detach().exp()
    expected = 3 * 4 * (1 - 0.12 * a**2) ** 3 * (-0.24 * a * a)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


def test_steps_of_any_kind_are_replayed_under_transforms():
    a, b, xs = torch.randn(3, 3), torch.randn(2, 3), torch.randn(5, 9, 2)

    def last(xs, adjoint):
        step = lambda h, x: (torch.tanh(h @ a + x @ b), h.square())
        end, seen = replay(step, torch.zeros(3), list(xs), adjoint=adjoint)
        return end.sum() + torch.stack(seen).sum()

    found = vmap(grad(lambda x: last(x, Replay(snapshots=2))))(xs)
    torch.testing.assert_close(found, vmap(grad(lambda x: last(x, Store())))(xs))


def test_each_task_of_a_batch_draws_its_own_numbers_again():
    def after(w, adjoint):
        loss = lambda w: nn.functional.dropout(w, 0.5, training=True).square().sum()
        return unroll(loss, sgd(0.1), w, steps=6, adjoint=adjoint).params.sum()

    ws, results = torch.ones(4, 20), []
    for adjoint in (Replay(snapshots=2), Replay(snapshots=6)):
        torch.manual_seed(3)  # a number that is kept is doubled, and shrinks by 1 - 0.1 * 8
        results.append(vmap(grad(lambda w: after(w, adjoint)), randomness="different")(ws))  # noqa: B023
    assert torch.equal(*results)
    assert not torch.equal(results[0][0], results[0][1])
    assert set(results[0].log().div(tensor(0.2).log()).round().flatten().tolist()) <= set(range(7))


def test_random_numbers_are_the_same_in_second_derivatives_too():
    def second(adjoint):
        def after(w):
            loss = lambda w: nn.functional.dropout(w.sin(), 0.5, training=True).square().sum()
            return unroll(loss, sgd(0.1), w, steps=4, adjoint=adjoint).params.square().sum()

        torch.manual_seed(5)
        found = grad(lambda w: grad(after)(w).square().sum())(torch.ones(20))
        return found, torch.rand(3)

    torch.testing.assert_close(second(Replay(graphs=1)), second(Store()), rtol=1e-12, atol=1e-14)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # Dynamo
@pytest.mark.parametrize("adjoint", [Replay(graphs=1), Forward()], ids=repr)
def test_a_compiled_function_lets_the_unroll_run_by_itself(adjoint):
    outer = lambda lr: unroll(torch.square, sgd(lr), tensor(1.0), steps=3, adjoint=adjoint).params
    lr = tensor(0.1, requires_grad=True)
    end = torch.compile(lambda lr: outer(lr * 2) * 3, backend="eager")(lr)

    torch.testing.assert_close(end.detach(), tensor(3 * 0.6**3))
    torch.testing.assert_close(torch.autograd.grad(end, lr)[0], tensor(3 * 3 * 0.6**2 * -4))


class Double(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return 2 * x

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, g):
        return 2 * g


@torch.no_grad()
def unrecorded(a):
    return a * 2


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda w, a, _: (Double.apply(a) * w).sum() ** 2, "in an `autograd.Function` or under"),
        (lambda w, a, _: (unrecorded(a) * w).sum() ** 2, r"or under `torch.no_grad\(\)` without"),
        (lambda w, a, _: (grad(lambda x: x**2)(a) * w).sum() ** 2, "inside another transform"),
        (lambda w, a, calls: (w * (a if calls > 3 else 1)).sum() ** 2, "by a later step"),
    ],
)
def test_a_closed_over_tensor_that_would_be_lost_is_refused(loss, message, batched):
    calls = []

    def outer(a):
        def inner(w):
            calls.append(None)
            return loss(w, a, len(calls))

        return unroll(
            inner, sgd(0.1), torch.ones(3), steps=6, adjoint=Replay(graphs=1)
        ).params.sum()

    with pytest.raises(ValueError, match=message):
        vmap(grad(outer))(tensor([0.1, 0.2])) if batched else grad(outer)(tensor(0.1))


def test_a_leaf_that_appears_late_is_refused_too():
    rate, calls = tensor(0.1, requires_grad=True), []

    def outer(w):
        def inner(w):
            calls.append(None)
            return (w * (rate if len(calls) > 3 else 1)).sum() ** 2

        return unroll(inner, sgd(0.1), w, steps=6, adjoint=Replay(graphs=1)).params.sum()

    with pytest.raises(ValueError, match="that requires grad is used by a later step"):
        grad(outer)(torch.ones(3))


def test_what_cannot_be_replayed_is_refused_with_a_way_out():
    def outer(w, **options):
        loss = lambda w: w.square()
        return unroll(loss, sgd(0.1), w, steps=2, adjoint=Replay(graphs=1), **options).params

    w = tensor(1.0)
    with pytest.raises(NotImplementedError, match=r"has no forward mode.*use `Store"):
        jvp(outer, (w,), (w,))
    with pytest.raises(ValueError, match="needs to know the number of steps"):
        grad(lambda w: outer(w, until=lambda w, loss: False))(w)
    with pytest.raises(Exception, match="one graph of all steps: compile the loss"):
        torch.compile(lambda w: outer(w), backend="eager", fullgraph=True)(w.requires_grad_())


def test_the_memory_of_a_gradient_is_that_of_a_few_states():
    report = Report()
    adjoint = Replay(snapshots=5, watch=report)

    def outer(w):
        return unroll(lambda w: w.sin().sum(), adam(0.1), w, steps=60, adjoint=adjoint).params.sum()

    grad(outer)(torch.ones(10))
    small = max(spent.peak_bytes for spent in report.phases.values())
    grad(outer)(torch.ones(200_000))
    large = max(spent.peak_bytes for spent in report.phases.values())

    assert large - small < 60 * 3 * 8 * 200_000  # not even the states of all steps


@pytest.mark.parametrize("transform", ["grad", "grad of grad", "vmap of grad"])
def test_many_states_of_random_steps_are_the_same_again_under_transforms(transform):
    def gradient(adjoint):
        def outer(w):
            loss = lambda w: nn.functional.dropout(w.sin(), 0.3).sum()
            return unroll(loss, adam(0.05), w, steps=60, adjoint=adjoint).params.square().sum()

        slope = grad(outer)
        torch.manual_seed(0)
        if transform == "grad":
            return slope(xs[0])
        if transform == "grad of grad":
            return grad(lambda w: slope(w).sum())(xs[0])
        return vmap(slope, randomness="different")(xs)

    found, expected = gradient(Replay(snapshots=40)), gradient(Store())
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-13)
