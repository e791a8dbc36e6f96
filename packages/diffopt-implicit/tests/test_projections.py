"""Projections and proximal operators: nearest points, and derivatives everywhere."""

import pytest
import torch
from diffopt_implicit import projections, proximal
from torch.autograd import gradcheck, gradgradcheck
from torch.testing import assert_close

NORMAL = torch.tensor([1.0, -2.0, 0.5, 1.0], dtype=torch.float64)
MATRIX = torch.tensor([[1.0, 0.0, 2.0, 1.0], [0.0, 1.0, 1.0, -1.0]], dtype=torch.float64)
OFFSET = torch.tensor([0.5, -0.3], dtype=torch.float64)

# By name: the projection, and how far a point is from the set.
SETS = {
    "non_negative": (projections.non_negative, lambda y: (-y).clamp_min(0).amax(-1)),
    "box": (
        lambda x: projections.box(x, -0.3, 0.6),
        lambda y: torch.maximum(-0.3 - y, y - 0.6).amax(-1),
    ),
    "simplex": (
        lambda x: projections.simplex(x, 0.8),
        lambda y: (y.sum(-1) - 0.8).abs() + (-y).clamp_min(0).sum(-1),
    ),
    "l1_ball": (lambda x: projections.l1_ball(x, 0.9), lambda y: y.abs().sum(-1) - 0.9),
    "l2_ball": (lambda x: projections.l2_ball(x, 0.9), lambda y: y.norm(dim=-1) - 0.9),
    "linf_ball": (lambda x: projections.linf_ball(x, 0.4), lambda y: y.abs().amax(-1) - 0.4),
    "hyperplane": (
        lambda x: projections.hyperplane(x, NORMAL, 0.7),
        lambda y: (y @ NORMAL - 0.7).abs(),
    ),
    "halfspace": (lambda x: projections.halfspace(x, NORMAL, 0.7), lambda y: y @ NORMAL - 0.7),
    "box_section": (
        lambda x: projections.box_section(x, -0.4, 0.9, NORMAL, 0.7),
        lambda y: (y @ NORMAL - 0.7).abs() + torch.maximum(-0.4 - y, y - 0.9).clamp_min(0).amax(-1),
    ),
    "affine_set": (
        lambda x: projections.affine_set(x, MATRIX, OFFSET),
        lambda y: (y @ MATRIX.T - OFFSET).abs().amax(-1),
    ),
}
SPHERES = {
    "l1_sphere": (lambda x: projections.l1_sphere(x, 0.9), lambda y: y.abs().sum(-1)),
    "l2_sphere": (lambda x: projections.l2_sphere(x, 0.9), lambda y: y.norm(dim=-1)),
}
ALL = {name: project for name, (project, _) in (SETS | SPHERES).items()}


def points(n=200, seed=0):
    return torch.randn(n, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("name", SETS)
def test_the_nearest_point_is_in_the_set_and_no_other_is_nearer(name):
    project, distance = SETS[name]
    x = points()
    p = project(x)
    assert (distance(p) < 1e-12).all()
    # The variational inequality, which is what a projection on a convex set is.
    others = project(points(seed=1))
    assert (((x - p) * (others - p)).sum(-1) < 1e-12).all()
    assert_close(project(p), p, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", SPHERES)
def test_the_nearest_point_of_a_sphere_is_on_it_and_no_other_is_nearer(name):
    project, norm = SPHERES[name]
    x = points()
    p = project(x)
    assert_close(norm(p), torch.full((200,), 0.9, dtype=torch.float64))
    others = points(seed=1)
    others = others * (0.9 / norm(others)).unsqueeze(-1)
    assert ((x - p).norm(dim=-1) <= (x - others).norm(dim=-1) + 1e-12).all()


@pytest.mark.parametrize("name", ALL)
def test_derivatives_are_those_of_finite_differences(name):
    x = points(5).requires_grad_()
    assert gradcheck(ALL[name], x, check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(ALL[name], x)


@pytest.mark.parametrize("name", ALL)
def test_derivatives_at_zero_and_on_the_boundary_are_finite(name):
    project = ALL[name]
    for x in (torch.zeros(4, dtype=torch.float64), project(points(1))[0]):
        assert torch.func.jacrev(project)(x).isfinite().all()
        assert torch.func.hessian(project)(x).isfinite().all()


@pytest.mark.parametrize("name", ["box", "l1_ball", "l2_ball", "linf_ball", "halfspace"])
def test_within_the_set_and_on_its_boundary_nothing_moves(name):
    project = ALL[name]
    for scale in (0.01, None):
        x = project(points(1))[0] if scale is None else scale * points(1)[0]
        assert_close(project(x), x, rtol=1e-12, atol=1e-12)
        if scale:
            assert_close(torch.func.jacrev(project)(x), torch.eye(4, dtype=torch.float64))


def test_sizes_may_be_learned_and_differ_in_a_batch():
    x = 3 * points(3)
    size = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64, requires_grad=True)
    for project in (
        projections.simplex, projections.l1_sphere, projections.l1_ball,
        projections.l2_sphere, projections.l2_ball, projections.linf_ball,
    ):  # fmt: skip
        assert gradcheck(project, (x.clone().requires_grad_(), size))
        each = [project(row, s) for row, s in zip(x, size.tolist(), strict=True)]
        assert_close(project(x, size.detach()), torch.stack(each))
        assert_close(torch.vmap(project)(x, size.detach()), torch.stack(each))
    normal = NORMAL.clone().requires_grad_()
    assert gradcheck(projections.halfspace, (x.requires_grad_(), normal, size))
    matrix, offset = MATRIX.clone().requires_grad_(), OFFSET.clone().requires_grad_()
    assert gradcheck(projections.affine_set, (x, matrix, offset))


def test_boxes_may_be_trees_and_learned():
    x = {"a": points(1)[0], "b": [points(1, 1)[0]]}
    lower = {"a": torch.full((4,), -0.1, dtype=torch.float64, requires_grad=True), "b": -1.0}
    found = projections.box(x, lower, 0.5)
    (slope,) = torch.autograd.grad(found["a"].sum(), lower["a"])
    assert_close(slope, (x["a"] < -0.1).double())
    assert_close(found["b"][0], x["b"][0].clamp(-1.0, 0.5))
    with pytest.raises(ValueError, match="`lower` must not be above `upper`"):
        projections.box(x, 1.0, 0.0)


def test_sections_of_boxes_may_be_learned_and_infinite():
    x, weights = points(3), NORMAL.clone()
    low, high = -points(1, 1)[0].abs(), 1 + points(1, 2)[0].abs()
    value = 0.5 * (weights @ (low + high)) * torch.tensor([0.9, 1.0, 1.1], dtype=torch.float64)
    inputs = tuple(t.clone().requires_grad_() for t in (x, low, high, weights, value))
    assert gradcheck(projections.box_section, inputs, check_forward_ad=True)
    assert gradgradcheck(projections.box_section, inputs)
    ones = torch.ones(4, dtype=torch.float64)
    found = projections.box_section(x, 0.0, torch.inf, ones, 0.8)
    assert_close(found, projections.simplex(x, 0.8))
    jacobian = torch.func.jacrev(lambda x: projections.box_section(x, 0.0, torch.inf, ones, 0.8))
    assert_close(jacobian(x[0]), torch.func.jacrev(lambda x: projections.simplex(x, 0.8))(x[0]))
    free = projections.box_section(x, -torch.inf, torch.inf, NORMAL, 0.3)
    assert_close(free, projections.hyperplane(x, NORMAL, 0.3))
    unweighted = torch.tensor([1.0, 0.0, 1.0, 1.0], dtype=torch.float64)
    part = projections.box_section(x, -0.1, 0.5, unweighted, 0.3)
    assert_close(part[:, 1], x[:, 1].clamp(-0.1, 0.5))
    assert_close(part @ unweighted, torch.full((3,), 0.3, dtype=torch.float64))
    corner = projections.box_section(x, 0.0, 1.0, ones, 4.0)
    assert_close(corner, torch.ones(3, 4, dtype=torch.float64))
    each = torch.vmap(lambda x, v: projections.box_section(x, low, high, weights, v))(x, value)
    assert_close(each, projections.box_section(x, low, high, weights, value))


def test_sections_that_are_empty_are_refused():
    with pytest.raises(ValueError, match="No point of the box has this `value`"):
        projections.box_section(torch.zeros(2), 0.0, 1.0, torch.ones(2), 3.0)
    with pytest.raises(ValueError, match="`lower` must not be above `upper`"):
        projections.box_section(torch.zeros(2), 1.0, 0.0, torch.ones(2), 0.5)


def test_polyhedra_are_what_simpler_sets_are():
    x, eye = points(20), torch.eye(4, dtype=torch.float64)
    zero, one = torch.zeros(4, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    simplex = projections.polyhedron(x, one.expand(1, 4), one, -eye, zero)
    assert_close(simplex, projections.simplex(x), rtol=0, atol=1e-10)
    plane = projections.polyhedron(x, MATRIX, OFFSET)
    assert_close(plane, projections.affine_set(x, MATRIX, OFFSET), rtol=0, atol=1e-10)
    half = projections.polyhedron(x, G=NORMAL[None], h=0.3 * one)
    assert_close(half, projections.halfspace(x, NORMAL, 0.3), rtol=0, atol=1e-10)
    inputs = (x[:2], MATRIX, OFFSET, points(3, 4), points(1, 5)[0, :3].abs())
    inputs = tuple(t.clone().requires_grad_() for t in inputs)
    assert gradcheck(projections.polyhedron, inputs, check_forward_ad=True)
    with pytest.raises(ValueError, match="`G` is given with `h`"):
        projections.polyhedron(x, G=eye)


# Proximal operators

PENALTIES = {
    "lasso": (lambda y: 0.4 * y.abs().sum(-1), (0.4,)),
    "ridge": (lambda y: 0.2 * (y * y).sum(-1), (0.4,)),
    "elastic_net": (lambda y: 0.4 * y.abs().sum(-1) + 0.15 * (y * y).sum(-1), (0.4, 0.3)),
    "group_lasso": (lambda y: 0.4 * y.norm(dim=-1), (0.4,)),
    "non_negative_lasso": (lambda y: 0.4 * y.sum(-1) + 1e9 * (y < 0).any(-1), (0.4,)),
    "non_negative_ridge": (lambda y: 0.2 * (y * y).sum(-1) + 1e9 * (y < 0).any(-1), (0.4,)),
    "none": (lambda y: 0 * y.sum(-1), ()),
}


@pytest.mark.parametrize("name", PENALTIES)
@pytest.mark.parametrize("scaling", [1.0, 0.3])
def test_a_proximal_point_is_the_minimum(name, scaling):
    penalty, numbers = PENALTIES[name]
    x = points()
    p = getattr(proximal, name)(x, *numbers, scaling=scaling)
    value = lambda y: 0.5 * (y - x).square().sum(-1) + scaling * penalty(y)
    for length in (1e-4, 1e-2, 1.0):
        for seed in range(20):
            assert (value(p + length * points(seed=seed)) >= value(p) - 1e-13).all()


@pytest.mark.parametrize("name", PENALTIES)
def test_derivatives_of_proximal_operators_in_all_that_may_be_learned(name):
    numbers = [torch.tensor(n, dtype=torch.float64, requires_grad=True) for n in PENALTIES[name][1]]
    scaling = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    operator = getattr(proximal, name)
    call = lambda x, scaling, *numbers: operator(x, *numbers, scaling=scaling)
    assert gradcheck(call, (points(5).requires_grad_(), scaling, *numbers))
    assert gradgradcheck(call, (points(5).requires_grad_(), scaling, *numbers))
    assert (
        torch.func.jacrev(call)(torch.zeros(4, dtype=torch.float64), 1.0, *PENALTIES[name][1])
        .isfinite()
        .all()
    )


@pytest.mark.parametrize("name", PENALTIES)
def test_proximal_operators_take_trees(name):
    x = {"a": points(1), "b": [points(1, 1)]}
    operator, numbers = getattr(proximal, name), PENALTIES[name][1]
    found = operator(x, *numbers)
    assert_close(found["a"], operator(x["a"], *numbers))
    assert_close(found["b"][0], operator(x["b"][0], *numbers))
