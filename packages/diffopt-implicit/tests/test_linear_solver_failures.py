"""What linear solvers refuse, and how they tell that they failed."""

import warnings

import pytest
import torch
from diffopt_implicit import (
    LinearSolveError,
    LinearSolveStatus,
    LinearSolveWarning,
    solve_cg,
    solve_minres,
    solve_normal_cg,
)
from diffopt_implicit._linear_system import Stopping
from implicit_problems import normal, spd
from linear_solvers import SOLVERS, relative
from torch.func import vmap
from torch.testing import assert_close


def test_one_failed_example_of_a_batch_is_reported():
    a = torch.stack([spd(3), -spd(3), spd(3)])
    with pytest.raises(LinearSolveError, match="failed on 1 of 3 systems"):
        vmap(lambda a, b: solve_cg(lambda v: a @ v, b))(a, normal(3, 3))


@pytest.mark.parametrize("solve", SOLVERS)
def test_too_few_iterations_raise_and_tell_numbers(solve):
    a, b = torch.diag(torch.logspace(0, 3, 20, dtype=torch.float64)), normal(20)
    with pytest.raises(
        LinearSolveError, match=r"residual of .* after 3 iterations.*`maxiter`"
    ) as e:
        solve(lambda v: a @ v, b, maxiter=3)
    assert e.value.info.iterations == 3
    assert solve.__name__ in str(e.value)
    with pytest.raises(LinearSolveError, match=r"fixed number.*`on_failure='ignore'`"):
        solve(lambda v: a @ v, b, tol=0.0, maxiter=3)
    with pytest.warns(LinearSolveWarning, match="after 3 iterations.*'warn'` this is a warning"):
        solve(lambda v: a @ v, b, maxiter=3, on_failure="warn")
    with warnings.catch_warnings():
        x, info = solve(lambda v: a @ v, b, maxiter=3, on_failure="ignore", info=True)
    assert info.status == LinearSolveStatus.MAXITER
    assert_close(info.residual, (a @ x - b).norm())


def test_negative_curvature_names_the_solver_to_use():
    a = torch.diag(torch.tensor([1.0, -1.0]))
    with pytest.raises(LinearSolveError, match="not positive definite: use `solve_normal_cg`"):
        solve_cg(lambda v: a @ v, torch.tensor([1.0, 2.0]))
    assert_close(
        solve_normal_cg(lambda v: a @ v, torch.tensor([1.0, 2.0])), torch.tensor([1.0, -2.0])
    )


def test_a_singular_square_matrix_is_no_least_squares_problem():
    a = torch.diag(torch.tensor([1.0, 0.0]))
    with pytest.raises(LinearSolveError, match="singular"):
        solve_normal_cg(lambda v: a @ v, torch.ones(2))


@pytest.mark.parametrize("solve", SOLVERS)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_nan_and_infinity_raise(solve, bad):
    with pytest.raises(LinearSolveError, match="NaN or infinity"):
        solve(lambda x: x * bad, torch.ones(2))
    with pytest.raises(LinearSolveError, match="NaN or infinity"):
        solve(lambda x: x, torch.tensor([1.0, bad]))


def test_ten_iterations_for_each_element_are_the_default_within_bounds():
    most = lambda size: Stopping.of(None, 0.0, None, 1e-16, size).maxiter
    assert [most(size) for size in (0, 1, 2, 3, 100, 1000, 10**6)] == [
        20, 20, 20, 30, 1000, 10_000, 10_000
    ]  # fmt: skip


@pytest.mark.parametrize("solve", [solve_cg, solve_minres])
def test_what_is_left_by_rounding_of_a_large_solution_is_no_failure(solve):
    q = torch.linalg.qr(normal(2, 2))[0]
    a = q @ torch.diag(torch.tensor([1.0, 1e-6], dtype=torch.float64)) @ q.T
    b = normal(2, seed=1)
    for given in ({}, {"tol": 0.0, "maxiter": 2}):
        x, info = solve(lambda v: a @ v, b, info=True, **given)
        assert info.residual > info.tolerance
        assert relative(x, torch.linalg.solve(a, b)) < 1e-8


def test_a_large_iterate_excuses_no_large_residual():
    a = torch.diag(torch.tensor([1.0, 1e-9]))
    start = torch.tensor([0.9, 1.5e9])
    with pytest.raises(LinearSolveError, match=r"residual of 0\.5 after 1 iterations"):
        solve_minres(lambda v: a @ v, torch.ones(2), init=start, maxiter=1)


def test_single_precision_does_not_excuse_a_large_residual_by_rounding():
    a = torch.diag(torch.logspace(0, 6, 50))
    with pytest.raises(LinearSolveError):
        solve_cg(lambda v: a @ v, torch.ones(50))


@pytest.mark.parametrize("solve", SOLVERS)
def test_bad_arguments_are_named(solve):
    b = torch.ones(2)
    with pytest.raises(TypeError, match="complex"):
        solve(lambda x: x, torch.ones(2, dtype=torch.complex64))
    with pytest.raises(TypeError, match=r"floating-point tensors, got torch\.int64"):
        solve(lambda x: x, torch.ones(2, dtype=torch.int64))
    with pytest.raises(TypeError, match="must be tensors, got float"):
        solve(lambda x: x, 1.0)
    with pytest.raises(ValueError, match="The result of `matvec` must have the structure"):
        solve(lambda x: x[:1], b)
    for name in ("tol", "atol", "ridge", "maxiter"):
        with pytest.raises(ValueError, match=f"`{name}` must be at least 0, got -1"):
            solve(lambda x: x, b, **{name: -1})
    with pytest.raises(ValueError, match="`on_failure` must be"):
        solve(lambda x: x, b, on_failure="shrug")
