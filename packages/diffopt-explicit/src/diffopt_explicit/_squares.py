"""Scaling by past squared gradients: RMSProp, Adagrad, Adadelta."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from diffopt_explicit._hyperparameter import Hyperparameter, check_range
from diffopt_explicit._rule import Rule, Slots, numbers, safe_sqrt


@dataclass(frozen=True)
class ScaleByRMS(Rule):
    """Gradients over the root of their decaying mean square; see `scale_by_rms`."""

    alpha: Hyperparameter = 0.99
    eps: Hyperparameter = 1e-8
    centered: bool = False

    def __post_init__(self) -> None:
        check_range("alpha", self.alpha, 0)
        check_range("eps", self.eps, 0)

    def begin(self, zeros: Tensor) -> Slots:
        """Return zero means."""
        return (zeros, zeros) if self.centered else (zeros,)

    def apply(self, g: Tensor, slots: Slots, t: int, p: Tensor) -> tuple[Tensor, Slots]:
        """Take one step."""
        alpha, eps = numbers(self.alpha, self.eps)
        v = alpha * slots[0] + (1 - alpha) * g * g
        if not self.centered:
            return g / (safe_sqrt(v) + eps), (v,)
        m = alpha * slots[1] + (1 - alpha) * g
        return g / (safe_sqrt(v - m * m) + eps), (v, m)


@dataclass(frozen=True)
class ScaleByAdagrad(Rule):
    """Gradients over the root of their sum of squares; see `scale_by_adagrad`."""

    lr_decay: Hyperparameter = 0.0
    initial_accumulator_value: float = 0.0
    eps: Hyperparameter = 1e-10

    def __post_init__(self) -> None:
        check_range("lr_decay", self.lr_decay, 0)
        check_range("initial_accumulator_value", self.initial_accumulator_value, 0)
        check_range("eps", self.eps, 0)

    def begin(self, zeros: Tensor) -> Slots:
        """Return sums with the initial value."""
        return (torch.full_like(zeros, self.initial_accumulator_value),)

    def apply(self, g: Tensor, slots: Slots, t: int, p: Tensor) -> tuple[Tensor, Slots]:
        """Take one step."""
        lr_decay, eps = numbers(self.lr_decay, self.eps)
        total = slots[0] + g * g
        return g / (safe_sqrt(total) + eps) / (1 + (t - 1) * lr_decay), (total,)


@dataclass(frozen=True)
class ScaleByAdadelta(Rule):
    """Gradients by the ratio of past updates to past gradients; see `scale_by_adadelta`."""

    rho: Hyperparameter = 0.9
    eps: Hyperparameter = 1e-6

    def __post_init__(self) -> None:
        check_range("rho", self.rho, 0)
        check_range("eps", self.eps, 0)

    def begin(self, zeros: Tensor) -> Slots:
        """Return zero means."""
        return zeros, zeros

    def apply(self, g: Tensor, slots: Slots, t: int, p: Tensor) -> tuple[Tensor, Slots]:
        """Take one step."""
        rho, eps = numbers(self.rho, self.eps)
        v = rho * slots[0] + (1 - rho) * g * g
        delta = safe_sqrt(slots[1] + eps) / safe_sqrt(v + eps) * g
        return delta, (v, rho * slots[1] + (1 - rho) * delta * delta)


def scale_by_rms(
    alpha: Hyperparameter = 0.99, eps: Hyperparameter = 1e-8, *, centered: bool = False
) -> ScaleByRMS:
    """Divide gradients by the root of their decaying mean square, or of their variance.

    For a gradient ``g``::

        v <- alpha * v + (1 - alpha) * g**2
        m <- alpha * m + (1 - alpha) * g              if centered
        update = g / (sqrt(v - m**2) + eps)           with m = 0 if not centered

    Args:
        alpha: Share of the means kept at each step.
        eps: Added to the root.
        centered: Subtract the square of the mean gradient.

    Example:
        >>> import torch
        >>> from diffopt_explicit import scale_by_rms
        >>> tx = scale_by_rms(alpha=0.75, eps=0.0)
        >>> tx.update([torch.tensor([3.0])], tx.init([torch.zeros(1)]))[0]
        [tensor([2.])]

    Source: Tieleman & Hinton, *Lecture 6.5: RMSProp*, 2012; centered after Graves,
    *Generating sequences with recurrent neural networks*, 2013, eqs. 38-45.
    """
    return ScaleByRMS(alpha, eps, centered)


def scale_by_adagrad(
    lr_decay: Hyperparameter = 0.0,
    initial_accumulator_value: float = 0.0,
    eps: Hyperparameter = 1e-10,
) -> ScaleByAdagrad:
    """Divide gradients by the root of the sum of their squares.

    For a gradient ``g``::

        s <- s + g**2
        update = g / (sqrt(s) + eps) / (1 + (t - 1) * lr_decay)

    Args:
        lr_decay: Further decay with the parameter's step ``t = 1, 2, ...``.
        initial_accumulator_value: The sum to begin with.
        eps: Added to the root.

    Example:
        >>> import torch
        >>> from diffopt_explicit import scale_by_adagrad
        >>> tx = scale_by_adagrad()
        >>> tx.update([torch.tensor([3.0, 0.0])], tx.init([torch.zeros(2)]))[0]
        [tensor([1., 0.])]

    Source: Duchi, Hazan & Singer, *Adaptive subgradient methods*, JMLR 12, 2011, fig. 1.
    """
    return ScaleByAdagrad(lr_decay, initial_accumulator_value, eps)


def scale_by_adadelta(rho: Hyperparameter = 0.9, eps: Hyperparameter = 1e-6) -> ScaleByAdadelta:
    """Multiply gradients by the ratio of the sizes of past updates and past gradients.

    For a gradient ``g``::

        v <- rho * v + (1 - rho) * g**2
        update = sqrt(a + eps) / sqrt(v + eps) * g
        a <- rho * a + (1 - rho) * update**2

    Args:
        rho: Share of the means kept at each step.
        eps: Added under both roots.

    Example:
        >>> import torch
        >>> from diffopt_explicit import scale_by_adadelta
        >>> tx = scale_by_adadelta(rho=0.0, eps=1.0)
        >>> tx.update([torch.tensor([0.75])], tx.init([torch.zeros(1)]))[0]
        [tensor([0.6000])]

    Source: Zeiler, *ADADELTA: an adaptive learning rate method*, 2012, algorithm 1.
    """
    return ScaleByAdadelta(rho, eps)
