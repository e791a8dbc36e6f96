"""Levels of a multilevel program that are differentiated through their steps."""

import functools

import pytest
import torch
from diffopt_implicit import (
    CG,
    Engine,
    Exact,
    NormalCG,
    Problem,
    UnrolledSteps,
)
from implicit_problems import normal
from nested_problems import STILL, Bilevel, Descent, Momentum, Nested, at_rest, half, name_of
from torch.func import grad, hessian
from torch.testing import assert_close


def newton(slope_of, start, steps=60):
    """The root of a gradient."""
    x = start
    for _ in range(steps):
        x = x - torch.linalg.solve(torch.func.jacrev(slope_of)(x), slope_of(x))
    return x


class Curved:
    """A nested program without closed form."""

    a, b, t = 0.5 * normal(3, 2), normal(2, 2, seed=1), normal(3, seed=2)

    def lowest(self, x, y, z):
        return (x.cosh() + x.square() / 2 - x * (self.a @ y + z.tanh().sum())).sum()

    def middle(self, y, x, z):
        return half(x - self.t) + (y - self.b @ z).cosh().sum()

    def highest(self, z, x, y):
        return (x * self.t).sin().sum() + half(y) + 0.1 * half(z)

    def x(self, y, z):
        return newton(grad(lambda x: self.lowest(x, y, z)), torch.zeros(3, dtype=torch.float64), 7)

    def y(self, z):
        total = lambda y: self.middle(y, self.x(y, z), z)
        return newton(grad(total), torch.zeros(2, dtype=torch.float64), 7)

    def total(self, z):
        y = self.y(z)
        return self.highest(z, self.x(y, z), y)


@functools.cache
def difference_quotients(step=1e-4):
    """The derivative of the curved program, solved anew at each point."""
    problem, z = Curved(), 0.3 * normal(2, seed=5)
    moved = [z + sign * step * e for e in torch.eye(2, dtype=torch.float64) for sign in (1, -1)]
    ahead, behind = torch.stack([problem.total(z) for z in moved]).reshape(2, 2).T
    return (ahead - behind) / (2 * step)


@pytest.mark.parametrize("method", [CG(), NormalCG(), Exact()], ids=name_of)
def test_curved_nested_minima_agree_with_finite_differences_of_solved_levels(method):
    problem, z = Curved(), 0.3 * normal(2, seed=5)
    y = problem.y(z)
    x = problem.x(y, z)
    found = at_rest(
        Problem("x", x, lambda at, _: problem.lowest(at.x, at.y, at.z), STILL, upper=["y", "z"]),
        Problem(
            "y",
            y,
            lambda at, _: problem.middle(at.y, at.x, at.z),
            STILL,
            upper=["z"],
            lower={"x": method},
        ),
        Problem(
            "z",
            z,
            lambda at, _: problem.highest(at.z, at.x, at.y),
            STILL,
            lower={"x": method, "y": method},
        ),
    ).gradient("z")
    assert_close(found, difference_quotients(), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("steps", [None, 1, 3, 8])
def test_unrolled_steps_are_differentiated_as_a_loop_of_them(steps):
    problem, count = Bilevel(), 8
    start = normal(6, seed=9)
    engine = Engine(
        [
            Problem("w", start, problem.inner, Momentum(0.05), upper=["lam"], unroll_steps=count),
            Problem("lam", problem.lam, problem.outer, STILL, lower={"w": UnrolledSteps(steps)}),
        ]
    )
    engine.run(1)

    record = engine.state_dict()["problems"]["w"]["record"]
    assert len(record["steps"]) == (steps or count)  # no more is kept than is used

    def loop(lam):
        w, trace = start, torch.zeros_like(start)
        for i in range(count):
            inside = lam.detach() if steps is not None and i < count - steps else lam
            trace = 0.9 * trace + problem.h @ w - problem.b @ inside
            w = w - 0.05 * trace
        return problem.c @ w + half(w) + lam.square().sum()

    lam = problem.lam.clone().requires_grad_()
    (exact,) = torch.autograd.grad(loop(lam), lam)
    assert_close(engine.gradient("lam"), exact, rtol=1e-10, atol=0)


def test_long_unrolls_give_the_implicit_derivative():
    problem = Bilevel()
    engine = Engine(
        [
            Problem(
                "w",
                torch.zeros_like(problem.c),
                problem.inner,
                Momentum(0.05, 0.5),
                upper=["lam"],
                unroll_steps=400,
            ),
            Problem("lam", problem.lam, problem.outer, STILL, lower={"w": UnrolledSteps()}),
        ]
    )
    engine.run(1)
    assert_close(engine.gradient("lam"), problem.exact(), rtol=1e-8, atol=0)


def test_a_minimum_through_unrolled_steps_is_differentiated_implicitly():
    # `y` minimizes what two steps of `x` lead to; `z` differentiates that minimum.
    a, t, x0 = 0.3 * normal(3, 2), normal(3, seed=1), normal(3, seed=2)
    z = normal(2, seed=3)

    def x_of(y):
        x = {"x": x0}
        for _ in range(2):
            x = {"x": x["x"] - 0.3 * (x["x"] - a @ y.sin())}
        return x["x"]

    middle = lambda y, z: half(x_of(y) - t) + 3 * half(y - z)
    solved = lambda z: newton(grad(lambda y: middle(y, z)), z, 20)
    total = lambda z: half(solved(z) - 1) + z.sin().sum()
    engine = Engine(
        [
            Problem(
                "x",
                {"x": x0},
                lambda at, _: half(at.x["x"] - a @ at.y.sin()),
                Descent(0.3),
                upper=["y"],
                unroll_steps=2,
            ),
            Problem(
                "y",
                solved(z),
                lambda at, _: half(at.x["x"] - t) + 3 * half(at.y - at.z),
                STILL,
                upper=["z"],
                lower={"x": UnrolledSteps()},
            ),
            Problem(
                "z",
                z,
                lambda at, _: half(at.y - 1) + at.z.sin().sum(),
                STILL,
                lower={"y": CG()},
            ),
        ]
    )
    engine.run(1)
    assert_close(engine.gradient("z"), grad(total)(z), rtol=1e-7, atol=0)


def test_the_nested_closed_form_is_a_minimum():
    problem = Nested()
    total = lambda two: (
        half(problem.one(two, problem.three) - problem.s)
        + problem.c * half(two - problem.b @ problem.three)
    )
    two = problem.two(problem.three)
    assert grad(total)(two).abs().max() < 1e-12
    assert torch.linalg.eigvalsh(hessian(total)(two)).min() > 0
