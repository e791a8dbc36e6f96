import functools
import pickle

import pytest
import torch
from diffopt_implicit import (
    CG,
    JacobiPreconditioner,
    LinearSolveError,
    NystromPreconditioner,
    WarmStart,
    custom_root,
    hypergradient,
    solve_cg,
    solve_cholesky,
    solve_fixed_point,
    solve_lu,
    solve_minres,
    solve_normal_cg,
)
from implicit_problems import LAM, RIDGE_SLOPE, X, Y, normal, ridge_condition, ridge_solution, spd
from torch.autograd import grad as autograd_grad
from torch.autograd import gradcheck
from torch.func import vmap
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode


def decaying(n=60, rank=12):
    """A matrix of a few large eigenvalues, and small ones behind them."""
    q, _ = torch.linalg.qr(normal(n, n))
    values = torch.cat([torch.logspace(4, 0, rank), torch.full((n - rank,), 1e-4)]).double()
    return q @ torch.diag(values) @ q.T


# Jacobi


def test_the_exact_diagonal_is_inverted():
    a = spd(70)
    m = JacobiPreconditioner().prepare(lambda v: a @ v, a[0], ridge=0.5)
    assert_close(m(a[1]), a[1] / (a.diagonal() + 0.5))


def test_a_negative_diagonal_leaves_it_positive():
    d, b = torch.tensor([2.0, -4.0, 0.0], dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    m = JacobiPreconditioner().prepare(lambda v: d * v, b)
    assert_close(m(b), torch.tensor([0.5, 0.25, 1.0], dtype=torch.float64))


@pytest.mark.parametrize("recipe", [NystromPreconditioner(3), JacobiPreconditioner()])
def test_no_graph_is_kept_of_a_preconditioner(recipe):
    a = spd(6).requires_grad_()
    m = recipe.prepare(lambda v: a @ v, a.detach()[0])
    assert not m(normal(6)).requires_grad


def test_probes_estimate_the_diagonal():
    a = spd(20) + torch.diag(torch.linspace(0, 30, 20, dtype=torch.float64))
    b = torch.ones(20, dtype=torch.float64)
    exact = JacobiPreconditioner().prepare(lambda v: a @ v, b)(b)
    errors = [
        (JacobiPreconditioner(count).prepare(lambda v: a @ v, b)(b) - exact).norm()
        for count in (1, 20, 2000)
    ]
    assert errors[2] < 0.3 * errors[1] < 0.3 * errors[0]
    assert errors[2] < 0.05 * exact.norm()
    diagonal = JacobiPreconditioner(1).prepare(lambda v: 3 * v, b)  # signs square to 1
    assert_close(diagonal(b), b / 3)


@pytest.mark.parametrize("solve", [solve_cg, solve_normal_cg, solve_minres])
def test_a_badly_scaled_system_is_solved_in_few_iterations(solve):
    d = torch.logspace(0, 5, 40, dtype=torch.float64)
    a = torch.diag(d) + 0.1 * spd(40)
    b = normal(40, seed=1)
    options = {"info": True, "tol": 1e-8, "on_failure": "ignore"}
    x, info = solve(lambda v: a @ v, b, preconditioner=JacobiPreconditioner(), **options)
    _, plain = solve(lambda v: a @ v, b, **options)
    assert_close(x, torch.linalg.solve(a, b), rtol=1e-5, atol=1e-9)
    assert info.iterations < plain.iterations / 3


@pytest.mark.parametrize("solve", [solve_cg, solve_normal_cg, solve_minres])
@pytest.mark.parametrize("init", [None, torch.zeros(20, dtype=torch.float64)], ids=["", "started"])
def test_solvers_prepare_a_preconditioner_with_their_ridge(solve, init):
    d, b = torch.logspace(-4, 0, 20, dtype=torch.float64), normal(20)
    given = {"ridge": 1e-2, "init": init, "preconditioner": JacobiPreconditioner(), "info": True}
    x, info = solve(lambda v: d * v, b, **given)
    exact = d * b / (d**2 + 1e-2) if solve is solve_normal_cg else b / (d + 1e-2)
    assert_close(x, exact)
    assert info.iterations <= 2


# Nyström


@pytest.mark.parametrize("ridge", [1e-3, torch.tensor(1e-3, dtype=torch.float64)])
def test_nystrom_takes_the_large_eigenvalues_out_of_the_condition_number(ridge):
    a, b = decaying(), normal(60, seed=1)
    m = NystromPreconditioner(20).prepare(lambda v: a @ v, b, ridge)
    columns = vmap(m)(torch.eye(60, dtype=torch.float64))
    assert_close(columns, columns.T)
    shifted = a + 1e-3 * torch.eye(60, dtype=torch.float64)
    condition = torch.linalg.cond(
        torch.linalg.cholesky(columns).T @ shifted @ torch.linalg.cholesky(columns)
    )
    assert condition < 3 < 1e6 < torch.linalg.cond(shifted)


def test_nystrom_preconditioned_conjugate_gradients():
    a, b = decaying(), normal(60, seed=1)
    exact = torch.linalg.solve(a + 1e-3 * torch.eye(60, dtype=torch.float64), b)
    options = {"ridge": 1e-3, "tol": 1e-10, "info": True, "on_failure": "ignore"}
    x, info = solve_cg(lambda v: a @ v, b, preconditioner=NystromPreconditioner(20), **options)
    _, plain = solve_cg(lambda v: a @ v, b, **options)
    assert_close(x, exact, rtol=1e-6, atol=1e-6)
    assert info.iterations < 12 < plain.iterations


def test_a_prepared_preconditioner_serves_many_solves():
    a = decaying()
    m = NystromPreconditioner(20).prepare(lambda v: a @ v, a[0], 1e-3)
    for seed in range(3):
        b = normal(60, seed=seed)
        options = {"ridge": 1.1e-3, "tol": 1e-9, "info": True}
        _, info = solve_cg(lambda v: a @ v, b, preconditioner=m, **options)
        assert info.iterations < 15


def test_full_rank_and_zero_matrices():
    a, b = spd(6), normal(6, seed=1)
    m = NystromPreconditioner(100).prepare(lambda v: a @ v, b)
    scale = torch.linalg.eigvalsh(a)[0]
    assert_close(m(b), scale * torch.linalg.solve(a, b))
    zero = NystromPreconditioner(3).prepare(lambda v: 0 * v, b)
    assert_close(zero(b), b)
    for recipe in (NystromPreconditioner(), JacobiPreconditioner(), JacobiPreconditioner(3)):
        assert solve_cg(lambda x: x, (), preconditioner=recipe) == ()


def test_trees_and_vmap():
    a = torch.stack([spd(5, seed=s) for s in range(3)])
    b = normal(3, 5, seed=9)
    for recipe in (NystromPreconditioner(3), JacobiPreconditioner(), JacobiPreconditioner(2)):

        def one(a, b, recipe=recipe):
            def matvec(tree):
                y = a @ torch.cat([tree["w"].reshape(-1), tree["b"]])
                return {"w": y[:4].reshape(2, 2), "b": y[4:]}

            tree = {"w": b[:4].reshape(2, 2), "b": b[4:]}
            return solve_cg(matvec, tree, preconditioner=recipe)

        x = vmap(one)(a, b)
        exact = torch.linalg.solve(a, b)
        assert_close(torch.cat([x["w"].reshape(3, 4), x["b"]], dim=1), exact)


@pytest.mark.parametrize("recipe", [NystromPreconditioner(3), JacobiPreconditioner()])
def test_preconditioned_roots_are_differentiated(recipe):
    decorate = custom_root(
        ridge_condition, solve=functools.partial(solve_cg, preconditioner=recipe)
    )
    solver = decorate(lambda init, lam, x, y: ridge_solution(lam, x, y))
    lam = LAM.clone().requires_grad_()
    assert gradcheck(lambda lam: solver(None, lam, X, Y), (lam,), check_forward_ad=True)


def test_hypergradients_are_preconditioned():
    a, b = decaying(), normal(60, seed=1)
    inner = lambda w, lam: 0.5 * w @ a @ w + 5e-4 * w @ w - w @ lam
    outer = lambda w, lam: w.sum()
    w = torch.linalg.solve(a + 1e-3 * torch.eye(60, dtype=torch.float64), b)
    exact = torch.linalg.solve(
        a + 1e-3 * torch.eye(60, dtype=torch.float64), torch.ones(60, dtype=torch.float64)
    )
    method = CG(8, preconditioner=NystromPreconditioner(20))
    found, info = hypergradient(inner, outer, w, b, method, info=True)
    assert (found - exact).norm() < 1e-6 * exact.norm()
    assert info.relative_residual < 1e-6


def test_preconditioners_are_values():
    for recipe in (NystromPreconditioner(3, seed=2), JacobiPreconditioner(5)):
        assert pickle.loads(pickle.dumps(recipe)) == recipe
    a, b = spd(9), normal(9)
    one, same, other = (
        NystromPreconditioner(2, seed=s).prepare(lambda v: a @ v, b)(b) for s in (0, 0, 1)
    )
    assert_close(one, same, rtol=0, atol=0)
    assert not torch.allclose(one, other)
    for make in (lambda: NystromPreconditioner(0), lambda: JacobiPreconditioner(0)):
        with pytest.raises(ValueError, match="must be positive, got 0"):
            make()


# Iterative refinement: a solver as the preconditioner of Richardson's iteration


def test_iterative_refinement_solves_the_nearly_singular_example():  # O-47
    a = torch.tensor([[3.9, 1.65], [6.845, 2.9]], dtype=torch.float64)
    b = torch.tensor([5.5, 9.7], dtype=torch.float64)
    near = lambda v: a @ v + 1e-4 * v  # far off: the condition number is 4647
    rough = solve_lu(near, b)
    refine = functools.partial(solve_lu, near)
    x, info = solve_fixed_point(lambda v: a @ v, b, preconditioner=refine, info=True)
    exact = torch.linalg.solve(a, b)
    assert (rough - exact).norm() > 0.03 * exact.norm()
    assert_close(x, exact, rtol=1e-8, atol=0)
    assert info.iterations < 30


def test_single_precision_is_refined_to_double():
    a, b = spd(30), normal(30, seed=1)
    single = a.float()
    refine = lambda r: solve_cholesky(lambda v: single @ v, r.float()).double()
    rough = refine(b)
    x, info = solve_fixed_point(lambda v: a @ v, b, preconditioner=refine, info=True, tol=1e-14)
    exact = torch.linalg.solve(a, b)
    assert (rough - exact).norm() > 1e-9 * exact.norm()
    assert (x - exact).norm() < 1e-13 * exact.norm()
    assert info.iterations <= 4


# Warm starts


def test_a_warm_start_begins_at_the_last_solution():
    a = spd(30)
    solve = WarmStart(solve_cg)
    b, step = normal(30), normal(30, seed=1)
    counts = []
    for i in range(4):
        right = b + 1e-6 * i * step
        x, info = solve(lambda v: a @ v, right, tol=1e-7, info=True)
        assert (a @ x - right).norm() <= 1e-7 * right.norm()
        counts.append(info.iterations.item())
    assert max(counts[1:]) < counts[0] / 3
    solve(lambda v: v, normal(3))  # another shape begins afresh
    assert solve.last.shape == (3,)


def test_a_warm_start_is_kept_across_outer_steps_of_a_decorated_solver():
    solve = WarmStart(functools.partial(solve_cg, tol=1e-9))
    solver = custom_root(ridge_condition, solve=solve)(
        lambda init, lam, x, y: ridge_solution(lam, x, y)
    )
    for _ in range(3):
        lam = LAM.clone().requires_grad_()
        (slope,) = autograd_grad(solver(None, lam, X, Y).sum(), lam, create_graph=True)
        assert_close(slope.detach(), RIDGE_SLOPE.sum(), rtol=1e-7, atol=0)
        assert solve.last is not None
    assert not solve.last.requires_grad
    lams = torch.stack([LAM, 2 * LAM])
    before = solve.last
    slopes = vmap(torch.func.grad(lambda lam: solver(None, lam, X, Y).sum()))(lams)
    assert_close(slopes[0], RIDGE_SLOPE.sum(), rtol=1e-7, atol=0)
    assert solve.last is before


def test_a_failed_warm_start_keeps_what_it_had():
    solve = WarmStart(solve_cg)
    solve(lambda v: v, torch.ones(2))
    with pytest.raises(LinearSolveError):
        solve(lambda v: -v, 2 * torch.ones(2))
    assert_close(solve.last, torch.ones(2))


# Many right-hand sides


class Products(TorchDispatchMode):
    """Counts factorizations and products of matrices."""

    def __init__(self):
        super().__init__()
        self.counts = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        self.counts[name] = self.counts.get(name, 0) + 1
        return func(*args, **(kwargs or {}))


def test_many_right_hand_sides_share_one_factorization():
    a, b = spd(8), normal(50, 8, seed=1)
    with Products() as many:
        x = vmap(functools.partial(solve_cholesky, lambda v: a @ v))(b)
    assert_close(x, torch.linalg.solve(a, b.T).T)
    assert many.counts["linalg_cholesky_ex"] == 1
