"""What all minimizers promise, on problems with known minima and derivatives."""

import dataclasses

import pytest
import torch
from diffopt_implicit import (
    LBFGS,
    LBFGSB,
    Checkpoint,
    GradientDescent,
    Implicit,
    NonlinearCG,
    SolverError,
    SolverStatus,
    SolverWarning,
    solve_cg,
)
from minimizers import QUASI, all_solvers
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, jacfwd, jacrev, vmap
from torch.testing import assert_close

ONE = torch.ones((), dtype=torch.float64)
NAMES = sorted(all_solvers(None, 1.0))
# Those whose step size falls with the value, which is not 0 at the minimum, are none of these.
EXACT = [name for name in NAMES if name != "PolyakSGD"]


def bowl(x, a):
    """Of minimum 0 at a solution that is smooth and not linear in `a`."""
    residual = torch.cat([x["u"] + 0.1 * x["u"] ** 3 - a, 2 * x["v"] - a.sum().sin()])
    return 0.5 * residual.square().sum()


def start(dtype=torch.float64):
    return {"u": torch.zeros(2, dtype=dtype), "v": torch.zeros(1, dtype=dtype)}


A = torch.tensor([0.3, -0.4], dtype=torch.float64)


def solved(name, a, init=None, **options):
    solver, extra = all_solvers(bowl, 0.2, **{"tol": 1e-11, "maxiter": 3000, **options})[name]
    return solver.run(start() if init is None else init, *extra, a)


@pytest.mark.parametrize("name", NAMES)
def test_every_solver_finds_the_bottom_of_a_bowl_and_its_derivative(name):
    x, state = solved(name, A)
    assert state.status == SolverStatus.CONVERGED
    assert state.error <= 1e-11
    assert_close(x["v"], A.sum().sin().reshape(1) / 2, rtol=1e-9, atol=0)
    assert_close(x["u"] + 0.1 * x["u"] ** 3, A, rtol=1e-9, atol=0)
    u = x["u"]
    slopes = jacrev(lambda a: solved(name, a).params["u"])(A)
    assert_close(slopes, torch.diag(1 / (1 + 0.3 * u**2)), rtol=1e-8, atol=1e-10)
    slopes = jacfwd(lambda a: solved(name, a).params["v"])(A)
    assert_close(slopes, A.sum().cos().expand(1, 2) / 2, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", ["LBFGS", "ProximalGradient", "LBFGSB"])
def test_solutions_have_derivatives_of_both_orders(name):
    def flat(a):
        x = solved(name, a, tol=1e-13).params
        return torch.cat([x["u"], x["v"]])

    a = A.clone().requires_grad_()
    assert gradcheck(flat, (a,), check_forward_ad=True)
    assert gradgradcheck(flat, (a,))


@pytest.mark.parametrize("name", EXACT)
def test_implicit_and_unrolled_derivatives_agree_at_convergence(name):
    options = {"tol": 1e-10, "maxiter": 400}
    adjoints = [Implicit(solve=solve_cg), "unroll", Checkpoint(8)]
    slopes = [
        grad(lambda a, by=by: solved(name, a, adjoint=by, **options).params["u"].sum())(A)
        for by in adjoints
    ]
    assert_close(slopes[1], slopes[0], rtol=1e-4, atol=1e-5)
    assert_close(slopes[2], slopes[1], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", EXACT)
def test_examples_under_vmap_are_the_loop_and_stop_on_their_own(name):
    far = torch.stack([A, 5 * A, 0 * A])
    x, state = vmap(lambda a: solved(name, a))(far)
    for i in range(3):
        alone, one = solved(name, far[i])
        assert_close(x["u"][i], alone["u"], rtol=1e-9, atol=1e-10)
        assert state.status[i] == one.status == SolverStatus.CONVERGED
        assert abs(int(state.iter_num[i] - one.iter_num)) <= 1
        assert abs(int(state.num_fun_eval[i] - one.num_fun_eval)) <= 5
    assert len(set(state.iter_num.tolist())) > 1
    slopes = vmap(grad(lambda a: solved(name, a).params["u"].sum()))(far)
    loop = [grad(lambda a: solved(name, a).params["u"].sum())(a) for a in far]
    assert_close(slopes, torch.stack(loop), rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("name", NAMES)
def test_calls_are_counted_as_they_are(name):  # O-48
    calls = []

    def counted(x, a):
        calls.append(1)
        return bowl(x, a)

    solver, extra = all_solvers(counted, 0.2, tol=1e-8, maxiter=50, on_failure="ignore")[name]
    state = solver.run(start(), *extra, A).state
    assert state.num_fun_eval == len(calls) > 2
    assert 0 < state.num_grad_eval <= state.num_fun_eval


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_parameters_keep_their_dtype_and_states_their_types(name, dtype):  # O-48
    other = torch.float64 if dtype == torch.float32 else torch.float32
    fun = lambda x, a: bowl(x, a.to(dtype)).to(other)
    solver, extra = all_solvers(fun, 0.2)[name]
    state = solver.init_state(start(dtype), *extra, A)
    params, after = solver.update(start(dtype), state, *extra, A)
    assert {leaf.dtype for leaf in params.values()} == {dtype}
    for field, one, two in zip(state._fields, state, after, strict=True):
        if isinstance(one, torch.Tensor):
            assert (field, one.dtype, one.shape) == (field, two.dtype, two.shape)
    params = solver.run(start(dtype), *extra, A).params
    assert {leaf.dtype for leaf in params.values()} == {dtype}


@pytest.mark.parametrize("name", [name for name in NAMES if name != "AndersonWrapper"])
def test_aux_is_that_of_the_function(name):
    fun = lambda x, a: (bowl(x, a), {"sum": a.sum(), "name": "bowl"})
    solver, extra = all_solvers(fun, 0.2, tol=1e-4)[name]
    solver = dataclasses.replace(solver, has_aux=True)
    state = solver.run(start(), *extra, A).state
    assert state.aux["name"] == "bowl"
    assert_close(state.aux["sum"], A.sum())


@pytest.mark.parametrize("name", NAMES)
def test_values_that_are_not_finite_end_the_iterations_at_once(name):
    calls = []

    def broken(x):
        calls.append(1)
        return x.sum() * torch.nan

    solver, extra = all_solvers(broken, 0.2, on_failure="raise")[name]
    with pytest.raises(SolverError, match=r"\(NONFINITE\)") as error:
        solver.run(torch.ones(2), *extra)
    assert error.value.state.status == SolverStatus.NONFINITE
    assert len(calls) <= 4


@pytest.mark.parametrize("name", NAMES)
def test_functions_must_return_a_real_scalar(name):
    for fun, kind, message in (
        (lambda x: x, ValueError, r"must return a real scalar, got torch.float32 of shape \(2,\)"),
        (lambda x: (x.sum(), 1), TypeError, "set `has_aux=True`"),
    ):
        solver, extra = all_solvers(fun, 0.2)[name]
        with pytest.raises(kind, match=message):
            solver.run(torch.ones(2), *extra)


@pytest.mark.parametrize("make", [*QUASI, LBFGSB])
def test_gradients_that_are_kept_are_of_one_function(make):
    with pytest.raises(TypeError, match="compares gradients of one function, and each item"):
        make(lambda x, data: x.sum()).run_iterator(torch.ones(2), [1, 2])


def test_a_start_at_the_minimum_takes_no_step():
    for make in QUASI:
        state = make(lambda x: x.square().sum()).run(torch.zeros(3)).state
        assert (state.iter_num, state.num_fun_eval, state.status) == (0, 1, 0)


def test_slopes_that_no_step_follows_are_reported():
    class WrongSign(torch.autograd.Function):
        @staticmethod
        def forward(x):
            return x.square().sum()

        @staticmethod
        def setup_context(ctx, inputs, output):
            ctx.save_for_backward(*inputs)

        @staticmethod
        def backward(ctx, v):
            return -2 * v * ctx.saved_tensors[0]

    for make in QUASI:
        with pytest.warns(SolverWarning, match=r"\(LINE_SEARCH_FAILED\)\. No step decreased"):
            state = make(WrongSign.apply).run(torch.ones(2)).state
        assert state.status == SolverStatus.LINE_SEARCH_FAILED
        assert state.iter_num == 1


def test_functions_without_a_bottom_end_within_the_iterations():
    for make in QUASI:
        solver = make(lambda x: x.sum(), maxiter=20, on_failure="ignore")
        assert solver.run(torch.ones(2)).state.status != SolverStatus.CONVERGED


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LBFGS(bowl, history_size=0), "`history_size` must be positive"),
        (lambda: NonlinearCG(bowl, method="newton"), "`method` must be one of 'polak-ribiere'"),
        (lambda: GradientDescent(bowl, stepsize=-1.0), "`stepsize` must be positive"),
        (lambda: GradientDescent(bowl, maxls=0), "`maxls` must be positive"),
        (lambda: LBFGSB(bowl, maxls=0), "`maxls` must be positive"),
    ],
)
def test_bad_options_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_aux_that_is_missing_is_missed():
    with pytest.raises(ValueError, match=r"must return `\(value, aux\)`, got Tensor"):
        LBFGS(lambda x: x.sum(), has_aux=True).run(torch.ones(2))


@pytest.mark.parametrize("name", NAMES)
def test_unrolled_derivatives_are_those_of_what_was_computed(name):
    def end(a, shift):
        init = {"u": shift, "v": shift[:1] ** 2}
        options = {"tol": 0.0, "maxiter": 4, "adjoint": "unroll", "on_failure": "ignore"}
        x = solved(name, a, init, **options).params
        return torch.cat([x["u"], x["v"]])

    inputs = (2 * A).requires_grad_(), torch.tensor([1.0, 0.5]).double().requires_grad_()
    assert gradcheck(end, inputs, eps=1e-6, atol=1e-6)
