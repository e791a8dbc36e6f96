"""Sets whose nearest points have formulas, by ordinary autograd."""

from __future__ import annotations

from typing import Any

import torch
from pytree_core import tree_broadcast_prefix, tree_map
from torch import Tensor

from diffopt_implicit._torch import is_traced

Tree = Any
Number = float | Tensor


def non_negative(x: Tree) -> Tree:
    """Project on what has no negative element.

    Args:
        x: A tree of tensors of any shapes.

    Returns:
        ``max(x, 0)``, whose derivative at 0 is 1.

    Example:
        >>> import torch
        >>> non_negative(torch.tensor([1.0, -2.0]))
        tensor([1., 0.])
    """
    return tree_map(lambda leaf: torch.where(leaf >= 0, leaf, 0), x)


def box(x: Tree, lower: Tree, upper: Tree) -> Tree:
    """Project on a box.

    Args:
        x: A tree of tensors of any shapes.
        lower: The least values: a number, or a tree that is a prefix of `x` with numbers or tensors
            that broadcast. They may require grad.
        upper: The largest values, likewise.

    Returns:
        The nearest point: elements outside have the bound's derivative, those within or on the
        boundary that of `x`.

    Raises:
        ValueError: If a lower bound is above its upper one.

    Example:
        >>> import torch
        >>> box(torch.tensor([1.0, -2.0, 5.0]), 0.0, 3.0)
        tensor([1., 0., 3.])
    """

    def clip(leaf: Tensor, low: Number, high: Number) -> Tensor:
        low, high = (torch.as_tensor(b, dtype=leaf.dtype, device=leaf.device) for b in (low, high))
        if not is_traced(low, high) and bool((low > high).any()):
            raise ValueError("`lower` must not be above `upper`.")
        return torch.where(leaf < low, low, torch.where(leaf > high, high, leaf))

    low, high = (tree_broadcast_prefix(bound, x) for bound in (lower, upper))
    return tree_map(clip, x, low, high)


def simplex(x: Tensor, value: Number = 1.0) -> Tensor:
    """Project on the simplex of what is non-negative and sums to `value`.

    Args:
        x: Vectors, of the shape ``(..., n)``.
        value: The sum, positive: a number, or a tensor of the shape ``(...)``.

    Returns:
        The nearest points: ``max(x - t, 0)`` with the ``t`` that gives the sum.

    Example:
        >>> import torch
        >>> simplex(torch.tensor([0.5, 1.5, -1.0]))
        tensor([0., 1., 0.])

    Source:
        Duchi, Shalev-Shwartz, Singer & Chandra, *Efficient projections onto the l1-ball*, ICML
        2008, figure 1.
    """
    total = per_vector(value, x)
    ordered = x.sort(-1, descending=True).values
    counts = torch.arange(1, x.shape[-1] + 1, dtype=x.dtype, device=x.device)
    thresholds = (ordered.cumsum(-1) - total) / counts
    support = (ordered > thresholds).sum(-1, keepdim=True)
    threshold = thresholds.gather(-1, support - 1)
    return torch.where(x > threshold, x - threshold, 0)


def l1_sphere(x: Tensor, value: Number = 1.0) -> Tensor:
    """Project on the vectors whose absolute values sum to `value`.

    Args:
        x: Vectors, of the shape ``(..., n)``.
        value: The sum, positive; see `simplex`.

    Example:
        >>> import torch
        >>> l1_sphere(torch.tensor([3.0, -2.5]))
        tensor([ 0.7500, -0.2500])

    Returns:
        The nearest points.
    """
    sign = torch.where(x >= 0, 1.0, -1.0).to(x.dtype)
    return sign * simplex(sign * x, value)


def l1_ball(x: Tensor, radius: Number = 1.0) -> Tensor:
    """Project on the vectors whose absolute values sum to at most `radius`.

    Args:
        x: Vectors, of the shape ``(..., n)``.
        radius: The radius, positive: a number, or a tensor of the shape ``(...)``.

    Returns:
        The nearest points.

    Example:
        >>> import torch
        >>> l1_ball(torch.tensor([0.5, -0.2])), l1_ball(torch.tensor([3.0, -2.5]))
        (tensor([ 0.5000, -0.2000]), tensor([ 0.7500, -0.2500]))
    """
    within = x.abs().sum(-1, keepdim=True) <= per_vector(radius, x)
    return torch.where(within, x, l1_sphere(x, radius))


def l2_sphere(x: Tensor, radius: Number = 1.0) -> Tensor:
    """Project on the vectors of the length `radius`.

    Args:
        x: Vectors, of the shape ``(..., n)``.
        radius: The length, positive: a number, or a tensor of the shape ``(...)``.

    Returns:
        The nearest points; of 0, from which all are as near, 0 itself with derivative 0.

    Example:
        >>> import torch
        >>> l2_sphere(torch.tensor([3.0, 4.0]), 10.0)
        tensor([6., 8.])
    """
    square = (x * x).sum(-1, keepdim=True)
    # So that there is no derivative of a root at 0.
    length = torch.where(square > 0, square, 1).sqrt()
    return torch.where(square > 0, x * (per_vector(radius, x) / length), 0)


def l2_ball(x: Tensor, radius: Number = 1.0) -> Tensor:
    """Project on the vectors of at most the length `radius`.

    Args:
        x: Vectors, of the shape ``(..., n)``.
        radius: The largest length, positive: a number, or a tensor of the shape ``(...)``.

    Returns:
        The nearest points.

    Example:
        >>> import torch
        >>> l2_ball(torch.tensor([3.0, 4.0])), l2_ball(torch.tensor([0.3, 0.4]))
        (tensor([0.6000, 0.8000]), tensor([0.3000, 0.4000]))
    """
    within = (x * x).sum(-1, keepdim=True) <= per_vector(radius, x) ** 2
    return torch.where(within, x, l2_sphere(x, radius))


def linf_ball(x: Tensor, radius: Number = 1.0) -> Tensor:
    """Project on the vectors without an element beyond `radius`.

    Args:
        x: Vectors, of the shape ``(..., n)``.
        radius: The largest absolute value, positive: a number, or a tensor of the shape ``(...)``.

    Returns:
        The nearest points.

    Example:
        >>> import torch
        >>> linf_ball(torch.tensor([3.0, -0.5]))
        tensor([ 1.0000, -0.5000])
    """
    bound = per_vector(radius, x)
    return torch.where(x > bound, bound, torch.where(x < -bound, -bound, x))


def hyperplane(x: Tensor, normal: Tensor, offset: Number) -> Tensor:
    """Project on the plane ``normal . x = offset``.

    Args:
        x: Vectors, of the shape ``(..., n)``.
        normal: The normal vector, of the shape ``(n,)`` or ``(..., n)``, not 0.
        offset: A number, or a tensor of the shape ``(...)``.

    Returns:
        The nearest points.

    Example:
        >>> import torch
        >>> hyperplane(torch.tensor([1.0, 1.0]), torch.tensor([1.0, 0.0]), 3.0)
        tensor([3., 1.])
    """
    excess = (normal * x).sum(-1, keepdim=True) - per_vector(offset, x)
    return x - excess / (normal * normal).sum(-1, keepdim=True) * normal


def halfspace(x: Tensor, normal: Tensor, offset: Number) -> Tensor:
    """Project on the half-space ``normal . x <= offset``; see `hyperplane`.

    Args:
        x: Vectors, of the shape ``(..., n)``.
        normal: The normal vector, as there.
        offset: As there.

    Returns:
        The nearest points.

    Example:
        >>> import torch
        >>> halfspace(torch.tensor([1.0, 1.0]), torch.tensor([1.0, 0.0]), 3.0)
        tensor([1., 1.])
    """
    within = (normal * x).sum(-1, keepdim=True) <= per_vector(offset, x)
    return torch.where(within, x, hyperplane(x, normal, offset))


def affine_set(x: Tensor, matrix: Tensor, offset: Tensor) -> Tensor:
    """Project on the solutions of ``matrix @ x = offset``.

    Args:
        x: Vectors, of the shape ``(..., n)``.
        matrix: Of the shape ``(m, n)``, with independent rows.
        offset: Of the shape ``(m,)`` or ``(..., m)``.

    Returns:
        The nearest points.

    Raises:
        torch.linalg.LinAlgError: If the rows are dependent.

    Example:
        >>> import torch
        >>> affine_set(torch.tensor([1.0, 5.0]), torch.tensor([[2.0, 0.0]]), torch.tensor([6.0]))
        tensor([3., 5.])
    """
    excess = x @ matrix.mT - offset
    weights = torch.cholesky_solve(
        excess.unsqueeze(-1), torch.linalg.cholesky(matrix @ matrix.mT)
    ).squeeze(-1)
    return x - weights @ matrix


def per_vector(number: Number, x: Tensor) -> Tensor:
    """Return a number for each vector, to broadcast with these."""
    found = torch.as_tensor(number, dtype=x.dtype, device=x.device)
    return found.unsqueeze(-1)
