"""Roots that are trees, and the arguments that a root is differentiated by."""

import gc
import weakref

import pytest
import torch
from diffopt_implicit import custom_root, root_vjp
from implicit_problems import (
    cube,
    newton_cube_root,
)
from root_problems import ONE, cube_root, root
from torch.autograd import grad as autograd_grad
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, jacrev, jvp, vmap
from torch.testing import assert_close


def couple(x, m, b):
    y = (m @ torch.cat([x["w"].reshape(-1), x["b"][0].reshape(1)]) + b).tanh()
    return {"w": x["w"] - y[:4].reshape(2, 2), "b": (x["b"][0] - y[4], x["b"][1] * b.sum())}


@custom_root(couple)
def coupled(init, m, b):
    x = torch.zeros(5, dtype=m.dtype)
    for _ in range(100):
        x = (m @ x + b).tanh()
    return {"w": x[:4].reshape(2, 2), "b": (x[4], torch.zeros(0, dtype=m.dtype))}


def coupled_problem():
    generator = torch.Generator().manual_seed(0)
    m = 0.3 * torch.randn(5, 5, dtype=torch.float64, generator=generator)
    b = torch.randn(5, dtype=torch.float64, generator=generator)
    return m.requires_grad_(), b.requires_grad_()


def coupled_leaves(m, b):
    x = coupled(None, m, b)
    return x["w"], x["b"][0]


def test_coupling_between_the_leaves_of_a_root_is_kept():  # D13
    m, b = coupled_problem()
    w, bias = coupled_leaves(m, b)
    x = torch.cat([w.reshape(-1), bias.reshape(1)]).detach()
    d = torch.diag(1 - x**2)
    exact = torch.linalg.solve(torch.eye(5, dtype=torch.float64) - d @ m.detach(), d)
    jacobian = jacrev(lambda b: torch.cat([y.reshape(-1) for y in coupled_leaves(m.detach(), b)]))
    assert_close(jacobian(b.detach()), exact, rtol=1e-10, atol=1e-12)
    assert exact[4, :4].abs().min() > 1e-3, "the leaves must be coupled for this to test it"


def test_tree_roots_pass_gradcheck_in_all_modes():
    m, b = coupled_problem()
    assert gradcheck(coupled_leaves, (m, b), check_forward_ad=True)
    assert gradgradcheck(coupled_leaves, (m, b), check_fwd_over_rev=True)


def test_forward_and_reverse_mode_agree():
    m, b = (t.detach() for t in coupled_problem())
    tangents = torch.full_like(m, 0.3), torch.arange(5, dtype=torch.float64)
    leaves, pushed = jvp(coupled_leaves, (m, b), tangents)
    cotangents = [
        torch.randn(leaf.shape, dtype=leaf.dtype, generator=torch.Generator().manual_seed(1))
        for leaf in leaves
    ]
    _, pull = torch.func.vjp(coupled_leaves, m, b)
    pulled = pull(tuple(cotangents))
    left = sum((c * p).sum() for c, p in zip(cotangents, pushed, strict=True))
    right = sum((c * p).sum() for c, p in zip(tangents, pulled, strict=True))
    assert_close(left, right, rtol=1e-12, atol=0)


def test_arguments_are_trees_with_anything_in_them():
    @custom_root(lambda x, p: (x - p["scale"] * p["inner"][0] * p["index"]) * p["flag"])
    def solver(init, p):
        assert p["name"] == "kept"
        return p["scale"] * p["inner"][0] * p["index"]

    scale = torch.tensor([2.0], requires_grad=True)
    p = {
        "scale": scale,
        "inner": (torch.tensor([3.0]), None),
        "index": torch.tensor([4]),
        "flag": True,
        "name": "kept",
    }
    x = solver(None, p)
    assert autograd_grad(x, scale)[0] == 12
    (tree,) = root_vjp(
        lambda x, p: x - p["scale"] * p["index"], x.detach() / 3, (p,), torch.ones(1)
    )
    assert tree["scale"] == 4
    assert tree["index"] is None


def test_integer_arguments_may_be_batched():
    @custom_root(lambda x, n, a: x - n * a)
    def solver(init, n, a):
        return n * a

    n, a = torch.arange(3), torch.tensor([1.0, 2.0, 3.0])
    assert_close(grad(lambda a: vmap(solver, (None, 0, 0))(ONE, n, a).sum())(a), n.float())


def test_single_precision_roots():
    a = torch.tensor(8.0)
    assert_close(grad(root)(a), torch.tensor(1 / 12))
    assert grad(root)(a).dtype == torch.float32
    assert_close(grad(grad(root))(a), torch.tensor(-1 / 144))


def test_root_and_condition_may_have_different_precision():
    @custom_root(lambda x, a: x**3 - a)
    def solver(init, a):
        return a.float() ** (1 / 3)

    a = (8 * ONE).requires_grad_()
    x = solver(None, a)
    assert x.dtype == torch.float32
    (slope,) = autograd_grad(x, a)
    assert slope.dtype == torch.float64
    assert_close(slope, ONE / 12, rtol=1e-5, atol=0)
    _, pushed = jvp(lambda a: solver(None, a), (8 * ONE,), (ONE,))
    assert_close(pushed, torch.tensor(1 / 12))


def test_nothing_is_kept_when_the_root_is_dropped():
    a = torch.ones(1000, dtype=torch.float64, requires_grad=True)
    scaled = 2 * a
    x = root(scaled)
    (g,) = autograd_grad(x.sum(), a, create_graph=True)
    kept = [weakref.ref(t) for t in (scaled, x, g)]
    gc.disable()  # references alone must free them: no cycles
    try:
        del scaled, x, g
        assert [ref() for ref in kept] == [None] * 3
    finally:
        gc.enable()


@custom_root(lambda x, a, b, c: x - a * b * c, argnums=2)
def only_second(init, a, b, c):
    return a * b * c


@custom_root(lambda x, a, b, c: x - a * b * c, argnums=(1, 3))
def outer_two(init, a, b, c):
    return a * b * c


def test_argnums_may_be_any_subset():  # D6
    values = [torch.tensor(v, requires_grad=True) for v in (2.0, 3.0, 5.0)]
    grads = autograd_grad(only_second(None, *values), values, allow_unused=True)
    assert [g and g.item() for g in grads] == [None, 10, None]
    grads = autograd_grad(outer_two(None, *values), values, allow_unused=True)
    assert [g and g.item() for g in grads] == [15, None, 6]
    a, b, c = values
    grads = autograd_grad(outer_two(None, c=c, a=a, b=b), values, allow_unused=True)
    assert [g and g.item() for g in grads] == [15, None, 6]


def test_forward_mode_and_vmap_with_argnums():  # D6
    a, b, c = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    ones = torch.ones(2)
    assert_close(jvp(lambda b: only_second(None, a, b, c), (b,), (ones,))[1], a * c)
    assert_close(vmap(only_second, (None, 0, 0, 0))(ONE, a, b, c), a * b * c)


def test_dict_roots_of_argnums():  # D6
    @custom_root(lambda x, a, b: {"p": x["p"] - a * b, "q": x["q"] - x["p"] * b}, argnums=2)
    def solver(init, a, b):
        return {"p": a * b, "q": a * b * b}

    a, b = torch.tensor(2.0), torch.tensor(3.0)
    assert_close(grad(lambda b: solver(None, a, b)["q"])(b), 2 * a * b)


@pytest.mark.parametrize(
    ("argnums", "message"),
    [
        (0, "0 is `init`, on which a root does not depend"),
        ((1, 0), "0 is `init`"),
        (-1, "must be positive, got -1"),
        ((), "is empty"),
    ],
)
def test_argnums_that_make_no_sense_are_refused(argnums, message):
    with pytest.raises(ValueError, match=message):
        custom_root(cube, argnums=argnums)


def test_argnums_beyond_the_call_are_refused():
    solver = custom_root(cube, argnums=2)(newton_cube_root)
    with pytest.raises(ValueError, match="names argument 2, but this call has only"):
        solver(ONE, ONE)
    with pytest.raises(ValueError, match="names argument 3, but `args` has only 1"):
        root_vjp(cube, ONE, (ONE,), ONE, argnums=3)


def test_init_has_no_path():
    init, a = (3 * ONE).requires_grad_(), (8 * ONE).requires_grad_()
    x = cube_root(init, a)
    assert autograd_grad(x, (init, a), allow_unused=True)[0] is None
    assert grad(lambda init: cube_root(init, 8 * ONE))(3 * ONE) == 0


def test_a_missing_init_is_said_to_be_missing():
    with pytest.raises(TypeError, match="first argument, where its search begins, is missing"):
        cube_root(a=ONE)
