"""A matrix on trees as one on vectors, for iterations that think in vectors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from diffopt_implicit._coordinates import Coordinates
from diffopt_implicit._linear_system import MatVec, moved

RESULT = "The result of `matvec`"


@dataclass(frozen=True)
class Operator:
    """``A + ridge I`` on vectors.

    Attributes:
        matvec: The product with ``A``, on trees.
        space: What the trees look like.
        ridge: A number or a scalar tensor.
    """

    matvec: MatVec
    space: Coordinates
    ridge: float | Tensor = 0.0

    def __call__(self, v: Tensor) -> Tensor:
        """Return the product with a vector."""
        product = self.space.vector(self.matvec(self.space.tree(v)), RESULT)
        return self.shifted(product, self.ridge, v)

    def residual(self, b: Tensor, x: Tensor, out: Tensor | None = None) -> Tensor:
        """Return ``b - (A + ridge I) x``; into `out`, if there is one, leaf by leaf."""
        if out is None:
            return b - self(x)
        product = self.space.pieces(self.matvec(self.space.tree(x)), RESULT)
        for right, part, into in zip(self.space.cut(b), product, self.space.cut(out), strict=True):
            torch.sub(right, part, out=into)
        return self.shifted(out, -self.ridge, x, out)

    def shifted(
        self, product: Tensor, ridge: float | Tensor, v: Tensor, out: Tensor | None = None
    ) -> Tensor:
        """Add the ridge's part to a product, unless there is none."""
        if not isinstance(ridge, Tensor) and ridge == 0:
            return product
        return moved(product, ridge, v, out)
