from functools import partial

import pytest
import torch
from diffopt_implicit import (
    custom_fixed_point,
    solve_bicgstab,
    solve_fixed_point,
    solve_gmres,
    solve_lu,
    solve_neumann,
    solve_normal_cg,
    solve_qr,
)
from implicit_problems import (
    LAM,
    RIDGE_SLOPE,
    RIDGE_W,
    X,
    Y,
    normal,
    ridge_condition,
    ridge_solution,
)
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, jacfwd, jacrev, jvp, vmap
from torch.testing import assert_close

ONE = torch.tensor(1.0, dtype=torch.float64)
SOLVERS = [
    solve_normal_cg,
    solve_gmres,
    solve_bicgstab,
    partial(solve_fixed_point, step_size=0.8),  # 1 would not sum the series for a slope of -1
    partial(solve_neumann, step_size=0.8),
    solve_lu,
    solve_qr,
]


def iterate(step, x, count=200):
    for _ in range(count):
        x = step(x)
    return x


@pytest.mark.parametrize("solve", SOLVERS)
@pytest.mark.parametrize(
    ("theta", "x", "slope"),
    [(0.0, 0.7390851332151607, 0.5975100456753034), (torch.pi / 2, torch.pi / 2, 0.5)],
)
def test_cosine(solve, theta, x, slope):  # O-38
    def step(x, theta):
        return x.cos() + theta

    @custom_fixed_point(step, solve=partial(solve, tol=1e-10))
    def solver(init, theta):
        for _ in range(60):  # by Newton's method: the iteration does not contract at pi / 2
            init = init - (init - step(init, theta)) / (1 + init.sin())
        return init

    theta = theta * ONE
    assert_close(solver(ONE, theta), x * ONE)
    assert_close(grad(lambda t: solver(ONE, t))(theta), slope * ONE)
    assert_close(jvp(lambda t: solver(ONE, t), (theta,), (ONE,))[1], slope * ONE)


def test_a_fixed_point_at_zero_has_derivative_zero():  # O-38
    solver = custom_fixed_point(lambda x, t: t * x)(lambda init, t: torch.zeros_like(init))
    assert grad(lambda t: solver(ONE, t))(0.5 * ONE) == 0


@pytest.mark.parametrize("solve", SOLVERS)
def test_affine_contraction_of_two_hundred_unknowns(solve):  # O-38
    m, dm = normal(2, 200, 200)
    m = 0.49 * m / torch.linalg.matrix_norm(m, 2)
    b, db, v = normal(3, 200, seed=1)
    inverse = torch.linalg.inv(torch.eye(200, dtype=torch.float64) - m)

    @custom_fixed_point(lambda x, m, b: m @ x + b, solve=solve)
    def solver(init, m, b):
        return iterate(lambda x: m @ x + b, torch.zeros_like(b), 60)

    x, dx = jvp(lambda m, b: solver(None, m, b), (m, b), (dm, db))
    assert_close(dx, inverse @ (dm @ x + db), rtol=1e-8, atol=1e-8)
    leaves = m.clone().requires_grad_(), b.clone().requires_grad_()
    m_bar, b_bar = torch.autograd.grad(solver(None, *leaves), leaves, v)
    assert_close(b_bar, inverse.T @ v, rtol=1e-8, atol=1e-8)
    assert_close(m_bar, torch.outer(inverse.T @ v, x), rtol=1e-8, atol=1e-8)


def test_ridge_as_the_fixed_point_of_gradient_descent():  # O-31
    @custom_fixed_point(lambda w, lam, x, y: w - ridge_condition(w, lam, x, y))
    def ridge(init, lam, x, y):
        return ridge_solution(lam, x, y)

    assert_close(ridge(None, LAM, X, Y), RIDGE_W, rtol=1e-7, atol=1e-7)
    assert_close(jacrev(ridge, argnums=1)(None, LAM, X, Y), RIDGE_SLOPE, rtol=1e-7, atol=1e-7)
    assert_close(jacfwd(lambda t: ridge(None, t, y=Y, x=X))(LAM), RIDGE_SLOPE, rtol=1e-7, atol=1e-7)


def test_trees_pass_gradcheck_in_all_modes_and_under_vmap():
    def step(x, a, scale=0.3):
        return {"u": scale * x["v"].sin() + a["p"], "v": (x["u"] * a["q"]).cos()}

    @custom_fixed_point(step, argnums=1)
    def solver(init, a):
        start = {"u": torch.zeros_like(a["p"]), "v": torch.zeros_like(a["p"])}
        return iterate(lambda x: step(x, a), start)

    def leaves(p, q):
        x = solver(None, {"p": p, "q": q})
        return x["u"], x["v"]

    p, q = 0.2 * normal(2), torch.tensor(0.6, dtype=torch.float64)
    inputs = (p.requires_grad_(), q.requires_grad_())
    assert gradcheck(leaves, inputs, check_forward_ad=True)
    assert gradgradcheck(leaves, inputs)
    p, q = normal(4, 2).mul(0.2), torch.linspace(0.1, 0.6, 4, dtype=torch.float64)
    batched = vmap(jacrev(leaves, argnums=1))(p, q)[0]
    assert_close(batched[2], jacfwd(leaves, argnums=1)(p[2], q[2])[0])


def test_argnums_leaves_the_other_arguments_out():
    solver = custom_fixed_point(lambda x, s, t: 0.5 * x + s * t, argnums=2)(
        lambda init, s, t: 2 * s * t
    )
    s, t = (3 * ONE).requires_grad_(), ONE.clone().requires_grad_()
    solver(None, s, t).backward()
    assert s.grad is None
    assert_close(t.grad, 6 * ONE)


def test_aux_is_handed_on():
    @custom_fixed_point(lambda x, t: 0.5 * x + t, has_aux=True)
    def solver(init, t):
        return 2 * t, "aux"

    x, aux = solver(None, ONE)
    assert (x, aux) == (2 * ONE, "aux")


def test_what_the_map_closes_over_or_returns_wrongly_is_named():
    theta = torch.tensor(3.0, requires_grad=True)
    solver = custom_fixed_point(lambda x, t: 0.5 * x * theta + t)(lambda init, t: t)
    with pytest.raises(ValueError, match=r"`fixed_point_fun` uses .*`theta` of shape \(\)"):
        solver(None, ONE)
    for wrong in (lambda x, t: x[:1], lambda x, t: {"x": x}, lambda x, t: (x, x)):
        solver = custom_fixed_point(wrong)(lambda init, t: init)
        with pytest.raises(ValueError, match="`fixed_point_fun` must return a tree of the root"):
            solver(torch.ones(2), ONE)
