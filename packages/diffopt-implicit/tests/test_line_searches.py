"""Line searches: what they promise of the step, and what they cost."""

import pickle

import pytest
import torch
from diffopt_implicit import BacktrackingLineSearch, HagerZhangLineSearch, ZoomLineSearch
from diffopt_implicit._coordinates import Coordinates
from diffopt_implicit._solvers._line_search import Line, Point, searched
from diffopt_implicit._solvers._objective import Objective
from hypothesis import given, settings
from hypothesis import strategies as st
from minimizers import SEARCHES
from torch.func import vmap
from torch.testing import assert_close

ONE = torch.ones((), dtype=torch.float64)

# Of one variable, with slope -1 at 0: More and Thuente's three, and others.
FUNCTIONS = {
    "rational": lambda t: -t / (t**2 + 2) * 2,
    "power": lambda t: ((t + 0.004) ** 5 - 2 * (t + 0.004) ** 4) / 5.1e-7,
    "oscillating": lambda t: (t - 1) ** 2 / 2 + 0.02 * (10 * t).sin() - 0.2 * t,
    "cosh": lambda t: (t - 1).cosh() / torch.tensor(1.0).sinh(),
    "steep": lambda t: 1e4 * t**2 - t,
    "flat": lambda t: 1e-4 * t**2 - t,
    "barrier": lambda t: -t - 0.1 * (2 - t).log(),
}


def line_of(fun, x=0 * ONE):
    """The line through `x`, downhill at the speed of the gradient."""
    objective = Objective(fun, False, Coordinates.of(x, "x"), (), {})
    x = x.reshape(-1)
    value, grad, aux = objective.at(x)
    direction = -grad
    slope = torch.dot(grad, direction)
    return Line(objective, x, direction), Point(0 * slope, value, slope, x, grad, aux)


def search(rule, fun, first=ONE):
    line, start = line_of(fun)
    return searched(rule, line, start, first, torch.tensor(True)), start


def holds(rule, start, point):
    """Whether the conditions hold, written out once more."""
    armijo = point.value <= start.value + rule.c1 * point.step * start.slope
    name = getattr(rule, "condition", "wolfe" if "Hager" in type(rule).__name__ else "strong-wolfe")
    also = {
        "armijo": True,
        "goldstein": point.value >= start.value + (1 - rule.c1) * point.step * start.slope,
        "wolfe": point.slope >= rule.c2 * start.slope,
        "strong-wolfe": point.slope.abs() <= rule.c2 * start.slope.abs(),
    }[name]
    return bool(armijo & also)


@pytest.mark.parametrize("rule", SEARCHES, ids=str)
@pytest.mark.parametrize("fun", FUNCTIONS)
@pytest.mark.parametrize("first", [1e-3, 1.0, 30.0])
def test_the_step_satisfies_the_conditions(rule, fun, first):
    if isinstance(rule, BacktrackingLineSearch):  # which needs many steps from far
        rule = BacktrackingLineSearch(rule.condition, rule.c1, rule.c2, 0.5, 60)
    found, start = search(rule, FUNCTIONS[fun], first * ONE)
    assert not found.failed
    assert holds(rule, start, found.point)
    assert_close(found.point.value, FUNCTIONS[fun](found.point.x[0]))
    assert found.evaluations <= rule.maxiter


@settings(deadline=None, max_examples=50)
@given(curvature=st.floats(1e-3, 1e3), first=st.floats(1e-3, 1e3), rule=st.sampled_from(SEARCHES))
def test_parabolas_are_searched_whatever_their_scale(curvature, first, rule):
    if isinstance(rule, BacktrackingLineSearch):
        rule = BacktrackingLineSearch(rule.condition, rule.c1, rule.c2, 0.5, 60)
    found, start = search(rule, lambda t: curvature * t**2 / 2 - t, first * ONE)
    assert holds(rule, start, found.point)


def test_zoom_finds_the_minimum_of_a_cubic_at_once():
    fun = lambda t: t**3 / 3 - t  # of minimum 1
    found, _ = search(ZoomLineSearch(c1=1e-8, c2=1e-6), fun, 1.5 * ONE)
    assert_close(found.point.step, ONE)
    assert found.evaluations == 2


def test_an_exact_secant_ends_the_search_of_a_parabola():
    found, _ = search(HagerZhangLineSearch(c2=0.101), lambda t: 0.5 * (t - 1) ** 2, 4 * ONE)
    assert_close(found.point.step, ONE)
    assert found.evaluations == 2


def test_backtracking_shrinks_by_its_factor():
    found, _ = search(BacktrackingLineSearch(decrease=0.5), lambda t: 8 * t**2 - t)
    assert found.point.step == 2**-4
    assert found.evaluations == 5


@pytest.mark.parametrize("rule", SEARCHES, ids=str)
def test_values_that_are_not_finite_are_too_far(rule):
    found, start = search(rule, lambda t: -t - (0.1 - t).sqrt(), ONE)
    assert found.point.value.isfinite()
    assert found.point.value < start.value


@pytest.mark.parametrize("rule", SEARCHES, ids=str)
def test_searches_that_find_nothing_say_so_and_stay(rule):
    line, start = line_of(lambda t: (t - 1) ** 2)
    uphill = line._replace(direction=-line.direction)
    found = searched(rule, uphill, start, ONE, torch.tensor(True))
    assert found.failed
    assert_close(found.point.x, start.x)
    assert found.evaluations == rule.maxiter


@pytest.mark.parametrize("rule", SEARCHES, ids=str)
def test_examples_under_vmap_are_the_loop(rule):
    scales = torch.tensor([0.01, 1.0, 30.0, 1e3], dtype=torch.float64)

    def step(scale):
        found, _ = search(rule, lambda t: scale * (t - 1).cosh() + t)
        return found.point.step, found.evaluations, found.failed

    many = vmap(step)(scales)
    for i, scale in enumerate(scales):
        assert_close(tuple(t[i] for t in many), step(scale))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ZoomLineSearch(c1=0.5), r"`c1` must be in \(0, 1/2\), got 0.5"),
        (lambda: ZoomLineSearch(c1=0.2, c2=0.1), r"`c2` must be in \(`c1`, 1\)"),
        (lambda: ZoomLineSearch(maxiter=0), "`maxiter` must be positive"),
        (lambda: HagerZhangLineSearch(expansion=1.0), "`expansion` must be above 1"),
        (lambda: BacktrackingLineSearch("exact"), "`condition` must be one of 'armijo'"),
        (lambda: BacktrackingLineSearch(decrease=1.0), r"`decrease` must be in \(0, 1\)"),
    ],
)
def test_bad_options_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_line_searches_are_values():
    for rule in SEARCHES:
        assert pickle.loads(pickle.dumps(rule)) == rule
