"""Minima through operations for which torch 2.13 gives wrong values reverse over forward."""

from functools import partial

import pytest
import torch
from diffopt_implicit import CG, Exact, custom_root, hypergradient, solve_lu, solve_normal_cg
from implicit_problems import normal
from torch.func import grad, hessian, jacfwd, jacrev, vmap
from torch.nn import functional
from torch.testing import assert_close

RIGHT = normal(4, seed=2)
EYE = 3 * torch.eye(4, dtype=torch.float64)
OPERATIONS = {
    "layer norm": lambda w: functional.layer_norm(w, (4,)),
    "batch norm": lambda w: functional.batch_norm(w[:, None], None, None, training=True)[:, 0],
    "solve": lambda w: torch.linalg.solve(EYE + torch.outer(w, w.flip(0)), RIGHT),
    "slogdet": lambda w: torch.linalg.slogdet(EYE + torch.outer(w, w.flip(0)))[1].expand(4),
}
A, SHARE = 1 + 0.2 * normal(4), normal(4, seed=1)


def objective(operation, w, a):
    return (w - a).square().sum() / 2 + 0.1 * SHARE @ operation(w * a).tanh()


def minimum(operation, a):
    w = a
    for _ in range(20):
        slope = grad(partial(objective, operation))(w, a)
        w = w - torch.linalg.solve(hessian(partial(objective, operation))(w, a), slope)
    return w


def differences(function, a, step=1e-5):
    columns = [(function(a + step * e) - function(a - step * e)) / (2 * step) for e in EYE / 3]
    return torch.stack(columns, dim=-1)


@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)
@pytest.mark.parametrize("solve", [solve_normal_cg, solve_lu])
def test_minima_through_it_are_differentiated_in_both_modes(operation, solve):
    decorate = custom_root(grad(partial(objective, operation)), solve=solve)
    solver = partial(decorate(lambda init, a: minimum(operation, a)), None)
    exact = differences(partial(minimum, operation), A)
    for transform in (jacrev, jacfwd):
        assert_close(transform(solver)(A), exact, rtol=1e-6, atol=1e-8)
    assert_close(vmap(jacfwd(solver))(A[None])[0], exact, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)
@pytest.mark.parametrize("method", [CG(), Exact()], ids=repr)
def test_hypergradients_through_it_are_those_of_finite_differences(operation, method):
    outer = lambda w, a: w.sin().sum() + a @ w
    w = minimum(operation, A)
    found = hypergradient(partial(objective, operation), outer, w, A, method)
    exact = differences(lambda a: outer(minimum(operation, a), a), A)
    assert_close(found, exact, rtol=1e-6, atol=1e-8)
