"""Hypergradients of a problem made with NumPy and scikit-learn, whose numbers are known."""

import functools

import numpy as np
import pytest
import torch
from diffopt_explicit import Replay, Store, sgd, unroll
from diffopt_implicit import CG, F2SA, Exact, FixedPoint, Neumann, NormalCG, hypergradient
from sklearn.model_selection import train_test_split
from torch.nn.functional import binary_cross_entropy_with_logits as cross_entropy

STEP, STEPS = 0.1, 100


@functools.cache
def data():
    np.random.seed(1)
    truth = np.random.randn(20, 1)
    x = np.random.randn(1000, 20)
    y = (x @ truth + 0.1 * np.random.randn(1000, 1) > 0).astype(float)
    return [torch.from_numpy(part) for part in train_test_split(x, y, test_size=0.5)]


def inner(w, lam):
    x, _, y, _ = data()
    return cross_entropy(x @ w, y[:, 0]) + 0.5 * (w * lam * w).sum()


def outer(w, lam):
    _, x, _, y = data()
    return cross_entropy(x @ w, y[:, 0])


def descend(lam, steps=STEPS):
    w = torch.zeros(20, dtype=torch.float64)
    return unroll(lambda w: inner(w, lam), sgd(lr=STEP), w, steps=steps).params


LAM = torch.ones(20, dtype=torch.float64)


@functools.cache
def solved():
    w = descend(LAM, 2000)
    return w, -w * torch.linalg.solve(
        torch.func.hessian(inner)(w, LAM), torch.func.grad(outer)(w, LAM)
    )


def test_the_solution_is_the_published_one():  # O-23
    w, exact = solved()
    assert inner(w, LAM).item() == pytest.approx(0.62408993397, rel=1e-9)
    assert outer(w, LAM).item() == pytest.approx(0.57439877209, rel=1e-9)
    assert exact.norm().item() == pytest.approx(0.0285658316, rel=1e-8)
    first = [0.00865940913, 0.00151014050, 0.00079047230]
    assert exact[:3].tolist() == pytest.approx(first, rel=1e-7)


@pytest.mark.parametrize("method", [Exact(), CG(), NormalCG(), CG(5), Neumann(400, STEP)], ids=repr)
def test_methods_find_the_exact_hypergradient(method):  # O-23
    w, exact = solved()
    found = hypergradient(inner, outer, w, LAM, method)
    assert (found - exact).norm() < 1e-5 * exact.norm()


def test_at_the_unsolved_point_the_error_is_that_of_the_inner_solution():  # O-23
    w, exact = descend(LAM), solved()[1]
    error = (hypergradient(inner, outer, w, LAM, CG(10)) - exact).norm() / exact.norm()
    assert 1e-6 < error < 3e-6


@pytest.mark.parametrize("count", [1, 5, 10, 20])
def test_series_converge_linearly_at_the_rate_of_the_descent(count):  # O-22, O-23
    w, exact = solved()
    by_series = hypergradient(inner, outer, w, LAM, Neumann(count, STEP))
    by_steps = hypergradient(inner, outer, w, LAM, FixedPoint(count + 1, STEP))
    assert (by_series - by_steps).abs().max() < 1e-16
    error = ((by_series - exact).norm() / exact.norm()).item()
    slow, fast = (1 - STEP * e for e in (1.15101, 1.33593))
    assert fast ** (count + 1) < error < slow ** (count + 1)


@pytest.mark.parametrize("count", [1, 5, 20])
def test_a_truncated_unroll_at_the_minimum_is_the_fixed_point_iteration(count):
    w, _ = solved()
    lam = LAM.clone().requires_grad_()
    end = unroll(lambda w: inner(w, lam), sgd(lr=STEP), w, steps=count).params
    (through,) = torch.autograd.grad(outer(end, lam), lam)
    ours = hypergradient(inner, outer, w, LAM, FixedPoint(count, STEP))
    assert (ours - through).norm() < 1e-9 * ours.norm()


def test_reverse_from_stored_iterates_is_the_unroll():  # O-21
    found = []
    for adjoint in (Store(), Replay(), Replay(snapshots=3)):
        lam = LAM.clone().requires_grad_()
        start = torch.zeros(20, dtype=torch.float64)
        tx, given = sgd(lr=STEP), {"meta_params": lam, "adjoint": adjoint}
        end = unroll(inner, tx, start, steps=STEPS, **given).params
        found.append(torch.autograd.grad(outer(end, lam), lam)[0])
    assert torch.equal(found[1], found[2])
    assert (found[1] - found[0]).norm() < 1e-14 * found[0].norm()


def test_first_order_methods_come_near():
    w, exact = solved()
    found = hypergradient(inner, outer, w, LAM, F2SA(300, STEP, 1e5))
    assert (found - exact).norm() < 1e-4 * exact.norm()


def test_the_outer_descent_ends_where_it_is_published_to():
    lam, momentum, w = LAM.clone(), torch.zeros_like(LAM), None
    values = []
    for _ in range(40):
        w = descend(lam).detach()
        values.append(outer(w, lam).item())
        momentum = 0.9 * momentum + hypergradient(inner, outer, w, lam, FixedPoint(10, STEP))
        lam = (lam - momentum).clamp(min=1e-8)
    values.append(outer(descend(lam), lam).item())
    known = [0.5744, 0.5338, 0.3615, 0.2988]
    assert [values[i] for i in (0, 10, 20, 40)] == pytest.approx(known, abs=1e-3)
