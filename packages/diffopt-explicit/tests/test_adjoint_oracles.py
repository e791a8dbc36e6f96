"""Every way to differentiate an unroll against torch.optim, its differences, and steps by hand.

O-7, O-8, O-10 and O-11, of which the inner loops have theirs in their own tests.
"""

import copy

import pytest
import torch
from diffopt_explicit import (
    Forward,
    FunctionalModule,
    KAry,
    Recomputed,
    Replay,
    Store,
    adam,
    from_torch,
    nadam,
    override,
    rmsprop,
    sgd,
    unroll,
)
from test_inner_loop import convolutional, convolutional_by_hand
from test_torch_optim import GRID, MODELS, build, loss_of, optimizer_of, train
from torch import tensor
from torch.autograd import grad
from torch.func import functional_call
from torch.nn import functional

WAYS = {
    "store": {"adjoint": Store()},
    "truncated after the start": {"adjoint": Store(), "truncate": 3},
    "replay": {"adjoint": Replay(graphs=1, verify="always")},
    "replay from the start": {"adjoint": Replay(snapshots=1)},
    "replay over a tree": {"adjoint": Replay(snapshots=KAry(2)), "truncate": 3},
    "replay of three at once": {"adjoint": Replay(graphs=3, verify="always")},
    "replay of recomputed gradients": {"adjoint": Replay(graphs=1), "gradient": Recomputed()},
    "forward": {"adjoint": Forward(limit=500)},
    "forward, truncated after the start": {"adjoint": Forward(limit=500), "truncate": 3},
}
EVERY_WAY = pytest.mark.parametrize("way", WAYS)


@pytest.fixture(autouse=True)
def double_precision():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def ends_of(module, tx, start, xs, way):
    """The parameters after steps on all batches."""

    def loss(params, batch):
        step, x = batch
        return loss_of(FunctionalModule(module, params), x, step)

    return unroll(loss, tx, start, batches=list(enumerate(xs)), **WAYS[way]).params


@pytest.mark.parametrize("way", ["store", "replay over a tree", "forward"])
@pytest.mark.parametrize("index", range(len(GRID)))
def test_steps_equal_those_of_torch_optim(index, way):
    (kind, flags), model = GRID[index], sorted(MODELS)[index % len(MODELS)]
    module, xs = build(model)
    theirs = copy.deepcopy(module)
    train(theirs, optimizer_of(kind, flags, theirs, 2), xs)
    start = dict(module.named_parameters())
    tx = from_torch(optimizer_of(kind, flags, module, 2), start)
    shift = torch.zeros((), requires_grad=True)
    moved = {name: param.detach() + shift for name, param in start.items()}
    ends = ends_of(module, tx, moved, xs, way)

    for name, expected in theirs.named_parameters():
        torch.testing.assert_close(ends[name], expected, rtol=0, atol=1e-12, msg=name)


@EVERY_WAY
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(
    ("kind", "flags"),
    [
        (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "dampening": 0.3, "weight_decay": 0.05}),
        (torch.optim.Adam, {"lr": 0.05, "amsgrad": True, "betas": (0.5, 0.5), "eps": 1e-2}),
        (torch.optim.RMSprop, {"lr": 0.05, "eps": 1e-1, "centered": True, "momentum": 0.5}),
    ],
)
def test_meta_gradients_equal_central_differences_of_torch_optim(kind, flags, model, way):
    module, xs = build(model)
    torch.manual_seed(1)
    direction = {name: torch.randn_like(p) for name, p in module.named_parameters()}

    def end_of_torch_optim(shift):
        moved = copy.deepcopy(module)
        with torch.no_grad():
            for name, p in moved.named_parameters():
                p += shift * direction[name]
        train(moved, kind(moved.parameters(), **flags), xs)
        return loss_of(moved, xs[0], 0).item()

    start, shift = dict(module.named_parameters()), torch.zeros((), requires_grad=True)
    moved = {name: p.detach() + shift * direction[name] for name, p in start.items()}
    tx = from_torch(kind(module.parameters(), **flags), start)
    ends = ends_of(module, tx, moved, xs, way)
    exact = grad(loss_of(FunctionalModule(module, ends), xs[0], 0), shift)[0].item()
    h = 1e-5
    near, far = (end_of_torch_optim(k * h) - end_of_torch_optim(-k * h) for k in (1, 2))

    assert exact == pytest.approx((8 * near - far) / (12 * h), rel=1e-6)


@EVERY_WAY
def test_ten_steps_of_a_convolutional_network_equal_those_by_hand(way):
    options = {**WAYS[way], **({"truncate": 10} if "truncate" in WAYS[way] else {})}
    module = convolutional()
    x, y = torch.randn(10, 6, 1, 8, 8), torch.randint(3, (10, 6))
    first, rate = dict(module.named_parameters()), tensor(0.1, requires_grad=True)
    learned = {name: p.detach() for name, p in first.items() if p.requires_grad}
    frozen = {name: p.detach() for name, p in first.items() if not p.requires_grad}
    # All numbers of the start are more than `Forward` is for: it is asked for the rate alone.
    shift = torch.zeros((), requires_grad=not isinstance(options["adjoint"], Forward))
    by = [number for number in (rate, shift) if number.requires_grad]
    direction = {name: torch.randn_like(p) for name, p in learned.items()}

    def outcome(steps_of):
        start = {name: p + shift * direction[name] for name, p in learned.items()}
        ends, losses = steps_of(start)
        predicted = convolutional_by_hand({**frozen, **ends}, x[0])
        outer = functional.cross_entropy(predicted, y[0]) + losses.sum()
        return ends, losses, grad(outer, by)

    def by_hand(params):
        params, losses = {name: p.requires_grad_() for name, p in params.items()}, []
        for images, labels in zip(x, y, strict=True):
            predicted = convolutional_by_hand({**frozen, **params}, images)
            losses.append(functional.cross_entropy(predicted, labels))
            grads = grad(losses[-1], list(params.values()), create_graph=True)
            moved = [p - rate * g for p, g in zip(params.values(), grads, strict=True)]
            params = dict(zip(params, moved, strict=True))
        return params, torch.stack(losses)

    def by_unroll(params):
        def loss(params, batch):
            return functional.cross_entropy(functional_call(module, params, batch[0]), batch[1])

        batches = list(zip(x, y, strict=True))
        result = unroll(loss, sgd(rate), params, batches=batches, **options)
        return result.params, result.losses

    torch.testing.assert_close(outcome(by_unroll), outcome(by_hand), rtol=1e-9, atol=1e-12)
    for name, param in first.items():
        if name in frozen:
            assert torch.equal(param, frozen[name])
            assert param.grad is None


RECIPES = {
    "sgd": (sgd, {"lr": 0.03, "momentum": 0.7, "weight_decay": 0.1}),
    "adam": (adam, {"lr": 0.03, "eps": 0.01, "weight_decay": 0.1}),
    "nadam": (nadam, {"lr": 0.03, "eps": 0.1, "momentum_decay": 0.2}),
    "rmsprop": (rmsprop, {"lr": 0.03, "alpha": 0.7, "eps": 0.1}),
}


@EVERY_WAY
@pytest.mark.parametrize("name", RECIPES)
def test_learned_hyperparameters_make_the_same_optimizer_of_another(name, way):
    recipe, values = RECIPES[name]
    learned = {key: tensor(value, requires_grad=True) for key, value in values.items()}
    others = {"sgd": {"momentum": 0.1, "weight_decay": 0.2}, "adam": {"weight_decay": 0.2}}
    made, overridden = recipe(**learned), override(recipe(0.5, **others.get(name, {})), **learned)
    module, xs = build("mlp")
    start = {key: p.detach() for key, p in module.named_parameters()}

    def derivatives(tx):
        ends = ends_of(module, tx, start, xs, way)
        return ends, grad(sum(p.square().sum() for p in ends.values()), list(learned.values()))

    assert overridden == made
    found, expected = derivatives(overridden), derivatives(made)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert all(derivative != 0 for derivative in found[1])
