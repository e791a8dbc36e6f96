"""Quadratic programs that tests have in common."""

from functools import partial

import torch
from diffopt_implicit import OSQP
from implicit_problems import normal


def program(seed, n=6, m=8, rank=None, dtype=torch.float64, moved=0.0):
    """Bounds around a point, but for what is moved, some of them equal and some infinite."""
    draw = partial(normal, dtype=dtype)
    half = draw(n, rank or n, seed=seed)
    G, x = draw(m, n, seed=seed + 1), draw(n, seed=seed + 2)
    lower, upper = (G @ x + s * draw(m, seed=seed + 3).abs() for s in (-0.5, 0.5))
    lower[0] = upper[0] = (G @ x)[0] + moved
    lower[1], upper[2] = -torch.inf, torch.inf
    A = draw(2, n, seed=seed + 4)
    return (half @ half.T, 3 * draw(n, seed=seed + 5)), (A, A @ x), (G, lower, upper)


def osqp(Q, c, A, b, G, lower, upper):
    return tuple(OSQP().run(None, (Q, c), (A, b), (G, lower, upper)).params)


def finite_program(seed):
    (Q, c), (A, b), (G, lower, upper) = program(seed, n=4, m=5)
    lower, upper = lower.clamp(min=-20), upper.clamp(max=20)
    lower[0] -= 0.3
    return Q, c, A[:1], b[:1], G, lower, upper
