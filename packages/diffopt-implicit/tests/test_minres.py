import pytest
import torch
from diffopt_implicit import (
    LinearSolveError,
    LinearSolveStatus,
    custom_root,
    solve_minres,
    solve_normal_cg,
)
from implicit_problems import normal, spd
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, vmap
from torch.testing import assert_close


def indefinite(n, seed=0):
    q, _ = torch.linalg.qr(normal(n, n, seed=seed))
    values = torch.linspace(-2, 3, n, dtype=torch.float64)
    return q @ torch.diag(values + 0.3 * values.sign()) @ q.T


@pytest.mark.parametrize("n", [1, 2, 5, 40])
@pytest.mark.parametrize("scale", [1e-200, 1.0, 1e150])
def test_indefinite_systems_are_solved(n, scale):
    a, b = indefinite(n), normal(n, seed=1)
    x, info = solve_minres(lambda v: a @ v, b * scale, info=True)
    assert_close(x / scale, torch.linalg.solve(a, b), rtol=1e-9, atol=1e-10)
    assert info.converged


def test_it_takes_no_more_iterations_than_dimensions_and_fewer_than_normal_equations():
    a, b = indefinite(40), normal(40, seed=1)
    _, info = solve_minres(lambda v: a @ v, b, tol=1e-10, info=True)
    _, other = solve_normal_cg(lambda v: a @ v, b, tol=1e-10, info=True)
    assert info.iterations <= 41
    assert info.iterations < 2 * other.iterations


def test_the_residual_is_minimal_over_the_krylov_space():
    a, b = indefinite(12), normal(12, seed=1)
    vectors = [b]
    for k in range(1, 6):
        space = torch.stack([a @ v for v in vectors], dim=1)
        best = b - space @ torch.linalg.lstsq(space, b).solution
        _, info = solve_minres(lambda v: a @ v, b, maxiter=k, on_failure="ignore", info=True)
        assert_close(info.residual, best.norm(), rtol=1e-8, atol=0)
        vectors.append(a @ vectors[-1])


def test_a_preconditioner_is_used_and_must_be_positive():
    d = torch.logspace(0, 4, 30, dtype=torch.float64)
    d[::2] *= -1
    b = normal(30)
    x, info = solve_minres(lambda v: d * v, b, preconditioner=lambda r: r / d.abs(), info=True)
    assert info.iterations <= 3
    assert_close(x, b / d)
    mixed = torch.where(torch.arange(30) == 3, -1.0, 1.0).double()  # met after some iterations
    for wrong in (-d.abs(), mixed):
        with pytest.raises(LinearSolveError, match="the preconditioner, is not positive") as error:
            solve_minres(lambda v: d * v, b, preconditioner=lambda r, wrong=wrong: wrong * r)
        assert error.value.info.status == LinearSolveStatus.INDEFINITE


def test_singular_systems_fail_unless_they_are_consistent():
    a = torch.diag(torch.tensor([1.0, 0.0, -2.0]))
    with pytest.raises(LinearSolveError, match="singular"):
        solve_minres(lambda v: a @ v, torch.ones(3))
    x = solve_minres(lambda v: a @ v, torch.tensor([1.0, 0.0, 1.0]))
    assert_close(x, torch.tensor([1.0, 0.0, -0.5]))


def test_saddle_points_are_differentiated():
    @custom_root(
        lambda z, a: grad(lambda z: z[0] ** 2 - z[1] ** 2 + z[0] * z[1] * a + a**2 * z[1])(z),
        solve=solve_minres,
    )
    def saddle(init, a):
        matrix = torch.stack([torch.stack([0 * a + 2, a]), torch.stack([a, 0 * a - 2])])
        return torch.linalg.solve(matrix, torch.stack([0 * a, -(a**2)]))

    a = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda a: saddle(None, a), (a,), check_forward_ad=True)
    assert gradgradcheck(lambda a: saddle(None, a), (a,))


def test_many_right_hand_sides_converge_one_by_one():
    a, b = indefinite(8), normal(5, 8, seed=1)
    b[2] = 0
    x, info = vmap(lambda b: solve_minres(lambda v: a @ v, b, info=True))(b)
    assert_close(x, torch.linalg.solve(a, b.T).T)
    assert info.iterations[2] == 0
    assert (info.iterations[[0, 1, 3, 4]] > 0).all()


def test_definite_systems_are_solved_as_by_conjugate_gradients():
    a, b = spd(9), normal(9, seed=1)
    assert_close(
        solve_minres(lambda v: a @ v, b, ridge=0.5),
        torch.linalg.solve(a + 0.5 * torch.eye(9, dtype=a.dtype), b),
    )
