"""How an engine solves a program: order, data, precision, roll-back, stopping and resuming."""

import functools
import io
import random
import sys
import types

import numpy as np
import pytest
import torch
from diffopt_implicit import (
    CG,
    EarlyStopping,
    Engine,
    FixedPoint,
    OneStep,
    Problem,
    ProgressBar,
    TensorBoardLogger,
    UnrolledSteps,
)
from implicit_problems import normal
from test_multilevel_derivatives import Descent, Momentum
from torch import nn
from torch.testing import assert_close
from torch.utils.data import DataLoader, TensorDataset

SGD = functools.partial(torch.optim.SGD, lr=0.1)
half = lambda x: x.square().sum() / 2


def follow(name, other):
    """A loss whose minimum is the value of another problem."""
    return lambda at, _: half(getattr(at, name) - getattr(at, other))


def pair(low=None, high=None, **options):
    """A bilevel program that pulls `high` to 1 through `low`."""
    low = {"params": torch.zeros(2), "optimizer": SGD, "upper": ["high"], **(low or {})}
    high = {"params": torch.zeros(2), "optimizer": SGD, "lower": {"low": CG()}, **(high or {})}
    return Engine(
        [
            Problem("low", loss=low.pop("loss", follow("low", "high")), **low),
            Problem("high", loss=high.pop("loss", lambda at, _: half(at.low - 1)), **high),
        ],
        **options,
    )


# Order


def test_a_problem_steps_once_for_each_unroll_of_the_one_below():  # O-29
    engine = pair(low={"unroll_steps": 10})
    for i in range(10):
        assert engine.counts() == {"high": 0, "low": i}
        assert engine.step() == "low"
    assert engine.counts() == {"high": 0, "low": 10}
    assert engine.step() == "high"
    assert (engine.counts(), engine.rounds) == ({"high": 1, "low": 10}, 1)


def test_turns_are_nested_from_the_top_to_the_bottom():
    engine = Engine(
        [
            Problem(
                "three",
                torch.zeros(2),
                lambda at, _: half(at.two) + half(at.one - 1),
                SGD,
                lower={"one": CG(), "two": CG()},
            ),
            Problem(
                "two",
                torch.zeros(2),
                lambda at, _: half(at.two - at.three) + half(at.one),
                SGD,
                upper=["three"],
                lower={"one": CG()},
                unroll_steps=2,
            ),
            Problem(
                "one", torch.zeros(2), follow("one", "two"), SGD, upper=["two"], unroll_steps=3
            ),
        ]
    )
    names = [engine.step() for _ in range(24)]
    solve = ["one"] * 3
    assert names == 2 * [*solve, "two", *solve, "two", *solve, "three"]


def test_two_problems_at_the_top_take_turns():
    tops = [
        Problem(
            name,
            torch.zeros(2),
            lambda at, _, sign=sign: half(at.low - sign),
            SGD,
            lower={"low": CG()},
        )
        for name, sign in (("plus", 1), ("minus", -1))
    ]
    low = Problem(
        "low",
        torch.zeros(2),
        lambda at, _: half(at.low - at.plus - at.minus),
        SGD,
        upper=["plus", "minus"],
        unroll_steps=2,
    )
    engine = Engine([low, *tops])
    assert [engine.step() for _ in range(6)] == ["low", "low", "plus", "low", "low", "minus"]


def test_a_program_of_one_problem_is_training():
    engine = Engine([Problem("w", torch.zeros(2), lambda at, _: half(at.w - 1), SGD)])
    engine.run(3)
    assert_close(engine.params("w"), torch.full((2,), 1 - 0.9**3))


def test_a_round_counts_from_the_start_of_the_program():
    engine = pair()
    engine.run(3)
    engine.run(3)
    assert engine.rounds == 3


def test_turns_pass_while_a_problem_warms_up():
    engine = pair(low={"unroll_steps": 5}, high={"warmup_steps": 2})
    engine.run(2)
    assert engine.counts() == {"high": 0, "low": 10}
    engine.run(3)
    assert engine.counts() == {"high": 1, "low": 15}


def test_the_solution_is_followed_to_the_optimum():
    engine = pair(low={"unroll_steps": 20})
    engine.run(100)
    assert_close(engine.params("high"), torch.ones(2), rtol=1e-3, atol=0)


# Modules


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


# Batches


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


# Precision


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


# Roll-back


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


# Validation, early stopping and logs


def test_a_program_stops_when_a_measure_no_longer_improves():
    measures = iter([3.0, 2.0, 2.5, 1.99, 5.0, float("nan"), 4.0, 0.0])
    engine = pair(
        validate=lambda engine: {"error": next(measures)},
        validate_every=2,
        early_stopping=EarlyStopping("error", patience=3),
    )
    engine.run(100)
    assert engine.stopped
    assert engine.rounds == 2 * 7


@pytest.mark.parametrize(("mode", "sign", "rounds"), [("max", 1, 6), ("min", -1, 6), ("min", 1, 3)])
def test_more_is_better_where_said_so_and_little_is_nothing(mode, sign, rounds):
    measures = iter([1.0, 1.05, 2.0, 3.0, 3.0, 3.05, 9.0])
    engine = pair(
        validate=lambda engine: {"score": sign * next(measures)},
        early_stopping=EarlyStopping("score", patience=2, mode=mode, min_delta=0.1),
    )
    engine.run(100)
    assert engine.rounds == rounds


def test_loggers_are_told_what_happened():
    told = []
    engine = pair(
        low={"unroll_steps": 4},
        loggers=[lambda *values: told.append(values)],
        log_every=2,
        validate=lambda engine: {"distance": half(engine.params("low") - 1)},
    )
    engine.run(2)
    assert [(step, name) for step, name, _ in told] == [
        (2, "low"),
        (4, "low"),
        (1, "validation"),
        (6, "low"),
        (8, "low"),
        (2, "high"),
        (2, "validation"),
    ]
    assert set(told[0][2]) == {"loss", "gradient_norm", "learning_rate"}
    assert told[0][2]["learning_rate"] == 0.1
    assert all(isinstance(number, float) for _, _, values in told for number in values.values())


def test_numbers_are_written_for_tensorboard(monkeypatch, tmp_path):
    written = []

    class SummaryWriter:
        def __init__(self, folder):
            written.append(folder)

        def add_scalar(self, tag, value, step):
            written.append((tag, value, step))

        def flush(self):
            pass

    writer = types.ModuleType("torch.utils.tensorboard.writer")
    writer.SummaryWriter = SummaryWriter
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", types.ModuleType("tensorboard"))
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard.writer", writer)
    TensorBoardLogger(tmp_path)(3, "low", {"loss": 0.5})
    assert written == [str(tmp_path), ("low/loss", 0.5, 3)]


def test_a_bar_counts_the_steps_of_one_problem(monkeypatch):
    tqdm = types.ModuleType("tqdm")

    class Bar:
        def __init__(self, total, desc, **options):
            self.total, self.n, self.open, self.shown = total, 0, True, {}

        def set_postfix(self, values, refresh):
            self.shown = dict(values)

        def update(self, n):
            self.n += n

        def close(self):
            self.open = False

    tqdm.tqdm = Bar
    monkeypatch.setitem(sys.modules, "tqdm", tqdm)
    bar = ProgressBar("high", total=3)
    engine = pair(loggers=[bar])
    engine.run(2)
    assert (bar.bar.n, bar.bar.open) == (2, True)
    assert bar.bar.shown == {"low": "0.00903", "high": "0.81"} or set(bar.bar.shown) == {
        "low",
        "high",
    }
    engine.run(3)
    assert (bar.bar.n, bar.bar.open) == (3, False)


@pytest.mark.parametrize(
    ("logger", "module", "name"),
    [
        (lambda: TensorBoardLogger("x"), "torch.utils.tensorboard.writer", "tensorboard"),
        (lambda: ProgressBar("x"), "tqdm", "progress"),
    ],
)
def test_a_logger_says_what_to_install(monkeypatch, logger, module, name):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ModuleNotFoundError, match=rf"pip install diffopt-implicit\[{name}\]"):
        logger()


# Resuming


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
