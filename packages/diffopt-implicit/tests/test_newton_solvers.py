"""Newton's method and its relatives."""

import pytest
import torch
from diffopt_implicit import (
    Dogleg,
    GaussNewton,
    LevenbergMarquardt,
    Newton,
    SolverError,
    SolverStatus,
    SteihaugCG,
    TrustRegion,
)
from diffopt_implicit._solvers import _least_squares, _trust_region
from implicit_problems import X, Y, normal, ridge_objective, ridge_solution, spd
from newton_problems import (
    FAR,
    HIMMELBLAU,
    ONE,
    QUADRANTS,
    Counted,
    himmelblau,
    rosenbrock,
    tree_start,
)
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, jacfwd, jacrev, vmap
from torch.testing import assert_close

tight = {"tol": 1e-11, "on_failure": "raise"}


def tree_condition(x, a):
    return {"u": x["u"] ** 3 + 0.3 * x["v"] - a, "v": x["v"].exp() - 2 + 0.1 * x["u"].sum()}


def tree_residual(x, a):
    found = tree_condition(x, a)
    return [found["u"], found["v"], 0.2 * x["u"]]


def tree_objective(x, a):
    return sum(part.square().sum() for part in tree_residual(x, a))


MINIMIZERS = {
    "steihaug": (TrustRegion, tree_objective, {}),
    "dogleg": (TrustRegion, tree_objective, {"subproblem": Dogleg()}),
    "gauss": (GaussNewton, tree_residual, {}),
    "levenberg": (LevenbergMarquardt, tree_residual, {}),
}

SOLVERS = MINIMIZERS | {
    "newton": (Newton, tree_condition, {}),
    "chord": (Newton, tree_condition, {"jacobian_every": None}),
    "shamanskii": (Newton, tree_condition, {"jacobian_every": 3}),
}


def made(name, **options):
    make, fun, fixed = SOLVERS[name]
    return make(fun, **fixed, **(tight | options))


def end(solver, a):
    x = solver.run(tree_start(), a).params
    return torch.cat([x["u"], x["v"][None]])


@pytest.mark.parametrize("name", SOLVERS)
def test_trees_are_solved_with_derivatives_to_second_order(name):
    solver = made(name)
    a = torch.tensor([1.5, 0.8], dtype=torch.float64)
    assert solver.l2_optimality_error(solver.run(tree_start(), a).params, a) < 1e-10
    assert gradcheck(lambda a: end(solver, a), a.requires_grad_(), check_forward_ad=True)
    assert gradgradcheck(lambda a: end(solver, a), a)


@pytest.mark.parametrize("name", SOLVERS)
def test_implicit_derivatives_are_those_of_the_unrolled_iterations(name):
    a = torch.tensor([1.5, 0.8], dtype=torch.float64)
    # Once more than needed: the last step carries the derivative.
    slopes = [
        jacrev(lambda a, s=s: end(s, a))(a) for s in (made(name), made(name, adjoint="unroll"))
    ]
    assert_close(*slopes, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", SOLVERS)
def test_a_batch_is_a_loop(name):
    solver = made(name)
    far = [0.9, 1.8] if name == "chord" else [0.2, 3.0]  # which needs a Jacobian of its own
    batch = torch.tensor([[1.5, 0.8], far, [1.0, 1.0]], dtype=torch.float64)
    found, state = vmap(lambda a: solver.run(tree_start(), a))(batch)
    slopes = vmap(jacrev(lambda a: end(solver, a)))(batch)
    for i, a in enumerate(batch):
        alone, one = solver.run(tree_start(), a)
        assert_close(found["u"][i], alone["u"], rtol=1e-9, atol=1e-10)
        assert state.iter_num[i] == one.iter_num
        assert state.num_fun_eval[i] == one.num_fun_eval
        assert_close(slopes[i], jacfwd(lambda a: end(solver, a))(a), rtol=1e-7, atol=1e-8)
    assert len(set(state.iter_num.tolist())) > 1


@pytest.mark.parametrize("name", SOLVERS)
def test_single_precision_stays_so(name):
    start = {"u": torch.ones(2), "v": torch.tensor(0.5)}
    a = torch.tensor([1.5, 0.8])
    make, fun, fixed = SOLVERS[name]
    found = make(fun, tol=1e-5, on_failure="raise", **fixed).run(start, a).params
    assert found["u"].dtype == torch.float32
    exact = made(name).run(tree_start(), a.double()).params
    assert_close(found["u"].double(), exact["u"], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", SOLVERS)
def test_calls_are_counted_as_they_are(name):
    make, fun, fixed = SOLVERS[name]
    counted = Counted(fun)
    state = make(counted, **fixed, **tight).run(tree_start(), normal(2).abs() + 1).state
    assert state.num_fun_eval == counted.calls
    assert state.status == SolverStatus.CONVERGED


def test_newton_converges_quadratically_and_the_chord_method_with_one_jacobian():
    cube = lambda x, a: x**3 - a
    x, state = Newton(cube, **tight).run(1.3 * ONE, 2 * ONE)
    assert_close(x, 2 ** (1 / 3) * ONE)
    assert state.iter_num == state.num_jac_eval <= 5
    chord = Newton(cube, jacobian_every=None, **tight).run(1.3 * ONE, 2 * ONE)
    assert_close(chord.params, x, rtol=1e-9, atol=0)
    assert chord.state.num_jac_eval == 1 < state.iter_num < chord.state.iter_num
    third = Newton(cube, jacobian_every=3, **tight).run(1.3 * ONE, 2 * ONE).state
    assert third.num_jac_eval == -(-third.iter_num // 3)


def test_first_and_second_derivative_of_a_cube_root():  # O-40
    root = lambda a: Newton(lambda x, a: x**3 - a, **tight).run(ONE, a).params
    assert_close(grad(root)(2 * ONE), 0.20998684164914552 * ONE)
    assert_close(grad(grad(root))(2 * ONE), -0.06999561388304851 * ONE)
    many = torch.linspace(0.5, 5, 64, dtype=torch.float64)
    assert_close(vmap(grad(root))(many), torch.stack([grad(root)(a) for a in many]))


def test_newton_on_a_gradient_finds_a_minimum_nearby():
    x = Newton(grad(ridge_objective), **tight).run(torch.zeros(3).double(), ONE, X, Y).params
    assert_close(x, ridge_solution(ONE, X, Y))


def test_the_error_of_newton_is_that_of_the_equation_beside_the_size_of_the_unknown():
    x, state = Newton(lambda x: x - 3).update(9 * ONE, Newton(lambda x: x - 3).init_state(ONE))
    assert_close((x, state.error), (3 * ONE, 6 / (1 + 9 * ONE)))


def test_newton_says_when_there_is_no_step():
    with pytest.raises(SolverError, match="STALLED"):
        Newton(lambda x: x**2 + 1, on_failure="raise").run(0 * ONE)
    with pytest.raises(SolverError, match="NONFINITE"):
        Newton(lambda x: x.log(), on_failure="raise").run(-ONE)
    with pytest.raises(ValueError, match="as many equations as unknowns, got 2 and 1"):
        Newton(lambda x: torch.stack([x, x])).run(ONE)
    with pytest.raises(ValueError, match="`jacobian_every` must be positive"):
        Newton(torch.sin, jacobian_every=0)


@pytest.mark.parametrize("subproblem", [SteihaugCG(), Dogleg()])
def test_trust_regions_find_known_minima(subproblem):  # O-46
    solver = TrustRegion(rosenbrock, subproblem, **tight)
    assert_close(solver.run(FAR).params, torch.ones(2).double(), rtol=1e-9, atol=0)
    found = vmap(TrustRegion(himmelblau, subproblem, **tight).run)(QUADRANTS).params
    assert_close(found, HIMMELBLAU, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("subproblem", [SteihaugCG(), Dogleg()])
def test_steps_stay_in_the_ball_and_on_quadratics_are_newtons(subproblem):
    for seed in range(20):
        half = normal(4, 4, seed=seed)
        hessian_matrix = half + half.T if seed % 2 else half @ half.T + 0.1 * torch.eye(4)
        slope, radius = normal(4, seed=100 + seed), 0.7 * ONE
        step, curved, products = subproblem(slope, lambda v, h=hessian_matrix: h @ v, radius)
        assert step.norm() <= 0.7 * (1 + 1e-12)
        assert_close(curved, hessian_matrix @ step)
        assert products > 0
        model = lambda p, g=slope, h=hessian_matrix: g @ p + 0.5 * p @ h @ p
        t = torch.linspace(0, 0.7 / slope.norm().item(), 200, dtype=torch.float64)
        cauchy = vmap(model)(-t[:, None] * slope).min()
        assert model(step) <= cauchy + 1e-12
        if not seed % 2 and isinstance(subproblem, Dogleg):
            far = subproblem(slope, lambda v, h=hessian_matrix: h @ v, 1e6 * ONE).step
            assert_close(far, -torch.linalg.solve(hessian_matrix, slope))


@pytest.mark.parametrize("subproblem", [SteihaugCG(), Dogleg()])
@pytest.mark.parametrize("radius", [0.1, 100.0])
def test_models_foretell_the_decrease_of_quadratics(subproblem, radius):
    h, g = spd(5), normal(5)
    value = lambda x: x @ h @ x / 2 + g @ x
    model = subproblem(g, lambda v: h @ v, radius * ONE)
    zero = torch.zeros_like(g)
    assert_close(_trust_region.foretold(model, g, value(zero), value(model.step)), ONE)


def test_radii_double_up_to_the_largest_and_no_step_is_longer():
    line = lambda x: -3 * x.sum()
    solver = TrustRegion(line, radius=0.1, max_radius=0.5)
    x, state = 0 * ONE, solver.init_state(0 * ONE)
    for length in (0.1, 0.2, 0.4, 0.5, 0.5):
        (after, state), before = solver.update(x, state), x
        assert_close(after - before, length * ONE)
        x = after


def test_each_step_refused_in_a_row_doubles_the_growth_of_the_damping():
    solver = LevenbergMarquardt(lambda x: torch.where(x == 0, x - 1, torch.nan), damping=1e-6)
    x, state = 0 * ONE, solver.init_state(0 * ONE)
    for growth in (2.0, 4.0, 8.0, 16.0):
        before = state.damping
        x, state = solver.update(x, state)
        assert_close(state.damping, growth * before)
        assert x == 0


def test_damped_steps_solve_their_system_and_foretell_the_decrease_of_linear_residuals():
    a, b = normal(7, 3), normal(7, seed=1)
    residual = lambda x: a @ x - b
    x = normal(3, seed=2)
    state = LevenbergMarquardt(residual, damping=0.3).init_state(x)
    step = _least_squares.damped_step(state)
    damped = a.T @ a + state.damping * torch.eye(3, dtype=a.dtype)
    assert_close(step, -torch.linalg.solve(damped, a.T @ residual(x)))
    after = residual(x + step).square().sum() / 2
    assert_close(_least_squares.foretold(state, step, after), ONE)


def test_trust_regions_leave_maxima_and_report_functions_that_break():
    hill = lambda x: -(-x.square().sum()).exp() * 0 + (x.square().sum() - 1) ** 2
    x = TrustRegion(hill, **tight).run(torch.tensor([1e-3, 0.0]).double()).params
    assert_close(x.norm(), ONE)
    with pytest.raises(SolverError, match="NONFINITE"):
        TrustRegion(lambda x: x.log().sum(), on_failure="raise").run(-torch.ones(2))
    # No value beyond 1 is finite: the region shrinks until it is within.
    inside = TrustRegion(lambda x: -(1 - x).log() - 3 * x, radius=10.0, **tight).run(0 * ONE)
    assert_close(inside.params, 2 / 3 * ONE)
    with pytest.raises(ValueError, match="`radius` must be positive"):
        TrustRegion(rosenbrock, radius=0.0)


def test_levenberg_marquardt_crosses_a_valley_where_gauss_newton_may_not():
    residual = lambda x: torch.stack([10 * (x[1] - x[0] ** 2), 1 - x[0]])
    x, state = LevenbergMarquardt(residual, **tight).run(FAR)
    assert_close(x, torch.ones(2).double())
    assert_close(state.value, 0 * ONE, rtol=0, atol=1e-20)
    # arctan: Gauss and Newton's step from 2 goes farther and farther.
    atan = lambda x: x.arctan()
    assert_close(LevenbergMarquardt(atan, **tight).run(2 * ONE).params, 0 * ONE, rtol=0, atol=1e-10)
    assert GaussNewton(atan, maxiter=8, on_failure="ignore").run(2 * ONE).params.abs() > 10


@pytest.mark.parametrize("make", [GaussNewton, LevenbergMarquardt])
def test_linear_least_squares_take_the_closed_form(make):
    x = make(lambda w: X @ w - Y, tol=1e-8, on_failure="raise").run(torch.zeros(3).double()).params
    assert_close(x, torch.linalg.lstsq(X, Y[:, None]).solution[:, 0], rtol=1e-7, atol=1e-8)
    # Fewer residuals than unknowns: of all solutions the one nearest to the start.
    wide = make(lambda w: X[:2] @ w - Y[:2], tol=1e-8, on_failure="raise")
    assert_close(
        wide.run(torch.zeros(3).double()).params,
        torch.linalg.pinv(X[:2]) @ Y[:2],
        rtol=1e-5,
        atol=1e-5,
    )
