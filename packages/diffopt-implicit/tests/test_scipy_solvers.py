"""SciPy's solvers: what they find, and its derivatives."""

import builtins
import importlib

import pytest
import torch
from diffopt_implicit import (
    ScipyBoundedMinimize,
    ScipyLeastSquares,
    ScipyMinimize,
    ScipyRootFinding,
    SolverError,
    SolverStatus,
)
from implicit_problems import X, Y, normal, ridge_objective, ridge_solution
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, jacrev, vmap
from torch.testing import assert_close

pytest.importorskip("scipy")
ONE = torch.ones((), dtype=torch.float64)


def bowl(x, a):
    return (x["u"] - a).square().sum() + (x["v"] * a.sum() - 1) ** 2 + x["u"].sum().cosh()


def start(dtype=torch.float64):
    return {"u": torch.zeros(2, dtype=dtype), "v": torch.ones((), dtype=dtype)}


def ends(x):
    return torch.cat([x["u"], x["v"][None]])


A = torch.tensor([1.5, 0.7], dtype=torch.float64)


@pytest.mark.parametrize(
    "method",
    ["BFGS", "CG", "L-BFGS-B", "Newton-CG", "trust-ncg", "trust-exact", "dogleg", "Nelder-Mead"],
)
def test_every_kind_of_method_finds_the_minimum(method):
    solver = ScipyMinimize(bowl, method=method, tol=1e-7, on_failure="ignore")
    x, state = solver.run(start(), A)
    assert solver.l2_optimality_error(x, A) < 1e-4
    exact = ScipyMinimize(bowl, "trust-exact", tol=1e-10).run(start(), A).params
    assert_close(ends(x), ends(exact), rtol=1e-4, atol=1e-4)
    assert state.num_fun_eval > 0


def test_derivatives_of_a_minimum_to_second_order():
    solver = ScipyMinimize(bowl, "trust-exact", tol=1e-11, on_failure="ignore")
    call = lambda a: ends(solver.run(start(), a).params)
    assert gradcheck(call, A.clone().requires_grad_(), check_forward_ad=True)
    assert gradgradcheck(call, A.clone().requires_grad_())


def test_the_function_is_called_in_the_dtype_of_the_parameters_and_counted():
    seen = []

    def objective(x, a):
        seen.append(x["u"].dtype)
        return bowl(x, a)

    x, state = ScipyMinimize(objective, "Nelder-Mead").run(start(torch.float32), A.float())
    assert set(seen) == {torch.float32} == {x["u"].dtype}
    # One call more, for the gradient that `error` is the norm of.
    assert state.num_fun_eval == len(seen) - 1
    assert state.status == SolverStatus.CONVERGED


def test_bounds_are_kept_and_followed():
    solver = ScipyBoundedMinimize(bowl, tol=1e-10)
    bounds = lambda top: ({"u": -1.0, "v": 0.0}, {"u": top, "v": torch.inf})
    call = lambda a, top: ends(solver.run(start(), bounds(top), a).params)
    top = torch.tensor([0.4, 0.0], dtype=torch.float64)
    found = call(A, top)
    assert_close(found[0], top[0])
    assert (found[:2] <= top).all()
    assert gradcheck(call, (A.clone().requires_grad_(), top.requires_grad_()))
    slope = jacrev(call, 1)(A, top.detach())
    assert_close(slope[:2, :2].diagonal()[0], ONE)
    loose = solver.run(start(), (-torch.inf, torch.inf), A).params
    assert_close(
        ends(loose),
        ends(ScipyMinimize(bowl, "trust-exact", tol=1e-10).run(start(), A).params),
        rtol=1e-5,
        atol=1e-6,
    )


@pytest.mark.parametrize("method", ["hybr", "lm", "broyden1", "krylov", "df-sane"])
def test_roots_of_trees_and_their_derivatives(method):
    def condition(x, a):
        return {"u": x["u"] + 0.2 * x["v"].sin() - a, "v": x["v"] + 0.1 * x["u"].sum()}

    solver = ScipyRootFinding(condition, method, tol=1e-10, on_failure="raise")
    call = lambda a: ends(solver.run(start(), a).params)
    x = solver.run(start(), A).params
    assert solver.l2_optimality_error(x, A) < 1e-8
    assert gradcheck(call, A.clone().requires_grad_(), atol=1e-4)


@pytest.mark.parametrize("loss", ["linear", "soft_l1", "huber", "cauchy", "arctan"])
def test_the_gradient_of_each_loss_is_zero_where_scipy_ends(loss):
    y = Y / 50 + torch.where(torch.arange(10) == 3, 20.0, 0.0)
    solver = ScipyLeastSquares(lambda w, y: X @ w - y, loss=loss, scale=0.3, tol=1e-14)
    w, state = solver.run(torch.zeros(3).double(), y)
    assert state.status == SolverStatus.CONVERGED
    assert solver.l2_optimality_error(w, y) < 1e-5
    call = lambda y: solver.run(torch.zeros(3).double(), y).params
    step = 1e-4 * normal(10, seed=5)
    difference = (call(y + step) - call(y - step)) / 2
    assert_close(jacrev(call)(y) @ step, difference, rtol=1e-2, atol=1e-7)


@pytest.mark.parametrize("method", ["trf", "dogbox", "lm"])
def test_linear_least_squares(method):
    objective = lambda w, lam: [X @ w - Y, (10 * lam).sqrt() * w]
    solver = ScipyLeastSquares(objective, method, tol=1e-12)
    call = lambda lam: solver.run(torch.zeros(3).double(), lam).params
    assert_close(call(ONE), ridge_solution(ONE, X, Y), rtol=1e-7, atol=1e-7)
    assert_close(jacrev(call)(ONE), jacrev(ridge_solution)(ONE, X, Y), rtol=1e-6, atol=1e-7)


def test_derivatives_come_by_every_road():
    solver = ScipyMinimize(ridge_objective, tol=1e-9, on_failure="ignore")
    call = lambda lam: solver.run(torch.zeros(3).double(), lam, X, Y).params.sum()
    exact = lambda lam: ridge_solution(lam, X, Y).sum()
    assert_close(grad(call)(ONE), grad(exact)(ONE), rtol=1e-5, atol=0)
    assert_close(grad(grad(call))(ONE), grad(grad(exact))(ONE), rtol=1e-4, atol=0)


def test_failures_are_reported():
    with pytest.raises(SolverError, match="MAXITER"):
        ScipyMinimize(bowl, maxiter=1, on_failure="raise").run(start(), A)
    state = ScipyMinimize(lambda x: -x.exp(), on_failure="ignore").run(ONE).state
    assert state.status != SolverStatus.CONVERGED
    with pytest.raises(ValueError, match="`ScipyMinimize` leaves torch and cannot be mapped"):
        vmap(lambda a: ScipyMinimize(bowl).run(start(), a))(torch.stack([A, A]))
    with pytest.raises(ValueError, match="iterates of `ScipyMinimize` have no derivatives"):
        ScipyMinimize(bowl, adjoint="unroll")
    with pytest.raises(NotImplementedError, match="iterates within SciPy: call `run`"):
        ScipyMinimize(bowl).init_state(start(), A)
    with pytest.raises(NotImplementedError, match="iterates within SciPy: call `run`"):
        ScipyMinimize(bowl).update(start(), None, A)
    with pytest.raises(ValueError, match="`loss` must be one of"):
        ScipyLeastSquares(bowl, loss="square")


def test_without_scipy_the_error_says_what_to_install(monkeypatch):
    def absent(name, *args):
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", absent)
    with pytest.raises(ImportError, match=r"pip install 'diffopt-implicit\[scipy\]'"):
        ScipyMinimize(bowl).run(start(), A)
    assert builtins.__import__ is not absent
