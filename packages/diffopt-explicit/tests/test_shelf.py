"""Small tensors of many states, which lie together."""

import gc

import torch
from diffopt_explicit import Replay, Store, adam, unroll
from diffopt_explicit._shelf import LINE, SMALL, Shelf, Shelved
from torch import Tensor, nn

STATE = {
    "matrix": torch.arange(6.0).view(2, 3),
    "number": torch.tensor(3),
    "double": torch.randn(5, dtype=torch.float64),
    "half": torch.randn(3).to(torch.bfloat16),
    "nothing": torch.empty(0, 4),
    "transposed": torch.randn(3, 2).t(),
    "large": torch.randn(SMALL),
    "step": 7,
    "none": None,
}


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if isinstance(value, Tensor):
            assert found[name].dtype == value.dtype
            assert found[name].stride() == value.stride()
            torch.testing.assert_close(found[name], value, rtol=0, atol=0)
        else:
            assert found[name] == value


def test_a_state_comes_back_as_it_was_and_aligned():
    found = Shelved(STATE, Shelf()).load()

    assert_same(found, STATE)
    for name in ("matrix", "number", "double", "half"):
        assert found[name].data_ptr() % LINE == 0
        assert found[name].data_ptr() != STATE[name].data_ptr()
    assert found["large"] is STATE["large"]


def test_what_was_loaded_stays_when_its_row_is_used_again():
    shelf = Shelf()
    one, other = ({"w": torch.full((100,), value)} for value in (1.0, 2.0))
    shelved = Shelved(one, shelf)
    found = shelved.load()
    del shelved
    assert_same(Shelved(other, shelf).load(), other)
    assert_same(found, one)


def test_rows_of_states_that_are_gone_are_used_again():
    shelf, kept = Shelf(), []
    addresses = set()
    for step in range(1000):
        state = Shelved({"w": torch.full((1000,), float(step))}, shelf)
        addresses.add(state._row.data_ptr())
        kept = [*kept[-2:], (step, state)]
        for written, old in kept:
            assert old.load()["w"][0] == written
    assert len(addresses) < 300  # of one piece


def test_what_autograd_tracks_or_subclasses_stay_themselves():
    learned, parameter = torch.ones(3, requires_grad=True), nn.Parameter(torch.ones(3))
    conjugate = torch.ones(3, dtype=torch.complex64).conj()
    found = Shelved([learned, parameter, conjugate], Shelf()).load()
    assert found[0] is learned
    assert found[1] is parameter
    assert found[2] is conjugate


def test_many_states_with_random_numbers_and_buffers_are_the_same_again():
    x = torch.randn(16, 4)

    def gradient(adjoint_of):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.2), nn.Linear(8, 1))
        params = {name: p.detach().clone() for name, p in net.named_parameters()}
        start = {name: p.requires_grad_() for name, p in params.items()}
        loss = lambda p: torch.func.functional_call(net, p, (x,)).square().mean()
        result = unroll(loss, adam(1e-2), start, steps=60, adjoint=adjoint_of(net))
        total = sum(p.square().sum() for p in result.params.values())
        return torch.autograd.grad(total, list(start.values()))

    expected = gradient(lambda net: Store())
    found = gradient(lambda net: Replay(snapshots=40, modules=(net,), verify="always"))
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


def test_of_many_states_few_tensors_are_alive():
    w = {i: torch.ones(10, requires_grad=True) for i in range(20)}
    live = lambda: sum(type(thing) is torch.Tensor for thing in gc.get_objects())
    before = live()
    loss = lambda w: sum(p.sin().sum() for p in w.values())
    result = unroll(loss, adam(0.1), w, steps=200, adjoint=Replay(snapshots=150))

    # Parameters and two moments of 16 states and around the last step, and a row for each other
    # state; not 60 tensors of each.
    assert live() - before < 60 * (16 + 6) + 2 * 150
    assert result.losses.shape == (200,)
