"""Proximal, projected, mirror and block methods: solutions and their derivatives."""

from functools import partial

import pytest
import torch
from constrained_problems import ONE, least_squares, quadratic, tensor
from diffopt_implicit import (
    AndersonWrapper,
    BlockCoordinateDescent,
    GradientDescent,
    MirrorDescent,
    MirrorMap,
    ProjectedGradient,
    ProximalGradient,
    kl_simplex,
    projections,
    proximal,
)
from implicit_problems import X, Y, normal
from torch.autograd import gradcheck, gradgradcheck
from torch.func import jacfwd, jacrev
from torch.testing import assert_close

LASSOS = {
    "searched": ProximalGradient(least_squares, proximal.lasso, tol=1e-10, maxiter=2000),
    "fixed": ProximalGradient(
        least_squares, proximal.lasso, stepsize=0.3, acceleration=False, tol=1e-10, maxiter=2000
    ),
    "blocks": BlockCoordinateDescent(least_squares, proximal.lasso, tol=1e-10),
    "anderson": AndersonWrapper(
        ProximalGradient(least_squares, proximal.lasso, stepsize=0.3, acceleration=False),
        tol=1e-10,
    ),
}


@pytest.mark.parametrize("solver", LASSOS.values(), ids=LASSOS)
@pytest.mark.parametrize(
    ("lam", "w", "slope"),
    [
        (10.0, [62.16485194, 29.03583355, 88.27012188], [-0.60171780, -0.69149565, -0.61046860]),
        (60.0, [30.92343382, 0, 58.31102082], [-0.74597671, 0, -0.54001644]),
        (157.6, [0, 0, 0], [0, 0, 0]),
    ],
)
def test_lasso(solver, lam, w, slope):  # O-32
    solve = lambda lam: solver.run(0 * ONE.expand(3), lam, X, Y).params
    lam = lam * ONE
    assert_close(solve(lam), tensor(*w), rtol=1e-6, atol=1e-6)
    for transform in (jacrev, jacfwd):
        assert_close(transform(solve)(lam), tensor(*slope), rtol=1e-6, atol=1e-6)


def test_the_largest_penalty_of_a_lasso_is_that_of_its_gradient():  # O-32
    largest = (X.T @ Y / 10).abs().max()
    assert_close(largest, tensor(157.5234868)[0], rtol=1e-9, atol=0)
    solve = lambda lam: LASSOS["searched"].run(0 * ONE.expand(3), lam, X, Y).params
    assert (solve(1.0001 * largest) == 0).all()
    assert (solve(0.999 * largest) != 0).any()


@pytest.mark.parametrize("solver", LASSOS.values(), ids=LASSOS)
def test_hyperparameters_may_be_named(solver):
    by_place = solver.run(torch.zeros(3).double(), 10.0, X, Y).params
    named = solver.run(torch.zeros(3).double(), hyperparams_prox=10.0, x=X, y=Y).params
    assert_close(named, by_place)


def test_unrolled_and_implicit_derivatives_of_a_lasso_agree():
    unroll = ProximalGradient(
        least_squares, proximal.lasso, tol=1e-10, maxiter=2000, adjoint="unroll"
    )
    solve = lambda solver, lam: solver.run(torch.zeros(3).double(), lam, X, Y).params
    slopes = [
        torch.func.grad(lambda lam, s=s: solve(s, lam).sum())(60 * ONE)
        for s in (unroll, LASSOS["searched"])
    ]
    assert_close(*slopes, rtol=1e-6, atol=0)


def test_elastic_nets_have_derivatives_in_both_penalties():
    solver = ProximalGradient(least_squares, proximal.elastic_net, tol=1e-9, maxiter=3000)
    penalties = tensor(60.0, 0.5).requires_grad_()
    solve = lambda p: solver.run(torch.zeros(3).double(), (p[0], p[1]), X, Y).params
    assert solve(penalties)[1] == 0
    assert gradcheck(solve, (penalties,), eps=1e-4, atol=1e-5)
    assert gradgradcheck(solve, (penalties,), eps=1e-4, atol=1e-4)


Q, C = 2 * torch.tensor([[2, 0.5], [0.5, 1]], dtype=torch.float64), tensor(1.0, 1.0)


def simplex_solver(kind):
    options = {"tol": 1e-11, "maxiter": 3000}
    if kind == "projected":
        return ProjectedGradient(quadratic, projections.simplex, **options), (None,)
    if kind == "mirror":
        return MirrorDescent(quadratic, 0.3, kl_simplex(), **options), ()
    if kind == "euclidean mirror":
        mirror = MirrorMap(lambda x: x, projections.simplex)
        return MirrorDescent(quadratic, 0.3, mirror, **options), ()
    rows = lambda x, q, c: quadratic(x[0], q, c)
    prox = lambda x, scaling: projections.simplex(x)
    return BlockCoordinateDescent(rows, prox, **options), (None,)


@pytest.mark.parametrize("kind", ["projected", "mirror", "euclidean mirror", "blocks"])
def test_quadratic_on_the_simplex(kind):  # O-37, whose solution is also this
    solver, extra = simplex_solver(kind)
    shape = (lambda x: x[None]) if kind == "blocks" else (lambda x: x)
    start = shape(tensor(0.5, 0.5))
    solve = lambda c: solver.run(start, *extra, Q, c).params.flatten()
    assert_close(solve(C), tensor(0.25, 0.75), rtol=1e-9, atol=0)
    exact = torch.tensor([[-0.25, 0.25], [0.25, -0.25]], dtype=torch.float64)
    assert_close(jacrev(solve)(C), exact, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("kind", ["projected", "mirror", "euclidean mirror", "blocks"])
def test_elements_held_at_zero_have_no_derivative(kind):
    """Of three, one is held at zero: the others move as if it were not there."""
    q = torch.zeros(3, 3, dtype=torch.float64)
    q[:2, :2], q[2, 2] = Q, 1
    c = tensor(1.0, 1.0, 9.0)
    solver, extra = simplex_solver(kind)
    shape = (lambda x: x[None]) if kind == "blocks" else (lambda x: x)
    start = shape(ONE.expand(3) / 3)
    solve = lambda c: solver.run(start, *extra, q, c).params.flatten()
    assert_close(solve(c), tensor(0.25, 0.75, 0.0), rtol=1e-9, atol=1e-9)
    exact = torch.zeros(3, 3, dtype=torch.float64)
    exact[:2, :2] = torch.tensor([[-0.25, 0.25], [0.25, -0.25]])
    assert_close(jacrev(solve)(c), exact, rtol=1e-7, atol=1e-8)


def crammer_singer(n=9, seed=0):
    """Three classes of points that overlap."""
    labels = torch.arange(n) % 3
    centers = 1.5 * normal(3, 4, seed=seed)
    return centers[labels] + normal(n, 4, seed=seed + 1), torch.nn.functional.one_hot(
        labels
    ).double()


def dual_loss(beta, lam, x, y):
    w = x.T @ (y - beta) / lam
    return 0.5 * lam * w.square().sum() + (beta * y).sum()


def primal_loss(w, lam, x, y):
    scores = x @ w
    margin = (scores + 1 - y).amax(1) - (scores * y).sum(1)
    return margin.sum() + 0.5 * lam * w.square().sum()


@pytest.mark.parametrize("kind", ["mirror", "blocks", "projected"])
def test_multiclass_support_vectors(kind):  # O-35
    x, y = crammer_singer()
    simplex_rows = lambda b, scaling: projections.simplex(b)
    solver, extra = {
        "mirror": (MirrorDescent(dual_loss, 1.0, tol=1e-6, maxiter=3000), ()),
        "blocks": (
            BlockCoordinateDescent(dual_loss, simplex_rows, stepsize=0.4, tol=1e-5),
            (None,),
        ),
        "projected": (
            ProjectedGradient(dual_loss, projections.simplex, tol=1e-9, maxiter=4000),
            (None,),
        ),
    }[kind]
    solver = partial(solver.run, torch.full(y.shape, 1 / 3, dtype=torch.float64), *extra)
    lam = 10 * ONE
    weights = lambda lam: x.T @ (y - solver(lam, x, y).params) / lam
    # No duality gap: the primal loss at these weights is minus the dual one, up to a constant.
    beta = solver(lam, x, y).params
    gap = primal_loss(weights(lam), lam, x, y) + dual_loss(beta, lam, x, y) - len(y)
    assert gap.abs() < 1e-3
    difference = (weights(lam + 1e-2) - weights(lam - 1e-2)) / 2e-2
    assert_close(jacfwd(weights)(lam), difference, rtol=5e-3, atol=1e-5)


def test_simplices_may_sum_to_anything():
    mirror = kl_simplex(3.0)
    x = MirrorDescent(lambda x, y: (x - y).square().sum(), 0.3, mirror, tol=1e-10).run(
        torch.ones(3).double(), tensor(-1.0, 2.0, 3.0)
    )
    assert_close(x.params, tensor(0.0, 1.0, 2.0), rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="`value` must be positive"):
        kl_simplex(0.0)


def test_acceleration_is_worth_its_name():
    scale = torch.logspace(0, 2, 10, dtype=torch.float64)
    count = {}
    for accelerate in (False, True):
        solver = GradientDescent(
            lambda x: 0.5 * (scale * (x - 1).square()).sum(),
            acceleration=accelerate,
            tol=1e-6,
            maxiter=2000,
            stepsize=1e-2,
            on_failure="ignore",
        )
        count[accelerate] = int(solver.run(torch.zeros(10).double()).state.iter_num)
    assert 5 * count[True] < count[False]


def test_fista_is_its_formula_until_it_restarts():
    solver = ProximalGradient(least_squares, proximal.lasso, stepsize=0.3, tol=0.0)
    x = y = torch.zeros(3).double()
    t, params, state = 1.0, x, solver.init_state(x, 60.0, X, Y)
    for _ in range(3):
        z = y - 0.3 * X.T @ (X @ y - Y) / 10
        new = z.sign() * (z.abs() - 0.3 * 60).clamp(min=0)
        after = (1 + (1 + 4 * t * t) ** 0.5) / 2
        x, y, t = new, new + (t - 1) / after * (new - x), after
        params, state = solver.update(params, state, 60.0, X, Y)
        assert_close(params, x)


@pytest.mark.parametrize("steepness", [0.7, 5.0, 90.0])
def test_searched_steps_are_the_longest_of_their_grid_that_the_curvature_allows(steepness):
    solver = GradientDescent(lambda x: 0.5 * steepness * x.square(), tol=0.0)
    _, state = solver.update(ONE, solver.init_state(ONE))
    allowed = [2.0**-k for k in range(20) if 2.0**-k <= 1 / steepness]
    assert state.stepsize == allowed[0]
    assert state.num_fun_eval == 3 - torch.tensor(allowed[0]).log2() - 1


def test_schedules_give_the_step_of_each_iteration():
    solver = GradientDescent(
        lambda x: x.sum(),
        stepsize=lambda i: 1.0 / (i + 1),
        acceleration=False,
        maxiter=3,
        tol=0.0,
        on_failure="ignore",
    )
    assert_close(solver.run(0 * ONE).params, -(1 + 1 / 2 + 1 / 3) * ONE)


def test_step_sizes_are_learned_through_the_unroll():
    size = (0.1 * ONE).requires_grad_()
    solver = GradientDescent(
        lambda x: 0.5 * x.square(),
        stepsize=size,
        acceleration=False,
        maxiter=5,
        tol=0.0,
        adjoint="unroll",
        on_failure="ignore",
    )
    x = solver.run(ONE).params  # (1 - size)^5
    (slope,) = torch.autograd.grad(x, size)
    assert_close(slope, -5 * 0.9**4 * ONE)


@pytest.mark.parametrize(
    "solver",
    [
        GradientDescent(lambda x: torch.where(x < 0.5, torch.nan, x), stepsize=0.1),
        ProximalGradient(lambda x: (x - 0.6).abs() * torch.inf, proximal.none),
    ],
)
def test_values_that_are_not_finite_end_the_iterations(solver):
    x, state = type(solver)(**{**vars(solver), "on_failure": "ignore"}).run(ONE)
    assert state.status == 3
    assert x.isfinite()
