"""What stops a program, and whom it tells what happens."""

import sys
import types

import pytest
from diffopt_implicit import (
    EarlyStopping,
    ProgressBar,
    TensorBoardLogger,
)
from multilevel_problems import half, pair


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
