import functools
import gc
import pickle
import weakref
from dataclasses import FrozenInstanceError
from functools import partial

import pytest
import torch
from diffopt_implicit import (
    BOME,
    CG,
    F2SA,
    SAMA,
    Exact,
    FiniteDifference,
    FixedPoint,
    IdentityApprox,
    LinearSolveError,
    Neumann,
    NormalCG,
    Nystrom,
    OneStep,
    StochasticAdjoint,
    hypergradient,
    solve_cg,
    solve_fixed_point,
    solve_neumann,
)
from implicit_problems import LAM, RIDGE_W, X, Y, normal, ridge_objective, ridge_solution, spd
from torch import nn
from torch.autograd import grad as autograd_grad
from torch.autograd import gradcheck
from torch.func import functional_call, grad, hessian, jacfwd, jvp, vmap
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

SOLVING = [CG(), NormalCG(), Exact(), CG(6), NormalCG(6)]
EVERY = [
    *SOLVING,
    Neumann(3, 0.1),
    FixedPoint(3, 0.1),
    Nystrom(3),
    OneStep(0.1),
    IdentityApprox(),
    StochasticAdjoint(3),
    FiniteDifference(),
    SAMA(),
    F2SA(),
    BOME(),
]
name_of = lambda method: repr(method)


class Quadratic:
    """The inner loss ``w.Hw/2 - w.B lam`` and the outer ``c.w + |w|^2/2 + lam.lam``."""

    def __init__(self, n=6, m=4):
        self.h, self.b = spd(n), normal(n, m, seed=1)
        self.c, self.lam = normal(n, seed=2), normal(m, seed=3)

    def inner(self, w, lam):
        return 0.5 * w @ self.h @ w - w @ self.b @ lam

    def outer(self, w, lam):
        return self.c @ w + w.square().sum() / 2 + lam.square().sum()

    def minimum(self, lam):
        return torch.linalg.solve(self.h, self.b @ lam)

    def value(self, lam):
        return self.outer(self.minimum(lam), lam)

    def by(self, method, lam=None, **options):
        lam = self.lam if lam is None else lam
        w = self.minimum(lam).detach()
        return hypergradient(self.inner, self.outer, w, lam, method, **options)

    def slope(self):
        """The outer loss's derivative in w, which the adjoint starts from."""
        return self.c + self.minimum(self.lam)


def ridge_outer(w, lam):
    return (w - 10).square().sum() / 2 + lam.square()


def ridge_inner(w, lam):
    return ridge_objective(w, lam, X, Y)


# Against closed forms


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


# First-order methods


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


# Stochastic


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


# Trees, transforms, second derivatives


def test_parameters_and_hyperparameters_are_trees():
    h = spd(5)
    flat = lambda w: torch.cat([w["w"].reshape(-1), w["b"][0].reshape(1)])
    tree = lambda v: {"w": v[:4].reshape(2, 2), "b": (v[4],)}

    def inner(w, p):
        x = flat(w)
        return 0.5 * x @ h @ x - (x[:3] * p["shift"]).sum() * p["scale"][0] * p["n"]

    def outer(w, p):
        return flat(w).square().sum() + p["scale"][0]

    def value(shift, scale):
        right = torch.cat([shift * scale * 2, torch.zeros(2, dtype=torch.float64)])
        return outer(tree(torch.linalg.solve(h, right)), {"scale": [scale]})

    shift, scale = normal(3), torch.tensor(0.5, dtype=torch.float64)
    p = {"shift": shift, "scale": [scale], "n": 2, "index": torch.tensor(3)}
    right = torch.cat([shift * scale * 2, torch.zeros(2, dtype=torch.float64)])
    w = tree(torch.linalg.solve(h, right))
    exact = grad(value, argnums=(0, 1))(shift, scale)
    patient = StochasticAdjoint(200, functools.partial(torch.optim.SGD, lr=0.3))
    for method in [*EVERY, patient]:
        found, info = hypergradient(inner, outer, w, p, method, info=True)
        assert found["n"] is None
        assert found["index"] is None
        assert found["shift"].shape == (3,)
        assert info.adjoint["w"].shape == (2, 2)
        if method in [*SOLVING, patient]:
            assert_close((found["shift"], found["scale"][0]), exact)


def test_hyperparameters_may_be_complex():
    problem, c = Quadratic(3, 3), torch.complex(normal(3, seed=4), normal(3, seed=5))
    right = lambda c: problem.b @ (c.abs().square() + (c * c).imag)
    inner = lambda w, c: 0.5 * w @ problem.h @ w - w @ right(c)
    outer = lambda w, c: w.square().sum() + c.abs().square().sum() + c.real @ w
    minimum = lambda c: torch.linalg.solve(problem.h, right(c))
    value = lambda c: outer(minimum(c), c)
    leaf = c.clone().requires_grad_()
    (exact,) = autograd_grad(value(leaf), leaf, create_graph=True)
    (second,) = autograd_grad(exact.abs().square().sum(), leaf)
    exact = exact.detach()
    patient = StochasticAdjoint(300, partial(torch.optim.SGD, lr=0.3))
    for method in [*SOLVING, Neumann(400, 0.3), FixedPoint(400, 0.3), patient]:
        assert_close(hypergradient(inner, outer, minimum(c), c, method), exact)
    f2sa = hypergradient(inner, outer, minimum(c), c, F2SA(600, 0.2, 1e5))
    assert_close(f2sa, exact, rtol=1e-4, atol=1e-5)
    again = c.clone().requires_grad_()
    found = hypergradient(inner, outer, minimum(c), again, create_graph=True)
    assert_close(autograd_grad(found.abs().square().sum(), again)[0], second)

    w, method = normal(3, seed=6), BOME(3, 0.2, eta=2.0)
    split = lambda loss: lambda w, pair: loss(w, torch.view_as_complex(pair))
    joint = hypergradient(inner, outer, w, c, method)
    pairs = hypergradient(split(inner), split(outer), w, torch.view_as_real(c), method)
    assert_close(torch.view_as_real(joint), pairs)


def test_networks_are_trees_of_parameters():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)).double()
    x, y = normal(20, 2), normal(20, 1, seed=1)
    params = {k: p.detach() for k, p in net.named_parameters()}

    def inner(p, h):
        penalty = sum((h[k].exp() * p[k].square()).sum() for k in p)
        return (functional_call(net, p, (x,)) - y).square().mean() + penalty

    outer = lambda p, h: (functional_call(net, p, (x,)) - 1).square().mean()
    h = {k: torch.zeros_like(p) for k, p in params.items()}
    for _ in range(2000):
        slopes = grad(inner)(params, h)
        params = {k: params[k] - 0.1 * slopes[k] for k in params}
    exact = hypergradient(inner, outer, params, h, Exact())
    for method in (CG(), NormalCG(), Neumann(400, 0.1)):
        assert_close(hypergradient(inner, outer, params, h, method), exact, rtol=1e-6, atol=1e-10)


@pytest.mark.parametrize("method", [*SOLVING, Neumann(50, 0.35), FixedPoint(50, 0.35)], ids=name_of)
def test_the_derivative_of_a_hypergradient_is_the_second_derivative(method):
    problem = Quadratic(3, 2)
    inner = lambda w, lam: problem.inner(w, lam) + 0.05 * (w**4).sum() * (1 + lam[0] ** 2)

    def minimum(lam):
        w = torch.zeros(3, dtype=torch.float64)
        for _ in range(10):
            w = w - torch.linalg.solve(hessian(inner)(w, lam), grad(inner)(w, lam))
        return w

    slope = lambda lam: hypergradient(inner, problem.outer, minimum(lam).detach(), lam, method)
    exact = hessian(lambda lam: problem.outer(minimum(lam), lam))(problem.lam)
    assert_close(jacfwd(slope)(problem.lam), exact, rtol=1e-7, atol=1e-9)
    assert_close(torch.func.jacrev(slope)(problem.lam), exact, rtol=1e-7, atol=1e-9)
    lam = problem.lam.clone().requires_grad_()
    again = lambda lam: hypergradient(
        inner, problem.outer, minimum(lam).detach(), lam, method, create_graph=True
    )
    assert gradcheck(again, (lam,), rtol=1e-5)


def test_without_create_graph_nothing_is_recorded():
    problem = Quadratic()
    lam = problem.lam.clone().requires_grad_()
    for method in EVERY:
        found, info = problem.by(method, lam, info=True)
        assert not found.requires_grad
        assert not info.adjoint.requires_grad
    found = problem.by(CG(), lam, create_graph=True)
    exact = hessian(problem.value)(problem.lam)
    assert_close(autograd_grad(found.sum(), lam)[0], exact.sum(0))


@pytest.mark.parametrize("method", [m for m in EVERY if not m.differentiable], ids=name_of)
def test_methods_that_cannot_be_differentiated_again_say_so(method):
    problem = Quadratic()
    message = f"`{type(method).__name__}` gives no second derivatives"
    with pytest.raises(NotImplementedError, match=message):
        problem.by(method, create_graph=True)
    with pytest.raises(NotImplementedError, match=message):
        grad(lambda lam: problem.by(method, lam).sum())(problem.lam)
    with pytest.raises(NotImplementedError, match=message):
        jvp(lambda lam: problem.by(method, lam), (problem.lam,), (problem.lam,))


def test_a_second_derivative_lost_by_closure_is_an_error():
    theta = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    inner = lambda w, lam: theta * (w - lam).square().sum()
    outer = lambda w, lam: (w**3).sum()
    one = torch.ones(2, dtype=torch.float64)
    assert_close(hypergradient(inner, outer, one, one), 3 * one)
    with pytest.raises(ValueError, match=r"`inner_loss` uses .*`theta`"):
        hypergradient(inner, outer, one, one, create_graph=True)


@pytest.mark.parametrize(
    "method", [m for m in EVERY if not isinstance(m, (StochasticAdjoint, BOME))], ids=name_of
)
def test_vmap_is_the_loop(method):
    problem = Quadratic()
    lams = normal(3, 4, seed=5)
    found, info = vmap(lambda lam: problem.by(method, lam, info=True))(lams)
    for i, lam in enumerate(lams):
        alone, told = problem.by(method, lam, info=True)
        assert_close(found[i], alone, rtol=1e-10, atol=1e-12)
        assert_close(info.residual[i], told.residual, rtol=1e-6, atol=1e-10)


def test_a_compiled_outer_step_breaks_its_graph_around_the_hypergradient():
    problem = Quadratic()
    step = torch.compile(lambda lam: lam * 2 - 0.1 * problem.by(CG(), lam * 2), backend="eager")
    lam = problem.lam / 2
    assert_close(step(lam), problem.lam - 0.1 * grad(problem.value)(problem.lam))


# What is reported


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


class Square(torch.autograd.Function):
    """A function that no transform of `torch.func` can enter, as many in use are."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, cotangent):
        (x,) = ctx.saved_tensors
        return 2 * x * cotangent


@pytest.mark.parametrize("method", [CG(), NormalCG(), Exact(), Neumann(3, 0.1)], ids=name_of)
def test_losses_may_use_functions_that_autograd_alone_can_differentiate(method):
    outer = lambda w, lam: w.sum()
    found = [
        hypergradient(
            lambda w, lam, square=square: (square(w) * (1 + lam)).sum() - w.sum(),
            outer,
            normal(3),
            normal(3, seed=1) ** 2,
            method,
        )
        for square in (Square.apply, torch.square)
    ]
    assert_close(*found)


def test_a_loss_that_draws_random_numbers_is_refused():
    problem = Quadratic()
    inner = lambda w, lam: problem.inner(nn.functional.dropout(w, 0.5), lam)
    w = problem.minimum(problem.lam)
    with pytest.raises(ValueError, match=r"draws random numbers \(dropout in training mode\?\)"):
        hypergradient(inner, problem.outer, w, problem.lam, CG(3))
    outer = lambda w, lam: problem.outer(nn.functional.dropout(w, 0.5), lam)
    assert hypergradient(problem.inner, outer, w, problem.lam).isfinite().all()


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


# Errors


def test_a_hessian_that_is_not_positive_definite_is_refused_by_conjugate_gradients():
    inner = lambda w, lam: (w[0] - lam) ** 2 - (w[1] - lam) ** 2
    outer = lambda w, lam: w.square().sum()
    w, lam = torch.ones(2), torch.tensor(1.0)
    for method in (CG(), CG(5)):
        with pytest.raises(LinearSolveError, match=r"`CG` failed.*not positive definite"):
            hypergradient(inner, outer, w, lam, method)
    assert_close(hypergradient(inner, outer, w, lam, NormalCG()), torch.tensor(4.0))
    with pytest.warns(UserWarning, match="not positive definite"):
        hypergradient(inner, outer, w, lam, CG(5, on_failure="warn"))


@pytest.mark.parametrize("method", [Neumann(5, 10.0), FixedPoint(5, 10.0)])
def test_a_series_that_diverges_is_refused_with_advice(method):
    with pytest.raises(LinearSolveError, match="lower `step_size`"):
        Quadratic().by(method)


@pytest.mark.parametrize("method", EVERY, ids=name_of)
def test_a_module_called_with_its_own_parameters_is_refused(method):
    net = nn.Linear(3, 1).double()
    x, y, lam = normal(8, 3), normal(8, 1), torch.ones((), dtype=torch.float64)
    params = {name: p.detach() for name, p in net.named_parameters()}
    own = lambda p, lam: (net(x) - y).square().mean() + lam * net.weight.square().sum()
    given = lambda p, lam: (
        (functional_call(net, p, (x,)) - y).square().mean() + lam * p["weight"].square().sum()
    )
    message = r"`%s` does not depend on `params`.*functional_call\(module, params, inputs\)"
    with pytest.raises(ValueError, match=message % "inner_loss"):
        hypergradient(own, given, params, lam, method)
    with pytest.raises(ValueError, match=message % "outer_loss"):
        hypergradient(given, own, params, lam, method)
    if method.differentiable:
        with pytest.raises(ValueError, match=message % "inner_loss"):
            hypergradient(own, given, params, lam, method, create_graph=True)
        with pytest.raises(ValueError, match=message % "inner_loss"):
            vmap(lambda lam: hypergradient(own, given, params, lam, method))(lam[None])


def test_an_outer_loss_of_the_hyperparameters_alone_has_a_derivative():
    problem = Quadratic()
    inner, lam = problem.inner, problem.lam
    outer = lambda w, lam: lam.square().sum()
    for method in EVERY:
        if not isinstance(method, BOME):
            found = hypergradient(inner, outer, problem.minimum(lam), lam, method)
            assert_close(found, 2 * lam, rtol=1e-12, atol=1e-12)


def test_nan_is_refused():
    problem = Quadratic()
    for method in (CG(3), NormalCG(3), Neumann(3), Exact(), Nystrom(3)):
        inner = lambda w, lam: problem.inner(w, lam) * torch.nan
        with pytest.raises(LinearSolveError, match="NaN or infinity"):
            hypergradient(inner, problem.outer, problem.minimum(problem.lam), problem.lam, method)


def test_bad_input_is_refused_where_it_is_given():
    problem = Quadratic()
    w, lam = problem.minimum(problem.lam), problem.lam
    with pytest.raises(ValueError, match=r"`inner_loss` must return a scalar tensor, got \(6,\)"):
        hypergradient(lambda w, lam: w, problem.outer, w, lam)
    with pytest.raises(ValueError, match="`outer_loss` must return a scalar tensor, got float"):
        hypergradient(problem.inner, lambda w, lam: 1.0, w, lam)
    with pytest.raises(ValueError, match="`init` must have the structure and shapes"):
        hypergradient(problem.inner, problem.outer, w, lam, init=w[:2])
    with pytest.raises(TypeError, match="`params` must hold floating-point tensors"):
        hypergradient(problem.inner, problem.outer, w.long(), lam)
    with pytest.raises(ValueError, match="What `update` returns must have the structure"):
        hypergradient(problem.inner, problem.outer, w, lam, SAMA(lambda g: g[:1]))
    for make, message in [
        (lambda: CG(-1), "`iterations` must be at least 0, got -1"),
        (lambda: CG(ridge=-1.0), "`ridge` must be at least 0"),
        (lambda: CG(on_failure="shrug"), "`on_failure` must be"),
        (lambda: Neumann(5, 0.0), "`step_size` must be positive"),
        (lambda: FixedPoint(0), "`iterations` must be positive"),
        (lambda: Nystrom(0), "`rank` must be positive"),
        (lambda: FiniteDifference(0.0), "`epsilon` must be positive"),
        (lambda: SAMA(alpha=0.0), "`alpha` must be positive"),
        (lambda: F2SA(penalty=0.0), "`penalty` must be positive"),
        (lambda: BOME(eta=-1.0), "`eta` must be at least 0"),
        (lambda: StochasticAdjoint(0), "`iterations` must be positive"),
    ]:
        with pytest.raises(ValueError, match=message):
            make()


@pytest.mark.parametrize("method", EVERY, ids=name_of)
def test_methods_are_values(method):
    copy = pickle.loads(pickle.dumps(method))
    assert type(copy) is type(method)
    assert repr(copy) == repr(method)  # two of `functools.partial` are never equal
    with pytest.raises(FrozenInstanceError):
        copy.iterations = 3


def test_single_and_half_precision_keep_their_dtypes():
    for dtype in (torch.float32, torch.bfloat16):
        w, lam = RIDGE_W.to(dtype), LAM.to(dtype)
        inner = lambda w, lam, dtype=dtype: ridge_objective(w, lam, X.to(dtype), Y.to(dtype))
        exact = grad(lambda lam: ridge_outer(ridge_solution(lam, X, Y), lam))(LAM)
        for method in (CG(3), Neumann(20, 0.1), Exact(), FiniteDifference(), F2SA(20, 0.1)):
            found = hypergradient(inner, ridge_outer, w, lam, method)
            assert found.dtype == dtype
            if isinstance(method, (CG, Exact)):
                assert_close(found.double(), exact, rtol=0.05, atol=0)
