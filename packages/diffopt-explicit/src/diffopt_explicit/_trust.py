"""Steps as long as the weights that they move: LAMB, LARS."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from diffopt_explicit._hyperparameter import Hyperparameter, check_range
from diffopt_explicit._rule import Rule, Slots, numbers, safe_sqrt


@dataclass(frozen=True)
class ScaleByTrustRatio(Rule):
    """Updates with the norm of their weights; see `scale_by_trust_ratio`."""

    needs_params: ClassVar[bool] = True

    coefficient: Hyperparameter = 1.0
    eps: Hyperparameter = 0.0

    def __post_init__(self) -> None:
        check_range("coefficient", self.coefficient, 0)
        check_range("eps", self.eps, 0)

    def begin(self, zeros: Tensor) -> Slots:
        """Return nothing: each step is for itself."""
        return ()

    def apply(self, g: Tensor, slots: Slots, t: int, p: Tensor) -> tuple[Tensor, Slots]:
        """Take one step."""
        coefficient, eps = numbers(self.coefficient, self.eps)
        return _trusted(g, coefficient, norm(p), norm(g), eps), slots


@dataclass(frozen=True)
class ScaleByLARS(Rule):
    """Decayed gradients in proportion to their weights; see `scale_by_lars`."""

    needs_params: ClassVar[bool] = True

    weight_decay: Hyperparameter = 0.0
    coefficient: Hyperparameter = 1e-3
    eps: Hyperparameter = 0.0

    def __post_init__(self) -> None:
        for name in ("weight_decay", "coefficient", "eps"):
            check_range(name, getattr(self, name), 0)

    def begin(self, zeros: Tensor) -> Slots:
        """Return nothing: each step is for itself."""
        return ()

    def apply(self, g: Tensor, slots: Slots, t: int, p: Tensor) -> tuple[Tensor, Slots]:
        """Take one step."""
        decay, coefficient, eps = numbers(self.weight_decay, self.coefficient, self.eps)
        length = norm(p)
        return _trusted(g + decay * p, coefficient, length, norm(g) + decay * length, eps), slots


def scale_by_trust_ratio(
    coefficient: Hyperparameter = 1.0, eps: Hyperparameter = 0.0
) -> ScaleByTrustRatio:
    """Scale the update of each parameter to the norm of its weights.

    For an update ``u`` of weights ``p``::

        update = coefficient * |p| / (|u| + eps) * u      or u, where |p| or |u| is 0

    Args:
        coefficient: Norm of the update in units of that of the weights.
        eps: Added to the norm of the update.

    Example:
        >>> import torch
        >>> from diffopt_explicit import scale_by_trust_ratio
        >>> tx, params = scale_by_trust_ratio(), [torch.tensor([3.0, 4.0])]
        >>> tx.update([torch.tensor([0.0, 0.1])], tx.init(params), params)[0]
        [tensor([0., 5.])]

    Source: You et al., *Large batch optimization for deep learning: training BERT in 76
    minutes*, ICLR 2020, algorithm 2, with the identity for its function phi.
    """
    return ScaleByTrustRatio(coefficient, eps)


def scale_by_lars(
    weight_decay: Hyperparameter = 0.0,
    coefficient: Hyperparameter = 1e-3,
    eps: Hyperparameter = 0.0,
) -> ScaleByLARS:
    """Add decayed weights to gradients, and scale them by the norms of both.

    For a gradient ``g`` of weights ``p``::

        ratio = coefficient * |p| / (|g| + weight_decay * |p| + eps)    or 1, where |p| or |g| is 0
        update = ratio * (g + weight_decay * p)

    Args:
        weight_decay: Strength of the decay.
        coefficient: How much a parameter is trusted to change in one step.
        eps: Added to the norm of the gradient.

    Example:
        >>> import torch
        >>> from diffopt_explicit import scale_by_lars
        >>> tx, params = scale_by_lars(coefficient=0.1), [torch.tensor([3.0, 4.0])]
        >>> tx.update([torch.tensor([0.0, 7.0])], tx.init(params), params)[0]
        [tensor([0.0000, 0.5000])]

    Source: You, Gitman & Ginsburg, *Large batch training of convolutional networks*, 2017, eq. 6.
    """
    return ScaleByLARS(weight_decay, coefficient, eps)


def norm(x: Tensor) -> Tensor:
    """The Euclidean norm of all elements, with derivative 0 at 0."""
    return safe_sqrt(x.square().sum())


def _trusted(u: Tensor, coefficient: Any, p_norm: Tensor, u_norm: Tensor, eps: Any) -> Tensor:
    """The update times its trust ratio, which is 1 where there is nothing to compare."""
    undefined = (p_norm == 0) | (u_norm == 0)
    ratio = coefficient * p_norm / torch.where(undefined, 1.0, u_norm + eps)
    return torch.where(undefined, 1.0, ratio) * u
