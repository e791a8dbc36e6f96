"""Minibatches, optimizers as solvers, and Anderson's acceleration of solvers."""

from functools import partial

import pytest
import torch
from diffopt_implicit import (
    AndersonAcceleration,
    AndersonWrapper,
    ArmijoSGD,
    BlockCoordinateDescent,
    GradientDescent,
    MirrorDescent,
    OptimizerSolver,
    PolyakSGD,
    ProximalGradient,
    SolverStatus,
    proximal,
)
from implicit_problems import X, Y, normal, spd
from minimizers import SGD
from torch.func import grad, jacfwd, jacrev, vmap
from torch.testing import assert_close

W = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)


def loss(w, data):
    return (data @ w - data @ W).square().mean()


BATCHES = normal(300, 8, 3)


def test_polyaks_steps_converge_and_their_derivatives_do_not():
    a, start = spd(3), torch.zeros(3, dtype=torch.float64)
    fun = lambda x, b: (a @ x - b).square().sum()
    solver = partial(PolyakSGD, fun, max_stepsize=10.0, tol=1e-9)
    solve = lambda b, adjoint: solver(adjoint=adjoint).run(start, b).params
    b, inverse = normal(3, seed=1), torch.linalg.inv(a)
    assert_close(solve(b, "implicit"), inverse @ b, rtol=1e-7, atol=1e-7)
    assert_close(jacrev(solve)(b, "implicit"), inverse, rtol=1e-7, atol=1e-7)
    assert (jacfwd(solve)(b, "unroll") - inverse).norm() > 1e3


@pytest.mark.parametrize(
    "solver",
    [
        PolyakSGD(loss),
        PolyakSGD(loss, max_stepsize=0.3, momentum=0.5),
        ArmijoSGD(loss),
        ArmijoSGD(loss, c1=0.3, momentum=0.5, max_stepsize=0.5),
        GradientDescent(loss, stepsize=0.1, acceleration=False),
        OptimizerSolver(loss, partial(torch.optim.Adam, lr=0.1)),
        OptimizerSolver(loss, SGD(0.1)),
    ],
    ids=str,
)
def test_models_that_fit_each_batch_are_found_from_batches(solver):
    w, state = solver.run_iterator(torch.zeros(3).double(), BATCHES)
    assert_close(w, W, rtol=1e-4, atol=1e-4)
    assert state.iter_num <= 300
    assert state.num_fun_eval >= state.iter_num


def test_polyak_steps_are_their_formula():
    fun = lambda x: 0.5 * (x - 1) ** 2 + 3
    solver = PolyakSGD(fun, fun_min=3.0, delta=0.5, max_stepsize=10.0)
    x = torch.tensor(5.0, dtype=torch.float64)
    new, state = solver.update(x, solver.init_state(x))
    assert_close(state.stepsize, torch.tensor(8 / 16.5, dtype=torch.float64))
    assert_close(new, x - 8 / 16.5 * 4)
    capped = PolyakSGD(fun, fun_min=3.0, max_stepsize=0.1)
    assert_close(capped.update(x, capped.init_state(x)).params, x - 0.4)


def test_momentum_adds_a_share_of_the_last_step():
    solver = PolyakSGD(lambda x: x.square(), max_stepsize=0.1, momentum=0.5, tol=0.0)
    x = torch.tensor(1.0, dtype=torch.float64)
    one, state = solver.update(x, solver.init_state(x))
    two, _ = solver.update(one, state)
    assert_close(one, x - 0.2)
    assert_close(two, one - 0.2 * one + 0.5 * (one - x))


def test_armijo_steps_shrink_until_the_value_falls_enough():
    solver = ArmijoSGD(lambda x: 5 * x**2, c1=0.5, decrease=0.5, increase=2.0)
    x = torch.tensor(1.0, dtype=torch.float64)
    new, state = solver.update(x, solver.init_state(x))
    # 5 (1 - 10 t)^2 <= 5 - 50 t holds from t = 0.1 on: 1, 1/2, 1/4, 1/8 are too long.
    assert_close(state.stepsize, torch.tensor(1 / 16, dtype=torch.float64))
    assert state.num_fun_eval == 6
    _, state = solver.update(new, state)
    assert_close(state.stepsize, torch.tensor(1 / 16, dtype=torch.float64))
    assert state.num_fun_eval == 6 + 3


@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.Adam, torch.optim.LBFGS])
def test_optimizers_of_torch_take_their_own_steps(make):
    options = {"lr": 0.1}
    fun = lambda p: (p["w"].cosh() * (1 + p["b"].square())).sum()
    start = {"w": normal(3), "b": normal(1, seed=1)}
    if make is torch.optim.LBFGS:
        solver = OptimizerSolver(fun, partial(make, **options))
        with pytest.raises(TypeError, match="closure"):
            solver.run(start)
        return
    solver = OptimizerSolver(fun, partial(make, **options), tol=0.0, maxiter=5, on_failure="ignore")
    ours = solver.run(start).params
    theirs = {k: v.clone().requires_grad_() for k, v in start.items()}
    optimizer = make([theirs["b"], theirs["w"]], **options)
    for _ in range(5):
        optimizer.zero_grad()
        fun(theirs).backward()
        optimizer.step()
    assert_close(ours, {k: v.detach() for k, v in theirs.items()}, rtol=1e-12, atol=0)
    assert_close(start["w"], normal(3))


def test_updates_of_an_optimizer_do_not_change_the_state_they_are_given():
    solver = OptimizerSolver(lambda x: x.square().sum(), partial(torch.optim.Adam, lr=0.1), tol=0.0)
    x = torch.ones(2)
    first = solver.init_state(x)
    once, second = solver.update(x, first)
    assert_close(solver.update(x, first).params, once, rtol=0, atol=0)
    twice = solver.update(once, second).params
    assert_close(solver.update(once, second).params, twice, rtol=0, atol=0)


def test_optimizers_of_torch_are_neither_unrolled_nor_batched():
    make = partial(torch.optim.SGD, lr=0.1)
    fun = lambda x, a: (x - a).square().sum()
    a = torch.ones(2, requires_grad=True)
    with pytest.raises(ValueError, match="can be neither unrolled nor batched"):
        OptimizerSolver(fun, make, adjoint="unroll").run(torch.zeros(2), a)
    with pytest.raises(ValueError, match="can be neither unrolled nor batched"):
        vmap(lambda a: OptimizerSolver(fun, make).run(torch.zeros(2), a).params)(torch.ones(3, 2))
    x = OptimizerSolver(fun, make).run(torch.zeros(2), a).params
    assert_close(torch.autograd.grad(x.sum(), a)[0], torch.ones(2))


def test_transforms_are_unrolled_and_batched():
    fun = lambda x, a: (x - a).square().sum()
    options = {"tol": 0.0, "maxiter": 3, "on_failure": "ignore"}
    solver = OptimizerSolver(fun, SGD(0.1), adjoint="unroll", **options)
    slope = vmap(grad(lambda a: solver.run(torch.zeros(2), a).params.sum()))(torch.ones(4, 2))
    assert_close(slope, torch.full((4, 2), 1 - 0.8**3))


def test_what_is_no_optimizer_is_refused():
    with pytest.raises(TypeError, match=r"`opt` must have `init` and `update`, or make.*got float"):
        OptimizerSolver(loss, 0.1)
    with pytest.raises(TypeError, match=r"must make a `torch.optim.Optimizer`.*got list"):
        OptimizerSolver(loss, list).run(torch.zeros(3))


def test_accelerated_steps_are_those_of_accelerated_maps():
    matrix, b = spd(6), normal(6)
    fun = lambda x: 0.5 * x @ matrix @ x - b @ x
    plain = GradientDescent(fun, stepsize=0.2, acceleration=False)
    ours = AndersonWrapper(plain, memory=3, tol=0.0, maxiter=7, on_failure="ignore")
    theirs = AndersonAcceleration(
        lambda x: x - 0.2 * (matrix @ x - b), memory=3, tol=0.0, maxiter=7, on_failure="ignore"
    )
    start = torch.zeros(6).double()
    assert_close(ours.run(start).params, theirs.run(start).params)


@pytest.mark.parametrize(
    "solver",
    [
        GradientDescent(lambda w: ((X @ w - Y) ** 2).mean(), stepsize=0.2, acceleration=False),
        MirrorDescent(lambda w: ((X @ w - Y / 300) ** 2).mean(), 0.3),
        BlockCoordinateDescent(lambda w: ((X @ w - Y) ** 2).mean(), stepsize=0.2),
    ],
    ids=lambda solver: type(solver).__name__,
)
def test_acceleration_saves_updates_and_ends_at_the_same_point(solver):
    start = torch.ones(3).double() / 3
    plain = type(solver)(**{**vars(solver), "tol": 1e-8, "maxiter": 3000})
    x, state = plain.run(start)
    y, fewer = AndersonWrapper(solver, tol=1e-8).run(start)
    assert_close(y, x, rtol=1e-6, atol=1e-7)
    assert fewer.status == SolverStatus.CONVERGED
    assert 2 * fewer.iter_num < state.iter_num


def test_calls_of_the_wrapped_solver_are_its_wrappers():
    calls = []

    def counted(x):
        calls.append(1)
        return (x - 3).square().sum()

    state = AndersonWrapper(GradientDescent(counted), tol=1e-6).run(torch.zeros(2)).state
    assert state.num_fun_eval == len(calls) > state.num_grad_eval == state.iter_num


def test_failures_of_the_wrapped_solver_are_its_wrappers():
    wrapped = ProximalGradient(lambda x: x.sum() * torch.nan, proximal.none)
    state = AndersonWrapper(wrapped, on_failure="ignore").run(torch.ones(2)).state
    assert state.status == SolverStatus.NONFINITE


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PolyakSGD(loss, max_stepsize=0.0), "`max_stepsize` must be positive"),
        (lambda: PolyakSGD(loss, momentum=1.0), r"`momentum` must be in \[0, 1\)"),
        (lambda: PolyakSGD(loss, delta=-1.0), "`delta` must be at least 0"),
        (lambda: ArmijoSGD(loss, c1=1.0), r"`c1` must be in \(0, 1\)"),
        (lambda: ArmijoSGD(loss, decrease=0.0), r"`decrease` must be in \(0, 1\)"),
        (lambda: ArmijoSGD(loss, increase=0.9), "`increase` must be at least 1"),
        (lambda: AndersonWrapper(GradientDescent(loss), memory=0), "`memory` must be positive"),
    ],
)
def test_bad_options_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
