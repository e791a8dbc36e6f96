"""A function of trees as a map of vectors, with its matrix of derivatives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diffopt_implicit._coordinates import Coordinates
from diffopt_implicit._equation import transpose
from diffopt_implicit._linear_system import Tree
from diffopt_implicit._torch import vjp


@dataclass(frozen=True)
class VectorFunction:
    """A function between trees, in the working dtype of what goes in.

    Attributes:
        fun: ``(params, *args, **kwargs) ->`` any tree of real tensors.
        space: What the parameters look like.
        args: Further arguments of `fun`.
        kwargs: The same.
    """

    fun: Callable[..., Tree]
    space: Coordinates
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def __call__(self, x: Tensor) -> Tensor:
        """Return the values as a vector."""
        found = self.fun(self.space.tree(x), *self.args, **self.kwargs)
        name = "the result of `fun`"
        return Coordinates.of(found, name).vector(found, name).to(x.dtype)

    def linearized(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return value (m,) and Jacobian (m, n), of one call."""
        value, pull = vjp(self, x)

        def rows(cotangent: Tensor) -> Tensor:
            return pull(cotangent)[0]

        eye = unit_matrix(min(len(value), len(x)), x)
        if len(value) <= len(x):
            return value, torch.func.vmap(rows)(eye)
        # The transpose of the pullback: torch's own forward mode is not always differentiable.
        push = transpose(lambda u: pull(u[0]), (value,))
        return value, torch.func.vmap(lambda u: push((u,))[0], out_dims=1)(eye)


def unit_matrix(size: int, like: Tensor) -> Tensor:
    """Return the unit matrix."""
    return torch.eye(size, dtype=like.dtype, device=like.device)
