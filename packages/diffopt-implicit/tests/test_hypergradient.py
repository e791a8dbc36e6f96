"""Hypergradients against closed forms."""

import pytest
import torch
from diffopt_implicit import (
    CG,
    Exact,
    FixedPoint,
    IdentityApprox,
    Neumann,
    Nystrom,
    OneStep,
    hypergradient,
)
from hypergradient_problems import SOLVING, Quadratic, name_of, ridge_inner, ridge_outer
from implicit_problems import LAM, X, Y, normal, ridge_solution
from torch.func import grad
from torch.testing import assert_close


@pytest.mark.parametrize("method", SOLVING, ids=name_of)
def test_exact_methods_give_the_derivative_of_the_quadratic_problem(method):  # O-26
    problem = Quadratic()
    assert_close(problem.by(method), grad(problem.value)(problem.lam), rtol=1e-10, atol=0)


@pytest.mark.parametrize(
    "method", [*SOLVING, Neumann(2000, 0.01), FixedPoint(2000, 0.01)], ids=name_of
)
def test_ridge_regression_is_differentiated_as_its_closed_form(method):  # O-25, O-31
    exact = grad(lambda lam: ridge_outer(ridge_solution(lam, X, Y), lam))(LAM)
    assert_close(
        hypergradient(ridge_inner, ridge_outer, ridge_solution(LAM, X, Y), LAM, method),
        exact,
        rtol=1e-9,
        atol=0,
    )


@pytest.mark.parametrize("terms", [0, 1, 5, 20])
def test_a_neumann_series_is_cut_where_it_is_said_to_be(terms):  # O-26
    problem, alpha = Quadratic(), 0.3
    power, series = torch.eye(6, dtype=torch.float64), torch.zeros(6, 6, dtype=torch.float64)
    for _ in range(terms + 1):
        series, power = series + alpha * power, power - alpha * problem.h @ power
    exact = 2 * problem.lam + problem.b.T @ series @ problem.slope()
    assert_close(problem.by(Neumann(terms, alpha)), exact, rtol=1e-13, atol=1e-13)
    rest = torch.linalg.solve(problem.h, power)
    assert_close(torch.linalg.inv(problem.h) - series, rest, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("count", [1, 4, 10])
def test_neumann_is_the_fixed_point_iteration_of_one_step_more(count):  # O-22
    problem = Quadratic()
    ours = problem.by(Neumann(count, 0.3))
    assert_close(ours, problem.by(FixedPoint(count + 1, 0.3)), rtol=0, atol=5e-15)


def test_conjugate_gradients_do_not_depend_on_a_scale_of_the_inner_loss():  # D2
    problem = Quadratic()
    exact = grad(problem.value)(problem.lam)
    for scale in (0.1, 1.0, 10.0):
        inner = lambda w, lam, scale=scale: scale * problem.inner(w, lam)
        w = problem.minimum(problem.lam)
        errors = [
            (hypergradient(inner, problem.outer, w, problem.lam, CG(k)) - exact).norm()
            for k in (1, 3, 6)
        ]
        assert errors[0] > errors[1] > errors[2]
        assert errors[2] < 1e-10 * exact.norm()


def test_one_step_and_identity_scale_the_slope():
    problem = Quadratic()
    direct, through = 2 * problem.lam, problem.b.T @ problem.slope()
    assert_close(problem.by(OneStep(0.3)), direct + 0.3 * through)
    assert_close(problem.by(IdentityApprox()), direct + through)


def test_one_step_is_exact_where_one_step_solves_the_problem():
    inner = lambda w, lam: 2 * (w - lam**2).square().sum()
    outer = lambda w, lam: w.sin().sum()
    lam = normal(3)
    found = hypergradient(inner, outer, lam**2, lam, OneStep(0.25))
    assert_close(found, (lam**2).cos() * 2 * lam)


def test_nystrom_is_exact_for_a_hessian_of_low_rank():
    factor, b, c = normal(8, 3), normal(8, 2, seed=1), normal(8, seed=2)
    inner = lambda w, lam: (factor.T @ w).square().sum() / 2 + 0.15 * w.square().sum() - w @ b @ lam
    shared = lambda w, lam: inner(w, lam) - 0.15 * w.square().sum()  # the ridge is the method's
    h = factor @ factor.T + 0.3 * torch.eye(8, dtype=torch.float64)
    lam = normal(2, seed=3)
    w = torch.linalg.solve(h, b @ lam)
    found = hypergradient(shared, lambda w, lam: c @ w, w, lam, Nystrom(3, ridge=0.3))
    assert_close(found, b.T @ torch.linalg.solve(h, c))
    assert_close(found, hypergradient(inner, lambda w, lam: c @ w, w, lam, CG()))


def test_a_chain_of_three_levels():  # O-28
    a, b, t, c = normal(4, 3), normal(3, 2, seed=1), normal(4, seed=2), 0.7
    lowest = lambda one, two: (one - a @ two).square().sum() / 2
    middle = lambda two, three: (two - b @ three).square().sum() / 2 + c / 2 * two.square().sum()
    three = normal(2, seed=3)
    two = b @ three / (1 + c)
    # The hypergradient of the lower two levels is the slope that the upper two need.
    cost = lambda one, two: (one - t).square().sum() / 2
    v = hypergradient(lowest, cost, a @ two, two, CG())
    found = hypergradient(middle, lambda two, three: v @ two, two, three, CG())
    exact = b.T @ a.T @ (a @ two - t) / (1 + c)
    assert_close(found, exact, rtol=1e-10, atol=0)
    reduced = lambda two: cost(a @ two, two)
    assert_close(found, hypergradient(middle, lambda w, _: reduced(w), two, three, Exact()))
