"""Hypergradients without second derivatives, and from minibatches."""

import functools

import pytest
import torch
from diffopt_implicit import (
    BOME,
    CG,
    F2SA,
    SAMA,
    FiniteDifference,
    IdentityApprox,
    OneStep,
    StochasticAdjoint,
    hypergradient,
)
from hypergradient_problems import Quadratic, ridge_inner, ridge_outer
from implicit_problems import LAM, X, Y, normal, ridge_objective, ridge_solution
from torch.func import grad, hessian, vmap
from torch.testing import assert_close


def test_finite_differences_are_exact_on_a_quadratic_problem():
    problem = Quadratic()
    for method in (FiniteDifference(), FiniteDifference(1.0), SAMA(), SAMA(lambda g: -g)):
        assert_close(problem.by(method), problem.by(IdentityApprox()), rtol=1e-9, atol=1e-10)
    assert_close(problem.by(FiniteDifference(step_size=0.3)), problem.by(OneStep(0.3)))


def adam(g, m, v, lr=0.1, b1=0.9, b2=0.99, eps=1e-8):
    return -lr * (b1 * m + (1 - b1) * g) / ((b2 * v + (1 - b2) * g * g).sqrt() + eps)


def test_sama_goes_through_the_derivative_of_the_optimizer():  # O-30
    inner = lambda w, lam: (0.7 * w + w * lam).sum()
    m, v = (torch.tensor([x], dtype=torch.float64) for x in (0.3, 0.5))
    one, zero = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    method = SAMA(lambda g: adam(g, m, v, lr=1.0, eps=0.0))
    found = hypergradient(inner, lambda w, lam: w.sum(), one, zero, method)
    assert_close(-found, torch.tensor([0.1347018239], dtype=torch.float64), rtol=1e-8, atol=0)


@pytest.mark.parametrize("penalty", [1e2, 1e4, 1e6])
def test_f2sa_errs_by_the_inverse_of_its_penalty(penalty):
    exact = grad(lambda lam: ridge_outer(ridge_solution(lam, X, Y), lam))(LAM)
    w = ridge_solution(LAM, X, Y)
    method = F2SA(2000, 0.1, penalty)
    found, info = hypergradient(ridge_inner, ridge_outer, w, LAM, method, info=True)
    error = (found - exact).abs() / exact.abs()
    assert 1e-3 / penalty < error < 1 / penalty
    assert info.relative_residual < 3 / penalty


@pytest.mark.parametrize("penalty", [0.5, 10.0])
def test_f2sa_is_the_derivative_of_the_penalized_loss(penalty):
    problem, m = Quadratic(), normal(6, 4, seed=8)
    outer = lambda w, lam: problem.outer(w, lam) + w @ m @ lam
    eye = torch.eye(6, dtype=torch.float64)

    def penalized(lam):
        w = problem.minimum(lam)
        right = penalty * problem.b @ lam - problem.c - m @ lam
        y = torch.linalg.solve(penalty * problem.h + eye, right)
        return outer(y, lam) + penalty * (problem.inner(y, lam) - problem.inner(w, lam))

    w, method = problem.minimum(problem.lam), F2SA(400, 0.1, penalty)
    found = hypergradient(problem.inner, outer, w, problem.lam, method)
    assert_close(found, grad(penalized)(problem.lam))


def test_f2sa_starts_from_an_earlier_adjoint():
    problem = Quadratic()
    exact = grad(problem.value)(problem.lam)
    adjoint, gradient = None, torch.zeros(4)
    for _ in range(100):
        gradient, info = problem.by(F2SA(1, 0.3, 1e6), init=adjoint, info=True)
        adjoint = info.adjoint
    assert_close(gradient, exact, rtol=1e-5, atol=0)


def test_bome_descends_to_the_bilevel_minimum():
    problem = Quadratic()
    w, lam = torch.zeros(6, dtype=torch.float64), problem.lam
    info = None
    for i in range(600):
        gradient, info = hypergradient(
            problem.inner, problem.outer, w, lam, BOME(10, 0.3), info=True
        )
        step = 0.1 / (1 + i / 60)
        w, lam = w - step * info.direction, lam - step * gradient
    best = torch.linalg.solve(
        hessian(problem.value)(lam), -grad(problem.value)(torch.zeros_like(lam))
    )
    assert (lam - best).norm() < 0.1 * best.norm()
    assert (w - problem.minimum(lam)).norm() < 0.1 * w.norm()


def test_bome_holds_the_inner_loss_in_both_directions():
    problem, eta = Quadratic(), 0.5
    w, lam = normal(6, seed=7), problem.lam
    method = BOME(10, 0.3, eta)
    gradient, info = hypergradient(problem.inner, problem.outer, w, lam, method, info=True)
    end = w
    for _ in range(10):
        end = end - 0.3 * grad(problem.inner)(end, lam)
    q = lambda w, lam: problem.inner(w, lam) - problem.inner(end, lam)
    barrier = torch.cat(grad(q, argnums=(0, 1))(w, lam))
    outer = torch.cat(grad(problem.outer, argnums=(0, 1))(w, lam))
    both = torch.cat([info.direction, gradient])
    m = (eta - outer @ barrier / (barrier @ barrier)).clamp(min=0)
    assert m > 0
    assert_close(both, outer + m * barrier)
    assert both @ barrier >= eta * barrier @ barrier * (1 - 1e-9)
    batch = torch.stack([w, 2 * w])
    many = vmap(lambda w: hypergradient(problem.inner, problem.outer, w, lam, method))(batch)
    assert_close(many[0], gradient)


def test_methods_without_second_derivatives_work_where_there_are_none():
    class Square(torch.autograd.Function):
        @staticmethod
        def forward(x):
            return x * x

        @staticmethod
        def setup_context(ctx, inputs, output):
            ctx.save_for_backward(*inputs)

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx, g):
            return 2 * ctx.saved_tensors[0] * g

    inner = lambda w, lam: Square.apply(w - lam).sum() / 2
    outer = lambda w, lam: w.sum()
    lam = normal(3)
    for method in (FiniteDifference(), SAMA(), F2SA(100, 0.5, 1e4)):
        found, info = hypergradient(inner, outer, lam, lam, method, info=True)
        assert_close(found, torch.ones_like(lam), rtol=1e-3, atol=0)
        assert info.relative_residual < 1e-3
    with pytest.raises(RuntimeError):
        hypergradient(inner, outer, lam, lam, CG())


def test_the_stochastic_adjoint_converges_with_minibatches_and_warm_starts():
    generator = torch.Generator().manual_seed(0)
    x, y = normal(200, 3), normal(200, seed=1)

    def inner(w, lam):
        batch = torch.randint(200, (50,), generator=generator)
        return ridge_objective(w, lam, x[batch], y[batch])

    w, lam = ridge_solution(LAM, x, y), LAM
    outer = lambda w, lam: w.sum()
    exact = grad(lambda lam: ridge_solution(lam, x, y).sum())(lam)
    method = StochasticAdjoint(1, functools.partial(torch.optim.SGD, lr=0.05))
    adjoint, found = None, []
    for _ in range(300):
        gradient, info = hypergradient(inner, outer, w, lam, method, init=adjoint, info=True)
        adjoint = info.adjoint
        found.append(gradient)
    assert (torch.stack(found[100:]).mean() - exact).abs() < 0.05 * exact.abs()


def test_any_optimizer_serves_the_stochastic_adjoint():
    problem = Quadratic()
    exact = grad(problem.value)(problem.lam)
    for optimizer, count in (
        (functools.partial(torch.optim.SGD, lr=0.3, momentum=0.5), 100),
        (functools.partial(torch.optim.Adam, lr=0.1), 600),
    ):
        found = problem.by(StochasticAdjoint(count, optimizer))
        assert_close(found, exact, rtol=1e-5, atol=0)
