"""Bounds: solutions in boxes, and their derivatives."""

import pytest
import torch
from constrained_problems import ONE, least_squares, quadratic, tensor
from diffopt_implicit import (
    LBFGSB,
    ProjectedGradient,
    ScipyBoundedMinimize,
    SolverError,
    SolverStatus,
    projections,
)
from implicit_problems import normal, spd
from minimizers import rosenbrock
from torch.autograd import gradcheck, gradgradcheck
from torch.func import jacrev, vmap
from torch.testing import assert_close


def bounded(kind, fun, **options):
    options = {"tol": 1e-10, "maxiter": 3000, **options}
    if kind == "LBFGSB":
        return LBFGSB(fun, **options)
    return ProjectedGradient(fun, projections.box, **options)


def box_solution(q, c, lower, upper):
    """By trying all sets of active bounds."""
    n = len(c)
    for code in range(3**n):
        state = [(code // 3**i) % 3 for i in range(n)]
        x = torch.stack([(c[i] * 0, lower, upper)[s] for i, s in enumerate(state)])
        free = [i for i, s in enumerate(state) if s == 0]
        if free:
            right = -(c + q @ x)[free]
            x = x.clone()
            x[free] = torch.linalg.solve(q[free][:, free], right)
        g = q @ x + c
        signs = [
            g[i].abs() < 1e-9 if s == 0 else (g[i] > 0) == (s == 1) for i, s in enumerate(state)
        ]
        if all(signs) and (x >= lower - 1e-9).all() and (x <= upper + 1e-9).all():
            return x
    raise AssertionError("no solution")


@pytest.mark.parametrize("kind", ["LBFGSB", "projected"])
@pytest.mark.parametrize("seed", range(3))
def test_quadratics_in_a_box(kind, seed):
    q, c = spd(4, seed=seed), 2 * normal(4, seed=seed + 10)
    lower, upper = -0.5 * ONE, 0.7 * ONE
    exact = box_solution(q, c, lower, upper)
    assert ((exact == lower) | (exact == upper)).any()
    solver = bounded(kind, quadratic)
    start = torch.zeros(4, dtype=torch.float64)
    assert_close(solver.run(start, (lower, upper), q, c).params, exact, rtol=1e-8, atol=1e-9)
    given = [t.clone().requires_grad_() for t in (lower, upper, c)]
    near = exact + 1e-3  # derivatives do not depend on where the search began
    solve = lambda low, high, c: solver.run(near, (low, high), q, c).params
    assert gradcheck(solve, given, eps=1e-4, atol=1e-5, check_forward_ad=True)
    if seed == 0:
        assert gradgradcheck(solve, given, eps=1e-4, atol=1e-4)


def test_bounds_hold_rosenbrock_where_scipy_finds_it():
    # scipy.optimize.minimize(method="L-BFGS-B"), 30 iterations and 35 evaluations, SciPy 1.17.
    wanted = tensor(0.8, 0.65091908, 0.42940163, 0.18438576)
    x, state = LBFGSB(rosenbrock, tol=1e-9).run(tensor(-1.0, 0.8, 0.3, -1.0), (-2.0, 0.8))
    assert_close(x, wanted, rtol=0, atol=1e-7)
    assert state.num_fun_eval < 70


def bounded_rosenbrock():
    """The valley is left where the bound meets it."""
    return rosenbrock, tensor(-1.2, 1.0), (-2.0, tensor(0.5, 2.0)), tensor(0.5, 0.25)


def chosen_quadratic(n=20):
    """The minimizer is chosen, and the slope that holds its first nine elements at bounds."""
    q = torch.diag(torch.logspace(0, 2, n, dtype=torch.float64)) + spd(n)
    x, slope = normal(n, seed=1).clamp(-0.9, 0.9), torch.zeros(n, dtype=torch.float64)
    x[:5], x[5:9] = -1.0, 1.0
    slope[:5], slope[5:9] = 0.1, -0.2
    return lambda z: quadratic(z, q, slope - q @ x), torch.zeros_like(x), (-1.0, 1.0), x


def nonnegative_least_squares():
    """Lawson and Hanson's active sets know the minimizer."""
    x, y = normal(40, 8, seed=1), normal(40, seed=2)
    exact = pytest.importorskip("scipy.optimize").nnls(x.numpy(), y.numpy())[0]
    fun = lambda w: 20 * least_squares(w, x, y)
    return fun, torch.ones(8, dtype=torch.float64), (0.0, torch.inf), torch.as_tensor(exact)


@pytest.mark.parametrize(
    "problem", [bounded_rosenbrock, chosen_quadratic, nonnegative_least_squares]
)
def test_lbfgsb_ends_at_known_minimizers_beside_scipy_with_active_bounds_exact(problem):
    pytest.importorskip("scipy")
    fun, start, bounds, exact = problem()
    x, state = LBFGSB(fun, tol=1e-7).run(start, bounds)
    theirs = ScipyBoundedMinimize(fun, options={"ftol": 0.0, "gtol": 1e-7}).run(start, bounds)
    active = lambda x: [(x == torch.as_tensor(bound)).tolist() for bound in bounds]
    assert any(map(any, active(exact)))
    for found in (x, theirs.params):
        assert_close(found, exact, rtol=0, atol=1e-6)
        assert active(found) == active(exact)
    assert state.num_fun_eval < 2 * theirs.state.num_fun_eval


def test_elements_held_near_a_bound_go_on_to_it():
    fun = lambda x: 1e-4 * x[0] + (x[1] - 3) ** 2
    x = LBFGSB(fun, tol=1e-8, on_failure="raise").run(tensor(1e-4, 0.0), (0.0, 10.0)).params
    assert_close(x, tensor(0.0, 3.0), rtol=0, atol=0)


def test_bounds_may_be_trees_and_infinite():
    fun = lambda p, y: (p["a"] - y).square().sum() + (p["b"] + 2).square()
    start = {"a": torch.ones(2).double(), "b": 3 * ONE}
    bounds = ({"a": 0.0, "b": tensor(-1.0)[0]}, {"a": tensor(0.5, torch.inf), "b": torch.inf})
    x = LBFGSB(fun, tol=1e-9).run(start, bounds, tensor(3.0, 4.0)).params
    assert_close(x, {"a": tensor(0.5, 4.0), "b": -ONE})
    with pytest.raises(ValueError, match=r"`bounds` must be a pair `\(lower, upper\)`.*got float"):
        LBFGSB(fun).run(start, 1.0, tensor(3.0, 4.0))


def test_bounds_that_cross_have_no_solution():
    solver = LBFGSB(lambda x: x.square().sum(), on_failure="raise")
    with pytest.raises(SolverError, match=r"\(INFEASIBLE\)\. No point satisfies the constraints"):
        solver.run(torch.ones(2), (1.0, 0.0))
    lower = tensor(0.5, 2.0)
    quiet = LBFGSB(lambda x: x.square().sum(), on_failure="ignore")
    state = vmap(lambda low: quiet.run(torch.ones(2).double(), (low, 1.0)).state)(lower)
    assert state.status.tolist() == [SolverStatus.CONVERGED, SolverStatus.INFEASIBLE]


def test_starts_out_of_bounds_are_projected():
    calls = []

    def fun(x):
        calls.append(x.detach().clone())
        return (x - 5).square().sum()

    x = LBFGSB(fun).run(tensor(-9.0), (0.0, 1.0)).params
    assert_close(x, tensor(1.0))
    assert all(
        ((c >= 0) & (c <= 1)).all()
        for c in calls
        if not torch._C._functorch.is_functorch_wrapped_tensor(c)
    )


@pytest.mark.parametrize("kind", ["LBFGSB", "projected"])
def test_boxes_under_vmap_are_the_loop(kind):
    qs = torch.stack([spd(4, seed=i) for i in range(3)])
    cs = 2 * normal(3, 4)
    solve = lambda q, c: bounded(kind, quadratic).run(torch.zeros(4).double(), (-0.5, 0.7), q, c)
    x, state = vmap(solve)(qs, cs)
    assert (state.status == 0).all()
    exact = [box_solution(q, c, -0.5 * ONE, 0.7 * ONE) for q, c in zip(qs, cs, strict=True)]
    assert_close(x, torch.stack(exact), rtol=1e-8, atol=1e-9)
    jacobians = vmap(jacrev(lambda c, q: solve(q, c).params))(cs, qs)
    alone = [jacrev(lambda c, i=i: solve(qs[i], c).params)(cs[i]) for i in range(3)]
    assert_close(jacobians, torch.stack(alone), rtol=1e-7, atol=1e-8)
