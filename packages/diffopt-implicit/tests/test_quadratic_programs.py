"""Quadratic programs: solutions, certificates, and derivatives through the active constraints."""

from functools import partial

import pytest
import torch
from diffopt_implicit import (
    OSQP,
    BoxQP,
    EqualityQP,
    LinearSolveError,
    SolverError,
    SolverStatus,
    SolverWarning,
    projections,
)
from implicit_problems import normal, spd
from quadratic_programs import finite_program, osqp, program
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, hessian, jacfwd, jacrev, vmap
from torch.testing import assert_close

scipy_optimize = pytest.importorskip("scipy.optimize")


def kkt_violation(solution, params_obj, params_eq, params_ineq):
    (Q, c), (A, b), (G, lower, upper) = params_obj, params_eq, params_ineq
    x, nu, mu = solution
    slack = torch.minimum(upper - G @ x, G @ x - lower)
    return torch.stack(
        [
            (Q @ x + c + nu @ A + mu @ G).abs().max(),
            (A @ x - b).abs().max(),
            (-slack).clamp(min=0).max(),
            (mu.clamp(min=0) * (upper - G @ x).nan_to_num(posinf=1.0)).abs().max(),
            (mu.clamp(max=0) * (G @ x - lower).nan_to_num(posinf=1.0)).abs().max(),
        ]
    ).max()


@pytest.mark.parametrize("seed", range(0, 60, 10))
@pytest.mark.parametrize("rank", [6, 3])
def test_random_programs_are_solved_to_rounding(seed, rank):
    given = program(seed, rank=rank)
    solution, state = OSQP().run(None, *given)
    assert state.status == SolverStatus.CONVERGED
    assert kkt_violation(solution, *given) < 1e-10
    single = program(seed, rank=rank, dtype=torch.float32)
    found = OSQP().run(None, *single).params
    assert found.primal.dtype == torch.float32
    assert kkt_violation(found, *single) < 1e-3


def test_programs_are_infeasible_where_a_linear_program_says_so():
    counts = {SolverStatus.CONVERGED: 0, SolverStatus.INFEASIBLE: 0}
    for seed in range(0, 120, 10):
        given = program(seed, moved=0.7)
        _, (A, b), (G, lower, upper) = given
        state = OSQP(on_failure="ignore").run(None, *given).state
        up, low = upper.isfinite(), lower.isfinite()
        rows, bounds = torch.cat([G[up], -G[low]]), torch.cat([upper[up], -lower[low]])
        theirs = scipy_optimize.linprog(
            torch.zeros(6).numpy(), *(t.numpy() for t in (rows, bounds, A, b)), bounds=(None, None)
        )
        status = SolverStatus(int(state.status))
        assert status == (SolverStatus.CONVERGED, None, SolverStatus.INFEASIBLE)[theirs.status]
        counts[status] += 1
    assert min(counts.values()) > 2


def test_it_agrees_with_scipy():
    (Q, c), (A, b), (G, lower, upper) = program(7)
    constraints = [
        scipy_optimize.LinearConstraint(A.numpy(), b.numpy(), b.numpy()),
        scipy_optimize.LinearConstraint(G[:1].numpy(), lower[:1].numpy(), upper[:1].numpy()),
        scipy_optimize.LinearConstraint(G[1:].numpy(), lower[1:].numpy(), upper[1:].numpy()),
    ]
    theirs = scipy_optimize.minimize(
        lambda x: 0.5 * x @ Q.numpy() @ x + c.numpy() @ x,
        torch.zeros(6).double().numpy(),
        jac=lambda x: Q.numpy() @ x + c.numpy(),
        method="SLSQP",
        constraints=constraints,
        options={"ftol": 1e-14, "maxiter": 500},
    )
    ours = OSQP().run(None, (Q, c), (A, b), (G, lower, upper)).params
    assert_close(ours.primal, torch.as_tensor(theirs.x), rtol=1e-5, atol=1e-6)


def test_a_linear_program_is_one_too():
    G = torch.cat([normal(8, 5).abs(), -torch.eye(5).double()])
    h = torch.cat([torch.ones(8), torch.zeros(5)]).double()
    c = -normal(5, seed=1).abs()
    theirs = scipy_optimize.linprog(c.numpy(), G.numpy(), h.numpy())
    x = OSQP().run(None, (torch.zeros(5, 5).double(), c), None, (G, h)).params.primal
    assert_close(x, torch.as_tensor(theirs.x), rtol=1e-8, atol=1e-10)


def test_badly_scaled_programs_are_scaled():
    (Q, c), (A, b), (G, lower, upper) = program(20)
    d, e = torch.logspace(-3, 3, 6).double(), torch.logspace(3, -3, 8).double()
    stretched = OSQP().run(
        None, (d[:, None] * Q * d, d * c), (A * d, b), (e[:, None] * G * d, e * lower, e * upper)
    )
    plain = OSQP().run(None, (Q, c), (A, b), (G, lower, upper)).params
    assert stretched.state.status == SolverStatus.CONVERGED
    assert_close(d * stretched.params.primal, plain.primal, rtol=1e-7, atol=1e-8)
    assert_close(e * stretched.params.dual_ineq, plain.dual_ineq, rtol=1e-6, atol=1e-7)


def test_a_warm_start_ends_at_once():
    given = program(30)
    solution, cold = OSQP(sweeps=5).run(None, *given)
    again, warm = OSQP(sweeps=5).run(solution, *given)
    assert warm.iter_num == 1 <= cold.iter_num
    assert_close(again.primal, solution.primal)


def test_a_small_program_in_closed_form():  # O-37
    Q = 2 * torch.tensor([[2.0, 0.5], [0.5, 1.0]], dtype=torch.float64)
    c, A, b = torch.ones(2).double(), torch.ones(1, 2).double(), torch.ones(1).double()
    positive = (-torch.eye(2).double(), torch.zeros(2).double())
    for run in (
        lambda c, b: EqualityQP().run(None, (Q, c), (A, b)).params,
        lambda c, b: OSQP().run(None, (Q, c), (A, b), positive).params,
    ):
        solution = run(c, b)
        assert_close(solution.primal, torch.tensor([0.25, 0.75]).double())
        assert_close(solution.dual_eq, torch.tensor([-2.75]).double())
        x = lambda c, b, run=run: run(c, b).primal
        assert_close(jacrev(x, 1)(c, b), torch.tensor([[0.25], [0.75]]).double())
        by_c = torch.tensor([[-0.25, 0.25], [0.25, -0.25]]).double()
        assert_close(jacrev(x, 0)(c, b), by_c)
        assert_close(jacfwd(x, 0)(c, b), by_c)


@pytest.mark.parametrize("seed", [0, 20])
def test_derivatives_of_the_primal_and_of_the_multipliers_in_everything(seed):
    inputs = tuple(t.clone().requires_grad_() for t in finite_program(seed))
    assert any((part != 0).any() for part in osqp(*inputs)[2:])
    assert gradcheck(osqp, inputs, check_forward_ad=True)
    assert gradgradcheck(osqp, inputs)


def test_derivatives_in_a_box():
    inputs = (spd(4), normal(4), -normal(4, seed=1).abs(), normal(4, seed=2).abs())
    inputs = tuple(t.clone().requires_grad_() for t in inputs)
    call = lambda Q, c, lower, upper: BoxQP().run(None, (Q, c), (lower, upper)).params[::2]
    x, mu = call(*inputs)
    assert 0 < (mu != 0).sum() < 4
    assert_close(mu, -(inputs[0] @ x + inputs[1]), rtol=0, atol=1e-12)
    assert gradcheck(call, inputs, check_forward_ad=True)
    assert gradgradcheck(call, inputs)
    narrow = BoxQP().run(None, inputs[:2], (-0.1, 0.1)).params.primal.abs().max()
    assert_close(narrow, torch.tensor(0.1, dtype=torch.float64), rtol=1e-12, atol=0)
    within = BoxQP().run(None, inputs[:2], (-torch.inf, torch.inf)).params.primal
    assert_close(within, -torch.linalg.solve(inputs[0], inputs[1]))


def test_implicit_derivatives_are_those_of_the_unrolled_iterations():
    given = finite_program(10)
    slopes = [
        jacrev(lambda c, by=by: OSQP(adjoint=by).run(
            None, (given[0], c), given[2:4], given[4:]
        ).params.primal)(given[1])
        for by in (OSQP().adjoint, "implicit", "unroll", "checkpoint")
    ]  # fmt: skip
    assert_close(slopes[1:], slopes[:1] * 3, rtol=1e-8, atol=1e-9)


def test_a_batch_is_a_loop():
    Q, c, *rest = finite_program(20)
    cs = torch.stack([c, -c, 0 * c, 10 * c])
    run = lambda c: OSQP().run(None, (Q, c), tuple(rest[:2]), tuple(rest[2:]))
    params, state = vmap(run)(cs)
    value = lambda c: run(c).params.primal.square().sum()
    for i, one in enumerate(cs):
        alone = run(one)
        assert_close(params.primal[i], alone.params.primal, rtol=1e-10, atol=1e-11)
        assert state.iter_num[i] == alone.state.iter_num
        assert_close(vmap(grad(value))(cs)[i], grad(value)(one), rtol=1e-8, atol=1e-9)
    assert_close(vmap(hessian(value))(cs)[1], hessian(value)(cs[1]), rtol=1e-7, atol=1e-8)


def test_dependent_constraints_have_a_derivative_where_the_minimum_has_one():
    eye = torch.eye(2).double()
    # Three lines meet in the corner, and one equation is said twice.
    G = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]).double()
    corner = lambda x: projections.polyhedron(x, G=G, h=torch.zeros(3).double())
    assert_close(jacrev(corner)(torch.ones(2).double()), 0 * eye)
    A, b = torch.ones(2, 2).double(), torch.ones(2).double()
    line = lambda x: projections.polyhedron(x, A, b)
    assert_close(jacrev(line)(normal(2)), torch.tensor([[0.5, -0.5], [-0.5, 0.5]]).double())
    dual = lambda x: OSQP().run(None, (eye, -x), (A, b)).params.dual_eq[0]
    with pytest.raises(LinearSolveError, match="active constraints"):
        grad(dual)(normal(2))


def test_a_constraint_that_is_touched_counts_as_absent():
    x = torch.tensor([1.0, 0.5], dtype=torch.float64)
    call = lambda x: projections.polyhedron(x, G=torch.eye(2).double(), h=torch.ones(2).double())
    assert_close(call(x), x)
    assert_close(jacrev(call)(x), torch.eye(2).double())


def test_a_minimum_that_is_not_unique_has_no_derivative():
    Q = torch.diag(torch.tensor([1.0, 0.0], dtype=torch.float64))
    call = lambda c: OSQP().run(None, (Q, c), None, (Q, c + 2)).params.primal.sum()
    with pytest.raises(LinearSolveError):
        grad(call)(torch.zeros(2, dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_infeasible_programs_end_with_a_proof(dtype):
    tensor = partial(torch.tensor, dtype=dtype)
    G, lower = tensor([[1.0, 1.0], [1.0, 1.0], [1.0, 0.0]]), tensor([1.0, -torch.inf, -5.0])
    upper = tensor([torch.inf, 0.0, 5.0])
    given = (torch.eye(2, dtype=dtype), tensor([1.0, 2.0])), None, (G, lower, upper)
    with pytest.raises(SolverError, match=r"INFEASIBLE.*check or relax") as raised:
        OSQP().run(None, *given)
    y = raised.value.state.ray.dual_ineq
    assert_close(y @ G, torch.zeros(2, dtype=dtype), rtol=0, atol=1e-3)
    assert (y[1:] @ upper[1:]) - (-y[0]) * lower[0] < -0.5
    with pytest.warns(SolverWarning, match="INFEASIBLE"):
        OSQP(on_failure="warn").run(None, *given)
    with pytest.raises(SolverError, match="INFEASIBLE"):
        projections.polyhedron(
            tensor([0.0, 0.0]), G=tensor([[1.0, 0], [-1, 0]]), h=tensor([-1.0, 0])
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_unbounded_programs_end_with_a_direction(dtype):
    tensor = partial(torch.tensor, dtype=dtype)
    Q, c = torch.diag(tensor([1.0, 0.0, 0.0])), tensor([1.0, -1.0, 0.0])
    G, lower = tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]), tensor([0.0, 0.0])
    upper = tensor([torch.inf, 1.0])
    with pytest.raises(SolverError, match="UNBOUNDED") as raised:
        OSQP().run(None, (Q, c), None, (G, lower, upper))
    d = raised.value.state.ray.primal
    assert_close(Q @ d, torch.zeros(3, dtype=dtype), rtol=0, atol=1e-3)
    assert c @ d < -0.5
    assert (G @ d)[0] > -1e-3


def test_each_example_of_a_batch_has_a_status_of_its_own():
    eye, zero = torch.eye(1).double(), torch.zeros(1, 1).double()
    Q = torch.stack([eye, eye, zero])
    upper = torch.tensor([[1.0, 1.0], [-1.0, -1.0], [1.0, torch.inf]], dtype=torch.float64)
    G, c = torch.tensor([[1.0], [-1.0]]).double(), torch.ones(1).double()
    solver = OSQP(on_failure="ignore")
    params, state = vmap(lambda Q, h: solver.run(None, (Q, c), None, (G, h)))(Q, upper)
    wanted = [SolverStatus.CONVERGED, SolverStatus.INFEASIBLE, SolverStatus.UNBOUNDED]
    assert state.status.tolist() == wanted
    assert_close(params.primal[0], -torch.ones(1).double())
    with pytest.raises(SolverError, match="left 2 of 3 examples"):
        vmap(lambda Q, h: OSQP().run(None, (Q, c), None, (G, h)))(Q, upper)


def test_updates_one_by_one_are_the_run():
    given, solver = program(40), OSQP(sweeps=3)
    state, params = solver.init_state(None, *given), None
    while state.status == SolverStatus.RUNNING:
        params, state = solver.update(params, state, *given)
    found = solver.run(None, *given)
    assert_close(params, found.params)
    assert state.iter_num == found.state.iter_num
    assert solver.l2_optimality_error(params, *given) < 1e-9


def test_programs_that_are_none_are_refused():
    eye, one = torch.eye(2), torch.ones(2)
    with pytest.raises(ValueError, match="`OSQP` minimizes convex objectives"):
        OSQP().run(None, (-eye, one))
    with pytest.raises(ValueError, match=r"`params_obj` must be `\(Q, c\)`"):
        OSQP().run(None, (eye, torch.ones(3)))
    with pytest.raises(ValueError, match="`params_ineq` must hold a matrix"):
        OSQP().run(None, (eye, one), None, (torch.eye(3), torch.ones(3)))
    with pytest.raises(TypeError, match=r"`params_ineq` must be tensors `\(G, upper\)` or .*tuple"):
        OSQP().run(None, (eye, one), None, (eye, (-one, one)))
    with pytest.raises(ValueError, match="a lower bound is above its upper one"):
        BoxQP().run(None, (eye, one), (1.0, 0.0))
    with pytest.raises(ValueError, match="`sweeps` must be positive"):
        OSQP(sweeps=0)
