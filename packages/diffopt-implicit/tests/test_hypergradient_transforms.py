"""Hypergradients of trees, under transforms, and differentiated again."""

import functools
from functools import partial

import pytest
import torch
from diffopt_implicit import (
    BOME,
    CG,
    F2SA,
    Exact,
    FixedPoint,
    Neumann,
    NormalCG,
    StochasticAdjoint,
    hypergradient,
)
from hypergradient_problems import EVERY, SOLVING, Quadratic, name_of
from implicit_problems import normal, spd
from torch import nn
from torch.autograd import grad as autograd_grad
from torch.autograd import gradcheck
from torch.func import functional_call, grad, hessian, jacfwd, jvp, vmap
from torch.testing import assert_close


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
