"""Quadratic programs with equations alone, and quadratic programs as a layer."""

import pytest
import torch
from diffopt_implicit import EqualityQP, KKTSolution, QPLayer, SolverError, solve_minres
from implicit_problems import normal
from quadratic_programs import finite_program
from torch.autograd import gradcheck, gradgradcheck
from torch.func import vmap
from torch.testing import assert_close

# Equations alone


def test_equations_alone_take_one_system():
    Q, c, A, b, *_ = finite_program(0)
    solution, state = EqualityQP().run(None, (Q, c), (A, b))
    matrix = torch.cat([torch.cat([Q, A.T], 1), torch.cat([A, torch.zeros(1, 1)], 1)])
    expected = torch.linalg.solve(matrix, torch.cat([-c, b]))
    assert_close(torch.cat(tuple(solution)), expected)
    assert state.iter_num == 1
    iterative = EqualityQP(solve=solve_minres, tol=1e-6).run(None, (Q, c), (A, b)).params
    assert_close(torch.cat(tuple(iterative)), expected, rtol=1e-6, atol=1e-7)
    free = EqualityQP().run(None, (Q, c)).params
    assert_close(free, KKTSolution(-torch.linalg.solve(Q, c), c[:0], c[:0]))


def test_derivatives_with_equations_alone():
    inputs = tuple(t.clone().requires_grad_() for t in finite_program(0)[:4])
    call = lambda Q, c, A, b: tuple(EqualityQP().run(None, (Q, c), (A, b)).params)
    assert gradcheck(call, inputs, check_forward_ad=True)
    assert gradgradcheck(call, inputs)
    batch = vmap(lambda c: call(inputs[0], c, *inputs[2:])[0])(normal(3, 4))
    assert_close(batch[1], call(inputs[0], normal(3, 4)[1], *inputs[2:])[0])


def test_products_may_be_functions_of_trees():
    scale = {"u": torch.tensor([1.0, 2.0]).double(), "v": torch.tensor(4.0).double()}
    c = {"u": torch.ones(2).double(), "v": torch.tensor(-1.0).double()}
    solver = EqualityQP(
        matvec_Q=lambda Q, x: {k: Q[k] * x[k] for k in x},
        matvec_A=lambda A, x: A * (x["u"].sum() + x["v"]),
    )
    b = torch.tensor(3.0).double()
    found = solver.run(None, (scale, c), (torch.ones(()).double(), b)).params
    assert_close(found.primal["u"].sum() + found.primal["v"], b)
    slope = {k: scale[k] * found.primal[k] + c[k] + found.dual_eq for k in c}
    assert_close(slope, {k: torch.zeros_like(v) for k, v in c.items()})


def test_equations_that_contradict_and_objectives_that_fall_say_so():
    eye, one = torch.eye(2).double(), torch.ones(2).double()
    with pytest.raises(SolverError, match="INFEASIBLE"):
        EqualityQP().run(None, (eye, one), (torch.ones(2, 2).double(), torch.arange(2).double()))
    with pytest.raises(SolverError, match="UNBOUNDED"):
        EqualityQP().run(None, (0 * eye, one), (torch.ones(1, 2).double() * eye[:1], one[:1]))
    twice = EqualityQP().run(None, (eye, one), (torch.ones(2, 2).double(), one)).params
    assert_close(twice.primal, 0.5 * one)


# The layer


def test_the_layer_broadcasts_over_dimensions_in_front():
    Q, q, A, b, G, _, h = finite_program(10)
    layer = QPLayer()
    many = torch.stack([torch.stack([q, -q, 2 * q]), torch.stack([0 * q, 3 * q, q])])
    found = layer(Q, many, G, h, A, b)
    assert found.shape == (2, 3, 4)
    for i in range(2):
        for j in range(3):
            assert_close(found[i, j], layer(Q, many[i, j], G, h, A, b), rtol=1e-9, atol=1e-10)
    per_example = layer(torch.stack([Q, 2 * Q]), q, G, torch.stack([h, h + 1]))
    assert_close(per_example[1], layer(2 * Q, q, G, h + 1), rtol=1e-9, atol=1e-10)
    inputs = tuple(t.clone().requires_grad_() for t in (Q, many[0, :2], G, h, A, b))
    assert gradcheck(layer, inputs)
    assert not list(layer.parameters())


def test_the_layer_learns_a_right_hand_side():
    # The box that clips to a target is found by gradient descent through the layer.
    layer, target = QPLayer(), torch.tensor([0.3, 0.8], dtype=torch.float64)
    h = torch.ones(2, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([h], lr=0.4)
    eye = torch.eye(2, dtype=torch.float64)
    for _ in range(30):
        loss = (layer(eye, -2 * torch.ones(2).double(), eye, h) - target).square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert_close(h.detach(), target, rtol=0, atol=1e-6)


def test_the_layer_refuses_halves_and_tells_of_failures():
    eye, one = torch.eye(2), torch.ones(2)
    with pytest.raises(ValueError, match="`G` is given with `h`"):
        QPLayer()(eye, one, eye)
    with pytest.raises(SolverError, match="left 1 of 2 examples"):
        QPLayer()(eye, one, torch.cat([eye, -eye]), torch.tensor([[1.0] * 4, [-1.0] * 4]))
