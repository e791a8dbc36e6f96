"""Losses of modules that are written to and differentiated by `backward()`."""

import pytest
import torch
from diffopt_implicit import (
    BOME,
    CG,
    F2SA,
    SAMA,
    Exact,
    FiniteDifference,
    FixedPoint,
    Neumann,
    OneStep,
    by_backward,
    hypergradient,
)
from implicit_problems import normal
from torch import nn
from torch.func import functional_call
from torch.testing import assert_close

METHODS = [F2SA(5, 0.05), SAMA(alpha=0.1), BOME(5, 0.05), FiniteDifference()]


class Problem:
    """A weighted regression, as a function of parameters and by `backward()`."""

    def __init__(self):
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2)).double()
        self.x, self.y = normal(16, 4, seed=1), normal(16, 2, seed=2)
        self.hparams = {"weights": normal(16, seed=3), "shift": torch.tensor(0.3).double()}

    @property
    def params(self):
        return dict(self.net.named_parameters())

    def inner_of(self, found, hparams):
        errors = (found - self.y - hparams["shift"]).square().mean(1)
        return (hparams["weights"].sigmoid() * errors).mean()

    def outer_of(self, found):
        return (found - 2 * self.y).square().mean()

    def functional(self):
        inner = lambda p, h: self.inner_of(functional_call(self.net, p, (self.x,)), h)
        return inner, lambda p, h: self.outer_of(functional_call(self.net, p, (self.x,)))

    def by_backward(self):
        inner = by_backward(self.net, lambda h: self.inner_of(self.net(self.x), h))
        return inner, by_backward(self.net, lambda h: self.outer_of(self.net(self.x)))


@pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
def test_hypergradients_are_those_of_replaced_parameters(method):
    problem = Problem()
    params = {name: p.detach() + 0.1 for name, p in problem.params.items()}
    expected = hypergradient(*problem.functional(), params, problem.hparams, method)
    found = hypergradient(*problem.by_backward(), params, problem.hparams, method)
    assert_close(found, expected, rtol=1e-12, atol=1e-14)


def test_first_derivatives_are_those_of_the_loss():
    problem = Problem()
    params = {name: p.detach().requires_grad_() for name, p in problem.params.items()}
    hparams = {name: h.requires_grad_() for name, h in problem.hparams.items()}
    values, slopes = [], []
    for inner, _ in (problem.functional(), problem.by_backward()):
        value = 3 * inner(params, hparams)
        values.append(value)
        slopes.append(torch.autograd.grad(value, [*params.values(), *hparams.values()]))
    assert_close(values[1], values[0])
    assert_close(slopes[1], slopes[0])


def test_the_module_is_as_it_was_whatever_happens():
    net = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)).double()
    net[0].weight.grad = torch.ones(3, 3).double()
    before = {name: t.clone() for name, t in net.state_dict().items()}
    params = {name: p.detach() * 2 for name, p in net.named_parameters()}
    x, broken = normal(5, 3, seed=0), []

    def loss():
        value = net(x).square().mean()
        if broken:
            raise RuntimeError("no such luck")
        return value

    of_parameters = by_backward(net, loss)
    of_parameters({name: p.requires_grad_() for name, p in params.items()})
    broken.append(True)
    with pytest.raises(RuntimeError, match="no such luck"):
        of_parameters(params)
    assert_close(net.state_dict(), before, rtol=0, atol=0)
    assert torch.equal(net[0].weight.grad, torch.ones(3, 3).double())
    assert net[0].bias.grad is None


def test_parameters_that_are_not_given_stay_constant():
    problem = Problem()
    inner, _ = problem.by_backward()
    some = {"2.bias": problem.net[2].bias.detach().requires_grad_()}
    expected = torch.autograd.grad(
        problem.inner_of(problem.net(problem.x), problem.hparams), problem.net[2].bias
    )
    assert_close(torch.autograd.grad(inner(some, problem.hparams), some["2.bias"]), expected)


def test_nothing_is_differentiated_without_need():
    problem = Problem()
    inner, _ = problem.by_backward()
    params = {name: p.detach() for name, p in problem.params.items()}
    assert not inner(params, problem.hparams).requires_grad
    with torch.no_grad():
        assert not inner(problem.params, problem.hparams).requires_grad


def test_second_derivatives_are_refused():
    problem = Problem()
    inner, _ = problem.by_backward()
    params = {name: p.detach().requires_grad_() for name, p in problem.params.items()}
    slopes = torch.autograd.grad(
        inner(params, problem.hparams), list(params.values()), create_graph=True
    )
    with pytest.raises(RuntimeError, match="first derivatives alone"):
        torch.autograd.grad(slopes[0].sum(), params["0.weight"])
    for method in (CG(), FixedPoint(3, 0.1), Neumann(3, step_size=0.1), Exact(), OneStep(0.1)):
        with pytest.raises(RuntimeError, match="first derivatives alone"):
            hypergradient(*problem.by_backward(), params, problem.hparams, method)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p | {"0.wait": p["0.weight"]}, r"'0.wait', which is no parameter of Sequential"),
        (lambda p: p | {"0.bias": torch.ones(3)}, r"params\['0.bias'\]` must be shaped like"),
    ],
)
def test_other_parameters_are_refused(change, message):
    problem = Problem()
    inner, _ = problem.by_backward()
    with pytest.raises(ValueError, match=message):
        inner(change(problem.params), problem.hparams)


def test_frozen_parameters_are_refused():
    problem = Problem()
    problem.net[0].bias.requires_grad_(False)
    inner, _ = problem.by_backward()
    with pytest.raises(ValueError, match=r"'0\.bias' does not require grad"):
        inner(problem.params, problem.hparams)


def test_a_loss_that_is_no_scalar_is_refused():
    problem = Problem()
    of_parameters = by_backward(problem.net, lambda: problem.net(problem.x))
    with pytest.raises(ValueError, match=r"must be a scalar tensor, got \(16, 2\)"):
        of_parameters(problem.params)


def test_a_tensor_by_closure_is_named():
    problem = Problem()
    lam = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    of_parameters = by_backward(problem.net, lambda: lam * problem.net(problem.x).mean())
    with pytest.raises(ValueError, match="`lam` of shape"):
        of_parameters(problem.params)
    assert lam.grad is None


def test_transforms_of_torch_func_are_refused():
    problem = Problem()
    inner, _ = problem.by_backward()
    with pytest.raises(NotImplementedError, match=r"`torch\.func` cannot transform"):
        torch.func.grad(inner)(problem.params, problem.hparams)
