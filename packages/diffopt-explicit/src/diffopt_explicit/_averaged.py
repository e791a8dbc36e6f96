"""Averaged stochastic gradient descent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from diffopt_explicit._hyperparameter import Hyperparameter, check_range
from diffopt_explicit._rule import Rule, Slots, numbers


@dataclass(frozen=True)
class ScaleByASGD(Rule):
    """Decayed gradients and weights at a decaying rate; see `scale_by_asgd`."""

    needs_params: ClassVar[bool] = True

    lr: Hyperparameter = 1e-2
    lambd: Hyperparameter = 1e-4
    alpha: Hyperparameter = 0.75
    t0: float = 1e6

    def __post_init__(self) -> None:
        for name in ("lr", "lambd", "alpha", "t0"):
            check_range(name, getattr(self, name), 0)

    def begin(self, zeros: Tensor) -> Slots:
        """Return an average of no weights."""
        return (zeros,)

    def apply(self, g: Tensor, slots: Slots, t: int, p: Tensor) -> tuple[Tensor, Slots]:
        """Take one step."""
        lr, lambd, alpha = numbers(self.lr, self.lambd, self.alpha)
        rate = lr / (1 + lambd * lr * (t - 1)) ** alpha
        update = rate * (g + lambd * p)
        average = slots[0] + (p - update - slots[0]) / max(1.0, t - 1 - self.t0)
        return update, (average,)


def scale_by_asgd(
    lr: Hyperparameter = 1e-2,
    lambd: Hyperparameter = 1e-4,
    alpha: Hyperparameter = 0.75,
    t0: float = 1e6,
) -> ScaleByASGD:
    """Multiply decayed gradients by a decaying rate, and average the weights that this leads to.

    For a gradient ``g`` of weights ``p`` in their step ``t = 1, 2, ...``::

        rate = lr / (1 + lambd * lr * (t - 1))**alpha
        update = rate * (g + lambd * p)
        ax <- ax + ((p - update) - ax) / max(1, t - 1 - t0)

    Args:
        lr: The first rate.
        lambd: Decay of the weights, and of the rate.
        alpha: Power of the decay of the rate.
        t0: The step after which weights are averaged: ``ax`` is the last weights before it. The
            average is in the state, as the first and only of the ``slots``.

    Example:
        >>> import torch
        >>> from diffopt_explicit import scale_by_asgd
        >>> tx, params = scale_by_asgd(lr=0.5, lambd=0.0), [torch.ones(1)]
        >>> updates, state = tx.update([torch.ones(1)], tx.init(params), params)
        >>> updates, state.slots
        ([tensor([0.5000])], ([tensor([0.5000])],))

    Source: Polyak & Juditsky, *Acceleration of stochastic approximation by averaging*, SIAM
    J. Control Optim. 30, 1992; with the rates of Bottou's SGD, as in torch.optim.
    """
    return ScaleByASGD(lr, lambd, alpha, t0)
