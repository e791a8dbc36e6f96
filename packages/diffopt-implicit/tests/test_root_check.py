"""What a decorated solver asks of its root and of its condition."""

import pytest
import torch
from diffopt_implicit import (
    InexactRootError,
    InexactRootWarning,
    custom_fixed_point,
    custom_root,
    root_jvp,
    root_vjp,
    solve_cg,
    solve_lu,
)
from implicit_problems import LAM, RIDGE_SLOPE, X, Y, cube, normal, ridge_condition, spd
from torch import nn
from torch.autograd import grad as autograd_grad
from torch.autograd import gradcheck, gradgradcheck
from torch.func import functional_call, grad, jvp, vmap
from torch.testing import assert_close

ONE = torch.ones((), dtype=torch.float64)


def off_by(share, **options):
    """A solver of x = a whose result is off by a share of the root."""
    return custom_root(lambda x, a: 1e6 * (x - a), **options)(lambda init, a: a * (1 + share))


# Roots that are none


@pytest.mark.parametrize("size", [1e-12, 1.0, 1e12])
def test_a_root_is_judged_by_its_relative_error_whatever_its_units(size):
    a = (size * torch.tensor([3.0, -4.0], dtype=torch.float64)).requires_grad_()
    autograd_grad(off_by(0.05)(None, a).sum(), a)  # filterwarnings is "error"
    strict = off_by(0.05, root_tol=0.04)
    message = (
        rf"has norm {0.05 * 5e6 * size:.3g},.*estimated as 0\.048, where 0\.04 is allowed"
    ).replace("+", r"\+")
    with pytest.warns(InexactRootWarning, match=message):
        autograd_grad(strict(None, a).sum(), a)
    with pytest.warns(InexactRootWarning, match=message):
        jvp(lambda a: strict(None, a), (a.detach(),), (torch.ones_like(a),))


def test_nothing_is_said_until_a_derivative_is_taken():
    a = (2 * ONE).requires_grad_()
    x = off_by(1.0, on_inexact_root="raise")(None, a)
    assert x == 4
    with pytest.raises(InexactRootError, match="let the solver go on"):
        autograd_grad(x, a)


def test_a_warning_can_be_turned_off():
    a = (2 * ONE).requires_grad_()
    (slope,) = autograd_grad(off_by(1.0, on_inexact_root="ignore")(None, a), a)
    assert slope == 1


def test_roots_at_zero_are_not_called_inexact_for_rounding():
    a = torch.tensor([1e-3, 2.0], dtype=torch.float64, requires_grad=True)
    solver = custom_root(lambda x, a: x * a, on_inexact_root="raise")(
        lambda init, a: torch.full_like(a, 0.0)
    )
    assert_close(autograd_grad(solver(None, a).sum(), a)[0], torch.zeros(2, dtype=torch.float64))
    near = custom_root(lambda x, a: x - (a - a.detach()), on_inexact_root="raise")(
        lambda init, a: torch.full_like(a, 1e-17)
    )
    assert_close(autograd_grad(near(None, a).sum(), a)[0], torch.ones(2, dtype=torch.float64))
    a = a.detach()
    for root, slope in ((solver, 0.0), (near, 1.0)):
        pushed = jvp(lambda a, root=root: root(None, a), (a,), (torch.ones_like(a),))[1]
        assert_close(pushed, torch.full_like(a, slope))


def test_one_bad_root_of_a_batch_is_found():
    def slope(a, wrong):
        solver = custom_root(cube, on_inexact_root="raise")(
            lambda init, a: a ** (1 / 3) * (1 + wrong)
        )
        return grad(lambda a: solver(None, a))(a)

    a = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    wrong = torch.tensor([0.0, 0.0, 0.3], dtype=torch.float64)
    error = (1.3**3 - 1) / (3 * 1.3**2) / 1.3
    with pytest.raises(InexactRootError, match=f"estimated as {error:.2g}"):
        vmap(slope)(a, wrong)
    assert_close(vmap(slope)(a, 0 * wrong), a ** (-2 / 3) / 3)


def test_products_with_a_bad_root_are_judged_too():
    options = {"on_inexact_root": "raise"}
    with pytest.raises(InexactRootError):
        root_vjp(cube, 3 * ONE, (ONE,), ONE, **options)
    with pytest.raises(InexactRootError):
        root_jvp(cube, 3 * ONE, (ONE,), (ONE,), **options)
    with pytest.warns(InexactRootWarning):
        root_vjp(cube, 3 * ONE, (ONE,), ONE)


def test_fixed_points_are_judged_too():
    theta = ONE.clone().requires_grad_()
    solver = custom_fixed_point(lambda x, t: x.cos() + t, on_inexact_root="raise")(
        lambda init, t: init
    )
    with pytest.raises(InexactRootError):
        autograd_grad(solver(ONE, theta), theta)


def test_training_that_has_nearly_converged_is_left_in_peace():
    def descend(init, lam, x, y):
        w = torch.zeros(3, dtype=torch.float64)
        for _ in range(10):
            w = w - 0.1 * ridge_condition(w, lam, x, y)
        return w

    lam = LAM.clone().requires_grad_()
    solver = custom_root(ridge_condition, on_inexact_root="raise", solve=solve_cg)(descend)
    (slope,) = autograd_grad(solver(None, lam, X, Y).sum(), lam)
    assert_close(slope, RIDGE_SLOPE.sum(), rtol=0.05, atol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"root_tol": 0.0}, "`root_tol` must be positive, got 0"),
        ({"on_inexact_root": "shrug"}, "`on_inexact_root` must be 'raise', 'warn' or 'ignore'"),
    ],
)
def test_bad_options_are_refused_where_they_are_given(options, message):
    for decorator in (custom_root, custom_fixed_point):
        with pytest.raises(ValueError, match=message):
            decorator(cube, **options)


# Conditions that are no functions


def regression(net, inputs):
    def loss(params, lam):
        penalty = lam * sum(p.square().sum() for p in params.values())
        return functional_call(net, params, (inputs,)).square().mean() + penalty

    return grad(loss)


def test_a_condition_with_dropout_is_refused():
    net = nn.Sequential(nn.Linear(3, 3), nn.Dropout(), nn.Linear(3, 1)).double()
    params = {name: torch.zeros_like(p) for name, p in net.named_parameters()}
    params["0.bias"] += 1
    params["2.weight"] += 1
    solver = custom_root(regression(net, normal(8, 3)))(lambda init, lam: init)
    with pytest.raises(ValueError, match="`optimality_fun` draws random numbers"):
        solver(params, ONE)
    net.eval()
    solver(params, ONE)


def test_a_condition_that_seeds_its_randomness_is_replayed():
    def condition(x, a):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            mask = torch.rand(3, dtype=x.dtype)
        torch.manual_seed(1)
        return mask * x - a * torch.rand(3, dtype=x.dtype)

    def solution(a):
        zero = torch.zeros(3, dtype=a.dtype)
        slope = condition(zero + 1, 0 * a) - condition(zero, 0 * a)
        return -condition(zero, a) / slope

    a = normal(3).requires_grad_()
    solver = custom_root(condition, solve=solve_lu)(lambda init, a: solution(a))
    assert gradcheck(lambda a: solver(None, a), (a,), check_forward_ad=True)


@pytest.mark.parametrize("passed", [False, True])
def test_a_condition_that_updates_running_statistics_is_refused(passed):
    net = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 1)).double()
    params = {name: p.detach().clone() for name, p in net.named_parameters()}
    buffers = {name: b.clone() for name, b in net.named_buffers()} if passed else {}
    inputs = normal(8, 3)

    def condition(params, buffers, lam):
        loss = lambda p: functional_call(net, {**p, **buffers}, (inputs,)).square().mean() * lam
        return grad(loss)(params)

    solver = custom_root(condition)(lambda init, buffers, lam: init)
    with pytest.raises(ValueError, match=r"writes in place .*running statistics of batch norm"):
        solver(params, buffers, ONE)


# Complex arguments; complex roots are refused in test_root.py


def test_complex_arguments_are_differentiated_in_both_modes():
    a = spd(3)

    @custom_root(lambda x, c: a @ x + x**3 - (c.abs() ** 2 + (c * c).real))
    def solver(init, c):
        x = torch.zeros(3, dtype=torch.float64)
        for _ in range(50):
            residual = a @ x + x**3 - (c.abs() ** 2 + (c * c).real)
            x = x - torch.linalg.solve(a + torch.diag(3 * x**2), residual)
        return x

    c = torch.complex(normal(3, seed=1), normal(3, seed=2)).requires_grad_()
    assert gradcheck(lambda c: solver(None, c), (c,), check_forward_ad=True)
    assert gradgradcheck(lambda c: solver(None, c), (c,))

    condition = lambda x, c: a @ x + x**3 - (c.abs() ** 2 + (c * c).real)
    root, v, t = solver(None, c).detach(), normal(3, seed=3), torch.complex(normal(3), normal(3))
    (pulled,) = root_vjp(condition, root, (c.detach(),), v)
    assert_close(pulled, autograd_grad(solver(None, c), c, v)[0])
    pushed = root_jvp(condition, root, (c.detach(),), (t,))
    assert_close(pushed, jvp(lambda c: solver(None, c), (c.detach(),), (t,))[1])
