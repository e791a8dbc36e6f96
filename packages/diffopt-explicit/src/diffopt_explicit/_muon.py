"""Muon: momentum, made orthogonal."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diffopt_explicit._hyperparameter import Hyperparameter, check_group, check_range
from diffopt_explicit._rule import Rule, Slots, numbers
from diffopt_explicit._trust import norm

Coefficients = tuple[Hyperparameter, Hyperparameter, Hyperparameter]


@dataclass(frozen=True)
class ScaleByMuon(Rule):
    """Momentum of matrices with all singular values near 1; see `scale_by_muon`."""

    momentum: Hyperparameter = 0.95
    nesterov: bool = True
    ns_coefficients: Coefficients = (3.4445, -4.775, 2.0315)
    eps: Hyperparameter = 1e-7
    ns_steps: int = 5
    adjust_lr_fn: str | None = None

    def __post_init__(self) -> None:
        check_range("momentum", self.momentum, 0)
        check_range("eps", self.eps, 0)
        check_range("ns_steps", self.ns_steps, 0, 100)
        check_group("ns_coefficients", self.ns_coefficients, *[(-math.inf, math.inf)] * 3)
        if self.adjust_lr_fn not in (None, "original", "match_rms_adamw"):
            raise ValueError(
                "`adjust_lr_fn` must be None, 'original' or 'match_rms_adamw', got "
                f"{self.adjust_lr_fn!r}."
            )

    def begin(self, zeros: Tensor) -> Slots:
        """Return zero momentum; refuses what is no matrix."""
        if zeros.dim() != 2:
            raise ValueError(
                f"Muon is for matrices, got the shape {tuple(zeros.shape)}. Give the others "
                "another optimizer by `partition`, such as `adamw`."
            )
        return (zeros,)

    def apply(self, g: Tensor, slots: Slots, t: int, p: Tensor) -> tuple[Tensor, Slots]:
        """Take one step."""
        momentum, eps, *coefficients = numbers(self.momentum, self.eps, *self.ns_coefficients)
        m = slots[0] + (1 - momentum) * (g - slots[0])
        ahead = g + momentum * (m - g) if self.nesterov else m
        direction = orthogonalize(ahead, coefficients, self.ns_steps, eps)
        return self._ratio(*g.shape) * direction, (m,)

    def _ratio(self, rows: int, columns: int) -> float:
        if self.adjust_lr_fn == "match_rms_adamw":
            return 0.2 * math.sqrt(max(rows, columns))
        return math.sqrt(max(1, rows / columns))


def scale_by_muon(
    momentum: Hyperparameter = 0.95,
    nesterov: bool = True,
    ns_coefficients: Coefficients = (3.4445, -4.775, 2.0315),
    eps: Hyperparameter = 1e-7,
    ns_steps: int = 5,
    adjust_lr_fn: str | None = None,
) -> ScaleByMuon:
    """Average the gradients of a matrix, and bring all singular values of that near 1.

    For a gradient ``g``::

        m <- momentum * m + (1 - momentum) * g
        x = momentum * m + (1 - momentum) * g if nesterov else m
        x <- x / max(|x|, eps)
        x <- a * x + (b * x @ x.T + c * (x @ x.T)**2) @ x        for each of `ns_steps`
        update = ratio * x

    Args:
        momentum: Share of the average kept at each step.
        nesterov: Look one step ahead.
        ns_coefficients: ``a, b, c`` of the iteration, which may be learned like all numbers.
        eps: Least norm to divide by.
        ns_steps: Number of iterations, below 100.
        adjust_lr_fn: The ratio: None or "original" for ``sqrt(max(1, rows / columns))``,
            "match_rms_adamw" for ``0.2 * sqrt(max(rows, columns))``.

    Raises:
        ValueError: At `init`, for a parameter that is no matrix.

    Example:
        >>> import torch
        >>> from diffopt_explicit import scale_by_muon
        >>> tx, params = scale_by_muon(ns_steps=20), {"w": torch.zeros(2, 2)}
        >>> updates, _ = tx.update({"w": torch.tensor([[0.0, 3.0], [2.0, 0.0]])}, tx.init(params))
        >>> [round(value, 1) for value in torch.linalg.svdvals(updates["w"]).tolist()]
        [1.0, 0.7]

    Source: Jordan et al., *Muon: an optimizer for hidden layers in neural networks*, 2024; Liu
    et al., *Muon is scalable for LLM training*, 2025, for the other ratio.
    """
    return ScaleByMuon(momentum, nesterov, ns_coefficients, eps, ns_steps, adjust_lr_fn)


def orthogonalize(x: Tensor, coefficients: Any, steps: int, eps: Any) -> Tensor:
    """Newton and Schulz's iteration: the matrix with its singular values driven towards 1."""
    a, b, c = coefficients
    wide = x.shape[0] <= x.shape[1]
    x = x if wide else x.T
    length = norm(x)
    x = x / torch.maximum(length, torch.as_tensor(eps, dtype=x.dtype, device=x.device))
    with torch.autocast(x.device.type, enabled=False):  # which is for the loss, not for the step
        for _ in range(steps):
            gram = x @ x.T
            x = a * x + (b * gram + c * gram @ gram) @ x
    return x if wide else x.T
