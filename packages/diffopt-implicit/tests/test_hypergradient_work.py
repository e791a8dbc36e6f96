"""What hypergradients cost, report, and start from."""

import functools
import gc
import weakref
from functools import partial

import pytest
import torch
from diffopt_implicit import (
    BOME,
    CG,
    F2SA,
    SAMA,
    Exact,
    FixedPoint,
    Neumann,
    NormalCG,
    Nystrom,
    OneStep,
    hypergradient,
    solve_cg,
    solve_fixed_point,
    solve_neumann,
)
from hypergradient_problems import EVERY, Quadratic, name_of
from implicit_problems import normal, spd
from torch.autograd import grad as autograd_grad
from torch.func import grad, hessian
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode


def test_the_report_is_of_the_adjoint_that_was_used():
    problem = Quadratic()
    v = problem.slope()
    for method in EVERY:
        found, info = problem.by(method, info=True)
        if isinstance(method, (F2SA, BOME)):
            continue
        rest = v - problem.h @ info.adjoint
        assert_close(info.residual, rest.norm(), rtol=1e-6, atol=1e-9)
        assert_close(info.relative_residual, rest.norm() / v.norm(), rtol=1e-6, atol=1e-9)
        assert_close(found, 2 * problem.lam + problem.b.T @ info.adjoint, rtol=1e-6, atol=1e-8)


def test_the_error_is_estimated_within_a_factor_of_ten():
    problem = Quadratic(30, 5)
    exact = grad(problem.value)(problem.lam)
    for method in (CG(1), CG(3), CG(5), Neumann(5, 0.2), Neumann(20, 0.2), OneStep(0.3)):
        found, info = problem.by(method, info=True)
        assert 0.1 < info.error / (found - exact).norm() < 10


def test_the_error_is_that_of_the_hypergradient_whatever_the_scale_of_the_inner_loss():
    problem = Quadratic(30, 5)
    w, lam = problem.minimum(problem.lam), problem.lam
    told = []
    for scale in (1e-3, 1.0, 1e3):
        inner = lambda w, lam, scale=scale: scale * problem.inner(w, lam)
        told.append(hypergradient(inner, problem.outer, w, lam, CG(3), info=True)[1].error)
    assert_close(told[0], told[1])
    assert_close(told[2], told[1])


@pytest.mark.parametrize(
    "make",
    [CG, partial(CG, 6), Exact, partial(Neumann, 2000, 0.1), partial(FixedPoint, 2000, 0.1)],
)
@pytest.mark.parametrize("ridge", [0.7, torch.tensor(0.7, dtype=torch.float64)])
def test_a_ridge_is_added_to_the_diagonal_of_the_hessian(make, ridge):
    problem = Quadratic()
    shifted = problem.h + 0.7 * torch.eye(6, dtype=torch.float64)
    exact = 2 * problem.lam + problem.b.T @ torch.linalg.solve(shifted, problem.slope())
    assert_close(problem.by(make(ridge=ridge)), exact, rtol=1e-9, atol=0)


def test_a_ridge_of_normal_equations_is_added_to_the_square_of_the_hessian():
    problem = Quadratic()
    shifted = problem.h @ problem.h + 0.7 * torch.eye(6, dtype=torch.float64)
    adjoint = torch.linalg.solve(shifted, problem.h @ problem.slope())
    found = problem.by(NormalCG(ridge=0.7))
    assert_close(found, 2 * problem.lam + problem.b.T @ adjoint, rtol=1e-9, atol=0)


@pytest.mark.parametrize("make", [CG, NormalCG])
def test_a_loose_tolerance_takes_fewer_iterations(make):
    problem = Quadratic(40, 4)
    strict, loose = (problem.by(make(tol=t), info=True)[1] for t in (1e-12, 1e-2))
    assert loose.iterations < strict.iterations / 2
    assert loose.relative_residual > 1e3 * strict.relative_residual


def test_another_seed_takes_other_columns():
    problem = Quadratic()
    one, same, other = (problem.by(Nystrom(2, seed=s)) for s in (0, 0, 3))
    assert_close(one, same, rtol=0, atol=0)
    assert not torch.allclose(one, other)


def test_the_direct_part_is_taken_where_each_method_says():
    # An outer loss whose derivative in lam depends on w, off the minimum.
    inner = lambda w, lam: (w - lam).square().sum() / 2
    outer = lambda w, lam: (w * lam).sum() + w.sum()
    w, lam = normal(3), normal(3, seed=1)
    found, info = hypergradient(inner, outer, w, lam, F2SA(1, 0.5, 2.0), info=True)
    y = w - 0.5 * ((w - lam) + (lam + 1) / 2)
    assert_close(info.adjoint, 2 * (w - y))
    assert_close(found, y + 2 * (w - y))
    assert_close(hypergradient(inner, outer, w, lam, OneStep(0.5)), w + 0.5 * (lam + 1))


def test_iterations_are_counted():
    problem = Quadratic()
    counts = {m: problem.by(m, info=True)[1].iterations for m in EVERY if m != SAMA()}
    assert counts[CG(6)] == 6
    assert counts[Neumann(3, 0.1)] == 4
    assert counts[FixedPoint(3, 0.1)] == 3
    assert counts[Nystrom(3)] == 3
    assert counts[OneStep(0.1)] == 0
    assert counts[F2SA()] == 10


def test_a_warm_start_takes_no_iteration():
    problem = Quadratic()
    first, info = problem.by(CG(), info=True)
    again, second = problem.by(CG(), init=info.adjoint, info=True)
    assert info.iterations > 0
    assert second.iterations == 0
    assert_close(first, again)
    lam = problem.lam.clone().requires_grad_()
    found, third = problem.by(CG(), lam, init=info.adjoint, info=True, create_graph=True)
    assert third.iterations == 0
    slope = autograd_grad(found.sum(), lam)[0]
    assert_close(slope, hessian(problem.value)(problem.lam).sum(0))


@pytest.mark.parametrize("make", [CG, NormalCG, lambda k: FixedPoint(k, 0.3)])
def test_a_warm_start_is_used_by_iterations_of_a_given_number(make):
    problem = Quadratic()
    exact = grad(problem.value)(problem.lam)
    adjoint = torch.linalg.solve(problem.h, problem.slope()) + 1e-6 * normal(6, seed=9)
    cold = (problem.by(make(1)) - exact).norm()
    warm = (problem.by(make(1), init=adjoint) - exact).norm()
    assert warm < 1e-4 * cold


class Waits(TorchDispatchMode):
    """Counts the times that the host reads a number from a tensor."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "make", [CG, NormalCG, lambda k: Neumann(k, 0.1), lambda k: FixedPoint(k, 0.1)]
)
def test_no_iteration_waits_for_the_device(make):
    problem = Quadratic(40, 4)
    counts = []
    for iterations in (2, 20):
        with Waits() as waits:
            problem.by(make(iterations))
        counts.append(waits.count)
    assert counts[0] == counts[1] <= 1
    with Waits() as waits:
        problem.by(CG())
    assert waits.count > 2, "the counter counts"


@pytest.mark.parametrize(
    ("solve", "products"),
    [
        (functools.partial(solve_cg, maxiter=5), 5),
        (functools.partial(solve_fixed_point, maxiter=5, step_size=0.1), 4),
        (functools.partial(solve_neumann, maxiter=5, step_size=0.1), 4),
    ],
)
def test_a_fixed_number_of_iterations_takes_no_product_beyond_them(solve, products):
    a, b, calls = spd(8), normal(8), []

    def matvec(x):
        calls.append(x)
        return a @ x

    x, info = solve(matvec, b, tol=0.0, info=True, on_failure="ignore")
    assert len(calls) == products
    assert info.iterations == 5
    assert 0.3 < info.residual / (a @ x - b).norm() < 3


@pytest.mark.parametrize(
    "method", [CG(7), NormalCG(7), Neumann(7, 0.1), Exact(), Nystrom(4)], ids=name_of
)
def test_one_evaluation_of_each_loss_serves_all_products(method):
    problem, calls = Quadratic(), []

    def inner(w, lam):
        calls.append("inner")
        return problem.inner(w, lam)

    def outer(w, lam):
        calls.append("outer")
        return problem.outer(w, lam)

    w = problem.minimum(problem.lam)
    hypergradient(inner, outer, w, problem.lam, method, info=True)
    assert sorted(calls) == ["inner", "outer"]


def test_nothing_is_kept_when_the_result_is_dropped():
    problem = Quadratic()
    gc.disable()
    try:
        for method in EVERY:
            w, lam = problem.minimum(problem.lam), problem.lam.clone().requires_grad_()
            found, info = hypergradient(
                problem.inner,
                problem.outer,
                w,
                lam,
                method,
                info=True,
                create_graph=method.differentiable,
            )
            kept = [weakref.ref(t) for t in (w, found, info.adjoint)]
            del w, found, info
            assert [ref() for ref in kept] == [None] * 3
    finally:
        gc.enable()
