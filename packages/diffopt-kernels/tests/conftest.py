from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffopt_kernels import _step, adam_step
from torch import Tensor

HYPER = ("lr", "beta1", "beta2", "eps", "eps_root", "weight_decay")


@pytest.fixture(params=["fused", "composed"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run the test on both paths."""
    if request.param == "composed":
        monkeypatch.setattr(_step, "is_fusible", lambda *_: False)
    return request.param


@pytest.fixture
def on_path(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Call a function on the path of this name."""

    def run(path: str, function: Callable[..., Any], *args: Any) -> Any:
        with monkeypatch.context() as patch:
            if path == "composed":
                patch.setattr(_step, "is_fusible", lambda *_: False)
            return function(*args)

    return run


class Problem:
    """A flat tuple of inputs, six numbers and then tensors, and the step as a function of it."""

    def __init__(self, shapes: list[tuple[int, ...]], seed: int = 0, **options: Any):
        self.options = {"steps": 3, "decoupled": False, "maximize": False, **options}
        self.count = len(shapes)
        generator = torch.Generator().manual_seed(seed)

        def random(shape: tuple[int, ...]) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64)

        numbers = {"lr": 0.1, "beta1": 0.9, "beta2": 0.99, "eps": 1e-3, "eps_root": 0.0}
        numbers["weight_decay"] = 0.01
        self.inputs = (
            *[torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in numbers.values()],
            *[random(s).requires_grad_() for s in shapes],
            *[random(s).requires_grad_() for s in shapes],
            *[random(s).abs().add(0.1).requires_grad_() for s in shapes],
            *[random(s).requires_grad_() for s in shapes],
        )

    def step(self, *inputs: Any) -> tuple[Tensor, ...]:
        lr, beta1, beta2, eps, eps_root, weight_decay, *tensors = inputs
        n = self.count
        columns = adam_step(
            *(tensors[k * n : (k + 1) * n] for k in range(3)),
            self.options["steps"],
            lr=lr,
            betas=(beta1, beta2),
            eps=eps,
            eps_root=eps_root,
            weight_decay=weight_decay,
            params=tensors[3 * n :],
            decoupled=self.options["decoupled"],
            maximize=self.options["maximize"],
        )
        return tuple(t for column in columns for t in column)

    def weights(self) -> list[Tensor]:
        """Return a fixed cotangent for each output."""
        generator = torch.Generator().manual_seed(99)
        shapes = [t.shape for t in self.inputs[6 : 6 + self.count]] * 3
        return [torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes]


@pytest.fixture
def make_problem() -> type[Problem]:
    return Problem
