"""What every solver promises: status, counts, adjoints, callbacks, iterators."""

import pickle

import pytest
import torch
from diffopt_implicit import (
    Adjoint,
    AndersonAcceleration,
    Broyden,
    Checkpoint,
    FixedPointIteration,
    Implicit,
    OptStep,
    SolverError,
    SolverStatus,
    SolverWarning,
    Unroll,
    solve_gmres,
)
from implicit_problems import normal
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, hessian, jacfwd, vmap
from torch.testing import assert_close

ONE = torch.ones((), dtype=torch.float64)


def step(x, a):
    return {"u": 0.3 * x["u"].cos() * a, "v": 0.2 * x["u"].sum() + 0.1 * a * x["v"].sin()}


def start(dtype=torch.float64):
    return {"u": torch.zeros(2, dtype=dtype), "v": torch.ones(3, dtype=dtype)}


def end(solver, a, init=None):
    found = solver.run(start() if init is None else init, a).params
    return found["u"].square().sum() + found["v"].sum()


@pytest.mark.parametrize("make", [FixedPointIteration, AndersonAcceleration])
@pytest.mark.parametrize("segment", [1, 3, 50])
def test_checkpoints_have_the_derivatives_of_the_unroll(make, segment):
    options = {"maxiter": 7, "tol": 0.0, "on_failure": "ignore"}
    unroll = make(step, adjoint="unroll", **options)
    again = make(step, adjoint=Checkpoint(segment), **options)
    a, close = 0.7 * ONE, {"rtol": 1e-12, "atol": 1e-14}
    for transform in (grad, hessian, jacfwd, lambda f: grad(grad(f))):
        ours, theirs = (transform(lambda a, s=s: end(s, a))(a) for s in (again, unroll))
        assert_close(ours, theirs, **close)
    ours, theirs = (grad(lambda init, s=s: end(s, a, init))(start()) for s in (again, unroll))
    assert_close(ours, theirs, **close)
    ours, theirs = (
        vmap(grad(lambda a, s=s: end(s, a)))(torch.stack([a, a / 2])) for s in (again, unroll)
    )
    assert_close(ours, theirs, **close)
    assert gradcheck(lambda a: end(again, a), (a.clone().requires_grad_(),))
    assert gradgradcheck(lambda a: end(again, a), (a.clone().requires_grad_(),))


def test_checkpoints_stop_where_the_unroll_stops_and_evaluate_each_update_once_more():
    calls = []

    def counted(x, a):
        calls.append(1)
        return 0.5 * x + a

    a = ONE.clone().requires_grad_()
    alone, state = FixedPointIteration(counted, adjoint="unroll").run(ONE, a)
    forward = len(calls)
    x, again = FixedPointIteration(counted, adjoint="checkpoint", maxiter=64).run(ONE, a)
    assert_close(x, alone)
    assert again.iter_num == state.iter_num == forward == len(calls) - forward
    x.backward()
    assert len(calls) == 3 * forward


def test_implicit_and_unrolled_derivatives_agree_at_convergence():
    tight = {"tol": 1e-13, "maxiter": 400}
    adjoints = ["implicit", "unroll", "checkpoint", Implicit(solve=solve_gmres)]
    slopes = [
        grad(lambda a, by=by: end(FixedPointIteration(step, adjoint=by, **tight), a))(0.7 * ONE)
        for by in adjoints
    ]
    assert_close(slopes[1:], slopes[:1] * 3, rtol=1e-10, atol=0)


def test_an_adjoint_is_anything_that_is_called_like_one():
    class Detached:
        def __call__(self, solver, init_params, args, kwargs):
            found = solver.iterate(init_params, *args, **kwargs)
            return OptStep(found.params.detach(), found.state)

    assert all(isinstance(by, Adjoint) for by in (Detached(), Implicit(), Unroll(), Checkpoint()))
    solver = FixedPointIteration(lambda x, a: 0.5 * x + a, adjoint=Detached())
    assert not solver.run(ONE, ONE.clone().requires_grad_()).params.requires_grad


@pytest.mark.parametrize("adjoint", ["implicit", "checkpoint"])
def test_derivatives_by_closure_are_refused(adjoint):
    weight = ONE.clone().requires_grad_()
    solver = FixedPointIteration(lambda x: 0.5 * x + weight, adjoint=adjoint)
    with pytest.raises(ValueError, match="`weight` of shape"):
        solver.run(ONE)
    unused = torch.nn.Linear(1, 1)
    layer = lambda x, p: 0.1 * torch.func.functional_call(unused, p, (x,))
    given = {k: p.detach() for k, p in unused.named_parameters()}
    FixedPointIteration(layer, adjoint=adjoint).run(torch.zeros(1), given)


def test_calls_are_counted_as_they_are():
    for make in (FixedPointIteration, AndersonAcceleration, Broyden):
        calls = []

        def counted(x, calls=calls):
            calls.append(1)
            return 0.5 * (x - 1) + 0.1 * x.sin()

        state = make(counted).run(normal(3)).state
        assert state.num_fun_eval.tolist() == [len(calls)]
        assert state.status == SolverStatus.CONVERGED


def test_examples_end_with_statuses_of_their_own_and_stay_where_they_are():
    # A contraction, a slow one, and one that overflows.
    scale = torch.tensor([0.1, 0.999, 1e200], dtype=torch.float64)
    solver = FixedPointIteration(lambda x, s: s * x + 1, maxiter=20, on_failure="ignore")
    x, state = vmap(lambda s: solver.run(ONE, s))(scale)
    wanted = [SolverStatus.CONVERGED, SolverStatus.MAXITER, SolverStatus.NONFINITE]
    assert state.status.dtype == torch.int64
    assert state.status.flatten().tolist() == wanted
    assert x.isfinite().all()
    assert state.iter_num.flatten()[1] == 20
    for i in range(3):
        alone, one = solver.run(ONE, scale[i])
        assert_close(x[i], alone)
        assert_close(state.iter_num[i], one.iter_num)
    whole = FixedPointIteration(lambda x: scale[:, None] * x + 1, batched=True, maxiter=20)
    with pytest.warns(SolverWarning, match="left 2 of 3 examples"):
        assert whole.run(torch.ones(3, 1, dtype=torch.float64)).state.status.tolist() == wanted


def test_values_that_are_not_finite_end_the_iterations_at_once():
    calls = []

    def broken(x):
        calls.append(1)
        return x * torch.nan

    with pytest.raises(SolverError, match=r"\(NONFINITE\)\. NaN or infinity appeared") as error:
        FixedPointIteration(broken, on_failure="raise").run(ONE)
    assert len(calls) == 1
    assert error.value.state.status == SolverStatus.NONFINITE


def test_states_of_init_and_update_have_equal_types():
    for make in (FixedPointIteration, AndersonAcceleration, Broyden):
        solver = make(lambda x: 0.5 * x.cos())
        for x in (torch.ones(2), torch.ones(2, dtype=torch.float64)):
            before = solver.init_state(x)
            params, after = solver.update(x, before)
            assert params.dtype == x.dtype
            for one, other in zip(before[:4], after[:4], strict=True):
                assert (one.dtype, one.shape) == (other.dtype, other.shape)


def test_progress_is_told_only_if_asked_for(capsys):
    seen = []
    solver = FixedPointIteration(lambda x: 0.5 * x, callback=lambda x, state: seen.append(x))
    state = solver.run(ONE).state
    assert len(seen) == state.iter_num
    assert capsys.readouterr().out == ""
    FixedPointIteration(lambda x: 0.5 * x, maxiter=2, verbose=True, on_failure="ignore").run(ONE)
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "FixedPointIteration: iteration 1, error 0.25",
        "FixedPointIteration: iteration 2, error 0.167",
    ]


def test_checkpoints_tell_progress_once():
    seen = []
    solver = FixedPointIteration(
        lambda x, a: 0.5 * x + a, callback=lambda x, state: seen.append(1), adjoint="checkpoint"
    )
    a = ONE.clone().requires_grad_()
    x, state = solver.run(ONE, a)
    x.backward()
    assert len(seen) == state.iter_num


def test_iterators_give_an_item_an_update():
    solver = FixedPointIteration(lambda x, scale, data: scale * x + data, tol=0.0)
    x, state = solver.run_iterator(ONE, iter([1.0, 2.0, 3.0]), 0.5)
    assert_close(x, (((ONE + 2) / 2 + 4) / 2 + 6) / 2)
    assert state.iter_num == 3
    assert state.status == SolverStatus.RUNNING
    with pytest.raises(ValueError, match="`iterator` has no items"):
        solver.run_iterator(ONE, [], 0.5)
    with pytest.raises(SolverError, match="NONFINITE"):
        FixedPointIteration(lambda x, data: x * data, tol=0.0, on_failure="raise").run_iterator(
            ONE, [1.5, float("nan"), 1.0]
        )


def test_derivatives_of_an_iterator_are_those_of_its_iterations():
    scale = (0.5 * ONE).requires_grad_()
    function = lambda x, scale, data: scale * x + data
    with pytest.raises(ValueError, match="Set `adjoint='unroll'`"):
        FixedPointIteration(function).run_iterator(ONE, [1.0, 2.0], scale)
    solver = FixedPointIteration(function, adjoint="unroll", tol=0.0)
    x, _ = solver.run_iterator(ONE, [1.0, 2.0], scale)
    assert_close(torch.autograd.grad(x, scale)[0], 2 * scale.detach() + 1)


def test_optimality_error_is_the_norm_of_what_vanishes():
    solver = FixedPointIteration(lambda x: (x[0] - 3, x[1] - 4))
    assert_close(solver.l2_optimality_error((ONE, ONE)), 5 * ONE)


@pytest.mark.parametrize("adjoint", ["explicit", None, Implicit])
def test_what_is_no_adjoint_is_refused(adjoint):
    with pytest.raises(ValueError, match="`adjoint` must be 'implicit', 'unroll', 'checkpoint'"):
        FixedPointIteration(torch.cos, adjoint=adjoint)


def test_segments_must_be_positive():
    with pytest.raises(ValueError, match="`segment` must be positive"):
        Checkpoint(0)


def test_solvers_are_values():
    solver = FixedPointIteration(torch.cos, adjoint=Checkpoint(3), tol=1e-4)
    assert pickle.loads(pickle.dumps(solver)) == solver
