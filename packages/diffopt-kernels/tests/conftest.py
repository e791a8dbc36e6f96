import contextlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffopt_kernels as dk
import pytest
import torch
from diffopt_kernels import _fused, _launch, _step
from torch import Tensor

# `--import-mode=importlib` leaves this folder off the path, and the tests share a module in it.
sys.path.insert(0, str(Path(__file__).parent))


@dataclass(frozen=True)
class Case:
    """A rule with its flags, called alike for all: a new rule joins every test by one line."""

    name: str
    numbers: dict[str, float]  # without weight decay; `beta1` and `beta2` become `betas`
    states: tuple[str, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)
    optim: type[torch.optim.Optimizer] | None = None
    unused: int = -1  # the place of a list of states that is None
    counts_steps: bool = True

    def __str__(self) -> str:
        return "-".join([self.name, *self.states, *self.options])

    def step(self, grads, states, steps, numbers, **options: Any) -> list[list[Tensor]]:
        """Return the updates and the new states that are in use."""
        function = getattr(dk, f"{self.name}_step")
        arguments = self._arguments(grads, states, steps, numbers)
        columns = function(*arguments, **self._keywords(numbers, options))
        if self.name == "nadam":
            columns = columns[:-1]  # without the product of momenta
        return [column for column in columns if column]

    def step_(self, params, grads, states, steps, numbers, **options: Any) -> None:
        function = getattr(dk, f"{self.name}_step_")
        arguments = self._arguments(grads, states, steps, numbers)
        function(params, *arguments, **self._keywords(numbers, options))

    def make_optimizer(self, params, numbers, **options: Any) -> torch.optim.Optimizer:
        """Return torch's optimizer of this rule."""
        options = self._keywords(numbers, options)
        if self.name == "amsgrad":
            options["amsgrad"] = True
        decoupled = options.pop("decoupled", False)
        if self.name == "nadam":
            options["decoupled_weight_decay"] = decoupled
        return self.optim(params, **options)

    def _arguments(self, grads, states, steps, numbers) -> list[Any]:
        columns: list[Any] = [grads, *states]
        if self.unused >= 0:
            columns.insert(self.unused, None)
        if self.name == "nadam":
            given = "mu_products" in numbers
            columns.append(numbers["mu_products"] if given else mu_product(numbers, steps))
        return [*columns, steps] if self.counts_steps else columns

    def _keywords(self, numbers: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
        numbers = dict(numbers)
        numbers.pop("mu_products", None)
        if "beta1" in numbers:
            numbers["betas"] = (numbers.pop("beta1"), numbers.pop("beta2"))
        return {**numbers, **self.options, **options}


def mu_product(numbers: dict[str, Any], steps: int | list[int]) -> Any:
    """Return NAdam's product of momenta before a step, or before each of some."""
    if not isinstance(steps, int):
        return [mu_product(numbers, step) for step in steps]
    product = 1.0
    for t in range(1, steps):
        product = product * numbers["beta1"] * (1 - 0.5 * 0.96 ** (t * numbers["momentum_decay"]))
    return product


_ADAM = {"lr": 0.1, "beta1": 0.9, "beta2": 0.99, "eps": 1e-3, "eps_root": 0.0}
_MOMENTS = ("exp_avgs", "exp_avg_sqs")
_NADAM = {"lr": 0.1, "beta1": 0.9, "beta2": 0.99, "eps": 1e-3, "momentum_decay": 0.1}
_RMSPROP = {"lr": 0.1, "alpha": 0.9, "eps": 1e-3}
_RMSPROP_MOMENTUM = {**_RMSPROP, "momentum": 0.7}
CASES = [
    Case("adam", _ADAM, _MOMENTS, optim=torch.optim.Adam),
    Case("adam", _ADAM, _MOMENTS, {"decoupled": True}, torch.optim.AdamW),
    Case("amsgrad", _ADAM, (*_MOMENTS, "max_exp_avg_sqs"), optim=torch.optim.Adam),
    Case("sgd", {"lr": 0.1}, optim=torch.optim.SGD, unused=1),
    Case("sgd", {"lr": 0.1, "momentum": 0.9, "dampening": 0.3}, ("momentum_buffers",),
         optim=torch.optim.SGD),
    Case("sgd", {"lr": 0.1, "momentum": 0.9}, ("momentum_buffers",), {"nesterov": True},
         torch.optim.SGD),
    *[
        Case("rmsprop", numbers, states, options, torch.optim.RMSprop, unused, False)
        for numbers, states, options, unused in [
            (_RMSPROP, ("square_avgs",), {}, -1),
            (_RMSPROP, ("square_avgs", "grad_avgs"), {"centered": True}, -1),
            (_RMSPROP_MOMENTUM, ("square_avgs", "momentum_buffers"), {}, 2),
            (_RMSPROP_MOMENTUM, ("square_avgs", "grad_avgs", "momentum_buffers"),
             {"centered": True}, -1),
        ]
    ],
    Case("adagrad", {"lr": 0.1, "lr_decay": 0.2, "eps": 1e-3}, ("state_sums",),
         optim=torch.optim.Adagrad),
    Case("nadam", _NADAM, _MOMENTS, optim=torch.optim.NAdam),
    Case("nadam", _NADAM, _MOMENTS, {"decoupled": True}, torch.optim.NAdam),
    Case("lion", {"lr": 0.1, "beta1": 0.9, "beta2": 0.99}, ("exp_avgs",), counts_steps=False),
]  # fmt: skip


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" in metafunc.fixturenames:
        metafunc.parametrize("case", CASES, ids=str)


@pytest.fixture(autouse=True, params=["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"])
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    """Run every test on every kind of device that there is: there tensors are made."""
    if request.param == "cpu":  # which is the default; torch 2.9 is not left as it was by None
        yield request.param
        return
    torch.set_default_device(request.param)
    yield request.param
    torch.set_default_device(None)


@pytest.fixture(autouse=True)
def emulation(monkeypatch: pytest.MonkeyPatch) -> bool:
    """Let tensors on the CPU take the CUDA kernels, if these were built to be run there."""
    emulated = dk.build_info()["cuda_architectures"] == ["emulated"]
    if emulated:
        stream = SimpleNamespace(cuda_stream=0)
        monkeypatch.setattr(_launch, "is_on_cuda", lambda tensor: True)
        none = SimpleNamespace(forward=lambda *_: None, vjp=lambda *_: None)
        monkeypatch.setattr(_fused, "passes", none)
        monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    return emulated


def compose(patch: pytest.MonkeyPatch) -> None:
    """Let every step take the composed path."""
    patch.setattr(_step, "step_at_once", lambda *_: None)
    patch.setattr(_step, "look", lambda *_: None)


@pytest.fixture(params=["fused", "composed"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run the test on both paths."""
    if request.param == "composed":
        compose(monkeypatch)
    return request.param


@pytest.fixture
def on_path(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Call a function on the path of this name."""

    def run(path: str, function: Callable[..., Any], *args: Any) -> Any:
        with monkeypatch.context() as patch:
            if path == "composed":
                compose(patch)
            return function(*args)

    return run


class Problem:
    """A flat tuple of inputs, numbers and then tensors, and a case's step as a function of it."""

    def __init__(self, case: Case, shapes: list[tuple[int, ...]], steps: Any = 3, **options: Any):
        self.case, self.steps, self.options = case, steps, options
        self.count = len(shapes)
        generator = torch.Generator(torch.get_default_device()).manual_seed(0)

        def random(shape: tuple[int, ...], name: str = "") -> Tensor:
            x = torch.randn(shape, generator=generator, dtype=torch.float64)
            if "sq" in name or "sum" in name:
                x = x.abs() + 0.1
            return 0.1 * x if name == "grad_avgs" else x  # so that the variance is positive

        self.numbers = {**case.numbers, "weight_decay": 0.01}
        if case.name == "nadam":
            self.numbers["mu_products"] = 0.4
        self.width = len(self.numbers)  # the place of the first tensor
        values = [torch.tensor(x, dtype=torch.float64) for x in self.numbers.values()]
        self.columns = ("grads", *case.states, "params")
        tensors = [random(s, name) for name in self.columns for s in shapes]
        self.inputs = tuple(x.requires_grad_() for x in (*values, *tensors))
        # A name for each input: that of its number or column.
        self.names = [*self.numbers, *(name for name in self.columns for _ in shapes)]

    def step(self, *inputs: Any) -> tuple[Tensor, ...]:
        numbers = dict(zip(self.numbers, inputs, strict=False))
        tensors = inputs[self.width :]
        n = self.count
        grads, *states, params = (tensors[k : k + n] for k in range(0, len(tensors), n))
        columns = self.case.step(grads, states, self.steps, numbers, params=params, **self.options)
        return tuple(t for column in columns for t in column)

    def weights(self) -> list[Tensor]:
        """Return a fixed cotangent for each output."""
        generator = torch.Generator(torch.get_default_device()).manual_seed(99)
        shapes = [t.shape for t in self.inputs[self.width : -self.count]]
        return [torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes]


@pytest.fixture
def make_problem() -> type[Problem]:
    return Problem


@pytest.fixture
def cases() -> list[Case]:
    return CASES


@pytest.fixture
def adam() -> Case:
    return CASES[0]
