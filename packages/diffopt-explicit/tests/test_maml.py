"""Meta-learners against answers worked out by hand, and against loops written by hand."""

import pytest
import torch
from diffopt_explicit import adam, maml, sgd
from torch import nn
from torch.func import functional_call

A, B = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([4.0, 5.0, 6.0])
X, Y = torch.linspace(-1, 1, 12).reshape(6, 2).double(), torch.linspace(0, 1, 6)[:, None].double()


class Vector(nn.Module):
    """The inner product with a vector of weights."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.tensor([2.0, 3.0, 5.0]))

    def forward(self, x):
        return self.w @ x


def half_square(out):
    return out.square() / 2


def test_maml_gives_the_integers_worked_out_by_hand():
    """O-1."""
    learner = maml.MAML(Vector(), sgd(0.5))
    clone = learner.clone()
    clone.adapt(half_square(clone(A)))
    loss = half_square(clone(B))
    loss.backward()

    assert clone.params["w"].tolist() == [-9.5, -20.0, -29.5]
    assert loss.item() == 49612.5
    assert learner.module.w.grad.tolist() == [3780.0, 8505.0, 13230.0]


def test_first_order_maml_gives_the_integers_worked_out_by_hand():
    """O-2."""
    learner = maml.FOMAML(Vector(), sgd(0.5))
    clone = learner.clone()
    clone.adapt(half_square(clone(B)))
    loss = half_square(clone(A))
    loss.backward()

    assert clone.params["w"].tolist() == [-104.0, -129.5, -154.0]
    assert loss.item() == 340312.5
    assert learner.module.w.grad.tolist() == [-825.0, -1650.0, -2475.0]


def test_three_steps_give_the_integers_worked_out_by_hand():
    """O-3."""
    module = Vector()
    adapted = maml.adapt(module, sgd(1.0), lambda f: half_square(f(A)), steps=3)
    loss = adapted(B)
    loss.backward()

    assert adapted.params["w"].tolist() == [-3609.0, -7219.0, -10828.0]
    assert loss.item() == -115499.0
    assert module.w.grad.tolist() == [-5020.0, -10043.0, -15066.0]


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)).double()


def loss_of(function):
    return (function(X) - Y).square().mean()


def by_hand(module, rates, *, steps=3, create_graph=True, adapting=""):
    """Inner steps of gradient descent on the parameters of a prefix, and the loss after them."""
    params = dict(module.named_parameters())
    for _ in range(steps):
        names = [name for name in params if name.startswith(adapting)]
        loss = loss_of(lambda x, params=params: functional_call(module, params, (x,)))
        grads = torch.autograd.grad(loss, [params[n] for n in names], create_graph=create_graph)
        for name, grad in zip(names, grads, strict=True):
            params = {**params, name: params[name] - rates[name] * grad}
    return loss_of(lambda x: functional_call(module, params, (x,)))


def adapted_loss(learner, steps=3):
    clone = learner.clone()
    for _ in range(steps):
        clone.adapt(loss_of(clone))
    return loss_of(clone)


@pytest.mark.parametrize(
    ("build", "options"),
    [
        (lambda m: maml.MAML(m, sgd(0.3)), {}),
        (lambda m: maml.FOMAML(m, sgd(0.3)), {"create_graph": False}),
        (lambda m: maml.ANIL(m, sgd(0.3), "2"), {"adapting": "2"}),
        (lambda m: maml.ANIL(m, sgd(0.3), m[2]), {"adapting": "2"}),
        (lambda m: maml.MetaSGD(m, 0.3), {}),
    ],
)
def test_losses_and_meta_gradients_equal_those_of_a_loop_by_hand(build, options):
    module, reference = network(), network()
    learner = build(module)
    rates = {name: torch.full_like(p, 0.3) for name, p in reference.named_parameters()}
    rates = {name: rate.requires_grad_() for name, rate in rates.items()}
    expected = by_hand(reference, rates, **options)
    expected.backward()
    loss = adapted_loss(learner)
    loss.backward()

    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    for ours, theirs in zip(module.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-12, atol=1e-14)
    if isinstance(learner, maml.MetaSGD):
        for ours, theirs in zip(learner.rates, rates.values(), strict=True):
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-12, atol=1e-14)


def test_reptile_moves_to_the_mean_of_where_tasks_end():
    module = network()
    learner = maml.Reptile(module, adam(0.1))
    start = [param.detach().clone() for param in module.parameters()]
    ends = []
    for _ in range(2):
        clone = learner.clone()
        for _ in range(1 + len(ends)):
            clone.adapt(loss_of(clone))
        assert all(param.is_leaf for param in clone.parameters())
        ends.append([param.detach() for param in clone.parameters()])
        learner.accumulate(clone, 1 / 2)
    torch.optim.SGD(learner.parameters(), lr=0.4).step()

    for param, first, *after in zip(module.parameters(), start, *ends, strict=True):
        torch.testing.assert_close(param, 0.6 * first + 0.4 * sum(after) / 2, rtol=1e-12, atol=0)


@pytest.mark.parametrize("kind", ["MAML", "FOMAML", "Reptile"])
def test_a_clone_leaves_the_module_alone(kind):
    module = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).double()
    params = [param.clone() for param in module.parameters()]
    clone = getattr(maml, kind)(module, sgd(0.3)).clone()
    clone.adapt(clone(X).square().mean())

    assert all(torch.equal(a, b) for a, b in zip(params, module.parameters(), strict=True))
    assert module[1].num_batches_tracked == 0


def test_a_meta_learner_is_the_module_and_saves_what_it_learns():
    learner = maml.MetaSGD(network(), 0.3)
    names = {*(f"rates.{i}" for i in range(4)), *(f"module.{n}" for n in network().state_dict())}

    assert torch.equal(learner(X), learner.module(X))
    assert learner.state_dict().keys() == names


def test_meta_learning_learns():
    learner = maml.MetaSGD(network(), 0.1)
    optimizer = torch.optim.Adam(learner.parameters(), lr=0.05)
    before = adapted_loss(learner, steps=1).item()
    for _ in range(30):
        optimizer.zero_grad()
        adapted_loss(learner, steps=1).backward()
        optimizer.step()

    assert adapted_loss(learner, steps=1).item() < before / 10


def test_a_head_that_is_none_is_refused():
    with pytest.raises(ValueError, match=r"got 'tail'; there are \['0', '1', '2'\]"):
        maml.ANIL(network(), sgd(0.1), "tail")


def test_a_frozen_module_is_refused():
    with pytest.raises(ValueError, match="no parameter that requires grad"):
        maml.MAML(network().requires_grad_(False), sgd(0.1)).clone()
