"""Half precision in multilevel programs, and steps that are rolled back."""

import functools

import pytest
import torch
from diffopt_implicit import (
    CG,
    Engine,
    Problem,
    UnrolledSteps,
)
from multilevel_problems import SGD, pair
from nested_problems import Descent, Momentum
from torch import nn
from torch.testing import assert_close


def test_bfloat16_is_used_in_the_steps_alone():
    seen = []

    def loss(at, batch):
        out = at.net(batch)
        seen.append(out.dtype)
        return (out.float() - at.high).square().mean()

    net = nn.Linear(4, 2)
    engine = Engine(
        [
            Problem(
                "net", net, loss, SGD, [torch.randn(8, 4)], upper=["high"], autocast=torch.bfloat16
            ),
            Problem(
                "high",
                torch.zeros(2),
                lambda at, b: (at.net(torch.ones(4)) - 1).square().sum(),
                SGD,
                lower={"net": CG(2)},
            ),
        ]
    )
    engine.run(2)
    assert seen[0] == torch.bfloat16
    assert set(seen[1:]) == {torch.bfloat16, torch.float32}
    assert net.weight.dtype == torch.float32


def test_unrolled_steps_are_taken_again_in_their_own_precision():
    torch.manual_seed(0)
    net, x, seen = nn.Linear(4, 2), torch.randn(8, 4), []

    def loss(at, _):
        out = at.net(x)
        seen.append(out.dtype)
        return (out.float() - at.high).square().mean()

    engine = Engine(
        [
            Problem(
                "net",
                net,
                loss,
                Descent(0.3),
                upper=["high"],
                autocast=torch.bfloat16,
                unroll_steps=3,
            ),
            Problem(
                "high",
                torch.zeros(2),
                lambda at, _: (at.net(x) - 1).square().mean(),
                SGD,
                lower={"net": UnrolledSteps()},
            ),
        ]
    )
    engine.run(2)
    assert seen == [torch.bfloat16] * 12  # three steps, and the same again, twice
    assert engine.params("high").min() > 0


def test_the_scale_of_float16_does_not_change_a_derivative():
    found = []
    for autocast in (None, torch.float16):
        engine = pair(
            low={"params": torch.full((2,), 0.25), "optimizer": functools.partial(SGD, lr=0.0)},
            high={"autocast": autocast},
        )
        engine.run(1)
        found.append(engine.gradient("high"))
    assert_close(*found, rtol=0, atol=0)


def test_a_step_that_overflows_is_left_out_and_counted():
    told = []
    log = lambda step, name, values: told.append(values)
    # The scaled loss overflows until its scale has been halved often enough.
    loss = lambda at, _: (1e-3 * (at.w.half() * 8e3)).float().sum()
    engine = Engine(
        [Problem("w", torch.zeros(2), loss, SGD, autocast=torch.float16)], loggers=[log]
    )
    engine.run(20)
    skipped = int(told[-1]["skipped"])
    assert 0 < skipped < 20
    assert engine.counts() == {"w": 20 - skipped}
    assert told[0]["loss_scale"] == 2.0**16
    assert told[-1]["loss_scale"] == 2.0 ** (16 - skipped)
    assert_close(engine.params("w"), torch.full((2,), -0.1 * 8 * (20 - skipped)), rtol=2e-3, atol=0)


@pytest.mark.parametrize("optimizer", [functools.partial(torch.optim.Adam, lr=0.1), Momentum(0.1)])
def test_parameters_and_optimizer_are_rolled_back_exactly(optimizer):  # O-29
    engine = pair(
        low={"optimizer": optimizer, "unroll_steps": 3, "roll_back": True},
        high={"warmup_steps": 2, "params": torch.ones(2)},
    )
    engine.run(2)  # without steps above, nothing is rolled back
    assert engine.params("low").abs().min() > 0
    before = engine.state_dict()["problems"]["low"]
    engine.run(3)
    after = engine.state_dict()["problems"]["low"]
    for key in ("params", "buffers", "descent"):
        assert_close(after[key], before[key], rtol=0, atol=0)
    assert engine.counts() == {"high": 1, "low": 9}
