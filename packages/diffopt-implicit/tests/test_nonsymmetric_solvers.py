"""What `solve_gmres` and `solve_bicgstab` do beyond the laws of every linear solver."""

from functools import partial

import pytest
import torch
from diffopt_implicit import (
    LinearSolveError,
    LinearSolveStatus,
    custom_root,
    solve_bicgstab,
    solve_gmres,
)
from implicit_problems import normal
from torch.autograd import gradcheck, gradgradcheck
from torch.func import hessian, jacfwd, jacrev, vmap
from torch.testing import assert_close

SOLVERS = [solve_gmres, solve_bicgstab]


def nonsymmetric(n, seed=0):
    return normal(n, n, seed=seed) / (2 * n**0.5) + torch.eye(n, dtype=torch.float64)


@pytest.mark.parametrize("solve", SOLVERS)
@pytest.mark.parametrize("n", [1, 2, 10, 100])
@pytest.mark.parametrize("scale", [1e-200, 1.0, 1e150])
def test_nonsymmetric_systems_are_solved_at_any_scaling(solve, n, scale):  # O-47
    a, b = nonsymmetric(n), normal(n, seed=1)
    exact = torch.linalg.solve(a, b)
    assert_close(solve(lambda v: a @ v, b * scale) / scale, exact, rtol=1e-9, atol=1e-10)
    assert_close(solve(lambda v: scale * (a @ v), b) * scale, exact, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("solve", SOLVERS)
def test_ridge_shifts_the_matrix(solve):
    a, b = nonsymmetric(5), normal(5, seed=1)
    expected = torch.linalg.solve(a + 0.7 * torch.eye(5, dtype=a.dtype), b)
    for ridge in (0.7, torch.tensor(0.7, dtype=torch.float64)):
        assert_close(solve(lambda v: a @ v, b, ridge=ridge), expected)


@pytest.mark.parametrize("kind", ["random", "rotation", "shift", "indefinite"])
def test_gmres_is_exact_after_n_products(kind):
    n = 12
    a = {
        "random": normal(n, n),
        "rotation": torch.linalg.matrix_exp(normal(n, n) - normal(n, n).T),
        "shift": torch.eye(n, dtype=torch.float64).roll(1, 0),  # no progress but in the last
        "indefinite": normal(n, n) + normal(n, n).T,
    }[kind]
    b = torch.eye(n, dtype=torch.float64)[0] if kind == "shift" else normal(n, seed=1)
    x, info = solve_gmres(lambda v: a @ v, b, restart=n, tol=1e-10, info=True)
    assert info.iterations <= n
    assert_close(x, torch.linalg.solve(a, b), rtol=1e-7, atol=1e-8)


def test_the_basis_of_gmres_stays_well_conditioned_over_a_long_cycle():
    n = 40
    a = torch.diag(torch.logspace(0, 2, n, dtype=torch.float64)) + 0.3 * normal(n, n) / n**0.5
    info = solve_gmres(lambda v: a @ v, normal(n, seed=1), restart=n, tol=1e-11, info=True)[1]
    assert info.iterations <= n
    assert info.residual < 1e-13  # 7e-13 with the basis of Simpler GMRES


@pytest.mark.parametrize("k", [1, 3, 7])
def test_gmres_has_the_least_residual_over_the_krylov_space(k):
    a, b = normal(9, 9), normal(9, seed=1)
    x = solve_gmres(lambda v: a @ v, b, maxiter=k, on_failure="ignore")
    powers = [b]
    for _ in range(k):
        powers.append(a @ powers[-1])
    space = torch.linalg.qr(torch.stack(powers[:k], dim=1)).Q
    best = space @ torch.linalg.lstsq(a @ space, b[:, None]).solution[:, 0]
    assert_close((a @ x - b).norm(), (a @ best - b).norm())
    assert_close(x, best, rtol=1e-6, atol=1e-8)


def test_gmres_restarts():
    a, b = nonsymmetric(60), normal(60, seed=1)
    x, info = solve_gmres(lambda v: a @ v, b, restart=5, info=True)
    assert info.iterations > 5
    assert_close(x, torch.linalg.solve(a, b))


def test_gmres_goes_on_while_each_cycle_gains_a_little():
    a, b = torch.diag(torch.linspace(1, 100, 30, dtype=torch.float64)), normal(30, seed=1)
    x, info = solve_gmres(lambda v: a @ v, b, restart=3, maxiter=5000, info=True)
    assert info.iterations > 200
    assert_close(x, torch.linalg.solve(a, b))


def test_too_small_a_space_of_gmres_is_reported():
    a = torch.eye(12, dtype=torch.float64).roll(1, 0)
    with pytest.raises(LinearSolveError) as failure:
        solve_gmres(lambda v: a @ v, torch.eye(12, dtype=torch.float64)[0], restart=5)
    assert failure.value.info.status == LinearSolveStatus.STAGNATED


def test_a_breakdown_of_bicgstab_is_reported():
    a = torch.tensor([[0.0, 1.0], [-1.0, 0.0]])  # r.Ar = 0 for every r
    with pytest.raises(LinearSolveError, match="`solve_bicgstab` failed") as failure:
        solve_bicgstab(lambda v: a @ v, torch.ones(2))
    assert failure.value.info.status == LinearSolveStatus.STAGNATED


@pytest.mark.parametrize("solve", SOLVERS)
def test_a_singular_matrix_raises(solve):
    a = torch.diag(torch.tensor([1.0, 2.0, 0.0]))
    with pytest.raises(LinearSolveError, match="singular matrix"):
        solve(lambda v: a @ v, torch.ones(3))


@pytest.mark.parametrize("solve", SOLVERS)
def test_roots_are_differentiated_in_every_mode(solve):
    @custom_root(lambda x, m, b: m @ x + 0.1 * x**3 - b, solve=solve)
    def root(init, m, b):
        x = torch.zeros_like(b)
        for _ in range(40):
            jacobian = m + torch.diag(0.3 * x**2)
            x = x - torch.linalg.solve(jacobian, m @ x + 0.1 * x**3 - b)
        return x

    m, b = nonsymmetric(3), normal(3, seed=1)
    inputs = (m.requires_grad_(), b.requires_grad_())
    assert gradcheck(partial(root, None), inputs, check_forward_ad=True)
    assert gradgradcheck(partial(root, None), inputs)
    m, b = m.detach(), b.detach()
    in_b = partial(root, None, m)
    assert_close(jacfwd(in_b)(b), jacrev(in_b)(b))
    assert_close(hessian(in_b)(b), jacrev(jacrev(in_b))(b))
    assert_close(vmap(jacrev(in_b))(b.expand(2, 3))[1], jacrev(in_b)(b))


def test_bad_restarts_are_refused():
    with pytest.raises(ValueError, match="`restart` must be positive, got 0"):
        solve_gmres(lambda x: x, torch.ones(2), restart=0)
