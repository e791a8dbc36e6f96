"""Bilevel problems with known hypergradients, and the methods that find them."""

import torch
from diffopt_implicit import (
    BOME,
    CG,
    F2SA,
    SAMA,
    Exact,
    FiniteDifference,
    FixedPoint,
    IdentityApprox,
    Neumann,
    NormalCG,
    Nystrom,
    OneStep,
    StochasticAdjoint,
    hypergradient,
)
from implicit_problems import X, Y, normal, ridge_objective, spd

SOLVING = [CG(), NormalCG(), Exact(), CG(6), NormalCG(6)]
EVERY = [
    *SOLVING,
    Neumann(3, 0.1),
    FixedPoint(3, 0.1),
    Nystrom(3),
    OneStep(0.1),
    IdentityApprox(),
    StochasticAdjoint(3),
    FiniteDifference(),
    SAMA(),
    F2SA(),
    BOME(),
]
name_of = lambda method: repr(method)


class Quadratic:
    """The inner loss ``w.Hw/2 - w.B lam`` and the outer ``c.w + |w|^2/2 + lam.lam``."""

    def __init__(self, n=6, m=4):
        self.h, self.b = spd(n), normal(n, m, seed=1)
        self.c, self.lam = normal(n, seed=2), normal(m, seed=3)

    def inner(self, w, lam):
        return 0.5 * w @ self.h @ w - w @ self.b @ lam

    def outer(self, w, lam):
        return self.c @ w + w.square().sum() / 2 + lam.square().sum()

    def minimum(self, lam):
        return torch.linalg.solve(self.h, self.b @ lam)

    def value(self, lam):
        return self.outer(self.minimum(lam), lam)

    def by(self, method, lam=None, **options):
        lam = self.lam if lam is None else lam
        w = self.minimum(lam).detach()
        return hypergradient(self.inner, self.outer, w, lam, method, **options)

    def slope(self):
        """The outer loss's derivative in w, which the adjoint starts from."""
        return self.c + self.minimum(self.lam)


def ridge_outer(w, lam):
    return (w - 10).square().sum() / 2 + lam.square()


def ridge_inner(w, lam):
    return ridge_objective(w, lam, X, Y)
