"""Optimal transport with entropy, and projections on given sums of rows and columns."""

from functools import partial

import pytest
import torch
from diffopt_implicit import SolverError, TransportPlan, projections, sinkhorn, solve_cg
from implicit_problems import normal
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, hessian, jacrev, vmap
from torch.testing import assert_close

COST = normal(4, 5).abs()
A, B = normal(4, seed=1).softmax(0), normal(5, seed=2).softmax(0)
exact = partial(sinkhorn, tol=1e-14, implicit_diff_solve=partial(solve_cg, tol=1e-13))


def test_the_plan_has_its_marginals_and_the_form_of_an_optimum():
    moved = exact(COST, A, B, regularization=0.2)
    assert_close(moved.plan.sum(1), A, rtol=1e-12, atol=1e-13)
    assert_close(moved.plan.sum(0), B, rtol=1e-12, atol=1e-13)
    # Optimal: the logarithm of P / (a b), plus the cost, is a sum of potentials.
    ratio = moved.plan / (A[:, None] * B)
    assert_close(0.2 * ratio.log() + COST, moved.f[:, None] + moved.g, rtol=1e-10, atol=1e-10)
    value = (moved.plan * COST).sum() + 0.2 * (moved.plan * ratio.log()).sum()
    assert_close(moved.value, value)
    assert isinstance(moved, TransportPlan)


def test_strong_regularization_is_independence_and_weak_the_cheapest_assignment():
    assert_close(exact(COST, A, B, regularization=1e4).plan, A[:, None] * B, rtol=1e-3, atol=0)
    cost = torch.tensor([[0.0, 1.0, 2.0], [1.0, 0.0, 2.0], [2.0, 2.0, 0.0]], dtype=torch.float64)
    assert_close(sinkhorn(cost, regularization=0.02).plan, torch.eye(3).double() / 3)


def test_two_points_have_a_closed_form():
    # P = [[p, 1/2 - p], ...] with p / (1/2 - p) = exp(1 / eps).
    cost = torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=torch.float64)
    odds = torch.tensor(1 / 0.3, dtype=torch.float64).exp()
    assert_close(exact(cost, regularization=0.3).plan[0, 0], 0.5 * odds / (1 + odds))


def test_the_value_moves_with_the_plan_and_the_potentials():
    moved = exact(COST, A, B)
    assert_close(grad(lambda c: exact(c, A, B).value)(COST), moved.plan)
    slope = grad(lambda a: exact(COST, a, B).value)(A)
    centered = lambda f: f - f.mean()
    assert_close(centered(slope), centered(moved.f), rtol=1e-9, atol=1e-9)


def test_derivatives_of_all_outputs_in_all_inputs():
    strength = torch.tensor(0.3, dtype=torch.float64)

    def call(cost, a, b, strength):
        moved = exact(cost, a.softmax(0), b.softmax(0), regularization=strength)
        return moved.plan, moved.value, moved.f, moved.g

    inputs = tuple(t.clone().requires_grad_() for t in (COST[:3, :3], A[:3], B[:3], strength))
    assert gradcheck(call, inputs, check_forward_ad=True)
    assert gradgradcheck(call, inputs)


def test_implicit_derivatives_are_those_of_the_unrolled_iterations():
    def unrolled(cost):
        f, g = torch.zeros_like(A), torch.zeros_like(B)
        for _ in range(500):
            f = -torch.logsumexp(g - cost / 0.3 + B.log(), 1)
            g = -torch.logsumexp(f[:, None] - cost / 0.3 + A.log()[:, None], 0)
        return A[:, None] * B * (f[:, None] + g - cost / 0.3).exp()

    ours = jacrev(lambda c: exact(c, A, B, regularization=0.3).plan)(COST)
    assert_close(ours, jacrev(unrolled)(COST), rtol=1e-9, atol=1e-11)


def test_each_example_of_a_batch_takes_its_own_iterations():
    costs = torch.stack([COST, 0.1 * COST, 3 * COST])
    whole = sinkhorn(costs, A, regularization=0.3)
    mapped = vmap(lambda c: sinkhorn(c, A, regularization=0.3))(costs)
    for i, cost in enumerate(costs):
        alone = sinkhorn(cost, A, regularization=0.3)
        assert whole.iter_num[i] == alone.iter_num
        for field in ("plan", "value", "f", "g"):
            assert_close(getattr(whole, field)[i], getattr(alone, field))
            assert_close(getattr(mapped, field)[i], getattr(alone, field))
    strengths = torch.tensor([0.1, 1.0], dtype=torch.float64)
    assert sinkhorn(COST, A, B, regularization=strengths).plan.shape == (2, 4, 5)
    assert len(set(whole.iter_num.tolist())) > 1
    bent = hessian(lambda c: sinkhorn(c, regularization=1.0).value)
    assert_close(vmap(bent)(costs[:, :2, :2])[1], bent(costs[1, :2, :2]))


def test_single_precision_and_scales():
    moved = sinkhorn(COST.float(), A.float(), B.float(), regularization=0.05)
    assert moved.plan.dtype == torch.float32
    assert_close(moved.plan.sum(1), A.float(), rtol=1e-4, atol=1e-5)
    scaled = exact(COST, 1e3 * A, 1e3 * B)
    assert_close(scaled.plan, 1e3 * exact(COST, A, B).plan, rtol=1e-8, atol=1e-10)


def test_failures_and_masses_that_mean_nothing_are_errors():
    with pytest.raises(SolverError, match="`sinkhorn` misses the masses") as raised:
        sinkhorn(COST, A, B, regularization=1e-3, maxiter=3)
    assert raised.value.state.iter_num == 3
    with pytest.raises(ValueError, match="must be positive: leave out points without mass"):
        sinkhorn(COST, A * (A.max() > A), B)
    with pytest.raises(ValueError, match="must have the same sum; their sums differ by 1"):
        sinkhorn(COST, 2 * A, B)
    with pytest.raises(ValueError, match="the masses must have 4 and 5 elements"):
        sinkhorn(COST, B, A)
    with pytest.raises(ValueError, match="`regularization` must be positive"):
        sinkhorn(COST, regularization=0.0)


# Projections on transport polytopes


def test_the_projection_on_given_sums_is_the_nearest():
    x = normal(4, 5, seed=3)
    p = projections.transport(x, A, B)
    assert_close(p.sum(1), A, rtol=0, atol=1e-14)
    assert_close(p.sum(0), B, rtol=0, atol=1e-14)
    assert (p >= 0).all()
    assert (p == 0).sum() > 3
    for seed in range(50):
        other = exact(normal(4, 5, seed=seed), A, B).plan
        assert ((x - p) * (other - p)).sum() < 1e-12


def test_it_is_the_quadratic_program_and_so_is_its_jacobian():
    x = normal(3, 4, seed=3)
    a, b = A[:3] / A[:3].sum(), B[:4] / B[:4].sum()
    rows = torch.kron(torch.eye(3), torch.ones(1, 4)).double()
    columns = torch.kron(torch.ones(1, 3), torch.eye(4)).double()
    sums = torch.cat([rows, columns])  # one of them depends on the others

    def program(x):
        h, G = torch.zeros(12, dtype=x.dtype), -torch.eye(12, dtype=x.dtype)
        flat = projections.polyhedron(x.reshape(12), sums, torch.cat([a, b]), G, h)
        return flat.reshape(3, 4)

    call = lambda x: projections.transport(x, a, b)
    assert_close(call(x), program(x), rtol=1e-10, atol=1e-12)
    assert_close(jacrev(call)(x), jacrev(program)(x), rtol=1e-9, atol=1e-10)


def test_derivatives_of_the_projection_where_the_plan_falls_apart():
    # Large entries: the positive entries are a forest of several trees.
    x = 5 * normal(4, 4, seed=5)
    assert gradcheck(projections.birkhoff, x.requires_grad_(), check_forward_ad=True)
    assert gradgradcheck(projections.birkhoff, x)
    masses = [t.clone().requires_grad_() for t in (normal(4, 3, seed=3), A, B[:3])]
    call = lambda x, a, b: projections.transport(x, a.softmax(0), b.softmax(0))
    assert gradcheck(call, masses)


def test_doubly_stochastic_matrices_stay_where_they_are():
    p = projections.birkhoff(normal(3, 4, 4))
    assert_close(projections.birkhoff(p), p, rtol=0, atol=1e-13)
    assert_close(p.sum(-1), torch.ones(3, 4, dtype=torch.float64))
    each = torch.stack([projections.birkhoff(x) for x in normal(3, 4, 4)])
    assert_close(p, each)
    assert_close(vmap(projections.birkhoff)(normal(3, 4, 4)), each)
    permutation = torch.eye(4, dtype=torch.float64)[[2, 0, 3, 1]]
    assert_close(projections.birkhoff(1e3 * permutation), permutation, rtol=0, atol=1e-9)
    # Within, the derivative is the projection on matrices whose rows and columns sum to 0.
    inside = torch.full((3, 3), 1 / 3, dtype=torch.float64)
    center = torch.eye(3, dtype=torch.float64) - 1 / 3
    expected = torch.einsum("ik,jl->ijkl", center, center)
    assert_close(jacrev(projections.birkhoff)(inside), expected)
    # So it is on the boundary, at entries that are just 0.
    edge = torch.tensor([[0.5, 0.5, 0.0], [0.25, 0.25, 0.5], [0.25, 0.25, 0.5]]).double()
    assert_close(jacrev(projections.birkhoff)(edge), expected)


def test_in_relative_entropy_it_is_the_transport_of_the_negative():  # O-42
    x = normal(4, 5, seed=3)
    found = projections.kl_transport(x, A, B)
    assert_close(found, sinkhorn(-x, A, B, regularization=1.0).plan)
    twice = projections.kl_birkhoff(normal(2, 3, 3))
    assert_close(twice.sum(-2), torch.ones(2, 3, dtype=torch.float64))


def test_projections_that_cannot_be_are_errors():
    with pytest.raises(ValueError, match="Doubly stochastic matrices are square"):
        projections.birkhoff(torch.zeros(2, 3))
    with pytest.raises(SolverError, match="Scale the matrix down, or work in float64"):
        projections.birkhoff(1e9 * normal(4, 4).float())
