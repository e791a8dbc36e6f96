"""Scaling by two moments: Adam, AMSGrad, Adamax, NAdam, RAdam."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diffopt_explicit._hyperparameter import Hyperparameter, check_group, check_range
from diffopt_explicit._rule import Rule, Slots, numbers, power, safe_sqrt

Betas = tuple[Hyperparameter, Hyperparameter]


@dataclass(frozen=True)
class ScaleByAdam(Rule):
    """The first moment over the root of the second; see `scale_by_adam`."""

    betas: Betas = (0.9, 0.999)
    eps: Hyperparameter = 1e-8
    eps_root: Hyperparameter = 0.0

    def __post_init__(self) -> None:
        check_moments(self.betas, self.eps)
        check_range("eps_root", self.eps_root, 0)

    def begin(self, zeros: Tensor) -> Slots:
        """Return zero moments."""
        return zeros, zeros

    def apply(self, g: Tensor, slots: Slots, t: int, p: Tensor) -> tuple[Tensor, Slots]:
        """Take one step."""
        m, v, m_scale, v_scale = moments(g, slots, self.betas, t)
        eps, eps_root = numbers(self.eps, self.eps_root)
        return m * m_scale / (safe_sqrt(v * v_scale + eps_root) + eps), (m, v)


@dataclass(frozen=True)
class ScaleByAMSGrad(Rule):
    """Adam's step with the largest second moment so far; see `scale_by_amsgrad`."""

    betas: Betas = (0.9, 0.999)
    eps: Hyperparameter = 1e-8

    def __post_init__(self) -> None:
        check_moments(self.betas, self.eps)

    def begin(self, zeros: Tensor) -> Slots:
        """Return zero moments."""
        return zeros, zeros, zeros

    def apply(self, g: Tensor, slots: Slots, t: int, p: Tensor) -> tuple[Tensor, Slots]:
        """Take one step."""
        m, v, m_scale, v_scale = moments(g, slots, self.betas, t)
        (eps,) = numbers(self.eps)
        largest = torch.maximum(slots[2], v)
        return m * m_scale / (safe_sqrt(largest * v_scale) + eps), (m, v, largest)


@dataclass(frozen=True)
class ScaleByAdamax(Rule):
    """The first moment over the largest recent gradient; see `scale_by_adamax`."""

    betas: Betas = (0.9, 0.999)
    eps: Hyperparameter = 1e-8

    def __post_init__(self) -> None:
        check_moments(self.betas, self.eps)

    def begin(self, zeros: Tensor) -> Slots:
        """Return zero moments."""
        return zeros, zeros

    def apply(self, g: Tensor, slots: Slots, t: int, p: Tensor) -> tuple[Tensor, Slots]:
        """Take one step."""
        beta1, beta2, eps = numbers(*self.betas, self.eps)
        m = beta1 * slots[0] + (1 - beta1) * g
        largest = torch.maximum(beta2 * slots[1], g.abs() + eps)
        # Where all is zero, an `eps` that is none would make this 0 / 0; a step of 0 is meant.
        zero = largest == 0
        update = torch.where(zero, 0.0, m / torch.where(zero, 1.0, largest))
        return update / (1 - power(beta1, t)), (m, largest)


@dataclass(frozen=True)
class ScaleByNAdam(Rule):
    """Adam's step with Nesterov's momentum; see `scale_by_nadam`."""

    betas: Betas = (0.9, 0.999)
    eps: Hyperparameter = 1e-8
    momentum_decay: Hyperparameter = 4e-3

    def __post_init__(self) -> None:
        check_moments(self.betas, self.eps)
        check_range("momentum_decay", self.momentum_decay, 0)

    def begin(self, zeros: Tensor) -> Slots:
        """Return zero moments, and the product of no momenta."""
        return zeros, zeros, zeros.new_ones(())

    def apply(self, g: Tensor, slots: Slots, t: int, p: Tensor) -> tuple[Tensor, Slots]:
        """Take one step."""
        m, v, _, v_scale = moments(g, slots, self.betas, t)
        beta1, decay, eps = numbers(self.betas[0], self.momentum_decay, self.eps)
        mu, mu_next = (beta1 * (1 - 0.5 * 0.96 ** (step * decay)) for step in (t, t + 1))
        product = slots[2] * mu
        ahead = (1 - mu) / (1 - product) * g + mu_next / (1 - product * mu_next) * m
        return ahead / (safe_sqrt(v * v_scale) + eps), (m, v, product)


@dataclass(frozen=True)
class ScaleByRAdam(Rule):
    """Adam's step once its variance can be judged; see `scale_by_radam`."""

    betas: Betas = (0.9, 0.999)
    eps: Hyperparameter = 1e-8

    def __post_init__(self) -> None:
        check_moments(self.betas, self.eps)

    def begin(self, zeros: Tensor) -> Slots:
        """Return zero moments."""
        return zeros, zeros

    def apply(self, g: Tensor, slots: Slots, t: int, p: Tensor) -> tuple[Tensor, Slots]:
        """Take one step."""
        m, v, m_scale, v_scale = moments(g, slots, self.betas, t)
        beta2, eps = numbers(self.betas[1], self.eps)
        most = 2 / (1 - beta2) - 1
        length = most - 2 * t * power(beta2, t) * v_scale
        if not isinstance(length, Tensor):
            factor = _rectified(v, v_scale, length, most, eps) if length > 5 else 1.0
            return m * m_scale * factor, (m, v)
        # A branch that is not taken must have no NaN in its derivative either.
        known = length > 5
        safe = torch.where(known, length, 6.0), torch.where(known, most, 6.0)
        factor = torch.where(known, _rectified(v, v_scale, *safe, eps), 1.0)
        return m * m_scale * factor, (m, v)


def _rectified(v: Tensor, v_scale: Any, length: Any, most: Any, eps: Any) -> Tensor:
    # Here `eps` is added to the root before its bias is corrected, as torch.optim does.
    share = (length - 4) * (length - 2) * most / ((most - 4) * (most - 2) * length)
    return (share / v_scale) ** 0.5 / (safe_sqrt(v) + eps)


def scale_by_adam(
    betas: Betas = (0.9, 0.999), eps: Hyperparameter = 1e-8, eps_root: Hyperparameter = 0.0
) -> ScaleByAdam:
    """Divide the first moment of gradients by the root of the second.

    For a gradient ``g`` in a parameter's step ``t = 1, 2, ...``::

        m <- beta1 * m + (1 - beta1) * g
        v <- beta2 * v + (1 - beta2) * g**2
        update = m / (1 - power(beta1, t)) / (sqrt(v / (1 - power(beta2, t)) + eps_root) + eps)

    Args:
        betas: Decay rates of the two moments, each in [0, 1).
        eps: Added to the root of the second moment.
        eps_root: Added under the root.

    Example:
        >>> import torch
        >>> from diffopt_explicit import scale_by_adam
        >>> tx = scale_by_adam()
        >>> tx.update([torch.tensor([3.0, 0.0])], tx.init([torch.zeros(2)]))[0]
        [tensor([1., 0.])]

    Source: Kingma & Ba, *Adam: a method for stochastic optimization*, ICLR 2015, algorithm 1.
    """
    return ScaleByAdam(betas, eps, eps_root)


def scale_by_amsgrad(betas: Betas = (0.9, 0.999), eps: Hyperparameter = 1e-8) -> ScaleByAMSGrad:
    """Scale gradients as Adam does, by the largest second moment so far.

    At a tie of two second moments the derivative is shared equally, as by `torch.maximum`.

    Example:
        >>> import torch
        >>> from diffopt_explicit import scale_by_amsgrad
        >>> tx = scale_by_amsgrad()
        >>> tx.update([torch.tensor([3.0, 0.0])], tx.init([torch.zeros(2)]))[0]
        [tensor([1., 0.])]

    Source: Reddi, Kale & Kumar, *On the convergence of Adam and beyond*, ICLR 2018,
    algorithm 2, with Adam's correction of the bias.
    """
    return ScaleByAMSGrad(betas, eps)


def scale_by_adamax(betas: Betas = (0.9, 0.999), eps: Hyperparameter = 1e-8) -> ScaleByAdamax:
    """Divide the first moment by the largest gradient, decaying with time.

    For a gradient ``g``::

        m <- beta1 * m + (1 - beta1) * g
        u <- max(beta2 * u, |g| + eps)
        update = m / (1 - power(beta1, t)) / u

    Example:
        >>> import torch
        >>> from diffopt_explicit import scale_by_adamax
        >>> tx = scale_by_adamax()
        >>> tx.update([torch.tensor([3.0, 0.0])], tx.init([torch.zeros(2)]))[0]
        [tensor([1., 0.])]

    Source: Kingma & Ba, *Adam: a method for stochastic optimization*, ICLR 2015, algorithm 2.
    """
    return ScaleByAdamax(betas, eps)


def scale_by_nadam(
    betas: Betas = (0.9, 0.999), eps: Hyperparameter = 1e-8, momentum_decay: Hyperparameter = 4e-3
) -> ScaleByNAdam:
    """Scale gradients as Adam does, with the momentum of the step after.

    Example:
        >>> import torch
        >>> from diffopt_explicit import scale_by_nadam
        >>> tx = scale_by_nadam()
        >>> tx.update([torch.tensor([3.0, 0.0])], tx.init([torch.zeros(2)]))[0]
        [tensor([1.0565, 0.0000])]

    Source: Dozat, *Incorporating Nesterov momentum into Adam*, ICLR workshop 2016,
    algorithm 2.
    """
    return ScaleByNAdam(betas, eps, momentum_decay)


def scale_by_radam(betas: Betas = (0.9, 0.999), eps: Hyperparameter = 1e-8) -> ScaleByRAdam:
    """Scale gradients as Adam does, rectified; without scale as long as that cannot be judged.

    Example:
        >>> import torch
        >>> from diffopt_explicit import scale_by_radam
        >>> tx = scale_by_radam()
        >>> tx.update([torch.tensor([3.0, 0.0])], tx.init([torch.zeros(2)]))[0]
        [tensor([3., 0.])]

    Source: Liu et al., *On the variance of the adaptive learning rate and beyond*,
    ICLR 2020, algorithm 2.
    """
    return ScaleByRAdam(betas, eps)


def moments(g: Tensor, slots: Slots, betas: Betas, t: int) -> tuple[Tensor, Tensor, Any, Any]:
    """The new first and second moment, and the factors that correct their bias."""
    beta1, beta2 = numbers(*betas)
    m = beta1 * slots[0] + (1 - beta1) * g
    v = beta2 * slots[1] + (1 - beta2) * g * g
    return m, v, 1 / (1 - power(beta1, t)), 1 / (1 - power(beta2, t))


def check_moments(betas: Betas, eps: Hyperparameter) -> None:
    """Refuse decay rates outside [0, 1), and a negative `eps`."""
    check_group("betas", betas, (0, 1), (0, 1))
    check_range("eps", eps, 0)
