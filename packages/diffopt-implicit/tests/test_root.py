import functools
import gc
import warnings
import weakref

import pytest
import torch
from diffopt_implicit import LinearSolveError, custom_root, root_jvp, root_vjp, solve_cg
from implicit_problems import (
    LAM,
    RIDGE_SLOPE,
    RIDGE_W,
    X,
    Y,
    cube,
    newton_cube_root,
    ridge_condition,
    ridge_solution,
)
from torch import nn
from torch.autograd import grad as autograd_grad
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vmap
from torch.testing import assert_close

ONE = torch.ones((), dtype=torch.float64)
close = functools.partial(assert_close, rtol=1e-7, atol=1e-9)


@custom_root(cube)
def cube_root(init, a):
    return newton_cube_root(init, a)


def root(a):
    return cube_root(torch.ones_like(a), a)


@custom_root(ridge_condition)
def ridge(init, lam, x, y):
    return ridge_solution(lam, x, y)


# The cube root: first and higher derivatives, each mode, each transform


def test_cube_root_at_two():  # O-40
    a = (2 * ONE).requires_grad_()
    (slope,) = autograd_grad(root(a), a, create_graph=True)
    (curvature,) = autograd_grad(slope, a, create_graph=True)
    (third,) = autograd_grad(curvature, a)
    exact = functools.partial(assert_close, rtol=1e-13, atol=0)
    exact(slope.detach(), 0.20998684164914552 * ONE)
    exact(curvature.detach(), -0.06999561388304851 * ONE)
    exact(third, 10 / 27 * 2 ** (-8 / 3) * ONE)


def test_second_derivative_has_the_right_sign():  # D15
    a = (8 * ONE).requires_grad_()
    (slope,) = autograd_grad(root(a), a, create_graph=True)
    (curvature,) = autograd_grad(slope, a)
    assert_close(curvature, -ONE / 144, rtol=1e-13, atol=0)


@pytest.mark.parametrize("outer", [grad, jacrev, jacfwd])
@pytest.mark.parametrize("inner", [grad, jacrev, jacfwd])
def test_every_pair_of_modes_gives_the_second_derivative(outer, inner):
    assert_close(outer(inner(root))(8 * ONE), -ONE / 144, rtol=1e-12, atol=0)
    assert_close(hessian(root)(8 * ONE), -ONE / 144, rtol=1e-12, atol=0)


def test_forward_mode():  # O-40
    value, slope = jvp(root, (2 * ONE,), (ONE,))
    assert_close(value**3, 2 * ONE)
    assert_close(slope, 0.20998684164914552 * ONE)


def test_gradcheck_in_all_modes():  # O-40
    a = torch.tensor([0.5, 2.0, 8.0], dtype=torch.float64, requires_grad=True)
    assert gradcheck(root, (a,), check_forward_ad=True)
    assert gradgradcheck(root, (a,), check_fwd_over_rev=True)


def test_vmap_is_the_loop():  # O-40
    a = torch.linspace(0.5, 20, 64, dtype=torch.float64)
    functions = [root, grad(root), grad(grad(root)), lambda a: jvp(root, (a,), (a,))[1]]
    for function in functions:
        loop = torch.stack([function(x) for x in a])
        assert_close(vmap(function)(a), loop, rtol=1e-13, atol=1e-14)
        assert_close(vmap(vmap(function))(a.reshape(8, 8)).reshape(-1), loop, rtol=1e-13, atol=0)


def test_derivatives_through_vmap_are_the_loop():
    a = torch.linspace(0.5, 20, 6, dtype=torch.float64)
    slopes = torch.stack([grad(root)(x) for x in a])
    assert_close(grad(lambda a: vmap(root)(a).sum())(a), slopes)
    assert_close(jvp(vmap(root), (a,), (torch.ones_like(a),))[1], slopes)
    leaf = a.clone().requires_grad_()
    (g,) = autograd_grad(vmap(root)(leaf).sum(), leaf, create_graph=True)
    (h,) = autograd_grad(g.sum(), leaf)
    assert_close(h, torch.stack([grad(grad(root))(x) for x in a]))


def test_a_leaf_used_by_backward():
    a = (2 * ONE).requires_grad_()
    root(a).backward()
    assert_close(a.grad, 0.20998684164914552 * ONE)


# Fixed points and affine equations


@pytest.mark.parametrize(
    ("theta", "x", "slope"),
    [(0.0, 0.7390851332151607, 0.5975100456753034), (torch.pi / 2, torch.pi / 2, 0.5)],
)
def test_cosine_fixed_point(theta, x, slope):  # O-38
    @custom_root(lambda x, theta: x - x.cos() - theta)
    def solver(init, theta):
        x = init
        for _ in range(200):
            x = x - (x - x.cos() - theta) / (1 + x.sin())
        return x

    theta = theta * ONE
    assert_close(solver(ONE, theta), x * ONE)
    assert_close(grad(lambda t: solver(ONE, t))(theta), slope * ONE)
    assert_close(jvp(lambda t: solver(ONE, t), (theta,), (ONE,))[1], slope * ONE)


def test_fixed_point_at_zero_has_derivative_zero():  # O-38
    @custom_root(lambda x, theta: x - theta * x)
    def solver(init, theta):
        return torch.zeros_like(init)

    assert grad(lambda t: solver(ONE, t))(0.5 * ONE) == 0


def test_affine_fixed_point_of_two_hundred_unknowns():  # O-38
    generator = torch.Generator().manual_seed(0)
    m, dm = torch.randn(2, 200, 200, dtype=torch.float64, generator=generator)
    m = 0.49 * m / torch.linalg.matrix_norm(m, 2)
    b, db, v = torch.randn(3, 200, dtype=torch.float64, generator=generator)
    inverse = torch.linalg.inv(torch.eye(200, dtype=torch.float64) - m)

    @custom_root(lambda x, m, b: x - m @ x - b)
    def solver(init, m, b):
        return torch.linalg.solve(torch.eye(200, dtype=m.dtype) - m, b)

    x, dx = jvp(lambda m, b: solver(None, m, b), (m, b), (dm, db))
    assert_close(dx, inverse @ (dm @ x + db), rtol=1e-8, atol=1e-8)
    leaves = m.clone().requires_grad_(), b.clone().requires_grad_()
    m_bar, b_bar = autograd_grad(solver(None, *leaves), leaves, v)
    assert_close(b_bar, inverse.T @ v, rtol=1e-8, atol=1e-8)
    assert_close(m_bar, torch.outer(inverse.T @ v, x), rtol=1e-8, atol=1e-8)


# Ridge regression


def test_ridge_by_vjp_and_jvp():  # O-31
    close(ridge(None, LAM, X, Y), RIDGE_W)
    close(jacrev(lambda lam: ridge(None, lam, X, Y))(LAM), RIDGE_SLOPE)
    close(jacfwd(lambda lam: ridge(None, lam, X, Y))(LAM), RIDGE_SLOPE)
    close(jvp(lambda lam: ridge(None, lam, X, Y), (LAM,), (ONE,))[1], RIDGE_SLOPE)


def test_ridge_with_conjugate_gradients():  # O-31
    solver = custom_root(ridge_condition, solve=solve_cg)(
        lambda w, lam, x, y: ridge_solution(lam, x, y)
    )
    close(jacrev(lambda lam: solver(None, lam, X, Y))(LAM), RIDGE_SLOPE)
    close(jacfwd(lambda lam: solver(None, lam, X, Y))(LAM), RIDGE_SLOPE)


def test_ridge_derivatives_in_the_data_equal_those_of_the_closed_form():  # O-31
    for transform in (jacrev, jacfwd):
        ours = transform(functools.partial(ridge, None), argnums=(0, 1, 2))(LAM, X, Y)
        exact = transform(ridge_solution, argnums=(0, 1, 2))(LAM, X, Y)
        for mine, theirs in zip(ours, exact, strict=True):
            close(mine, theirs)


def test_keyword_arguments_in_any_order():  # O-31
    def by_keyword(lam):
        return ridge(None, y=Y, lam=lam, x=X)

    def all_by_keyword(lam):
        return ridge(x=X, lam=lam, init=None, y=Y)

    @custom_root(ridge_condition)
    def open_ended(init=None, **kwargs):
        return ridge_solution(**kwargs)

    def swallowed(lam):
        return open_ended(y=Y, x=X, lam=lam, init=None)

    for function in (by_keyword, all_by_keyword, swallowed):
        close(function(LAM), RIDGE_W)
        close(jacrev(function)(LAM), RIDGE_SLOPE)
        close(jacfwd(function)(LAM), RIDGE_SLOPE)


def test_aux_is_handed_on():  # O-31
    marker = object()

    @custom_root(ridge_condition, has_aux=True)
    def solver(init, lam, x, y):
        return ridge_solution(lam, x, y), {"marker": marker, "lam": lam}

    lam = LAM.clone().requires_grad_()
    w, aux = solver(None, lam, X, Y)
    assert aux["marker"] is marker
    assert not aux["lam"].requires_grad
    close(jacrev(lambda lam: solver(None, lam, X, Y)[0])(LAM), RIDGE_SLOPE)
    close(autograd_grad(w.sum(), lam)[0], RIDGE_SLOPE.sum())


def test_ridge_under_vmap():  # O-31
    lams = torch.tensor([0.1, 1.0, 5.0], dtype=torch.float64)
    slopes = vmap(jacrev(lambda lam: ridge(None, lam, X, Y)))(lams)
    close(slopes[2], RIDGE_SLOPE)
    close(slopes, torch.stack([jacfwd(lambda lam: ridge(None, lam, X, Y))(lam) for lam in lams]))


def test_ridge_around_a_compiled_call():  # O-31; the graph breaks around the solver
    compiled = torch.compile(lambda lam: ridge(None, lam * 2, X, Y).sum() * 3, backend="eager")
    leaf = (LAM / 2).requires_grad_()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Dynamo's, about its own reading of `.grad`
        (slope,) = autograd_grad(compiled(leaf), leaf)
    close(slope, 6 * RIDGE_SLOPE.sum())


def test_root_vjp_and_root_jvp_of_ridge():  # O-31
    v = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    lam_bar, x_bar, y_bar = root_vjp(ridge_condition, RIDGE_W, (LAM, X, Y), v, solve=solve_cg)
    close(lam_bar, RIDGE_SLOPE @ v, rtol=1e-6)
    assert x_bar.shape == X.shape
    exact = jacrev(lambda y: ridge_solution(LAM, X, y))(Y).T @ v
    close(y_bar, exact)
    slope = root_jvp(ridge_condition, RIDGE_W, (LAM, X, Y), (ONE,), argnums=1)
    close(slope, RIDGE_SLOPE, rtol=1e-6)
    (only_y,) = root_vjp(ridge_condition, RIDGE_W, (LAM, X, Y), v, argnums=3)
    close(only_y, exact)


def test_root_vjp_is_differentiable_again():
    def slope(a):
        return root_vjp(cube, root(a).detach(), (a,), ONE)[0]

    assert_close(grad(slope)(8 * ONE), -ONE / 144)
    assert_close(jvp(slope, (8 * ONE,), (ONE,))[1], -ONE / 144)


def test_pullbacks_may_be_called_after_their_transforms():
    def twice(a):
        _, pull = torch.func.vjp(root, a)
        return pull(ONE)[0]

    _, pull = torch.func.vjp(twice, 8 * ONE)
    assert_close(pull(ONE)[0], -ONE / 144)
    assert_close(grad(lambda a: pull_of(twice, a))(8 * ONE), 10 / 27 * ONE * 8 ** (-8 / 3))


def pull_of(function, a):
    _, pull = torch.func.vjp(function, a)
    return pull(ONE)[0]


# Trees


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


# Which arguments


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


# What a solver may do


def test_a_solver_may_use_autograd_and_write_into_init():
    def objective(w, lam):
        return (w - 3).square().sum() + lam * w.square().sum()

    @custom_root(grad(objective))
    def descend(init, lam):
        w = init.requires_grad_()
        optimizer = torch.optim.SGD([w], lr=0.1)
        for _ in range(200):
            optimizer.zero_grad()
            objective(w, lam).backward()
            optimizer.step()
        return w

    init, lam = torch.zeros(2, dtype=torch.float64), ONE.clone().requires_grad_()
    with torch.no_grad():
        assert_close(descend(init, lam), torch.full_like(init, 1.5))
    w = descend(init, lam)
    assert init.tolist() == [0, 0]
    assert not init.requires_grad
    assert_close(autograd_grad(w.sum(), lam)[0], -1.5 * ONE)


def test_a_solver_may_leave_a_graph_that_starts_at_its_own_iterate():
    @custom_root(lambda x, a: x - a)
    def solver(init, a):
        x = init.clone().requires_grad_()
        return x - (x - a)

    a = ONE.clone().requires_grad_()
    assert autograd_grad(solver(ONE, a), a)[0] == 1


def test_a_solver_may_train_a_module_and_return_its_parameters():
    net = nn.Linear(2, 1, bias=False, dtype=torch.float64)
    x = torch.tensor([[1.0, 2.0], [0.0, 1.0]], dtype=torch.float64)

    def condition(params, y):
        def loss(params):
            return (torch.func.functional_call(net, params, (x,))[:, 0] - y).square().sum()

        return grad(loss)(params)

    @custom_root(condition)
    def fit(init, y):
        with torch.no_grad():
            net.weight.copy_(torch.linalg.solve(x, y)[None])
        return dict(net.named_parameters())

    y = torch.ones(2, dtype=torch.float64, requires_grad=True)
    weight = fit(None, y)["weight"]
    v = torch.tensor([1.0, -2.0], dtype=torch.float64)
    assert_close(autograd_grad(weight[0] @ v, y)[0], torch.linalg.inv(x).T @ v)
    assert weight is not net.weight


def test_a_condition_may_use_autograd_grad():
    def condition(w, a):
        return autograd_grad((w**4 / 4 - a * w).sum(), w, create_graph=True)[0]

    solver = custom_root(condition)(newton_cube_root)
    a = (8 * ONE).requires_grad_()
    assert_close(autograd_grad(solver(ONE, a), a)[0], ONE / 12)


# Gradients that would be lost


def test_a_tensor_by_closure_is_named():  # D6
    theta = torch.tensor([3.0], requires_grad=True)
    solver = custom_root(lambda x, a: x - a * theta)(lambda init, a: 3 * a)
    with pytest.raises(ValueError, match=r"`optimality_fun` uses .*`theta` of shape \(1,\)"):
        solver(None, torch.ones(1))
    with pytest.raises(ValueError, match="`theta`"):
        root_vjp(lambda x, a: x - a * theta, torch.ones(1), (torch.ones(1),), torch.ones(1))
    theta.requires_grad_(False)
    solver(None, torch.ones(1))


def test_a_module_by_closure_is_named():
    net = nn.Sequential(nn.Linear(2, 2), nn.Tanh())
    solver = custom_root(lambda x, a: x - net(a))(lambda init, a: net(a).detach())
    with pytest.raises(ValueError, match=r"`net\.0\.weight` of shape \(2, 2\).*functional_call"):
        solver(None, torch.ones(2))
    with torch.no_grad():
        solver(None, torch.ones(2))


def test_a_tensor_in_an_objective_whose_gradient_is_the_condition_is_named():
    lam = torch.tensor(2.0, requires_grad=True)
    solver = custom_root(grad(lambda w, a: lam * (w - a) ** 2))(lambda init, a: a)
    with pytest.raises(ValueError, match="`lam`"):
        solver(None, torch.tensor(1.0))


def test_a_closure_of_the_solver_is_named():
    theta = torch.tensor(3.0, requires_grad=True)
    solver = custom_root(lambda x, a: x - 3 * a)(lambda init, a: a * theta)
    with pytest.raises(ValueError, match=r"The solver uses .*`theta`"):
        solver(None, torch.tensor(1.0))


@pytest.mark.parametrize("transform", [grad, jacfwd, lambda f: lambda t: jvp(f, (t,), (t,))])
def test_a_closure_under_a_transform_is_named(transform):
    def outer(theta):
        solver = custom_root(lambda x, a: x - a * theta)(lambda init, a: 3 * a)
        return solver(None, torch.tensor(1.0))

    with pytest.raises(ValueError, match="`theta`"):
        transform(outer)(torch.tensor(3.0))


# Errors


def test_a_condition_of_another_shape_is_refused():
    solver = custom_root(lambda x, a: x[:1] - a)(lambda init, a: init)
    with pytest.raises(ValueError, match=r"`optimality_fun` must return .*\(2,\).*got .*\(1,\)"):
        solver(torch.ones(2), torch.ones(1))
    solver = custom_root(lambda x, a: {"x": x})(lambda init, a: init)
    with pytest.raises(
        ValueError, match="`optimality_fun` must return a tree of the root's struct"
    ):
        solver(torch.ones(2), torch.ones(1))


def test_roots_that_are_not_real_are_refused():
    for bad in (torch.ones(2, dtype=torch.complex64), torch.ones(2, dtype=torch.int64), 1.0):
        solver = custom_root(lambda x, a: x - a)(lambda init, a, bad=bad: bad)
        with pytest.raises(TypeError, match="root"):
            solver(None, torch.ones(2))


def test_aux_must_come_as_a_pair():
    solver = custom_root(cube, has_aux=True)(newton_cube_root)
    with pytest.raises(ValueError, match=r"must return `\(root, aux\)`, got Tensor"):
        solver(ONE, ONE)


def test_a_singular_condition_raises_when_the_derivative_is_taken():
    solver = custom_root(lambda x, a: (x - a) ** 2)(lambda init, a: a)
    a = torch.tensor(1.0, requires_grad=True)
    x = solver(None, a)
    with pytest.raises(LinearSolveError, match="singular"):
        autograd_grad(x, a)


def test_a_solve_that_gives_up_raises_and_can_be_told_to_warn():
    d = torch.logspace(0, 4, 30, dtype=torch.float64)
    b = torch.ones(30, dtype=torch.float64, requires_grad=True)
    impatient = functools.partial(solve_cg, maxiter=2)
    x = custom_root(lambda x, b: d * x - b, solve=impatient)(lambda init, b: b / d)(None, b)
    with pytest.raises(LinearSolveError, match="after 2 iterations"):
        autograd_grad(x.sum(), b)
    lenient = functools.partial(impatient, on_failure="warn")
    x = custom_root(lambda x, b: d * x - b, solve=lenient)(lambda init, b: b / d)(None, b)
    with pytest.warns(UserWarning, match="after 2 iterations"):
        autograd_grad(x.sum(), b)


def test_names_and_docstring_of_the_solver_are_kept():
    assert cube_root.__name__ == "cube_root"
