"""Programs that go on where they were saved."""

import functools
import io
import random

import numpy as np
import pytest
import torch
from diffopt_implicit import (
    EarlyStopping,
    Engine,
    FixedPoint,
    Problem,
    UnrolledSteps,
)
from multilevel_problems import half
from nested_problems import Momentum
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class Counted:
    """A loader that can tell its own state, and is shuffled by a private rule."""

    def __init__(self):
        self.place = 0

    def __iter__(self):
        while self.place < 5:
            self.place += 1
            yield torch.tensor([float(self.place), 1.0])
        self.place = 0

    def state_dict(self):
        return {"place": self.place}

    def load_state_dict(self, state):
        self.place = state["place"]


def noisy_program(**options):
    """A program with all kinds of state: loaders, dropout, schedules, adjoints, roll-back."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Dropout(0.3), nn.Linear(3, 1))
    dataset = TensorDataset(torch.randn(10, 2), torch.randn(10, 1))
    generator = torch.Generator().manual_seed(3)
    own = DataLoader(dataset, batch_size=3, shuffle=True, generator=generator)
    shared = DataLoader(dataset, batch_size=4, shuffle=True)
    adam = functools.partial(torch.optim.Adam, lr=0.01)

    def training(at, batch):
        x, y = batch
        noise = random.random() + np.random.rand()
        decay = sum((at.top.exp() * p.square()).sum() for p in at.net.params.values())
        return (at.net(x) - y).square().mean() + 0.01 * decay + 0 * noise

    return Engine(
        [
            Problem(
                "net",
                net,
                training,
                adam,
                own,
                upper=["top"],
                unroll_steps=3,
                gradient_accumulation=2,
                scheduler=functools.partial(torch.optim.lr_scheduler.StepLR, step_size=2),
            ),
            Problem(
                "side",
                torch.zeros(2),
                lambda at, b: half(at.side - at.top * b) + 0 * torch.rand(()),
                Momentum(0.1),
                Counted(),
                upper=["top"],
                unroll_steps=4,
                roll_back=True,
            ),
            Problem(
                "top",
                torch.zeros(1),
                lambda at, b: (at.net(b[0]) - b[1]).square().mean() + half(at.side - 1),
                adam,
                shared,
                lower={"net": FixedPoint(2, 0.1), "side": UnrolledSteps(3)},
            ),
        ],
        validate=lambda engine: {"noise": torch.rand(()).item() + random.random()},
        early_stopping=EarlyStopping("noise", patience=50),
        **options,
    )


@pytest.mark.parametrize("turns", [0, 1, 3, 6, 7, 8, 16, 21])
def test_a_program_goes_on_bit_by_bit_where_it_was_saved(turns):
    whole = noisy_program()
    for _ in range(turns):
        whole.step()
    file = io.BytesIO()
    torch.save(whole.state_dict(), file)
    for _ in range(20):
        whole.step()

    random.seed(99)
    np.random.seed(99)
    again = noisy_program()
    again.step()  # whatever it did before, it forgets
    file.seek(0)
    again.load_state_dict(torch.load(file))  # with torch's list of trusted types alone
    for _ in range(20):
        again.step()

    ours, theirs = again.state_dict(), whole.state_dict()
    assert_same(ours, theirs)


def assert_same(ours, theirs):
    """Equal to the bit, through all containers."""
    if isinstance(ours, torch.Tensor):
        assert torch.equal(ours, theirs)
    elif isinstance(ours, dict):
        assert ours.keys() == theirs.keys()
        for key in ours:
            assert_same(ours[key], theirs[key])
    elif isinstance(ours, (list, tuple)):
        assert len(ours) == len(theirs)
        for a, b in zip(ours, theirs, strict=True):
            assert_same(a, b)
    else:
        assert ours == theirs


def test_a_saved_state_is_a_copy():
    engine = noisy_program()
    engine.run(1)
    state = engine.state_dict()
    before = io.BytesIO()
    torch.save(state, before)
    engine.run(2)
    before.seek(0)
    assert_same(state, torch.load(before))


def test_a_refused_state_changes_nothing():
    wrong = noisy_program().state_dict()
    engine = noisy_program()
    engine.run(1)
    before = engine.state_dict()
    wrong["problems"]["top"]["params"] = (torch.zeros(7),)
    with pytest.raises(ValueError, match=r"parameters of `top` have the shapes \[\(7,\)\]"):
        engine.load_state_dict(wrong)
    assert_same(engine.state_dict(), before)
