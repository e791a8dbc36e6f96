"""Compiled hypergradients: those of `hypergradient`, faster."""

import pytest
import torch
from diffopt_implicit import (
    CG,
    F2SA,
    Exact,
    FiniteDifference,
    LinearSolveError,
    NormalCG,
    Nystrom,
    OneStep,
    StochasticAdjoint,
    compile_hypergradient,
    hypergradient,
)
from implicit_problems import normal, spd
from torch.func import grad
from torch.nn.functional import dropout, linear, mse_loss, softplus
from torch.testing import assert_close

# One of each way in which a method uses the compiled products.
METHODS = [
    CG(),
    NormalCG(4),
    Exact(),
    Nystrom(3),
    StochasticAdjoint(3),
    FiniteDifference(),
    F2SA(),
]


class Network:
    """A regularized regression by a small network, on trees, its data attributes."""

    def __init__(self, seed=0, count=12):
        self.x, self.y = normal(count, 3, seed=seed), normal(count, 1, seed=seed + 1)
        self.params = {
            "hidden": [normal(4, 3, seed=2), normal(4, seed=3)],
            "out": (normal(1, 4, seed=4),),
        }
        self.hparams = {"penalty": torch.tensor(0.3), "features": normal(3, seed=5), "name": "a"}

    def predict(self, params, hparams):
        hidden = softplus(linear(self.x * hparams["features"], *params["hidden"]))
        return linear(hidden, *params["out"])

    def inner(self, params, hparams):
        squares = [p.square().sum() for p in (*params["hidden"], *params["out"])]
        penalty = softplus(hparams["penalty"]) + 1.0
        return (
            mse_loss(self.predict(params, hparams), self.y) + penalty * torch.stack(squares).sum()
        )

    def outer(self, params, hparams):
        return self.predict(params, hparams).square().mean()


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_it_equals_the_hypergradient_that_is_not_compiled(method):
    net = Network()
    compiled = compile_hypergradient(net.inner, net.outer, method, backend="aot_eager")
    found, info = compiled(net.params, net.hparams, info=True)
    expected, told = hypergradient(net.inner, net.outer, net.params, net.hparams, method, info=True)
    assert found["name"] is None
    assert_close((found["penalty"], found["features"]), (expected["penalty"], expected["features"]))
    assert_close(info.adjoint, told.adjoint)
    assert_close(info.residual, told.residual, atol=1e-9, rtol=1e-6)


def test_the_default_compiler_gives_the_closed_form():
    h, b, lam = spd(6), normal(6, 4, seed=1), normal(4, seed=3)
    inner = lambda w, lam: 0.5 * w @ h @ w - w @ b @ lam
    outer = lambda w, lam: w.square().sum() + lam.sum()
    found = compile_hypergradient(inner, outer)(torch.linalg.solve(h, b @ lam), lam)
    value = lambda lam: outer(torch.linalg.solve(h, b @ lam), lam)
    assert_close(found, grad(value)(lam))


def test_data_may_change_between_calls_and_so_may_its_size():
    net = Network()
    compiled = compile_hypergradient(net.inner, net.outer, CG(5), backend="aot_eager")
    first = compiled(net.params, net.hparams)["features"]
    for seed, count in ((7, 12), (9, 20)):
        other = Network(seed, count)
        net.x, net.y = other.x, other.y
        found = compiled(net.params, net.hparams)["features"]
        expected = hypergradient(other.inner, other.outer, other.params, other.hparams, CG(5))
        assert_close(found, expected["features"])
        assert (found - first).abs().max() > 1e-3


def test_a_warm_start_is_taken():
    net = Network()
    compiled = compile_hypergradient(net.inner, net.outer, backend="aot_eager")
    _, info = compiled(net.params, net.hparams, info=True)
    _, again = compiled(net.params, net.hparams, init=info.adjoint, info=True)
    assert info.iterations > 0
    assert again.iterations == 0


def test_parameters_along_which_the_loss_is_no_curve_count_as_such():
    inner = lambda w, lam: (w["a"] - lam).square().sum() + w["b"].sum()
    outer = lambda w, lam: w["a"].sum() + 2 * w["b"].sum()
    w, lam = {"a": torch.ones(2), "b": torch.ones(3)}, torch.tensor(1.0)
    compiled = compile_hypergradient(inner, outer, OneStep(0.5), backend="aot_eager")
    found, info = compiled(w, lam, info=True)
    assert_close(found, torch.tensor(2.0))
    assert_close(info.residual, torch.tensor(2.0 * 3**0.5).double())
    flat = compile_hypergradient(lambda w, lam: w * lam, lambda w, lam: w, OneStep(0.5))
    assert_close(flat(torch.tensor(1.0), lam), torch.tensor(-0.5))


def test_failures_are_reported_as_without_compilation():
    inner = lambda w, lam: (w[0] - lam) ** 2 - (w[1] - lam) ** 2
    compiled = compile_hypergradient(inner, lambda w, lam: w.square().sum(), backend="aot_eager")
    with pytest.raises(LinearSolveError, match="not positive definite"):
        compiled(torch.ones(2), torch.tensor(1.0))


def test_what_cannot_be_compiled_is_refused():
    net = Network()
    compiled = compile_hypergradient(net.inner, net.outer, backend="aot_eager")
    with pytest.raises(NotImplementedError, match="use `hypergradient`"):
        grad(lambda p: compiled(net.params, {**net.hparams, "penalty": p})["penalty"])(
            net.hparams["penalty"]
        )
    vector = compile_hypergradient(lambda w, lam: w * lam, net.outer, backend="aot_eager")
    with pytest.raises(ValueError, match=r"`inner_loss` must return a scalar tensor, got \(2,\)"):
        vector(torch.ones(2), torch.tensor(1.0))
    other = torch.ones(2, requires_grad=True)
    elsewhere = compile_hypergradient(lambda w, lam: (other * lam).sum(), net.outer)
    with pytest.raises(ValueError, match="`inner_loss` does not depend on `params`"):
        elsewhere(torch.ones(2), torch.tensor(1.0))
    branching = compile_hypergradient(
        lambda w, lam: (w - lam) ** 2 if lam > 0 else w**2, lambda w, lam: w, backend="aot_eager"
    )
    with pytest.raises(RuntimeError, match=r"cannot be compiled.*`hypergradient`"):
        branching(torch.tensor(1.0), torch.tensor(1.0))
    noisy = lambda w, lam: (dropout(w, 0.5) - lam).square().sum()
    with pytest.raises(ValueError, match="draws random numbers"):
        compile_hypergradient(noisy, noisy, dynamic=False)(torch.ones(2), torch.tensor(1.0))


def test_its_repr_names_the_losses_and_the_method():
    net = Network()
    assert repr(compile_hypergradient(net.inner, net.outer, CG(4))).startswith(
        "<CompiledHypergradient of inner, outer by CG(iterations=4"
    )
