"""Fitness shaping: values replaced by what only their order or their spread says."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Shaping = Callable[[Tensor], Tensor]


def rank(values: Tensor) -> Tensor:
    """Return the ranks of the values, from 0 for the least to 1; equal values share theirs."""
    ordered = values.sort().values
    below = torch.searchsorted(ordered, values)
    above = torch.searchsorted(ordered, values, right=True)
    return (below + above - 1).to(values.dtype) / (2 * (len(values) - 1))


def centered_rank(values: Tensor) -> Tensor:
    """Return the ranks of the values, from -1/2 to 1/2."""
    return rank(values) - 0.5


def z_score(values: Tensor) -> Tensor:
    """Return the values less their mean, over their standard deviation; 0 if they are equal."""
    spread = values.max() - values.min()
    centred = values - values.mean()
    deviation = centred.square().mean().sqrt()
    return torch.where(spread > 0, centred / torch.where(spread > 0, deviation, 1), 0)


SHAPINGS: dict[str, Shaping] = {
    "rank": rank,
    "centered_rank": centered_rank,
    "z_score": z_score,
}


def shaping_of(shaping: str | Shaping | None) -> Shaping | None:
    """Return the shaping that a shorthand stands for, ready to refuse what cannot be shaped."""
    if shaping is None:
        return None
    if callable(shaping):
        return checked(shaping)
    if shaping not in SHAPINGS:
        raise ValueError(
            f"`shaping` must be None, a callable from a vector of values to one of its length, "
            f"or one of {sorted(SHAPINGS)}, got {shaping!r}."
        )
    return checked(SHAPINGS[shaping])


def checked(shaping: Shaping) -> Shaping:
    """Refuse a single value, and what has another shape or is not finite."""

    def shape(values: Tensor) -> Tensor:
        if len(values) < 2:
            raise ValueError(
                "`shaping` compares values with one another, and here is one only. Raise "
                "`num_samples`, or leave out `shaping`."
            )
        shaped = shaping(values)
        if not isinstance(shaped, Tensor) or shaped.shape != values.shape:
            got = tuple(shaped.shape) if isinstance(shaped, Tensor) else type(shaped).__name__
            raise ValueError(
                f"`shaping` must return a tensor of the shape {tuple(values.shape)} that it is "
                f"called with, got {got}."
            )
        if not shaped.isfinite().all():
            raise ValueError(f"`shaping` made NaN or infinity of the finite values {values}.")
        return shaped

    return shape
