import pytest
import torch
from diffopt_implicit import (
    LinearSolveError,
    LinearSolveStatus,
    LinearSolveWarning,
    custom_root,
    solve_fixed_point,
    solve_neumann,
)
from implicit_problems import normal, spd
from torch.autograd import gradcheck, gradgradcheck
from torch.func import vmap
from torch.testing import assert_close

SOLVERS = [solve_fixed_point, solve_neumann]


def contraction(n, seed=0):
    m = normal(n, n, seed=seed)
    return 0.4 * m / torch.linalg.matrix_norm(m, 2)


@pytest.mark.parametrize("solve", SOLVERS)
@pytest.mark.parametrize("n", [1, 5, 200])
def test_systems_of_contractions_are_solved(solve, n):  # O-38
    m, b = contraction(n), normal(n, seed=1)
    exact = torch.linalg.solve(torch.eye(n, dtype=m.dtype) - m, b)
    assert_close(solve(lambda v: v - m @ v, b), exact)
    assert_close(solve(lambda v: v - m.T @ v, b, ridge=0.5),
                 torch.linalg.solve(1.5 * torch.eye(n, dtype=m.dtype) - m.T, b))  # fmt: skip


@pytest.mark.parametrize("ridge", [0.0, 0.3, torch.tensor(0.3, dtype=torch.float64)])
def test_a_series_on_trees_is_the_same_whether_recorded_or_not(ridge):
    h, b = spd(6), normal(6, seed=1)
    split = lambda v: {"a": v[:2], "b": (v[2:].reshape(2, 2),)}
    joined = lambda t: torch.cat([t["a"], t["b"][0].flatten()])
    given = {"ridge": ridge, "step_size": 0.1, "tol": 0.0, "maxiter": 4, "on_failure": "ignore"}
    solve = lambda: joined(solve_neumann(lambda t: split(h @ joined(t)), split(b), **given))
    eye = torch.eye(6, dtype=h.dtype)
    step = eye - 0.1 * (h + ridge * eye)
    series = 0.1 * sum(torch.linalg.matrix_power(step, j) for j in range(4))
    assert_close(solve(), series @ b)
    with torch.no_grad():
        assert_close(solve(), series @ b)


@pytest.mark.parametrize("k", [0, 1, 2, 9])
@pytest.mark.parametrize("step_size", [0.05, 0.3])
def test_neumann_is_the_truncated_series(k, step_size):  # O-26
    h, b, v = spd(6), normal(6, 4, seed=1), normal(6, seed=2)
    eye = torch.eye(6, dtype=h.dtype)
    power = torch.linalg.matrix_power
    series = step_size * sum(power(eye - step_size * h, j) for j in range(k + 1))
    u, info = solve_neumann(
        lambda x: h @ x, v, step_size=step_size, maxiter=k + 1, on_failure="ignore", info=True
    )
    assert_close(b.T @ u, b.T @ series @ v, rtol=1e-13, atol=1e-14)
    assert info.iterations == k + 1
    inverse = torch.linalg.inv(h)
    assert_close(inverse @ v - u, power(eye - step_size * h, k + 1) @ inverse @ v)
    assert_close(info.residual, (h @ u - v).norm())


def test_a_start_at_the_solution_takes_no_iteration_and_one_nearby_takes_fewer():
    m, b = contraction(5), normal(5, seed=1)
    exact = torch.linalg.solve(torch.eye(5, dtype=m.dtype) - m, b)

    def iterations(init):
        options = {"init": init, "tol": 1e-8, "info": True}
        return int(solve_fixed_point(lambda v: v - m @ v, b, **options)[1].iterations)

    assert iterations(exact) == 0
    assert 0 < iterations(exact + 1e-4) < iterations(None)


def test_an_exact_preconditioner_takes_one_iteration():
    d, b = torch.logspace(0, 4, 30, dtype=torch.float64), normal(30)
    x, info = solve_fixed_point(lambda v: d * v, b, preconditioner=lambda r: r / d, info=True)
    assert info.iterations == 1
    assert_close(x, b / d)


@pytest.mark.parametrize("solve", SOLVERS)
def test_growing_iterations_raise_and_tell_the_way_out(solve):
    with pytest.raises(LinearSolveError, match=r"grow without bound: lower `step_size`") as e:
        solve(lambda x: 3 * x, torch.ones(2), maxiter=10_000)
    assert e.value.info.status == LinearSolveStatus.DIVERGED
    assert e.value.info.iterations < 100
    assert_close(solve(lambda x: 3 * x, torch.ones(2), step_size=0.3), torch.full((2,), 1 / 3))


def test_a_start_far_away_is_no_divergence():
    start = torch.full((2,), 1e3)
    _, info = solve_fixed_point(
        lambda x: 0.5 * x, torch.ones(2), init=start, maxiter=2, info=True, on_failure="ignore"
    )
    assert info.status == LinearSolveStatus.MAXITER


@pytest.mark.parametrize("solve", SOLVERS)
def test_growth_that_passes_is_no_divergence(solve):
    a = torch.tensor([[0.5, -1e4], [0.0, 0.5]], dtype=torch.float64)
    b = torch.ones(2, dtype=torch.float64)
    assert_close(solve(lambda v: a @ v, b), torch.linalg.solve(a, b))


@pytest.mark.parametrize("solve", SOLVERS)
def test_too_few_iterations_raise_or_warn(solve):
    with pytest.raises(LinearSolveError, match=r"after 3 iterations.*`maxiter`"):
        solve(lambda x: 0.5 * x, torch.ones(2), maxiter=3)
    with pytest.warns(LinearSolveWarning, match="after 3 iterations"):
        solve(lambda x: 0.5 * x, torch.ones(2), maxiter=3, on_failure="warn")


@pytest.mark.parametrize("solve", SOLVERS)
def test_zero_empty_and_bad_input(solve):
    assert_close(solve(lambda x: 2 * x, torch.zeros(3)), torch.zeros(3), rtol=0, atol=0)
    assert solve(lambda x: x, ()) == ()
    for bad in (torch.nan, torch.inf):
        with pytest.raises(LinearSolveError, match="NaN or infinity"):
            solve(lambda x, bad=bad: x * bad, torch.ones(2))
        with pytest.raises(LinearSolveError, match="NaN or infinity"):
            solve(lambda x: x, torch.tensor([1.0, bad]))
    with pytest.raises(ValueError, match="`step_size` must be positive, got 0"):
        solve(lambda x: x, torch.ones(2), step_size=0)
    with pytest.raises(TypeError, match="complex"):
        solve(lambda x: x, torch.ones(2, dtype=torch.complex64))


@pytest.mark.parametrize("solve", SOLVERS)
def test_examples_under_vmap_stop_on_their_own(solve):
    scales = torch.tensor([0.9, 0.5, 3.0], dtype=torch.float64)

    def one(scale, b):
        return solve(lambda v: scale * v, b, info=True, on_failure="ignore", maxiter=500)

    b = normal(3, 4)
    x, info = vmap(one)(scales, b)
    loop = [one(*pair)[1] for pair in zip(scales, b, strict=True)]
    assert info.iterations.tolist() == [int(i.iterations) for i in loop]
    assert info.status.tolist() == [0, 0, int(LinearSolveStatus.DIVERGED)]
    assert_close(x[:2], b[:2] / scales[:2, None])


@pytest.mark.parametrize("solve", SOLVERS)
def test_fixed_points_are_differentiated_in_both_modes_and_twice(solve):  # O-38
    @custom_root(lambda x, t: x - 0.5 * torch.cos(x) - t, solve=solve)
    def fixed_point(init, t):
        x = torch.zeros_like(t)
        for _ in range(80):
            x = 0.5 * torch.cos(x) + t
        return x

    t = torch.tensor([0.1, 0.7], dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda t: fixed_point(None, t), (t,), check_forward_ad=True)
    assert gradgradcheck(lambda t: fixed_point(None, t), (t,))
