import copy
import gc
import weakref
from functools import partial

import pytest
import torch
from diffopt_implicit import (
    ImplicitModule,
    InexactRootError,
    LinearSolveError,
    custom_root,
    hypergradient,
    solve_cg,
)
from implicit_problems import normal
from torch import nn
from torch.autograd import grad as autograd_grad
from torch.func import functional_call
from torch.testing import assert_close

X, Y = normal(12, 3), normal(12, seed=1)


class Ridge(ImplicitModule):
    inner, meta = ("weight",), ("log_penalty",)
    linear_solve = partial(solve_cg, tol=1e-12)

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3, dtype=torch.float64))
        self.log_penalty = nn.Parameter(torch.zeros(3, dtype=torch.float64))

    def objective(self, x, y, scale=1.0):
        penalty = (self.log_penalty.exp() * self.weight**2).sum()
        return scale * (x @ self.weight - y).square().sum() + penalty

    def solve(self, x, y, scale=1.0):
        optimizer = torch.optim.LBFGS(
            self.inner_parameters(), max_iter=100, tolerance_grad=1e-12, tolerance_change=1e-15
        )

        def closure():
            optimizer.zero_grad()
            loss = self.objective(x, y, scale)
            loss.backward()
            return loss

        optimizer.step(closure)

    def forward(self, x):
        return x @ self.weight


def closed_form(log_penalty, x, y, scale=1.0):
    return torch.linalg.solve(scale * x.T @ x + torch.diag(log_penalty.exp()), scale * x.T @ y)


class DeeperRidge(Ridge):  # D24: subclassing twice
    meta = (*Ridge.meta, "shift")

    def __init__(self):
        super().__init__()
        self.shift = nn.Parameter(torch.tensor(0.5, dtype=torch.float64))

    def objective(self, x, y, scale=1.0):
        return super().objective(x, y - self.shift, scale)


class NormalEquations(Ridge):
    """The same by its optimality condition and a direct solve."""

    def optimality(self, x, y, scale=1.0):
        slope = scale * x.T @ (x @ self.weight - y) + self.log_penalty.exp() * self.weight
        return {"weight": slope}

    def solve(self, x, y, scale=1.0):
        with torch.no_grad():
            self.weight.copy_(closed_form(self.log_penalty, x, y, scale))


@pytest.mark.parametrize("kind", [Ridge, NormalEquations])
def test_the_solution_is_differentiated_in_meta_parameters_and_arguments(kind):
    module = kind()
    y, scale = Y.clone().requires_grad_(), torch.tensor(2.0, dtype=torch.float64).requires_grad_()
    weight = module.solution(X, y, scale=scale)["weight"]
    exact = closed_form(module.log_penalty, X, y, scale)
    assert_close(weight, exact, rtol=1e-7, atol=1e-8)
    inputs = (module.log_penalty, y, scale)
    ours = autograd_grad(weight.square().sum(), inputs)
    theirs = autograd_grad(exact.square().sum(), inputs)
    assert_close(ours, theirs, rtol=1e-7, atol=1e-9)


def test_second_derivatives_are_those_of_the_closed_form():
    module = NormalEquations()

    def curvature(weight):
        (slope,) = autograd_grad(weight.sum(), module.log_penalty, create_graph=True)
        return autograd_grad(slope.square().sum(), module.log_penalty)[0]

    ours = curvature(module.solution(X, Y)["weight"])
    assert_close(ours, curvature(closed_form(module.log_penalty, X, Y)), rtol=1e-8, atol=1e-10)


def test_a_subclass_of_a_subclass_adds_meta_parameters():  # D24
    module = DeeperRidge()
    weight = module.solution(X, Y)["weight"]
    exact = closed_form(module.log_penalty, X, Y - module.shift)
    inputs = (module.log_penalty, module.shift)
    ours, theirs = (autograd_grad(w.sum(), inputs) for w in (weight, exact))
    assert_close(ours, theirs, rtol=1e-7, atol=1e-9)
    assert {name for name, _ in module.named_meta_parameters()} == {"log_penalty", "shift"}


def test_meta_parameters_are_in_the_state_and_move_with_the_module():  # D24
    module = DeeperRidge()
    assert module.state_dict().keys() == {"weight", "log_penalty", "shift"}
    module.solution(X, Y)
    other = DeeperRidge()
    other.load_state_dict(module.state_dict())
    assert_close(other.weight, module.weight)
    single = copy.deepcopy(module).to(torch.float32)
    assert {p.dtype for p in single.meta_parameters()} == {torch.float32}
    single.solution(X.float(), Y.float())["weight"].sum().backward()
    assert single.shift.grad.dtype == torch.float32


def test_eval_mode_gives_the_same_gradient():  # D24
    module = NormalEquations()
    slopes = []
    for mode in (True, False):
        module.train(mode)
        slopes.append(autograd_grad(module.solution(X, Y)["weight"].sum(), module.log_penalty)[0])
    assert_close(*slopes)


def test_solving_leaves_no_trace_but_the_inner_values():  # D24
    module = Ridge()
    module.weight.grad = torch.ones(3, dtype=torch.float64)
    module.log_penalty.grad = torch.full((3,), 2.0, dtype=torch.float64)
    x, y = X.clone().requires_grad_(), Y.clone()
    solution = module.solution(x, y)
    assert_close(module.weight.grad, torch.ones(3, dtype=torch.float64))
    assert_close(module.log_penalty.grad, torch.full((3,), 2.0, dtype=torch.float64))
    assert x.grad is None
    assert module.log_penalty.requires_grad
    assert_close((x, y), (X, Y), rtol=0, atol=0)
    assert_close(solution["weight"], module.weight)
    with torch.no_grad():
        module.weight.zero_()  # a later solve must not change what was given out
    assert solution["weight"].abs().sum() > 0


def test_a_failed_solve_changes_nothing():
    class Failing(Ridge):
        def solve(self, x, y):
            with torch.no_grad():
                self.weight.fill_(7)
            raise ArithmeticError("on purpose")

    module = Failing()
    with pytest.raises(ArithmeticError):
        module.solution(X, Y)
    assert module.weight.tolist() == [0, 0, 0]
    assert module.log_penalty.requires_grad


class Proximal(ImplicitModule):
    """Implicit MAML: a network trained near an anchor, which is learned."""

    inner, meta = ("net",), ("anchor", "strength")
    linear_solve = solve_cg

    def __init__(self, net):
        super().__init__()
        self.net, self.anchor = net, copy.deepcopy(net)
        self.strength = nn.Parameter(torch.tensor(2.0, dtype=torch.float64))

    def objective(self, x, y):
        pairs = zip(self.net.parameters(), self.anchor.parameters(), strict=True)
        distance = sum((p - q).square().sum() for p, q in pairs)
        return (self.net(x)[:, 0] - y).square().mean() + self.strength / 2 * distance

    def solve(self, x, y):
        self.net.load_state_dict(self.anchor.state_dict())
        optimizer = torch.optim.SGD(self.inner_parameters(), lr=0.2)
        for _ in range(200):
            optimizer.zero_grad()
            self.objective(x, y).backward()
            optimizer.step()

    def forward(self, x):
        return self.net(x)[:, 0]


def test_nested_modules_and_implicit_maml():
    torch.manual_seed(0)
    module = Proximal(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double())
    loss = functional_call(module, module.solution(X, Y), (X,)).square().mean()
    metas = dict(module.named_meta_parameters())
    slopes = autograd_grad(loss, list(metas.values()))

    names = [name.removeprefix("net.") for name, _ in module.named_inner_parameters()]
    anchor = {name: module.anchor.get_parameter(name).detach() for name in names}

    def inner(params, h):
        distance = sum((params[k] - h["anchor"][k]).square().sum() for k in params)
        fit = functional_call(module.net, params, (X,))[:, 0] - Y
        return fit.square().mean() + h["strength"] / 2 * distance

    outer = lambda params, h: functional_call(module.net, params, (X,)).square().mean()
    solved = {name: module.net.get_parameter(name).detach() for name in names}
    h = {"anchor": anchor, "strength": module.strength.detach()}
    exact = hypergradient(inner, outer, solved, h)
    for name, slope in zip(metas, slopes, strict=True):
        expected = exact["strength"] if name == "strength" else exact["anchor"][name[7:]]
        assert_close(slope, expected, rtol=1e-6, atol=1e-9)


def test_nothing_is_kept_when_the_solution_is_dropped():
    module = NormalEquations()
    gc.disable()
    try:
        solution = module.solution(X, Y)
        kept = weakref.ref(solution["weight"])
        del solution
        assert kept() is None
    finally:
        gc.enable()


def test_parameters_must_be_declared():
    module = Ridge()
    module.extra = nn.Parameter(torch.zeros(()))
    with pytest.raises(ValueError, match=r"`Ridge` .* and `extra` is in neither: `inner` is"):
        module.solution(X, Y)
    module.extra.requires_grad_(False)
    module.solution(X, Y)
    module.meta = ("log_penalty", "weight")
    with pytest.raises(ValueError, match="`weight` is in both"):
        module.solution(X, Y)
    module.inner, module.meta = (), ("log_penalty", "weight")
    with pytest.raises(ValueError, match="there is no inner parameter"):
        module.solution(X, Y)


def test_what_must_be_overridden_is_said():
    class Empty(ImplicitModule):
        inner = ("weight",)

        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(3))

    with pytest.raises(NotImplementedError, match="`Empty` states no problem: override"):
        Empty().solution()


def test_dropout_in_training_mode_is_refused():
    class Noisy(NormalEquations):
        def optimality(self, x, y, scale=1.0):
            return super().optimality(nn.functional.dropout(x, training=self.training), y)

    module = Noisy()
    with pytest.raises(ValueError, match="The module's `optimality` draws random numbers"):
        module.solution(X, Y)
    module.eval()
    module.solution(X, Y)["weight"].sum().backward()


def test_transforms_of_torch_func_are_refused():
    module = NormalEquations()
    message = r"`NormalEquations.solution` sets parameters in place.*`torch\.autograd\.grad`"
    for transform in (torch.func.grad, torch.func.jacfwd, torch.func.vmap):
        with pytest.raises(NotImplementedError, match=message):
            transform(lambda y: module.solution(X, y)["weight"].sum())(Y)
    assert module.weight.tolist() == [0, 0, 0]


def test_an_unsolved_problem_is_noticed():
    class Lazy(Ridge):
        on_inexact_root = "raise"

        def solve(self, x, y):
            pass

    with pytest.raises(InexactRootError):
        Lazy().solution(X, Y)["weight"].sum().backward()


def test_it_agrees_with_the_decorator():
    module = NormalEquations()
    condition = torch.func.grad(lambda w, p: (X @ w - Y).square().sum() + (p.exp() * w**2).sum())
    solver = custom_root(condition)(lambda init, p: closed_form(p, X, Y))
    leaf = module.log_penalty.detach().clone().requires_grad_()
    (ours,) = autograd_grad(module.solution(X, Y)["weight"].sum(), module.log_penalty)
    assert_close(ours, autograd_grad(solver(None, leaf).sum(), leaf)[0], rtol=1e-8, atol=0)


def test_a_linear_solver_that_fails_is_reported():
    class Impatient(Ridge):
        linear_solve = partial(solve_cg, maxiter=1)

    with pytest.raises(LinearSolveError, match="after 1 iterations"):
        Impatient().solution(X, Y)["weight"].sum().backward()
