"""The Adam of diffopt-explicit is the same by the kernels as by composed operations."""

import diffopt_kernels
import pytest
import torch
from diffopt_explicit import _adam, adam, adamw, unroll
from diffopt_explicit._composed_adam import adam_step as composed_adam_step


def derivatives(dtype, recipe):
    """The end of three steps, its gradient and a second derivative, for all inputs."""
    generator = torch.Generator().manual_seed(0)
    start = {
        "w": torch.randn(7, 5, generator=generator, dtype=dtype),
        "b": torch.randn(5, generator=generator, dtype=dtype),
    }
    inputs = [p.requires_grad_() for p in start.values()]
    hyperparameters = [
        torch.tensor(value, dtype=dtype, requires_grad=True) for value in (0.1, 0.8, 0.9, 1e-2, 0.1)
    ]
    lr, beta1, beta2, eps, decay = hyperparameters
    x = torch.randn(9, 7, generator=generator, dtype=dtype)
    tx = recipe(lr, (beta1, beta2), eps, decay)
    end = unroll(lambda p: (x @ p["w"] + p["b"]).tanh().square().sum(), tx, start, steps=3).params
    inputs += hyperparameters
    outer = end["w"].sin().sum() + end["b"].square().sum()
    first = torch.autograd.grad(outer, inputs, create_graph=True)
    second = torch.autograd.grad(sum(g.square().sum() for g in first), inputs)
    return [outer.detach(), *(g.detach() for g in first), *second]


@pytest.mark.parametrize("recipe", [adam, adamw])
def test_values_and_two_derivatives_agree_in_double_precision(recipe, monkeypatch):
    assert _adam.adam_step is diffopt_kernels.adam_step
    fused = derivatives(torch.float64, recipe)
    monkeypatch.setattr(_adam, "adam_step", composed_adam_step)
    composed = derivatives(torch.float64, recipe)

    for ours, expected in zip(fused, composed, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-11, atol=1e-12)


def test_single_precision_agrees_to_rounding(monkeypatch):
    fused = derivatives(torch.float32, adam)
    monkeypatch.setattr(_adam, "adam_step", composed_adam_step)
    composed = derivatives(torch.float32, adam)

    for ours, expected in zip(fused, composed, strict=True):
        error = (ours - expected).norm() / expected.norm().clamp_min(1e-12)

        assert error < 1e-4
