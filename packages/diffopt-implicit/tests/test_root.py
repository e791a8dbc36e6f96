"""Roots and fixed points of a few numbers: every mode, every transform, higher derivatives."""

import functools

import pytest
import torch
from diffopt_implicit import custom_root
from root_problems import ONE, root
from torch.autograd import grad as autograd_grad
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vmap
from torch.testing import assert_close


def test_cube_root_at_two():  # O-40
    a = (2 * ONE).requires_grad_()
    (slope,) = autograd_grad(root(a), a, create_graph=True)
    (curvature,) = autograd_grad(slope, a, create_graph=True)
    (third,) = autograd_grad(curvature, a)
    exact = functools.partial(assert_close, rtol=1e-13, atol=0)
    exact(slope.detach(), 0.20998684164914552 * ONE)
    exact(curvature.detach(), -0.06999561388304851 * ONE)
    exact(third, 10 / 27 * 2 ** (-8 / 3) * ONE)


def test_second_derivative_has_the_right_sign():  # D15
    a = (8 * ONE).requires_grad_()
    (slope,) = autograd_grad(root(a), a, create_graph=True)
    (curvature,) = autograd_grad(slope, a)
    assert_close(curvature, -ONE / 144, rtol=1e-13, atol=0)


@pytest.mark.parametrize("outer", [grad, jacrev, jacfwd])
@pytest.mark.parametrize("inner", [grad, jacrev, jacfwd])
def test_every_pair_of_modes_gives_the_second_derivative(outer, inner):
    assert_close(outer(inner(root))(8 * ONE), -ONE / 144, rtol=1e-12, atol=0)
    assert_close(hessian(root)(8 * ONE), -ONE / 144, rtol=1e-12, atol=0)


def test_forward_mode():  # O-40
    value, slope = jvp(root, (2 * ONE,), (ONE,))
    assert_close(value**3, 2 * ONE)
    assert_close(slope, 0.20998684164914552 * ONE)


def test_gradcheck_in_all_modes():  # O-40
    a = torch.tensor([0.5, 2.0, 8.0], dtype=torch.float64, requires_grad=True)
    assert gradcheck(root, (a,), check_forward_ad=True)
    assert gradgradcheck(root, (a,), check_fwd_over_rev=True)


def test_vmap_is_the_loop():  # O-40
    a = torch.linspace(0.5, 20, 64, dtype=torch.float64)
    functions = [root, grad(root), grad(grad(root)), lambda a: jvp(root, (a,), (a,))[1]]
    for function in functions:
        loop = torch.stack([function(x) for x in a])
        assert_close(vmap(function)(a), loop, rtol=1e-13, atol=1e-14)
        assert_close(vmap(vmap(function))(a.reshape(8, 8)).reshape(-1), loop, rtol=1e-13, atol=0)


def test_derivatives_through_vmap_are_the_loop():
    a = torch.linspace(0.5, 20, 6, dtype=torch.float64)
    slopes = torch.stack([grad(root)(x) for x in a])
    assert_close(grad(lambda a: vmap(root)(a).sum())(a), slopes)
    assert_close(jvp(vmap(root), (a,), (torch.ones_like(a),))[1], slopes)
    leaf = a.clone().requires_grad_()
    (g,) = autograd_grad(vmap(root)(leaf).sum(), leaf, create_graph=True)
    (h,) = autograd_grad(g.sum(), leaf)
    assert_close(h, torch.stack([grad(grad(root))(x) for x in a]))


def test_a_leaf_used_by_backward():
    a = (2 * ONE).requires_grad_()
    root(a).backward()
    assert_close(a.grad, 0.20998684164914552 * ONE)


@pytest.mark.parametrize(
    ("theta", "x", "slope"),
    [(0.0, 0.7390851332151607, 0.5975100456753034), (torch.pi / 2, torch.pi / 2, 0.5)],
)
def test_cosine_fixed_point(theta, x, slope):  # O-38
    @custom_root(lambda x, theta: x - x.cos() - theta)
    def solver(init, theta):
        x = init
        for _ in range(200):
            x = x - (x - x.cos() - theta) / (1 + x.sin())
        return x

    theta = theta * ONE
    assert_close(solver(ONE, theta), x * ONE)
    assert_close(grad(lambda t: solver(ONE, t))(theta), slope * ONE)
    assert_close(jvp(lambda t: solver(ONE, t), (theta,), (ONE,))[1], slope * ONE)


def test_fixed_point_at_zero_has_derivative_zero():  # O-38
    @custom_root(lambda x, theta: x - theta * x)
    def solver(init, theta):
        return torch.zeros_like(init)

    assert grad(lambda t: solver(ONE, t))(0.5 * ONE) == 0


def test_affine_fixed_point_of_two_hundred_unknowns():  # O-38
    generator = torch.Generator().manual_seed(0)
    m, dm = torch.randn(2, 200, 200, dtype=torch.float64, generator=generator)
    m = 0.49 * m / torch.linalg.matrix_norm(m, 2)
    b, db, v = torch.randn(3, 200, dtype=torch.float64, generator=generator)
    inverse = torch.linalg.inv(torch.eye(200, dtype=torch.float64) - m)

    @custom_root(lambda x, m, b: x - m @ x - b)
    def solver(init, m, b):
        return torch.linalg.solve(torch.eye(200, dtype=m.dtype) - m, b)

    x, dx = jvp(lambda m, b: solver(None, m, b), (m, b), (dm, db))
    assert_close(dx, inverse @ (dm @ x + db), rtol=1e-8, atol=1e-8)
    leaves = m.clone().requires_grad_(), b.clone().requires_grad_()
    m_bar, b_bar = autograd_grad(solver(None, *leaves), leaves, v)
    assert_close(b_bar, inverse.T @ v, rtol=1e-8, atol=1e-8)
    assert_close(m_bar, torch.outer(inverse.T @ v, x), rtol=1e-8, atol=1e-8)
