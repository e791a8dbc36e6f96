"""Ridge regression as a root: its derivatives in the penalty and in the data."""

import functools
import warnings

import torch
from diffopt_implicit import custom_root, root_jvp, root_vjp, solve_cg
from implicit_problems import (
    LAM,
    RIDGE_SLOPE,
    RIDGE_W,
    X,
    Y,
    cube,
    ridge_condition,
    ridge_solution,
)
from root_problems import ONE, root
from torch.autograd import grad as autograd_grad
from torch.func import grad, jacfwd, jacrev, jvp, vmap
from torch.testing import assert_close

close = functools.partial(assert_close, rtol=1e-7, atol=1e-9)


@custom_root(ridge_condition)
def ridge(init, lam, x, y):
    return ridge_solution(lam, x, y)


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
