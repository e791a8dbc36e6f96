"""Iterative linear solvers against exact solutions."""

from functools import partial

import pytest
import torch
from diffopt_implicit import (
    WarmStart,
    solve_cg,
    solve_cholesky,
    solve_fixed_point,
    solve_lu,
    solve_neumann,
    solve_normal_cg,
    solve_qr,
)
from implicit_problems import normal, spd
from linear_solvers import SOLVERS, relative
from torch.autograd import forward_ad
from torch.func import jacfwd, jacrev, vmap
from torch.testing import assert_close


@pytest.mark.parametrize("scale", [1e-200, 1e-3, 1.0, 1e3, 1e150])
@pytest.mark.parametrize("n", [1, 2, 5, 8])
def test_cg_is_exact_after_n_iterations_at_any_scaling(n, scale):  # O-26
    a, b = spd(n), normal(n, seed=1)
    exact = torch.linalg.solve(a, b)

    x, info = solve_cg(lambda v: a @ v, b * scale, maxiter=n, tol=1e-11, info=True)
    assert relative(x / scale, exact) < 1e-12
    assert info.iterations <= n
    x = solve_cg(lambda v: scale * (a @ v), b, maxiter=n, tol=1e-11)
    assert relative(x * scale, exact) < 1e-12


def test_hypergradient_of_the_quadratic_bilevel_problem_is_exact():  # O-26
    h, b, v = spd(6), normal(6, 4, seed=1), normal(6, seed=2)
    u = solve_cg(lambda x: h @ x, v, maxiter=6)
    assert relative(b.T @ u, b.T @ torch.linalg.solve(h, v)) < 1e-12


def test_cg_returns_the_last_iterate_not_the_one_before():  # D1
    v = torch.tensor([0.5, 1.5, 2.5], dtype=torch.float64)
    x, info = solve_cg(lambda x: x, v, info=True)
    assert_close(x, v, rtol=0, atol=0)
    assert info.iterations == 1


@pytest.mark.parametrize("solve", SOLVERS)
def test_zero_right_hand_side_gives_zero_not_nan(solve):  # D1
    start = torch.ones(3, dtype=torch.float64)
    for init in (None, start):
        x, info = solve(lambda x: 2 * x, torch.zeros_like(start), init=init, info=True)
        assert_close(x, torch.zeros_like(start), rtol=0, atol=0)
        assert info.iterations == 0
        assert info.converged


@pytest.mark.parametrize("solve", SOLVERS)
def test_a_scalar_system_gets_iterations(solve):  # D14
    b = torch.tensor(6.0, dtype=torch.float64)
    assert_close(solve(lambda x: 3 * x, b), torch.tensor(2.0, dtype=torch.float64))


@pytest.mark.parametrize("solve", SOLVERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", [1, 3, 40, 200])
def test_default_tolerance_is_within_reach(solve, dtype, n):
    a, b = spd(n, dtype=dtype), normal(n, seed=1, dtype=dtype)
    x = solve(lambda v: a @ v, b)
    assert x.dtype == dtype
    assert relative(x, torch.linalg.solve(a, b)) < (1e-4 if dtype == torch.float32 else 1e-10)


@pytest.mark.parametrize("solve", SOLVERS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_iterated_in_single(solve, dtype):
    a, b = spd(30, dtype=torch.float32).to(dtype), normal(30, dtype=torch.float32).to(dtype)
    x = solve(lambda v: a @ v, b)
    assert x.dtype == dtype
    assert relative(x.float(), torch.linalg.solve(a.float(), b.float())) < 0.1


@pytest.mark.parametrize("solve", SOLVERS)
def test_residual_meets_the_tolerance_that_is_asked_for(solve):  # O-47
    a, b = spd(5), normal(5, seed=1)
    for tol in (1e-1, 1e-4, 1e-8, 1e-13):
        x, info = solve(lambda v: a @ v, b, tol=tol, info=True)
        assert (a @ x - b).norm() <= tol * b.norm()
        assert_close(info.residual, (a @ x - b).norm(), rtol=1e-2, atol=1e-14)
    a, b = spd(30), normal(30, seed=1)
    loose = solve(lambda v: a @ v, b, tol=0.0, atol=1e-2)
    assert 1e-6 < (a @ loose - b).norm() <= 1e-2


@pytest.mark.parametrize("solve", SOLVERS)
def test_tensor_operator_on_tensors(solve):  # O-47
    q = normal(15, 15)
    a = (q @ q.T + torch.eye(15, dtype=torch.float64)).reshape(5, 3, 5, 3)
    b = normal(5, 3, seed=1)
    x = solve(lambda v: torch.einsum("ijkl,kl->ij", a, v), b)
    assert_close(x, torch.linalg.tensorsolve(a, b), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("solve", SOLVERS)
def test_trees_with_coupling_between_leaves(solve):
    a, b = spd(5), normal(5, seed=1)

    def matvec(tree):
        y = a @ torch.cat([tree["w"].reshape(-1), tree["b"][0].reshape(1)])
        return {"w": y[:4].reshape(2, 2), "b": (y[4], tree["b"][1])}

    x = solve(matvec, {"w": b[:4].reshape(2, 2), "b": (b[4], torch.zeros(0))})
    exact = torch.linalg.solve(a, b)
    assert_close(x["w"].reshape(-1), exact[:4], check_dtype=False)
    assert_close(x["b"][0], exact[4], check_dtype=False)
    assert x["b"][1].shape == (0,)


@pytest.mark.parametrize("solve", SOLVERS)
def test_empty_trees_have_empty_solutions(solve):
    assert solve(lambda x: x, ()) == ()
    assert solve(lambda x: x, torch.zeros(0)).shape == (0,)


@pytest.mark.parametrize("tol", [0.0, None], ids=["fixed", "adaptive"])
@pytest.mark.parametrize("started", [False, True], ids=["from zero", "from a start"])
@pytest.mark.parametrize("preconditioned", [False, True], ids=["plain", "preconditioned"])
@pytest.mark.parametrize(
    "solve",
    [solve_cg, solve_normal_cg, partial(solve_fixed_point, step_size=0.1)],
    ids=["cg", "normal cg", "richardson"],
)
def test_vectors_that_are_written_over_are_none_of_the_callers(solve, preconditioned, started, tol):
    a, b, start = spd(6), normal(6, seed=1), normal(6, seed=2)
    work = torch.empty(6, dtype=a.dtype)
    given = {
        "init": start if started else None,
        "preconditioner": (lambda r: torch.mul(r, 1.0, out=work)) if preconditioned else None,
        "tol": tol,
        "maxiter": 4 if tol == 0 else None,
    }
    given = {key: value for key, value in given.items() if value is not None}
    for matrix in (a, torch.eye(6, dtype=a.dtype)):
        matvec = (lambda v: a @ v) if matrix is a else (lambda v: v)
        before = b.clone(), start.clone()
        with torch.no_grad():
            x, info = solve(matvec, b, **given, info=True, on_failure="ignore")
        recorded, told = solve(matvec, b, **given, info=True, on_failure="ignore")
        assert_close((b, start), before, rtol=0, atol=0)
        assert_close(x, recorded, rtol=0, atol=0)
        assert_close(tuple(info), tuple(told), rtol=0, atol=0)


@pytest.mark.parametrize("solve", [solve_cg, solve_normal_cg])
def test_tangents_pass_through_the_iterations_where_autograd_is_off(solve):
    a, b, t = spd(4), normal(4, seed=1), normal(4, seed=2)
    with forward_ad.dual_level(), torch.no_grad():
        x = solve(lambda v: a @ v, forward_ad.make_dual(b, t), tol=0.0, maxiter=4)
        tangent = forward_ad.unpack_dual(x).tangent
    assert_close(tangent, torch.linalg.solve(a, t), rtol=1e-6, atol=1e-6)


def test_normal_cg_solves_nonsymmetric_systems():  # O-47
    a, b = normal(5, 5), normal(5, seed=1)
    x = solve_normal_cg(lambda v: a @ v, b)
    assert (a @ x - b).norm() <= 1e-8 * b.norm()


def test_normal_cg_solves_the_nearly_singular_example():
    a = torch.tensor([[3.9, 1.65], [6.845, 2.9]], dtype=torch.float64)
    x = solve_normal_cg(lambda v: a @ v, torch.tensor([5.5, 9.7], dtype=torch.float64))
    exact = torch.tensor([-3.49206349, 11.58730159], dtype=torch.float64)
    # The printed matrix is rounded to its printed digits; the system is solved as printed.
    assert (a @ x - torch.tensor([5.5, 9.7], dtype=torch.float64)).norm() < 1e-11
    assert relative(x, exact) < 1e-3


@pytest.mark.parametrize("shape", [(2, 3), (3, 2)])
def test_nonsquare_normal_cg_is_the_least_norm_least_squares_solution(shape):  # O-47
    a, b = normal(*shape), normal(shape[0], seed=1)
    x = solve_normal_cg(lambda v: a @ v, b, init=torch.zeros(shape[1], dtype=torch.float64))
    assert_close(x, torch.linalg.pinv(a) @ b)


def test_ridge_shifts_the_matrix_in_cg_and_its_square_in_normal_cg():  # O-47
    a, b, eye = spd(5), normal(5, seed=1), torch.eye(5, dtype=torch.float64)
    m = normal(5, 5, seed=3)
    for ridge in (0.7, torch.tensor(0.7, dtype=torch.float64)):
        x = solve_cg(lambda v: a @ v, b, ridge=ridge)
        assert_close(x, torch.linalg.solve(a + 0.7 * eye, b))
        x = solve_normal_cg(lambda v: m @ v, b, ridge=ridge)
        assert_close(x, torch.linalg.solve(m.T @ m + 0.7 * eye, m.T @ b))


@pytest.mark.parametrize("solve", SOLVERS)
def test_start_at_the_solution_takes_no_iteration(solve):
    a, b = spd(5), normal(5, seed=1)
    exact = torch.linalg.solve(a, b)
    x, info = solve(lambda v: a @ v, b, init=exact, info=True)
    assert info.iterations == 0
    assert_close(x, exact)


@pytest.mark.parametrize("solve", SOLVERS)
def test_a_start_far_away_costs_no_digits(solve):
    a, b = spd(8), normal(8, seed=1)
    x, info = solve(lambda v: a @ v, b, init=1e9 * normal(8, seed=2), info=True)
    assert info.residual < 1e-12
    assert relative(x, torch.linalg.solve(a, b)) < 1e-12


@pytest.mark.parametrize(
    "solve",
    [*SOLVERS, partial(solve_fixed_point, step_size=0.3), WarmStart(solve_cg)],
    ids=lambda solve: getattr(solve, "__name__", type(solve).__name__),
)
def test_the_derivative_of_a_solution_does_not_depend_on_where_it_began(solve):
    a, b = spd(5), normal(5, seed=1)
    given = {} if isinstance(solve, WarmStart) else {"init": torch.linalg.solve(a, b)}

    def solution(a, b):
        return solve(lambda v: (a @ v + a.T @ v) / 2, b, **given)

    def exact(a, b):
        return torch.linalg.solve((a + a.T) / 2, b)

    assert_close(solution(a, b), exact(a, b))  # from where a warm start goes on
    for chosen in (0, 1):
        truth = jacrev(exact, argnums=chosen)(a, b)
        for transform in (jacrev, jacfwd):
            ours = transform(solution, argnums=chosen)(a, b)
            assert_close(ours, truth, rtol=1e-6, atol=1e-8)
    leaf = b.clone().requires_grad_()
    (slope,) = torch.autograd.grad(solution(a, leaf).sum(), leaf)
    assert_close(slope, torch.linalg.inv(a).sum(0), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(
    "solve", [*SOLVERS, partial(solve_neumann, step_size=0.3), solve_lu, solve_cholesky, solve_qr]
)
def test_compiled_functions_break_their_graph_around_a_solver(solve):
    a, b = spd(5), normal(5, seed=1)
    compiled = torch.compile(lambda b: 3 * solve(lambda v: a @ v, 2 * b), backend="eager")
    assert_close(compiled(b), 6 * torch.linalg.solve(a, b))


@pytest.mark.parametrize("solve", SOLVERS)
def test_exact_preconditioner_takes_one_iteration(solve):
    d = torch.logspace(0, 4, 30, dtype=torch.float64)
    power = 2 if solve is solve_normal_cg else 1
    b = normal(30)
    x, info = solve(lambda v: d * v, b, preconditioner=lambda r: r / d**power, info=True)
    assert info.iterations <= 2
    assert_close(x, b / d)


@pytest.mark.parametrize("solve", SOLVERS)
def test_examples_under_vmap_converge_one_by_one(solve):
    a = torch.stack([spd(4, seed=s) * 10.0**s for s in range(5)])
    b = normal(5, 4, seed=9)
    b[2] = 0

    def one(a, b):
        return solve(lambda v: a @ v, b, info=True)

    x, info = vmap(one)(a, b)
    loop = [one(*pair) for pair in zip(a, b, strict=True)]
    assert_close(x, torch.stack([y for y, _ in loop]), rtol=1e-12, atol=1e-14)
    assert info.iterations.tolist() == [int(i.iterations) for _, i in loop]
    nested = vmap(vmap(one))(a.expand(3, *a.shape), b.expand(3, *b.shape))[0]
    assert_close(nested[1], x)
