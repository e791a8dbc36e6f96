"""Solvers by values alone: the simplex of Nelder and Mead, and bisection."""

import pytest
import torch
from diffopt_implicit import (
    Bisection,
    NelderMead,
)
from implicit_problems import normal
from newton_problems import (
    FAR,
    HIMMELBLAU,
    ONE,
    QUADRANTS,
    Counted,
    himmelblau,
    rosenbrock,
)
from torch.autograd import gradcheck
from torch.func import grad, hessian, jacfwd, jacrev, vmap
from torch.testing import assert_close


def test_simplex_walks_find_known_minima_and_count_their_calls():
    counted = Counted(rosenbrock)
    x, state = NelderMead(counted, tol=1e-9, on_failure="raise").run(FAR)
    assert_close(x, torch.ones(2).double(), rtol=1e-6, atol=0)
    assert state.num_fun_eval == counted.calls
    solver = NelderMead(himmelblau, tol=1e-9, on_failure="raise")
    found, state = vmap(solver.run)(QUADRANTS)
    assert_close(found, HIMMELBLAU, rtol=1e-6, atol=1e-6)
    for i, start in enumerate(QUADRANTS):
        assert solver.run(start).state.num_fun_eval == state.num_fun_eval[i]


@pytest.mark.parametrize("count", [12, 25, 60])
def test_simplex_walks_are_those_of_scipy_with_adaptive_coefficients(count):
    optimize = pytest.importorskip("scipy.optimize")
    start = normal(3, seed=4)
    solver = NelderMead(rosenbrock, tol=0.0, maxiter=count, on_failure="ignore")
    simplex = solver.init_state(start).simplex.flip(0).numpy()
    options = {"adaptive": True, "initial_simplex": simplex, "maxiter": count + 1}
    theirs = optimize.minimize(
        lambda x: rosenbrock(torch.as_tensor(x)).item(),
        start,
        method="Nelder-Mead",
        options=options,
    )
    x, state = solver.run(start)
    assert_close(x, torch.as_tensor(theirs.x), rtol=1e-9, atol=1e-12)
    assert state.num_fun_eval == theirs.nfev


def test_the_error_of_a_simplex_is_its_extent_in_corners_or_values():
    error = lambda slope: NelderMead(lambda x: slope * x).init_state(0 * ONE).error
    assert_close((error(1e-3), error(1e3)), (0.1 * ONE, 100 * ONE))


def test_simplex_walks_shrink_and_take_values_that_are_none_for_the_worst():
    spike = lambda x: x.abs().sum().sqrt() + 0.1 * (40 * x).cos().sum()
    counted = Counted(spike)
    state = NelderMead(counted, tol=1e-6, maxiter=500).run(normal(3)).state
    assert state.num_fun_eval == counted.calls
    x = NelderMead(lambda x: x - 3 * x.log(), tol=1e-8).run(0.2 * ONE).params
    assert_close(x, 3 * ONE, rtol=1e-6, atol=0)


def test_a_minimum_found_by_values_has_implicit_derivatives():
    objective = lambda x, a: (x.cosh() - a * x).sum()
    a = torch.tensor([0.5, 2.0], dtype=torch.float64)
    solver = NelderMead(objective, tol=1e-10)
    minimum = lambda a: solver.run(torch.zeros(2).double(), a).params
    slope = torch.diag(1 / (1 + a * a).sqrt())  # x = arsinh(a)
    assert_close(jacrev(minimum)(a), slope, rtol=1e-6, atol=1e-6)
    assert_close(jacfwd(minimum)(a), slope, rtol=1e-6, atol=1e-6)
    assert hessian(lambda a: minimum(a).sum())(a).isfinite().all()
    with pytest.raises(ValueError, match="iterates of `NelderMead` have no derivatives"):
        NelderMead(objective, adjoint="unroll")
    with pytest.raises(ValueError, match="`initial_size` must be positive"):
        NelderMead(objective, initial_size=0.0)


def test_bisection_finds_the_threshold_of_a_simplex():  # O-39
    x = torch.tensor([0.3, -0.2, 1.4, 0.9], dtype=torch.float64)
    excess = lambda t, x: (x - t).clamp(min=0).sum() - 1
    solver = Bisection(excess, lower=-1.0, upper=2.0, tol=1e-14, on_failure="raise")
    t = solver.run(None, x).params
    assert_close(
        (x - t).clamp(min=0), torch.tensor([0, 0, 0.75, 0.25]).double(), rtol=0, atol=1e-12
    )
    threshold = lambda x: solver.run(None, x).params
    assert_close(jacrev(threshold)(x), torch.tensor([0, 0, 0.5, 0.5]).double())
    assert gradcheck(threshold, x.requires_grad_(), check_forward_ad=True)


def test_bisection_ends_at_once_at_a_root_and_works_both_ways():
    counted = Counted(lambda x: x - 0.5)
    x, state = Bisection(counted, 0.0, 1.0).run(None)
    assert x == 0.5
    assert state.iter_num == 1
    assert state.num_fun_eval == counted.calls == 3
    falling = Bisection(lambda x: 0.3 - x, 0.0, 1.0, tol=1e-7).run(None).params
    assert_close(falling, torch.tensor(0.3), rtol=1e-5, atol=0)
    for end in (0.1, 0.7):
        at_end = Bisection(lambda x, end: x - end, 0.1, 0.7).run(None, end * ONE)
        assert at_end.params == end * ONE
        assert at_end.state.iter_num == 1


def test_the_error_of_a_bisection_is_how_far_the_root_may_be():
    solver = Bisection(lambda x: x - 1.9, 0 * ONE, 2.0)
    x, state = solver.update(None, solver.init_state(None))
    assert_close((x, state.error), (1.5 * ONE, 0.5 / (1 + ONE)))


def test_each_bracket_of_a_batch_is_halved_for_itself():
    many = torch.tensor([0.1, 1.0, 3.9], dtype=torch.float64)
    square = lambda upper: (
        lambda a: Bisection(lambda x, a: x**2 - a, 0.0, upper, tol=1e-12, on_failure="raise").run(
            None, a
        )
    )
    found, state = vmap(square(2.0))(many)
    assert_close(found, many.sqrt(), rtol=1e-10, atol=0)
    assert state.iter_num[1] == 1 < state.iter_num[0]
    assert_close(vmap(grad(lambda a: square(2.0)(a).params))(many), 0.5 / many.sqrt())


def test_brackets_that_are_none_are_refused():
    above = lambda x: x**2 + 1
    with pytest.raises(ValueError, match=r"got 2 at 1 and 5 at 2. Widen the bracket"):
        Bisection(above, 1.0, 2.0).run(None)
    with pytest.raises(ValueError, match="`lower` below `upper`"):
        Bisection(lambda x: x, 1.0, -1.0).run(None)
    with pytest.raises(ValueError, match="both scalars: map over more"):
        Bisection(lambda x: x * torch.ones(2), -1.0, 1.0).run(None)
    with pytest.raises(ValueError, match="iterates of `Bisection` have no derivatives"):
        Bisection(lambda x: x, -1.0, 1.0, adjoint="unroll")
    ends = Bisection(above, -1.0, 1.0, check_bracket=False).run(None).params
    assert ends.abs() > 0.99
