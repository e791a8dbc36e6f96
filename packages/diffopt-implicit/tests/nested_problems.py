"""Multilevel programs with closed forms."""

import functools
from dataclasses import dataclass

import torch
from diffopt_implicit import (
    Engine,
    Problem,
)
from implicit_problems import normal, spd
from torch.func import grad

STILL = functools.partial(torch.optim.SGD, lr=0.0)

name_of = lambda method: repr(method)

half = lambda x: x.square().sum() / 2


def at_rest(*problems, **options):
    """An engine whose problems have taken one step each, without moving."""
    engine = Engine(problems, **options)
    engine.run(1)
    return engine


class Bilevel:
    """The inner loss ``w.Hw/2 - w.B lam`` and the outer ``c.w + |w|^2/2 + lam.lam``."""

    def __init__(self, n=6, m=4):
        self.h, self.b = spd(n), normal(n, m, seed=1)
        self.c, self.lam = normal(n, seed=2), normal(m, seed=3)

    def inner(self, at, _):
        return 0.5 * at.w @ self.h @ at.w - at.w @ self.b @ at.lam

    def outer(self, at, _):
        return self.c @ at.w + half(at.w) + at.lam.square().sum()

    def minimum(self, lam):
        return torch.linalg.solve(self.h, self.b @ lam)

    def exact(self):
        value = lambda lam: (
            self.c @ self.minimum(lam) + half(self.minimum(lam)) + lam.square().sum()
        )
        return grad(value)(self.lam)

    def found(self, method, **options):
        w = self.minimum(self.lam)
        return at_rest(
            Problem("w", w, self.inner, STILL, upper=["lam"]),
            Problem("lam", self.lam, self.outer, STILL, lower={"w": method}),
            **options,
        ).gradient("lam")


class Nested:
    """Three levels; the middle one moves the lowest, and is differentiated by the highest."""

    def __init__(self):
        self.a, self.b, self.d = normal(4, 3), normal(3, 2, seed=1), normal(4, 2, seed=4)
        self.t, self.s, self.c = normal(4, seed=2), normal(4, seed=5), 0.7
        self.three = normal(2, seed=3)

    def one(self, two, three):
        return self.a @ two + self.d @ three

    def two(self, three):
        left = self.a.T @ self.a + self.c * torch.eye(3, dtype=torch.float64)
        right = self.a.T @ (self.s - self.d @ three) + self.c * self.b @ three
        return torch.linalg.solve(left, right)

    def total(self, three):
        two = self.two(three)
        return half(self.one(two, three) - self.t) + 0.3 * half(two) + half(three)

    def engine(self, lowest, middle, highest):
        three = self.three
        two = self.two(three)
        return at_rest(
            Problem(
                "three",
                three,
                lambda at, _: half(at.one - self.t) + 0.3 * half(at.two) + half(at.three),
                STILL,
                lower={"two": highest, "one": lowest},
            ),
            Problem(
                "two",
                two,
                lambda at, _: half(at.one - self.s) + self.c * half(at.two - self.b @ at.three),
                STILL,
                upper=["three"],
                lower={"one": middle},
            ),
            Problem(
                "one",
                self.one(two, three),
                lambda at, _: half(at.one - self.a @ at.two - self.d @ at.three),
                STILL,
                upper=["two", "three"],
            ),
        )


@dataclass(frozen=True)
class Descent:
    """Plain descent as a transform."""

    lr: float

    def init(self, params):
        return ()

    def update(self, grads, state, params=None):
        return {key: -self.lr * g for key, g in grads.items()}, state


@dataclass(frozen=True)
class Momentum:
    """Heavy-ball descent of one tensor as a transform."""

    lr: float
    decay: float = 0.9

    def init(self, params):
        return torch.zeros_like(params)

    def update(self, grads, state, params=None):
        trace = self.decay * state + grads
        return -self.lr * trace, trace
