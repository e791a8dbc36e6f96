"""Minimizers on problems with known solutions."""

from functools import partial

import pytest
import torch
from diffopt_implicit import (
    BFGS,
    LBFGS,
    LBFGSB,
    GradientDescent,
    HagerZhangLineSearch,
    Implicit,
    NonlinearCG,
    ZoomLineSearch,
    solve_cg,
)
from implicit_problems import RIDGE_SLOPE, RIDGE_W, X, Y, normal, ridge_objective
from minimizers import HIMMELBLAU, QUASI, SEARCHES, himmelblau, matyas, rosenbrock, zakharov
from torch.func import grad, jacfwd, jacrev
from torch.nn.functional import cross_entropy
from torch.testing import assert_close


@pytest.mark.parametrize("make", [*QUASI, LBFGSB])
@pytest.mark.parametrize("at", range(4))
def test_himmelblau(make, at):  # O-46
    extra = ((-torch.inf, torch.inf),) if make is LBFGSB else ()
    solver = make(himmelblau, tol=1e-9, on_failure="raise")
    near = HIMMELBLAU[at] + torch.tensor([0.2, -0.15], dtype=torch.float64)
    assert_close(solver.run(near, *extra).params, HIMMELBLAU[at], rtol=1e-9, atol=0)


@pytest.mark.parametrize(
    ("make", "linesearch"),
    [(make, search) for make in (LBFGS, BFGS) for search in SEARCHES]
    + [(NonlinearCG, ZoomLineSearch(c2=0.1)), (NonlinearCG, HagerZhangLineSearch(c2=0.3))]
    + [
        (partial(NonlinearCG, method=method), ZoomLineSearch(c2=0.1))
        for method in ("fletcher-reeves", "hestenes-stiefel")
    ],
    ids=str,
)
def test_valleys_are_followed_to_their_end(make, linesearch):  # O-46
    solve = lambda fun, x: make(
        fun, linesearch=linesearch, tol=1e-9, maxiter=5000, on_failure="raise"
    ).run(x)
    x = torch.tensor([-1.2, 1.0], dtype=torch.float64)
    found, state = solve(rosenbrock, x)
    assert_close(found, torch.ones(2, dtype=torch.float64), rtol=1e-8, atol=0)
    assert state.iter_num < 200 or make not in (LBFGS, BFGS)
    for fun in (matyas, zakharov):
        assert_close(solve(fun, 3 * x).params, 0 * x, rtol=0, atol=1e-7)


@pytest.mark.parametrize("make", [LBFGS, BFGS])
def test_rosenbrock_of_many_dimensions(make):
    x, state = make(rosenbrock, tol=1e-8).run(torch.zeros(20, dtype=torch.float64))
    assert_close(x, torch.ones(20, dtype=torch.float64), rtol=1e-6, atol=0)
    assert state.iter_num < 150


def test_ridge_regression():  # O-31
    solve = lambda lam: LBFGS(ridge_objective, tol=1e-10).run(torch.zeros_like(RIDGE_W), lam, X, Y)
    lam = torch.tensor(5.0, dtype=torch.float64)
    assert_close(solve(lam).params, RIDGE_W, rtol=1e-7, atol=0)
    assert_close(jacrev(lambda lam: solve(lam).params)(lam), RIDGE_SLOPE, rtol=1e-7, atol=0)


def logistic(w, lam, x, y):
    return cross_entropy(x @ w, y) + 0.5 * lam * w.square().sum()


def test_multinomial_logistic_regression():  # O-34
    x, y = normal(30, 5), torch.arange(30) % 3
    lam = torch.tensor(0.1, dtype=torch.float64)
    solve = lambda lam, **options: LBFGS(logistic, tol=1e-11, **options).run(
        torch.zeros(5, 3, dtype=torch.float64), lam, x, y
    )
    w = solve(lam).params
    hessian = torch.func.hessian(logistic)(w, lam, x, y).reshape(15, 15)
    exact = -torch.linalg.solve(hessian, w.reshape(15)).reshape(5, 3)
    assert_close(jacfwd(lambda lam: solve(lam).params)(lam), exact, rtol=1e-7, atol=1e-9)
    difference = (solve(lam + 1e-4).params - solve(lam - 1e-4).params) / 2e-4
    assert_close(difference, exact, rtol=1e-6, atol=1e-7)
    # From the solution, the unrolled steps that remain have the same derivative.
    again = GradientDescent(
        logistic, stepsize=0.5, tol=0.0, maxiter=400, adjoint="unroll", on_failure="ignore"
    )
    unrolled = jacrev(lambda lam: again.run(w, lam, x, y).params)(lam)
    assert_close(unrolled, exact, rtol=1e-6, atol=1e-8)


def test_a_chain_of_three_levels():  # O-28
    a, b, c = normal(3, 2), normal(2, 2, seed=1), 0.7
    target = normal(3, seed=2)
    tight = {"tol": 1e-12, "adjoint": Implicit(solve=solve_cg)}

    def second(theta3):
        fun = lambda x, theta3: 0.5 * (x - b @ theta3).square().sum() + 0.5 * c * x.square().sum()
        return LBFGS(fun, **tight).run(torch.zeros(2, dtype=torch.float64), theta3).params

    def first(theta2):
        fun = lambda x, theta2: 0.5 * (x - a @ theta2).square().sum()
        return LBFGS(fun, **tight).run(torch.zeros(3, dtype=torch.float64), theta2).params

    theta3 = normal(2, seed=3)
    cost = lambda theta3: 0.5 * (first(second(theta3)) - target).square().sum()
    theta2 = b @ theta3 / (1 + c)
    exact = b.T @ a.T @ (a @ theta2 - target) / (1 + c)
    assert_close(second(theta3), theta2, rtol=1e-10, atol=1e-12)
    assert_close(grad(cost)(theta3), exact, rtol=1e-10, atol=1e-12)
