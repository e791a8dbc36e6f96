"""Steps by the signs of gradients: Lion, Rprop."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

import torch
from torch import Tensor

from diffopt_explicit._hyperparameter import Hyperparameter, check_group, check_range
from diffopt_explicit._rule import Rule, Slots, numbers


@dataclass(frozen=True)
class ScaleByLion(Rule):
    """The sign of an interpolated momentum; see `scale_by_lion`."""

    betas: tuple[Hyperparameter, Hyperparameter] = (0.9, 0.99)

    def __post_init__(self) -> None:
        check_group("betas", self.betas, (0, 1), (0, 1))

    def begin(self, zeros: Tensor) -> Slots:
        """Return zero momentum."""
        return (zeros,)

    def apply(self, g: Tensor, slots: Slots, t: int, p: Tensor) -> tuple[Tensor, Slots]:
        """Take one step."""
        beta1, beta2 = numbers(*self.betas)
        update = (beta1 * slots[0] + (1 - beta1) * g).sign()
        return update, (beta2 * slots[0] + (1 - beta2) * g,)


@dataclass(frozen=True)
class ScaleByRprop(Rule):
    """Signs times step sizes that grow and shrink; see `scale_by_rprop`."""

    lr: Hyperparameter = 1e-2
    etas: tuple[Hyperparameter, Hyperparameter] = (0.5, 1.2)
    step_sizes: tuple[float, float] = (1e-6, 50.0)

    def __post_init__(self) -> None:
        check_range("lr", self.lr, 0)
        check_group("etas", self.etas, (0, 1), (1, inf))
        check_group("step_sizes", self.step_sizes, (0, inf), (0, inf))

    def begin(self, zeros: Tensor) -> Slots:
        """Return no gradient before, and no step size yet."""
        return zeros, zeros

    def apply(self, g: Tensor, slots: Slots, t: int, p: Tensor) -> tuple[Tensor, Slots]:
        """Take one step."""
        lr, shrink, grow = numbers(self.lr, *self.etas)
        before, size = slots
        if t == 1:
            size = torch.ones_like(g) * lr
        agreement = g * before
        one = torch.ones_like(g)
        factor = torch.where(
            agreement > 0, grow * one, torch.where(agreement < 0, shrink * one, one)
        )
        size = (size * factor).clamp(*self.step_sizes)
        g = torch.where(agreement < 0, 0.0, g)
        return g.sign() * size, (g, size)


def scale_by_lion(
    betas: tuple[Hyperparameter, Hyperparameter] = (0.9, 0.99),
) -> ScaleByLion:
    """Take the sign of an interpolation between momentum and gradient.

    For a gradient ``g``::

        update = sign(beta1 * m + (1 - beta1) * g)
        m <- beta2 * m + (1 - beta2) * g

    A sign has the derivative 0, by definition: no gradient passes through the update, and
    the hypergradients of the betas are exactly 0.

    Example:
        >>> import torch
        >>> from diffopt_explicit import scale_by_lion
        >>> tx = scale_by_lion()
        >>> tx.update([torch.tensor([3.0, -0.1])], tx.init([torch.zeros(2)]))[0]
        [tensor([ 1., -1.])]

    Source: Chen et al., *Symbolic discovery of optimization algorithms*, NeurIPS 2023,
    algorithm 2.
    """
    return ScaleByLion(betas)


def scale_by_rprop(
    lr: Hyperparameter = 1e-2,
    etas: tuple[Hyperparameter, Hyperparameter] = (0.5, 1.2),
    step_sizes: tuple[float, float] = (1e-6, 50.0),
) -> ScaleByRprop:
    """Take the signs of gradients times step sizes of each element, as ``torch.optim.Rprop``.

    A step size grows where the sign stays and shrinks where it changes; where it changes, the
    element stays for a step. Differentiable in the rates, constant in the gradients.

    Args:
        lr: The first step size.
        etas: Factors for shrinking and growing.
        step_sizes: Least and greatest step size.

    Example:
        >>> import torch
        >>> from diffopt_explicit import scale_by_rprop
        >>> tx = scale_by_rprop(lr=0.5)
        >>> tx.update([torch.tensor([3.0, -0.1])], tx.init([torch.zeros(2)]))[0]
        [tensor([ 0.5000, -0.5000])]

    Source: Riedmiller & Braun, *A direct adaptive method for faster backpropagation
    learning*, ICNN 1993.
    """
    return ScaleByRprop(lr, etas, step_sizes)
