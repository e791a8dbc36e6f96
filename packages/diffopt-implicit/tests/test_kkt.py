from functools import partial

import pytest
import torch
from diffopt_implicit import (
    KKTSolution,
    custom_root,
    kkt_optimality,
    solve_gmres,
    solve_lu,
    solve_normal_cg,
)
from implicit_problems import normal, spd
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, jacfwd, jacrev
from torch.testing import assert_close

SOLVERS = [solve_normal_cg, solve_gmres, solve_lu]
Q = 2 * torch.tensor([[2.0, 0.5], [0.5, 1.0]], dtype=torch.float64)
C = torch.ones(2, dtype=torch.float64)
A = torch.ones(1, 2, dtype=torch.float64)
B = torch.ones(1, dtype=torch.float64)


def objective(x, q, c, a, b):
    return 0.5 * x @ q @ x + c @ x


def equality(x, q, c, a, b):
    return a @ x - b


def bordered(q, c, a, b):
    """Solve the equality-constrained quadratic program, as a truth that autograd records."""
    n, m = len(c), len(b)
    upper = torch.cat([0.5 * (q + q.T), a.T], dim=1)
    lower = torch.cat([a, torch.zeros(m, m, dtype=q.dtype)], dim=1)
    x = torch.linalg.solve(torch.cat([upper, lower]), torch.cat([-c, b]))
    return x[:n], x[n:]


def program(solve):
    @custom_root(kkt_optimality(objective, equality), solve=solve)
    def solver(init, q, c, a, b):
        return KKTSolution(*bordered(q, c, a, b))

    return partial(solver, None)


@pytest.mark.parametrize("solve", SOLVERS)
def test_equality_constrained_quadratic_program(solve):  # O-37
    solver = program(solve)
    solution = solver(Q, C, A, B)
    assert_close(solution.primal, torch.tensor([0.25, 0.75], dtype=torch.float64))
    assert_close(solution.dual_eq, torch.tensor([-2.75], dtype=torch.float64))
    in_b = jacrev(lambda b: solver(Q, C, A, b).primal)(B)
    assert_close(in_b, torch.tensor([[0.25], [0.75]], dtype=torch.float64))
    in_c = jacfwd(lambda c: solver(Q, c, A, B).primal)(C)
    assert_close(in_c, 0.25 * torch.tensor([[-1.0, 1.0], [1.0, -1.0]], dtype=torch.float64))


@pytest.mark.parametrize("solve", SOLVERS)
def test_jacobians_of_a_random_program_are_those_of_the_bordered_system(solve):  # O-37
    data = (spd(5), normal(5, seed=1), normal(2, 5, seed=2), normal(2, seed=3))
    solver = program(solve)
    for i in range(4):
        ours = jacrev(lambda *d: tuple(solver(*d)[:2]), argnums=i)(*data)
        exact = jacrev(bordered, argnums=i)(*data)
        assert_close(ours, exact, rtol=1e-8, atol=1e-8)
    inputs = tuple(t.clone().requires_grad_() for t in data[1:])
    assert gradcheck(lambda *d: solver(data[0], *d).primal, inputs, check_forward_ad=True)
    assert gradgradcheck(lambda *d: solver(data[0], *d).primal, inputs)


def nearest_in_halfspaces(init, t):
    """Project onto x <= 1, elementwise: the multiplier is what is cut off."""
    over = (t["t"] - 1).clamp(min=0)
    return KKTSolution({"x": t["t"].clamp(max=1)}, None, [over])


def test_inequalities_active_and_not():
    condition = kkt_optimality(
        lambda x, t: 0.5 * (x["x"] - t["t"]).square().sum(),
        inequality=lambda x, t: [x["x"] - 1],
    )
    solver = custom_root(condition, solve=solve_lu)(nearest_in_halfspaces)
    t = torch.tensor([0.3, 2.5, -1.0], dtype=torch.float64)
    residual = condition(nearest_in_halfspaces(None, {"t": t}), {"t": t})
    assert_close(residual.primal["x"], torch.zeros_like(t))
    assert_close(residual.dual_ineq[0], torch.zeros_like(t))
    active = torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64)
    assert_close(jacrev(lambda t: solver(None, {"t": t}).primal["x"])(t), torch.diag(1 - active))
    assert_close(jacrev(lambda t: solver(None, {"t": t}).dual_ineq[0])(t), torch.diag(active))


def test_without_constraints_it_is_the_gradient():
    condition = kkt_optimality(lambda x, a: (x["u"] ** 3 * a).sum())
    x, a = {"u": normal(3)}, normal(3, seed=1)
    residual = condition(KKTSolution(x), a)
    assert_close(residual.primal, grad(lambda x: (x["u"] ** 3 * a).sum())(x))
    assert residual[1:] == (None, None)


def test_keyword_arguments_may_have_any_name():
    condition = kkt_optimality(lambda x, solution: (x * solution).sum())
    assert_close(condition(KKTSolution(C), solution=3 * C).primal, 3 * C)


def test_multipliers_that_do_not_fit_are_named():
    condition = kkt_optimality(objective, equality)
    data = (Q, C, A, B)
    with pytest.raises(ValueError, match="`dual_eq` must have the structure and shapes"):
        condition(KKTSolution(C, torch.ones(2)), *data)
    with pytest.raises(ValueError, match="`dual_eq` must have the structure and shapes"):
        condition(KKTSolution(C), *data)
    with pytest.raises(ValueError, match="`dual_ineq` must have the structure and shapes"):
        condition(KKTSolution(C, B, B), *data)
    with pytest.raises(TypeError, match="what `equality` returns must hold floating-point"):
        kkt_optimality(objective, lambda x, *rest: torch.ones(1, dtype=torch.int64))(
            KKTSolution(C, B), *data
        )
