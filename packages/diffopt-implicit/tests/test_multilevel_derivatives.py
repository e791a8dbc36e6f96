"""Total derivatives of multilevel programs against closed forms and finite differences."""

import functools
from dataclasses import dataclass

import pytest
import torch
from diffopt_implicit import (
    CG,
    F2SA,
    SAMA,
    Engine,
    Exact,
    FiniteDifference,
    FixedPoint,
    Neumann,
    NormalCG,
    OneStep,
    Problem,
    StochasticAdjoint,
    UnrolledSteps,
    hypergradient,
)
from implicit_problems import normal, spd
from torch.func import grad, hessian
from torch.testing import assert_close

STILL = functools.partial(torch.optim.SGD, lr=0.0)
SOLVING = [CG(), CG(6), NormalCG(), Exact(), Neumann(800, 0.1), FixedPoint(800, 0.1)]
name_of = lambda method: repr(method)
half = lambda x: x.square().sum() / 2


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


@pytest.mark.parametrize("method", SOLVING, ids=name_of)
def test_a_bilevel_program_has_the_derivative_of_its_closed_form(method):
    problem = Bilevel()
    assert_close(problem.found(method), problem.exact(), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(
    "method",
    [OneStep(0.3), Neumann(3, 0.1), SAMA(), FiniteDifference(), F2SA(), StochasticAdjoint(3)],
    ids=name_of,
)
def test_an_approximate_method_gives_what_it_gives_alone(method):
    problem = Bilevel()
    w = problem.minimum(problem.lam)
    inner = lambda w, lam: 0.5 * w @ problem.h @ w - w @ problem.b @ lam
    v = problem.c + w  # the outer loss is linear for the method: what it needs of it is its slope
    outer = lambda w, lam: v @ w + lam.square().sum()
    found = problem.found(method, warm_start=False)
    assert_close(found, hypergradient(inner, outer, w, problem.lam, method))


def test_a_chain_of_three_levels_is_differentiated_through_the_middle():  # O-28
    a, b, t, c = normal(4, 3), normal(3, 2, seed=1), normal(4, seed=2), 0.7
    three = normal(2, seed=3)
    two = b @ three / (1 + c)
    one = a @ two
    found = at_rest(
        Problem("one", one, lambda at, _: half(at.one - a @ at.two), STILL, upper=["two"]),
        Problem(
            "two",
            two,
            lambda at, _: half(at.two - b @ at.three) + c * half(at.two),
            STILL,
            upper=["three"],
        ),
        Problem(
            "three",
            three,
            lambda at, _: half(at.one - t),
            STILL,
            lower={"one": CG(), "two": CG()},
        ),
    ).gradient("three")
    assert_close(found, b.T @ a.T @ (a @ two - t) / (1 + c), rtol=1e-10, atol=0)


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


@pytest.mark.parametrize("lowest", [CG(), FiniteDifference(1.0), F2SA(60, 0.9, 1e6)], ids=name_of)
@pytest.mark.parametrize("middle", [CG(), OneStep(1.0)], ids=name_of)
@pytest.mark.parametrize("highest", [CG(), Exact()], ids=name_of)
def test_nested_minima_are_differentiated_along_all_ways(lowest, middle, highest):
    problem = Nested()
    exact = grad(problem.total)(problem.three)
    found = problem.engine(lowest, middle, highest).gradient("three")
    assert_close(found, exact, rtol=1e-5 if isinstance(lowest, F2SA) else 1e-8, atol=0)


def test_the_middle_of_nested_minima_is_at_rest_at_its_closed_form():
    problem = Nested()
    found = problem.engine(CG(), CG(), CG()).gradient("two")
    assert_close(found, torch.zeros(3, dtype=torch.float64), atol=1e-12, rtol=0)


def test_a_problem_is_moved_by_what_moves_its_lower_problems_alone():
    # The loss of `two` does not read `three`; its solution depends on it through `one`.
    a, d, s = normal(4, 3), normal(4, 2, seed=4), normal(4, seed=5)
    three = normal(2, seed=3)
    solved = lambda three: torch.linalg.lstsq(a, s - d @ three).solution
    two = solved(three)
    found = at_rest(
        Problem("three", three, lambda at, _: half(at.two), STILL, lower={"two": CG()}),
        Problem("two", two, lambda at, _: half(at.one - s), STILL, lower={"one": CG()}),
        Problem(
            "one",
            a @ two + d @ three,
            lambda at, _: half(at.one - a @ at.two - d @ at.three),
            STILL,
            upper=["two", "three"],
        ),
    ).gradient("three")
    slope = torch.linalg.pinv(a) @ d
    assert_close(found, -slope.T @ two, rtol=1e-8, atol=0)


@pytest.mark.parametrize("method", SOLVING[:4], ids=name_of)
def test_both_sides_of_a_diamond_are_counted_once(method):
    b, c, p, q, t = (normal(3, 3, seed=i) for i in range(5))
    top = normal(3, seed=7)
    left, right = b @ top, c @ top.sin()
    bottom = p @ left + q @ right
    other = lambda key, value: lambda at, _: half(getattr(at, key) - value(at.top))

    def closed(top):
        left, right = b @ top, c @ top.sin()
        return half(p @ left + q @ right - t[0]) + left.sin().sum()

    found = at_rest(
        Problem(
            "bottom",
            bottom,
            lambda at, _: 2 * half(at.bottom - p @ at.left - q @ at.right),
            STILL,
            upper=["left", "right"],
        ),
        Problem("left", left, other("left", lambda x: b @ x), STILL, upper=["top"]),
        Problem("right", right, other("right", lambda x: c @ x.sin()), STILL, upper=["top"]),
        Problem(
            "top",
            top,
            lambda at, _: half(at.bottom - t[0]) + at.left.sin().sum(),
            STILL,
            lower={"bottom": method, "left": method, "right": method},
        ),
    ).gradient("top")
    assert_close(found, grad(closed)(top), rtol=1e-8, atol=1e-12)


def test_a_problem_beside_another_is_a_constant():
    # Neither of the two at the top is declared to be above the other: a game, not a hierarchy.
    b, c, t = normal(3, 2), normal(3, 2, seed=1), normal(3, seed=2)
    left, right = normal(2, seed=3), normal(2, seed=4)
    engine = at_rest(
        Problem("left", left, lambda at, _: half(at.low - t), STILL, lower={"low": CG()}),
        Problem("right", right, lambda at, _: half(at.low + t), STILL, lower={"low": CG()}),
        Problem(
            "low",
            b @ left + c @ right,
            lambda at, _: half(at.low - b @ at.left - c @ at.right),
            STILL,
            upper=["left", "right"],
        ),
    )
    low = b @ left + c @ right
    assert_close(engine.gradient("left"), b.T @ (low - t))
    assert_close(engine.gradient("right"), c.T @ (low + t))


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


# Unrolled steps


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


# The Hessian of a solved program, as the truth of the truth


def test_the_nested_closed_form_is_a_minimum():
    problem = Nested()
    total = lambda two: (
        half(problem.one(two, problem.three) - problem.s)
        + problem.c * half(two - problem.b @ problem.three)
    )
    two = problem.two(problem.three)
    assert grad(total)(two).abs().max() < 1e-12
    assert torch.linalg.eigvalsh(hessian(total)(two)).min() > 0
