"""Total derivatives of multilevel programs against closed forms and finite differences."""

import pytest
import torch
from diffopt_implicit import (
    CG,
    F2SA,
    SAMA,
    Exact,
    FiniteDifference,
    FixedPoint,
    Neumann,
    NormalCG,
    OneStep,
    Problem,
    StochasticAdjoint,
    hypergradient,
)
from implicit_problems import normal
from nested_problems import STILL, Bilevel, Nested, at_rest, half, name_of
from torch.func import grad
from torch.testing import assert_close

SOLVING = [CG(), CG(6), NormalCG(), Exact(), Neumann(800, 0.1), FixedPoint(800, 0.1)]


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
