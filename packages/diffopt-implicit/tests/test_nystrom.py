from functools import partial
from itertools import combinations

import pytest
import torch
from diffopt_implicit import (
    LinearSolveError,
    custom_root,
    solve_nystrom,
)
from implicit_problems import normal, spd
from torch.autograd import gradcheck
from torch.func import vmap
from torch.testing import assert_close

EYE = torch.eye(8, dtype=torch.float64)


def low_rank(n, rank, seed=0):
    factor = normal(n, rank, seed=seed)
    return factor @ factor.T


@pytest.mark.parametrize("rank", [3, 5, 100])
@pytest.mark.parametrize("ridge", [0.3, torch.tensor(0.3, dtype=torch.float64)])
def test_matrices_of_low_rank_are_solved_exactly(rank, ridge):
    a, b = low_rank(8, 3), normal(8, seed=1)
    x, info = solve_nystrom(lambda v: a @ v, b, rank=rank, ridge=ridge, tol=1e-9, info=True)
    assert_close(x, torch.linalg.solve(a + 0.3 * EYE, b))
    assert info.iterations == min(rank, 8)


def test_too_few_columns_are_an_approximation_and_said_to_fail():
    a, b = spd(8), normal(8, seed=1)
    with pytest.raises(LinearSolveError, match="`solve_nystrom` failed"):
        solve_nystrom(lambda v: a @ v, b, rank=4)
    x = solve_nystrom(lambda v: a @ v, b, rank=4, seed=3, on_failure="ignore", ridge=0.1)
    again = solve_nystrom(lambda v: a @ v, b, rank=4, seed=3, on_failure="ignore", ridge=0.1)
    assert_close(x, again, rtol=0, atol=0)
    other = solve_nystrom(lambda v: a @ v, b, rank=4, seed=4, on_failure="ignore", ridge=0.1)
    assert not torch.allclose(x, other)
    inverses = []
    for chosen in map(list, combinations(range(8), 4)):
        near = a[:, chosen] @ torch.linalg.inv(a[chosen][:, chosen]) @ a[chosen]
        inverses.append(torch.linalg.solve(near + 0.1 * EYE, b))
    assert (torch.stack(inverses) - x).norm(dim=1).min() < 1e-10


def test_memory_grows_with_the_columns_alone():
    ones = torch.ones(500_000, dtype=torch.float64)  # whose square is beyond any machine
    x = solve_nystrom(lambda v: ones * v.mean(), ones, rank=1, ridge=1.0, tol=1e-6)
    assert_close(x, ones / 2)


def test_vmap_is_the_loop():
    a, b = torch.stack([low_rank(8, 2, seed=s) for s in range(3)]), normal(3, 8, seed=9)
    solve = partial(solve_nystrom, rank=4, ridge=0.5, tol=1e-9)
    x = vmap(lambda a, b: solve(lambda v: a @ v, b))(a, b)
    assert_close(x, torch.linalg.solve(a + 0.5 * EYE, b))


def test_the_root_of_a_ridge_regression_is_differentiated():
    a = low_rank(8, 3)
    solve = partial(solve_nystrom, rank=3, ridge=0.5, tol=1e-9)
    # The condition leaves its own ridge to the solver, whose matrix is then the right one.
    decorate = custom_root(lambda x, b: a @ x - b, solve=solve, on_inexact_root="ignore")
    root = decorate(lambda init, b: b)
    b = normal(8, seed=1).requires_grad_()
    (slope,) = torch.autograd.grad(root(None, b).sum(), b)
    assert_close(slope, torch.linalg.inv(a + 0.5 * EYE).sum(0))


def test_the_solution_is_differentiable():
    factor, b = normal(4, 2), normal(4, seed=1)

    def solution(b, ridge):
        matrix = factor @ factor.T
        return solve_nystrom(lambda v: matrix @ v, b, ridge=ridge, rank=2, tol=1e-9)

    assert gradcheck(
        solution,
        (b.requires_grad_(), torch.tensor(0.5, dtype=torch.float64, requires_grad=True)),
    )


def test_empty_zero_and_bad_input():
    assert solve_nystrom(lambda x: x, ()) == ()
    assert_close(solve_nystrom(lambda x: x, torch.zeros(3)), torch.zeros(3), rtol=0, atol=0)
    for name in ("ridge", "rank"):
        with pytest.raises(ValueError, match=f"`{name}` must be positive, got 0"):
            solve_nystrom(lambda x: x, torch.ones(2), **{name: 0})
    with pytest.raises(LinearSolveError, match="NaN or infinity"):
        solve_nystrom(lambda x: x, torch.tensor([1.0, torch.nan]))
