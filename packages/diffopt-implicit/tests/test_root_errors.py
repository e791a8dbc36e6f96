"""What solvers may do, and what is refused."""

import functools

import pytest
import torch
from diffopt_implicit import LinearSolveError, custom_root, root_vjp, solve_cg
from implicit_problems import (
    cube,
    newton_cube_root,
)
from root_problems import ONE, cube_root
from torch import nn
from torch.autograd import grad as autograd_grad
from torch.func import grad, jacfwd, jvp
from torch.testing import assert_close


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
