"""States of optimizers in place: those of torch.optim, saved, copied and cast."""

import copy
import io
import pickle

import diffopt_explicit as ours
import pytest
import torch
from optimizer_problems import GRID, ONE_WAY, assert_same, groups, network, torch_flags, train


@pytest.fixture(autouse=True)
def double_precision():
    """Also for the numbers that torch.optim keeps in the default dtype (a product in NAdam)."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(
    ("kind", "theirs", "flags", "theirs_first"),
    [(*row, first) for row in GRID for first in (True, False)] + [(*row, True) for row in ONE_WAY],
)
def test_either_goes_on_from_the_state_of_the_other(kind, theirs, flags, theirs_first):
    def of(module, is_ours):
        flags_of = (kind, flags) if is_ours else (theirs, torch_flags(theirs, kind, flags))
        return flags_of[0](groups(module), **flags_of[1])

    module, reference = network(), network()
    train(reference, of(reference, True), 5)
    before = of(module, not theirs_first)
    train(module, before, 3)
    after = of(module, theirs_first)
    after.load_state_dict(copy.deepcopy(before.state_dict()))
    train(module, after, 2, first=3)

    assert_same(module, reference)


@pytest.mark.parametrize("kind", [ours.NAdam, ours.SGD, ours.Adam])
def test_a_saved_state_is_gone_on_from(kind, path):
    module, reference = network(), network()
    flags = {"momentum": 0.9} if kind is ours.SGD else {}
    train(reference, kind(reference.parameters(), lr=0.1, **flags), 5)
    before = kind(module.parameters(), lr=0.1, **flags)
    train(module, before, 3)
    file = io.BytesIO()
    torch.save(before.state_dict(), file)
    file.seek(0)
    after = kind(module.parameters())
    after.load_state_dict(torch.load(file, weights_only=True))
    train(module, after, 2, first=3)

    assert_same(module, reference)


@pytest.mark.parametrize("travel", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_module_and_optimizer_travel_together(travel, path):
    module, reference = network(), network()
    flags = {"lr": 0.1, "momentum": 0.9}
    train(reference, ours.SGD(groups(reference), **flags), 5)
    optimizer = ours.SGD(groups(module), **flags)
    train(module, optimizer, 3)
    module, optimizer = travel((module, optimizer))
    train(module, optimizer, 2, first=3)

    assert_same(module, reference)


def test_a_state_is_cast_to_the_parameters_that_it_is_loaded_for():
    module = network()
    optimizer = ours.Adam(module.parameters())
    train(module, optimizer, 1)
    narrow = network().float()
    loaded = ours.Adam(narrow.parameters())
    loaded.load_state_dict(optimizer.state_dict())

    assert loaded.state[narrow[0].weight]["exp_avg"].dtype == torch.float32
    assert loaded.state[narrow[0].weight]["step"] == 1


CLIPPED = ours.chain(ours.trace(0.5), ours.clip_by_global_norm(1.0), ours.adam(0.1))

APART = ours.partition(
    {"a": CLIPPED, "b": ours.sgd(ours.linear(0.1, 0.0, 10), 0.9)}, ["a", "b", "a", "b", "b", "b"]
)


@pytest.mark.parametrize(
    "tx",
    [CLIPPED, ours.chain(ours.trace(0.3), APART), ours.chain(ours.trace(0.5), ours.sgd(0.1, 0.3))],
)
def test_any_transform_has_a_state_that_travels(tx):
    def optimizer_of(module):
        return ours.Optimizer(module.parameters(), tx)

    module, reference = network(), network()
    train(reference, optimizer_of(reference), 5)
    before = optimizer_of(module)
    train(module, before, 3)
    after = optimizer_of(module)
    after.load_state_dict(pickle.loads(pickle.dumps(before.state_dict())))
    train(module, after, 2, first=3)

    assert_same(module, reference)


@pytest.mark.parametrize(
    "tx",
    [
        ours.lookahead(ours.sgd(0.1, 0.5), sync_period=2),
        ours.accumulate(ours.adam(0.1), 2),
        ours.apply_if_finite(ours.adam(0.1), 3),
        ours.inject(ours.adam(), lr=0.1),
        ours.chain(ours.trace(0.5), ours.sgd(0.1, 0.3)),
    ],
    ids=lambda tx: type(tx).__name__,
)
@pytest.mark.parametrize("travels", [False, True])
def test_wrappers_do_in_place_what_they_do_to_values(tx, travels):
    start = torch.linspace(1, 2, 4)
    expected = ours.unroll(lambda w: w.sin().sum(), tx, start, steps=5).params
    param = start.clone().requires_grad_()
    optimizer = ours.Optimizer([param], tx)
    for _ in range(5):
        if travels:
            state = pickle.loads(pickle.dumps(optimizer.state_dict()))
            optimizer = ours.Optimizer([param], tx)
            optimizer.load_state_dict(state)
        optimizer.zero_grad()
        param.sin().sum().backward()
        optimizer.step()

    torch.testing.assert_close(param, expected, rtol=1e-12, atol=0)


def w() -> torch.Tensor:
    return torch.ones(2, requires_grad=True)
