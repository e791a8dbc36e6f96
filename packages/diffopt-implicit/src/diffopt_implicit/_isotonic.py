"""Isotonic regression, and what follows from it: soft sorting and soft ranking."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from diffopt_implicit._linear_system import check_positive
from diffopt_implicit._torch import any_true, is_traced, outside_graphs

# NOTE [pooling in parallel]
# Adjacent violators may be pooled in any order, and a decreasing run of blocks ends up as one,
# whatever comes after: its average lies above its own last block. So all violations of a round
# are pooled at once, for all vectors of a batch. What is found this way are the blocks alone,
# from detached values; the result is their averages, which autograd differentiates. Blocks of
# equal averages stay apart: the derivative there is that of staying where one is.


def isotonic_l2(x: Tensor, weights: Tensor | None = None) -> Tensor:
    """Find the nearest vector that never decreases.

    The minimum over ``v_1 <= ... <= v_n`` of ``sum_i w_i (x_i - v_i)^2``, by pooling adjacent
    violators. It is an average over each of some blocks of neighbours.

    Args:
        x: Vectors, of the shape ``(..., n)``.
        weights: The ``w_i``, positive, of a shape that broadcasts with `x`; default 1.

    Returns:
        The fitted vectors. Their Jacobian averages over blocks; between blocks of equal
        averages it is that of blocks which stay apart. Differentiable any number of times, in
        `weights` too.

    Raises:
        ValueError: If a weight is not positive.

    Example:
        >>> import torch
        >>> isotonic_l2(torch.tensor([1.0, 3.0, 2.0, 4.0]))
        tensor([1.0000, 2.5000, 2.5000, 4.0000])

    Source:
        Best & Chakravarti, *Active set algorithms for isotonic regression*, Mathematical
        Programming 47, 1990.
    """
    x = vectors(x)
    w = torch.ones_like(x) if weights is None else weights
    if not is_traced(w) and not bool((w > 0).all()):
        raise ValueError("`weights` must be positive; leave out the elements of weight 0.")
    # Deviations from the mean, so that sums lose no digits to a common offset.
    offset = x.detach().mean(-1, keepdim=True)
    centered, w = torch.broadcast_tensors(x - offset, w)

    def average(x: Tensor, weights: Tensor, blocks: Tensor) -> Tensor:
        return block_sums(weights * x, blocks) / block_sums(weights, blocks)

    blocks = pooled(partial(average, centered.detach(), w.detach()), centered)
    return offset + average(centered, w, blocks)


def isotonic_kl(x: Tensor, log_weights: Tensor | None = None) -> Tensor:
    """Find the vector that never decreases and is nearest in relative entropy.

    The minimum over ``v_1 <= ... <= v_n`` of ``sum_i exp(x_i - v_i) + exp(w_i) v_i``: ``exp(v)``
    is the isotonic regression of ``exp(x - w)`` with the weights ``exp(w)``. On each block it is
    ``logsumexp(x) - logsumexp(w)``.

    Args:
        x: Vectors, of the shape ``(..., n)``.
        log_weights: The ``w_i``, of a shape that broadcasts with `x`; default 0.

    Returns:
        The fitted vectors, differentiable like `isotonic_l2`.

    Example:
        >>> import torch
        >>> isotonic_kl(torch.tensor([1.0, 3.0, 2.0, 4.0]))
        tensor([1.0000, 2.6201, 2.6201, 4.0000])

    Source:
        Blondel, Teboul, Berthet & Djolonga, *Fast differentiable sorting and ranking*, ICML
        2020, proposition 4.
    """
    x = vectors(x)
    x, w = torch.broadcast_tensors(x, torch.zeros_like(x) if log_weights is None else log_weights)

    def average(x: Tensor, log_weights: Tensor, blocks: Tensor) -> Tensor:
        return block_logsumexp(x, blocks) - block_logsumexp(log_weights, blocks)

    blocks = pooled(partial(average, x.detach(), w.detach()), x)
    return average(x, w, blocks)


def soft_sort(x: Tensor, strength: float | Tensor = 1.0, *, descending: bool = False) -> Tensor:
    """Sort, smoothly: project on the vectors between all orders of the elements.

    The projection of ``(1, ..., n) / strength`` on the convex hull of the permutations of `x`.
    It is the sorted vector as long as no gap between neighbours is above ``1 / strength``, and
    tends to their mean where `strength` is large.

    Args:
        x: Vectors, of the shape ``(..., n)``.
        strength: How much to smooth, positive, in the units of ``1 / x``.
        descending: Whether the largest element comes first.

    Returns:
        The soft sorted vectors, differentiable almost everywhere, any number of times.

    Raises:
        ValueError: If `strength` is not positive.

    Example:
        >>> import torch
        >>> soft_sort(torch.tensor([3.0, 1.0, 2.0]), 0.1)
        tensor([1., 2., 3.])
        >>> soft_sort(torch.tensor([3.0, 1.0, 2.0]), 2.0)
        tensor([1.5000, 2.0000, 2.5000])

    Source:
        Blondel, Teboul, Berthet & Djolonga, *Fast differentiable sorting and ranking*, ICML
        2020, propositions 2 and 3.
    """
    check_positive("strength", strength)
    x = -vectors(x) if descending else vectors(x)
    target = ranks(x) / strength
    found = target - isotonic_l2(target - x.sort(-1).values)
    return -found if descending else found


def soft_rank(x: Tensor, strength: float | Tensor = 1.0, *, descending: bool = False) -> Tensor:
    """Rank, smoothly: project on the vectors between all orders of 1, ..., n.

    The projection of ``x / strength`` on the convex hull of the permutations of
    ``(1, ..., n)``.

    Args:
        x: Vectors, of the shape ``(..., n)``.
        strength: How much to smooth, positive, in the units of `x`.
        descending: Whether the largest element has rank 1.

    Returns:
        The soft ranks, which sum to ``n (n + 1) / 2``; the ranks themselves as long as no gap
        between neighbours is below `strength`. Differentiable almost everywhere, any number of
        times.

    Raises:
        ValueError: If `strength` is not positive.

    Example:
        >>> import torch
        >>> soft_rank(torch.tensor([3.0, 1.0, 2.0]), 0.1)
        tensor([3., 1., 2.])

    Source:
        Blondel, Teboul, Berthet & Djolonga, *Fast differentiable sorting and ranking*, ICML
        2020, propositions 2 and 3.
    """
    check_positive("strength", strength)
    x = vectors(x) / strength
    ordered, order = (-x if descending else x).sort(-1)
    found = ordered - isotonic_l2(ordered - ranks(x))
    return found.gather(-1, order.argsort(-1))


def vectors(x: Tensor) -> Tensor:
    """Refuse what has no last dimension of real numbers."""
    if not x.dim() or not x.is_floating_point():
        raise ValueError(
            "`x` must be floating-point vectors of the shape (..., n), got "
            f"{x.dtype} of the shape {tuple(x.shape)}."
        )
    return x


def ranks(x: Tensor) -> Tensor:
    """Return 1, ..., n."""
    return torch.arange(1, x.shape[-1] + 1, dtype=x.dtype, device=x.device)


@outside_graphs
def pooled(average: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Return the number of the block of each element, once block averages do not decrease.

    Args:
        average: What maps the numbers of blocks to the average of each element's block.
        x: What is fitted, for its shape alone.
    """
    with torch.no_grad():
        starts = torch.ones_like(x, dtype=torch.bool)
        while True:
            blocks = starts.cumsum(-1) - 1
            fitted = average(blocks)
            violated = torch.zeros_like(starts)
            violated[..., 1:] = fitted[..., 1:] < fitted[..., :-1]
            if not any_true(violated):
                return blocks
            starts = starts & ~violated


def block_sums(x: Tensor, blocks: Tensor) -> Tensor:
    """Return, for each element, the sum over its block."""
    return torch.zeros_like(x).scatter_add(-1, blocks, x).gather(-1, blocks)


def block_logsumexp(x: Tensor, blocks: Tensor) -> Tensor:
    """Return, for each element, the logarithm of the summed exponentials of its block."""
    lowest = torch.full_like(x, -torch.inf).detach()
    largest = lowest.scatter_reduce(-1, blocks, x.detach(), "amax").gather(-1, blocks)
    return largest + block_sums((x - largest).exp(), blocks).log()
