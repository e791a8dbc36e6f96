"""Modules and batches of the problems of a program."""

import functools

import torch
from diffopt_implicit import (
    CG,
    Engine,
    FixedPoint,
    OneStep,
    Problem,
)
from implicit_problems import normal
from multilevel_problems import SGD, half, pair
from nested_problems import Descent
from torch import nn
from torch.testing import assert_close


def test_modules_are_trained_where_they_are_and_bound_where_they_are_read():
    torch.manual_seed(0)
    net, weigh = nn.Linear(3, 1), nn.Linear(1, 1)
    x, y = torch.randn(20, 3), torch.randn(20, 1)

    def training(at, batch):
        error = (at.net(batch[0]) - batch[1]).square()
        return (at.weigh(error.detach()).sigmoid() * error).mean()

    before = [p.detach().clone() for p in (*net.parameters(), *weigh.parameters())]
    engine = Engine(
        [
            Problem("net", net, training, SGD, data=[(x, y)], upper=["weigh"]),
            Problem(
                "weigh",
                weigh,
                lambda at, b: (at.net(b[0]) - b[1]).square().mean(),
                SGD,
                data=[(x, y)],
                lower={"net": CG(3)},
            ),
        ]
    )
    engine.run(2)
    after = [*net.parameters(), *weigh.parameters()]
    assert all((a != b).any() for a, b in zip(after, before, strict=True))
    assert_close(engine.params("net"), dict(net.named_parameters()))
    assert all(p.grad is None and p.requires_grad for p in after)


def test_a_transform_steps_a_module_as_an_optimizer_of_torch_does():
    found = []
    for optimizer in (functools.partial(SGD, lr=0.3), Descent(0.3)):
        torch.manual_seed(0)
        net, x = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 2)), torch.ones(3, 2)
        loss = lambda at, _, x=x: (at.net(x) - 1).square().sum()
        Engine([Problem("net", net, loss, optimizer)]).run(3)
        found.append(net.state_dict())
    assert_close(*found)


def test_the_params_of_a_caller_stay_as_they_are():
    w = {"a": torch.zeros(2), "b": [torch.zeros(())]}
    loss = lambda at, _: half(at.w["a"] - 1) + half(at.w["b"][0] - 1)
    engine = Engine([Problem("w", w, loss, SGD)])
    engine.run(1)
    assert w["a"].sum() == 0
    assert_close(engine.params("w"), {"a": torch.full((2,), 0.1), "b": [torch.tensor(0.1)]})


def test_running_statistics_move_in_a_problem_s_own_steps_alone():
    net, x = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)), torch.randn(8, 2)
    loss = lambda at, _: at.net(x).square().mean() + at.net(x).mean()
    engine = Engine(
        [
            Problem("net", net, loss, SGD),
            Problem(
                "other", torch.zeros(2), lambda at, _: half(at.other - at.net(x)), SGD, ["net"]
            ),
        ][:1]
    )
    engine.run(2)
    assert net[1].num_batches_tracked == 4
    engine.gradient("net")
    assert net[1].num_batches_tracked == 4


class Counting(nn.Linear):
    """A layer that counts its calls."""

    def __init__(self):
        super().__init__(2, 2)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls.add_(1)
        return super().forward(x)


def test_buffers_are_changed_by_steps_and_by_nothing_else():
    net, x = Counting(), torch.ones(3, 2)
    engine = pair(
        low={"params": net, "loss": lambda at, _: half(at.low(x) - at.high)},
        high={"loss": lambda at, _: half(at.low(x) - 1), "lower": {"low": FixedPoint(2, 0.1)}},
    )
    engine.run(3)
    assert net.calls == 3


def test_dropout_is_the_same_in_every_product_of_an_adjoint():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Dropout(0.5), nn.Linear(6, 1)).double()
    x, y = normal(10, 4), normal(10, 1, seed=1)
    loss = lambda at, _: (
        (at.net(x) - y).square().mean()
        + sum(at.decay.exp() * p.square().sum() for p in at.net.params.values())
    )
    engine = Engine(
        [
            Problem("net", net, loss, SGD, upper=["decay"]),
            Problem(
                "decay",
                torch.tensor(0.0, dtype=torch.float64),
                lambda at, _: (at.net(x) - y).abs().mean(),
                SGD,
                lower={"net": CG(5)},
            ),
        ]
    )
    engine.run(1)
    assert_close(engine.gradient("decay"), engine.gradient("decay"), rtol=0, atol=0)


def test_a_step_over_many_batches_follows_their_mean():
    rows = list(normal(6, 2))
    wide = Problem("w", normal(2, seed=1), lambda at, b: half(at.w - b), SGD, data=[sum(rows) / 6])
    many = Problem(
        "w",
        normal(2, seed=1),
        lambda at, b: half(at.w - b),
        SGD,
        data=rows,
        gradient_accumulation=6,
    )
    found = []
    for problem in (wide, many):
        engine = Engine([problem])
        engine.run(3)
        found.append(engine.params("w"))
    assert_close(*found)


def test_an_adjoint_is_taken_on_all_batches_of_the_last_step():
    rows = [normal(2, seed=i) for i in range(3)]
    loss = lambda at, b: (at.low * at.high.exp() * b).cosh().sum()
    engines = [
        pair(
            low={"loss": loss, "params": torch.ones(2).double(), **low},
            # Conjugate gradients would not notice if the loss were scaled.
            high={"params": torch.ones(2).double(), "lower": {"low": OneStep(0.1)}},
        )
        for low in (
            {"data": rows, "gradient_accumulation": 3},
            {"loss": lambda at, _: sum(loss(at, b) for b in rows) / 3},
        )
    ]
    for engine in engines:
        engine.run(1)
    assert_close(engines[0].gradient("high"), engines[1].gradient("high"))


def test_data_begin_anew_when_they_end():
    seen = []
    data = [torch.tensor(float(i)) for i in range(3)]
    loss = lambda at, b: seen.append(b.item()) or half(at.w - b)
    Engine([Problem("w", torch.zeros(()), loss, SGD, data=data)]).run(7)
    assert seen == [0, 1, 2, 0, 1, 2, 0]
