"""Hypergradients that are refused, and what the methods are as values."""

import pickle
from dataclasses import FrozenInstanceError

import pytest
import torch
from diffopt_implicit import (
    BOME,
    CG,
    F2SA,
    SAMA,
    Exact,
    FiniteDifference,
    FixedPoint,
    LinearSolveError,
    Neumann,
    NormalCG,
    Nystrom,
    StochasticAdjoint,
    hypergradient,
)
from hypergradient_problems import EVERY, Quadratic, name_of, ridge_outer
from implicit_problems import LAM, RIDGE_W, X, Y, normal, ridge_objective, ridge_solution
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.testing import assert_close


def test_a_loss_that_draws_random_numbers_is_refused():
    problem = Quadratic()
    inner = lambda w, lam: problem.inner(nn.functional.dropout(w, 0.5), lam)
    w = problem.minimum(problem.lam)
    with pytest.raises(ValueError, match=r"draws random numbers \(dropout in training mode\?\)"):
        hypergradient(inner, problem.outer, w, problem.lam, CG(3))
    outer = lambda w, lam: problem.outer(nn.functional.dropout(w, 0.5), lam)
    assert hypergradient(problem.inner, outer, w, problem.lam).isfinite().all()


def test_a_hessian_that_is_not_positive_definite_is_refused_by_conjugate_gradients():
    inner = lambda w, lam: (w[0] - lam) ** 2 - (w[1] - lam) ** 2
    outer = lambda w, lam: w.square().sum()
    w, lam = torch.ones(2), torch.tensor(1.0)
    for method in (CG(), CG(5)):
        with pytest.raises(LinearSolveError, match=r"`CG` failed.*not positive definite"):
            hypergradient(inner, outer, w, lam, method)
    assert_close(hypergradient(inner, outer, w, lam, NormalCG()), torch.tensor(4.0))
    with pytest.warns(UserWarning, match="not positive definite"):
        hypergradient(inner, outer, w, lam, CG(5, on_failure="warn"))


@pytest.mark.parametrize("method", [Neumann(5, 10.0), FixedPoint(5, 10.0)])
def test_a_series_that_diverges_is_refused_with_advice(method):
    with pytest.raises(LinearSolveError, match="lower `step_size`"):
        Quadratic().by(method)


@pytest.mark.parametrize("method", EVERY, ids=name_of)
def test_a_module_called_with_its_own_parameters_is_refused(method):
    net = nn.Linear(3, 1).double()
    x, y, lam = normal(8, 3), normal(8, 1), torch.ones((), dtype=torch.float64)
    params = {name: p.detach() for name, p in net.named_parameters()}
    own = lambda p, lam: (net(x) - y).square().mean() + lam * net.weight.square().sum()
    given = lambda p, lam: (
        (functional_call(net, p, (x,)) - y).square().mean() + lam * p["weight"].square().sum()
    )
    message = r"`%s` does not depend on `params`.*functional_call\(module, params, inputs\)"
    with pytest.raises(ValueError, match=message % "inner_loss"):
        hypergradient(own, given, params, lam, method)
    with pytest.raises(ValueError, match=message % "outer_loss"):
        hypergradient(given, own, params, lam, method)
    if method.differentiable:
        with pytest.raises(ValueError, match=message % "inner_loss"):
            hypergradient(own, given, params, lam, method, create_graph=True)
        with pytest.raises(ValueError, match=message % "inner_loss"):
            vmap(lambda lam: hypergradient(own, given, params, lam, method))(lam[None])


def test_an_outer_loss_of_the_hyperparameters_alone_has_a_derivative():
    problem = Quadratic()
    inner, lam = problem.inner, problem.lam
    outer = lambda w, lam: lam.square().sum()
    for method in EVERY:
        if not isinstance(method, BOME):
            found = hypergradient(inner, outer, problem.minimum(lam), lam, method)
            assert_close(found, 2 * lam, rtol=1e-12, atol=1e-12)


def test_nan_is_refused():
    problem = Quadratic()
    for method in (CG(3), NormalCG(3), Neumann(3), Exact(), Nystrom(3)):
        inner = lambda w, lam: problem.inner(w, lam) * torch.nan
        with pytest.raises(LinearSolveError, match="NaN or infinity"):
            hypergradient(inner, problem.outer, problem.minimum(problem.lam), problem.lam, method)


def test_bad_input_is_refused_where_it_is_given():
    problem = Quadratic()
    w, lam = problem.minimum(problem.lam), problem.lam
    with pytest.raises(ValueError, match=r"`inner_loss` must return a scalar tensor, got \(6,\)"):
        hypergradient(lambda w, lam: w, problem.outer, w, lam)
    with pytest.raises(ValueError, match="`outer_loss` must return a scalar tensor, got float"):
        hypergradient(problem.inner, lambda w, lam: 1.0, w, lam)
    with pytest.raises(ValueError, match="`init` must have the structure and shapes"):
        hypergradient(problem.inner, problem.outer, w, lam, init=w[:2])
    with pytest.raises(TypeError, match="`params` must hold floating-point tensors"):
        hypergradient(problem.inner, problem.outer, w.long(), lam)
    with pytest.raises(ValueError, match="What `update` returns must have the structure"):
        hypergradient(problem.inner, problem.outer, w, lam, SAMA(lambda g: g[:1]))
    for make, message in [
        (lambda: CG(-1), "`iterations` must be at least 0, got -1"),
        (lambda: CG(ridge=-1.0), "`ridge` must be at least 0"),
        (lambda: CG(on_failure="shrug"), "`on_failure` must be"),
        (lambda: Neumann(5, 0.0), "`step_size` must be positive"),
        (lambda: FixedPoint(0), "`iterations` must be positive"),
        (lambda: Nystrom(0), "`rank` must be positive"),
        (lambda: FiniteDifference(0.0), "`epsilon` must be positive"),
        (lambda: SAMA(alpha=0.0), "`alpha` must be positive"),
        (lambda: F2SA(penalty=0.0), "`penalty` must be positive"),
        (lambda: BOME(eta=-1.0), "`eta` must be at least 0"),
        (lambda: StochasticAdjoint(0), "`iterations` must be positive"),
    ]:
        with pytest.raises(ValueError, match=message):
            make()


@pytest.mark.parametrize("method", EVERY, ids=name_of)
def test_methods_are_values(method):
    copy = pickle.loads(pickle.dumps(method))
    assert type(copy) is type(method)
    assert repr(copy) == repr(method)  # two of `functools.partial` are never equal
    with pytest.raises(FrozenInstanceError):
        copy.iterations = 3


def test_single_and_half_precision_keep_their_dtypes():
    for dtype in (torch.float32, torch.bfloat16):
        w, lam = RIDGE_W.to(dtype), LAM.to(dtype)
        inner = lambda w, lam, dtype=dtype: ridge_objective(w, lam, X.to(dtype), Y.to(dtype))
        exact = grad(lambda lam: ridge_outer(ridge_solution(lam, X, Y), lam))(LAM)
        for method in (CG(3), Neumann(20, 0.1), Exact(), FiniteDifference(), F2SA(20, 0.1)):
            found = hypergradient(inner, ridge_outer, w, lam, method)
            assert found.dtype == dtype
            if isinstance(method, (CG, Exact)):
                assert_close(found.double(), exact, rtol=0.05, atol=0)
