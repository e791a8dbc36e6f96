"""The matrices of BFGS and L-BFGS, against their definitions."""

import pytest
import torch
from diffopt_implicit import (
    BFGS,
    LBFGS,
    BacktrackingLineSearch,
    GradientDescent,
    NonlinearCG,
    SolverStatus,
    ZoomLineSearch,
)
from diffopt_implicit._solvers._quasi_newton import inverse_product, normalized_pair
from implicit_problems import normal, spd
from torch.func import grad, vmap
from torch.testing import assert_close


def random_pairs(count, n, seed=0):
    """Steps, and changes of the gradient of a convex function."""
    steps = normal(count, n, seed=seed) * 10.0 ** -torch.arange(count)[:, None]
    return steps, steps @ spd(n, seed=seed + 1)


def remembered(steps, changes, size):
    memory = steps.new_zeros(2, size, steps.shape[1])
    for s, y in zip(steps, changes, strict=True):
        pair, curved = normalized_pair(s, y)
        assert curved
        memory = torch.cat([memory[:, 1:], pair[:, None]], dim=1)
    return memory


def two_loops(steps, changes, vector):
    """Nocedal & Wright, algorithm 7.4."""
    q, alphas = vector, []
    for s, y in reversed(list(zip(steps, changes, strict=True))):
        alphas.append((s @ q) / (s @ y))
        q = q - alphas[-1] * y
    r = (steps[-1] @ changes[-1]) / (changes[-1] @ changes[-1]) * q
    for s, y, alpha in zip(steps, changes, reversed(alphas), strict=True):
        r = r + s * (alpha - (y @ r) / (s @ y))
    return r


def dense_inverse(steps, changes):
    """Nocedal & Wright, eq. 7.16, one update after the other."""
    n = steps.shape[1]
    eye = torch.eye(n, dtype=steps.dtype)
    h = (steps[-1] @ changes[-1]) / (changes[-1] @ changes[-1]) * eye
    for s, y in zip(steps, changes, strict=True):
        v = eye - torch.outer(y, s) / (s @ y)
        h = v.T @ h @ v + torch.outer(s, s) / (s @ y)
    return h


@pytest.mark.parametrize("count", [1, 3, 6])
@pytest.mark.parametrize("size", [6, 9])
def test_the_compact_product_is_the_two_loop_recursion_and_the_dense_matrix(count, size):  # O-46
    steps, changes = random_pairs(count, 12)
    memory = remembered(steps, changes, size)
    vector = normal(12, seed=5)
    ours = inverse_product(memory, vector)
    assert_close(ours, two_loops(steps, changes, vector), rtol=1e-10, atol=1e-12)
    assert_close(ours, dense_inverse(steps, changes) @ vector, rtol=1e-10, atol=1e-12)


def test_the_last_change_maps_to_the_last_step():  # O-46
    steps, changes = random_pairs(5, 12)
    memory = remembered(steps, changes, 5)
    assert_close(inverse_product(memory, changes[-1]), steps[-1], rtol=1e-10, atol=1e-14)


def test_no_memory_is_the_identity():
    vector = normal(4)
    assert_close(inverse_product(torch.zeros(2, 3, 4).double(), vector), vector)


def test_pairs_without_curvature_are_not_remembered():
    s = normal(4)
    assert not normalized_pair(s, -s)[1]
    assert not normalized_pair(0 * s, 0 * s)[1]
    memory = remembered(*random_pairs(2, 4), 3)

    class Move:
        step, change = s, -s

    assert_close(LBFGS(None).remembered(memory, Move), memory)


def test_the_oldest_pairs_are_forgotten():
    steps, changes = random_pairs(5, 12)
    memory = remembered(steps, changes, 3)
    recent = two_loops(steps[2:], changes[2:], steps[0])
    assert_close(inverse_product(memory, steps[0]), recent, rtol=1e-10, atol=1e-12)


def test_a_memory_that_leads_to_no_step_is_forgotten():
    solver = LBFGS(lambda x: x.cosh().sum(), linesearch=BacktrackingLineSearch(maxiter=1))
    x = normal(3)
    pair, _ = normalized_pair(1e3 * x, 1e-3 * x)  # an inverse Hessian that is far too large
    state = solver.init_state(x)
    state = state._replace(memory=torch.cat([state.memory[:, 1:], pair[:, None]], dim=1))
    stayed, after = solver.update(x, state)
    assert_close(stayed, x, rtol=0, atol=0)
    assert after.status == SolverStatus.RUNNING
    assert (after.memory == 0).all()
    moved, _ = solver.update(stayed, after)
    assert moved.norm() < x.norm()


def test_bfgs_keeps_the_secant_equation():
    matrix = spd(5)
    solver = BFGS(lambda x: 0.5 * x @ matrix @ x + x.cosh().sum(), tol=0.0)
    x = normal(5)
    state = solver.init_state(x)
    for _ in range(5):
        before, old = x, state.grad
        x, state = solver.update(x, state)
        assert_close(state.memory @ (state.grad - old), x - before, rtol=1e-8, atol=1e-12)
        assert (torch.linalg.eigvalsh(state.memory) > 0).all()


def test_limited_memory_that_is_not_full_is_bfgs():
    """With all pairs kept, both take the same steps on from the same first matrix."""
    matrix, b = spd(6), normal(6)
    fun = lambda x: 0.5 * x @ matrix @ x - b @ x
    steps, changes = random_pairs(3, 6)
    h = dense_inverse(steps, changes)
    ours = [inverse_product(remembered(steps, changes, 8), row) for row in torch.eye(6).double()]
    assert_close(torch.stack(ours), h, rtol=1e-9, atol=1e-12)
    x, state = LBFGS(fun, history_size=20, tol=1e-10).run(torch.zeros(6, dtype=torch.float64))
    assert_close(x, torch.linalg.solve(matrix, b), rtol=1e-8, atol=0)
    assert state.iter_num < 20


@pytest.mark.parametrize("method", ["polak-ribiere", "fletcher-reeves", "hestenes-stiefel"])
def test_conjugate_gradients_end_after_as_many_steps_as_unknowns(method):
    matrix, b = spd(6), normal(6)
    exact = NonlinearCG(
        lambda x: 0.5 * x @ matrix @ x - b @ x,
        linesearch=ZoomLineSearch(c1=1e-6, c2=1e-5),
        method=method,
        tol=1e-9,
    )
    x, state = exact.run(torch.zeros(6, dtype=torch.float64))
    assert_close(x, torch.linalg.solve(matrix, b), rtol=1e-8, atol=0)
    assert state.iter_num <= 9


def test_solvers_work_on_a_single_number_and_in_single_precision():
    for make in (LBFGS, BFGS, NonlinearCG, GradientDescent):
        x, state = make(lambda x: (x - 3).cosh(), tol=1e-3).run(torch.tensor(0.0))
        assert_close(x, torch.tensor(3.0), rtol=1e-3, atol=0)
        assert state.value.dtype == torch.float32


def test_many_problems_are_solved_at_once():
    matrices = torch.stack([spd(5, seed=i) * 10**i for i in range(4)])
    b = normal(4, 5)
    solver = LBFGS(lambda x, a, b: 0.5 * x @ a @ x - b @ x, tol=1e-9)
    solve = lambda a, b: solver.run(torch.zeros(5, dtype=torch.float64), a, b).params
    assert_close(vmap(solve)(matrices, b), torch.linalg.solve(matrices, b), rtol=1e-7, atol=1e-9)
    slopes = vmap(grad(lambda b, a: solve(a, b).sum()))(b, matrices)
    ones = torch.ones(4, 5, dtype=torch.float64)
    assert_close(slopes, torch.linalg.solve(matrices, ones), rtol=1e-7, atol=1e-9)
