"""Bounding updates: by value, by their norm, by the size of their parameters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diffopt_explicit._hyperparameter import (
    Hyperparameter,
    check_range,
    everywhere,
    is_tree,
    value_at,
)
from diffopt_explicit._parameters import required
from diffopt_explicit._rule import safe_sqrt
from diffopt_explicit._stepwise import Stepwise
from diffopt_explicit._transform import Tree
from diffopt_explicit._trees import map_present, tree_leaves


@dataclass(frozen=True)
class Clip(Stepwise):
    """Updates with every element in [-max_value, max_value]; see `clip`."""

    max_value: Hyperparameter

    def __post_init__(self) -> None:
        check_range("max_value", self.max_value, 0)

    def at(self, step: int, updates: Tree, params: Tree | None) -> Tree:
        """Clip the updates."""

        def clip_one(update: Tensor, bound: Any) -> Tensor:
            limit = torch.as_tensor(bound, dtype=update.dtype, device=update.device)
            return torch.where(update.abs() > limit, update.sign() * limit, update)

        return map_present(clip_one, updates, everywhere(self, "max_value", step, updates))


@dataclass(frozen=True)
class ClipByGlobalNorm(Stepwise):
    """Updates whose common norm is at most `max_norm`; see `clip_by_global_norm`."""

    max_norm: Hyperparameter

    def __post_init__(self) -> None:
        check_range("max_norm", self.max_norm, 0)
        if is_tree(self.max_norm):
            raise TypeError("`max_norm` is one for all parameters, got a tree; see `partition`.")

    def at(self, step: int, updates: Tree, params: Tree | None) -> Tree:
        """Clip the updates together."""
        max_norm = value_at(self, "max_norm", step)
        present = tree_leaves(updates)
        if not present:
            return updates
        squares = [_sum_of_squares(update, present[0].device) for update in present]
        factor = _shrink(torch.stack(squares).sum(), max_norm)
        return map_present(lambda u: u * factor.to(u.dtype).to(u.device), updates)


@dataclass(frozen=True)
class AdaptiveClip(Stepwise):
    """Updates bounded unit by unit by the size of the weights; see `adaptive_clip`."""

    clipping: Hyperparameter
    eps: Hyperparameter = 1e-3

    def __post_init__(self) -> None:
        check_range("clipping", self.clipping, 0)
        check_range("eps", self.eps, 0)

    def at(self, step: int, updates: Tree, params: Tree | None) -> Tree:
        """Clip each unit of the updates."""
        params = required(params, "`adaptive_clip`")

        def clip_one(update: Tensor, param: Tensor, clipping: Any, eps: Any) -> Tensor:
            size = safe_sqrt(_units(param))
            floor = torch.as_tensor(eps, dtype=size.dtype, device=size.device)
            return update * _shrink(_units(update), clipping * torch.maximum(size, floor))

        bounds = (everywhere(self, name, step, updates) for name in ("clipping", "eps"))
        return map_present(clip_one, updates, params, *bounds)


def clip(max_value: Hyperparameter) -> Clip:
    """Clip every element of the updates to ``[-max_value, max_value]``.

    Args:
        max_value: The bound, at least 0: a number, a 0-d tensor, or a schedule. Clipped
            elements have the derivative 0 in the gradient and ±1 in the bound.

    Example:
        >>> import torch
        >>> from diffopt_explicit import clip
        >>> tx = clip(1.0)
        >>> tx.update([torch.tensor([-3.0, 0.5])], tx.init(None))[0]
        [tensor([-1.0000,  0.5000])]
    """
    return Clip(max_value)


def clip_by_global_norm(max_norm: Hyperparameter) -> ClipByGlobalNorm:
    """Scale all updates down together, if need be, to a common Euclidean norm of `max_norm`.

    Differentiable through the norm, without a look at its value: the Jacobian is that of
    the projection onto the ball, ``(c / |g|) (I - g g^T / |g|^2)`` outside and the identity
    inside and at zero.

    Args:
        max_norm: The bound ``c``, at least 0: a number, a 0-d tensor, or a schedule.

    Example:
        >>> import torch
        >>> from diffopt_explicit import clip_by_global_norm
        >>> tx = clip_by_global_norm(1.0)
        >>> tx.update({"a": torch.tensor(3.0), "b": torch.tensor(4.0)}, tx.init(None))[0]
        {'a': tensor(0.6000), 'b': tensor(0.8000)}

    Source: Pascanu, Mikolov & Bengio, *On the difficulty of training recurrent neural
    networks*, ICML 2013, algorithm 1.
    """
    return ClipByGlobalNorm(max_norm)


def adaptive_clip(clipping: Hyperparameter, eps: Hyperparameter = 1e-3) -> AdaptiveClip:
    """Bound the norm of each unit's update by a share of the norm of its weights.

    A unit is what feeds one output: a row of a matrix (out, in), a filter of a convolution
    (out, in, height, width), one element of a vector, a scalar.

    Args:
        clipping: The share, at least 0: a number, a 0-d tensor, or a schedule.
        eps: Least norm of weights, so that units can leave zero.

    Example:
        >>> import torch
        >>> from diffopt_explicit import adaptive_clip
        >>> tx = adaptive_clip(0.1)
        >>> params = [torch.tensor([[3.0, 4.0], [0.3, 0.4]])]
        >>> tx.update([torch.tensor([[0.0, 0.1], [0.0, 0.1]])], tx.init(params), params)[0]
        [tensor([[0.0000, 0.1000],
                [0.0000, 0.0500]])]

    Source: Brock et al., *High-performance large-scale image recognition without
    normalization*, ICML 2021, eq. 3.
    """
    return AdaptiveClip(clipping, eps)


def _sum_of_squares(update: Tensor, device: torch.device) -> Tensor:
    wide = torch.promote_types(update.dtype, torch.float32)
    return update.to(wide).square().sum().to(device)


def _units(tensor: Tensor) -> Tensor:
    """The sum of squares of each unit, shaped to broadcast against the tensor."""
    if tensor.dim() <= 1:
        return tensor.square()
    return tensor.square().sum(tuple(range(1, tensor.dim())), keepdim=True)


def _shrink(squares: Tensor, bound: Any) -> Tensor:
    """The factor that brings a norm down to a bound: 1 below it, and at a norm of 0."""
    limit = torch.as_tensor(bound, dtype=squares.dtype, device=squares.device)
    above = squares > limit.square()
    return torch.where(above, limit / torch.where(above, squares, 1.0).sqrt(), 1.0)
