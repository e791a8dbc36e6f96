"""Adafactor: second moments of matrices from those of their rows and columns."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import Any, ClassVar

import torch
from torch import Tensor

from diffopt_explicit._hyperparameter import Hyperparameter, check_group, check_range
from diffopt_explicit._rule import Rule, Slots, numbers, safe_sqrt


@dataclass(frozen=True)
class ScaleByAdafactor(Rule):
    """Gradients over the root of factored second moments; see `scale_by_adafactor`."""

    needs_params: ClassVar[bool] = True

    lr: Hyperparameter = 1e-2
    beta2_decay: Hyperparameter = -0.8
    eps: tuple[Hyperparameter | None, Hyperparameter] = (None, 1e-3)
    d: Hyperparameter = 1.0
    weight_decay: Hyperparameter = 0.0

    def __post_init__(self) -> None:
        check_range("lr", self.lr, 0)
        check_range("beta2_decay", self.beta2_decay, -inf, 1e-300)
        by_dtype = isinstance(self.eps, tuple) and any(x is None for x in self.eps[:1])
        eps = (0.0, *self.eps[1:]) if by_dtype else self.eps
        check_group("eps", eps, (0, inf), (0, inf))
        check_range("d", self.d, 1)
        check_range("weight_decay", self.weight_decay, 0)

    def begin(self, zeros: Tensor) -> Slots:
        """Return zero means, of rows and columns or of elements."""
        if zeros.dim() < 2:
            return zeros, zeros.new_zeros(())
        return zeros.mean(-1, keepdim=True), zeros.mean(-2, keepdim=True)

    def apply(self, g: Tensor, slots: Slots, t: int, p: Tensor) -> tuple[Tensor, Slots]:
        """Take one step."""
        lr, power, d, decay = numbers(self.lr, self.beta2_decay, self.d, self.weight_decay)
        eps, least = numbers(*self.eps)
        eps = torch.finfo(g.dtype).eps if eps is None else eps
        variance, slots = self._variance(g, slots, t**power, eps)
        update = g * at_least(variance, eps * eps) ** -0.5
        size = at_least(root_mean_square(p), least)
        rate = size * (lr.clamp(max=t**-0.5) if isinstance(lr, Tensor) else min(lr, t**-0.5))
        return rate / at_least(root_mean_square(update) / d, 1.0) * update + lr * decay * p, slots

    def _variance(self, g: Tensor, slots: Slots, share: Any, eps: Any) -> tuple[Tensor, Slots]:
        if g.dim() < 2:
            mean = slots[0] + share * (g * g - slots[0])
            return mean, (mean, slots[1])
        row, column = (
            old + share * (g.square().mean(axis, keepdim=True) - old)
            for old, axis in zip(slots, (-1, -2), strict=True)
        )
        return row * column / at_least(row.mean(-2, keepdim=True), eps), (row, column)


def scale_by_adafactor(
    lr: Hyperparameter = 1e-2,
    beta2_decay: Hyperparameter = -0.8,
    eps: tuple[Hyperparameter | None, Hyperparameter] = (None, 1e-3),
    d: Hyperparameter = 1.0,
    weight_decay: Hyperparameter = 0.0,
) -> ScaleByAdafactor:
    """Divide gradients by the root of their mean squares, kept of rows and columns alone.

    For a gradient ``g`` of weights ``p`` in their step ``t = 1, 2, ...``, with ``rms`` the root
    of the mean square of all elements::

        r <- r + t**beta2_decay * (mean of g**2 over the last axis - r)
        c <- c + t**beta2_decay * (mean of g**2 over the axis before - c)
        v = r * c / max(mean of r, eps1)
        u = g / max(sqrt(v), eps1)
        rate = max(eps2, rms(p)) * min(lr, 1 / sqrt(t))
        update = rate / max(1, rms(u) / d) * u + lr * weight_decay * p

    The ``v`` of vectors and scalars is the mean itself. Memory is that of a row and a column for
    each matrix; of more than two axes, the last two are factored.

    Args:
        lr: The greatest rate, relative to the size of the weights.
        beta2_decay: Power of the step with which the share of a new gradient falls; at most 0.
        eps: Least root of a mean square (None: that of the dtype), and least size of weights.
        d: Root mean square above which updates are clipped; at least 1.
        weight_decay: Strength of the decay of the weights themselves.

    Example:
        >>> import torch
        >>> from diffopt_explicit import scale_by_adafactor
        >>> tx, params = scale_by_adafactor(lr=0.1), [torch.full((2, 2), 3.0)]
        >>> tx.update([torch.ones(2, 2)], tx.init(params), params)[0]
        [tensor([[0.3000, 0.3000],
                [0.3000, 0.3000]])]

    Source: Shazeer & Stern, *Adafactor: adaptive learning rates with sublinear memory cost*,
    ICML 2018, algorithms 4 and 5, as in torch.optim.
    """
    return ScaleByAdafactor(lr, beta2_decay, eps, d, weight_decay)


def root_mean_square(x: Tensor) -> Tensor:
    """The root of the mean square of all elements, with derivative 0 at 0."""
    return safe_sqrt(x.square().mean())


def at_least(x: Tensor, bound: Any) -> Tensor:
    """The tensor, nowhere below a bound, which may be learned."""
    return torch.maximum(x, torch.as_tensor(bound, dtype=x.dtype, device=x.device))
