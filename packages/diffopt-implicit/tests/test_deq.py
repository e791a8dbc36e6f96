import copy
import warnings
from functools import partial

import pytest
import torch
from diffopt_implicit import (
    DEQ,
    AndersonAcceleration,
    Broyden,
    FixedPointIteration,
    ImplicitBackward,
    InexactRootError,
    InexactRootWarning,
    PhantomGradient,
    SolverWarning,
    jacobian_penalty,
    solve_gmres,
    solve_lu,
    solve_normal_cg,
)
from diffopt_implicit._deq import solve_each
from implicit_problems import normal
from torch import nn
from torch.autograd import gradcheck
from torch.testing import assert_close

TIGHT = {"tol": 1e-12, "maxiter": 300, "batched": True}
SOLVERS = {
    "anderson": partial(AndersonAcceleration, **TIGHT),
    "picard": partial(FixedPointIteration, **TIGHT),
    "broyden": lambda step: Broyden(lambda z: z - step(z), **TIGHT),
}


class Layer(nn.Module):
    def __init__(self, n=4, gain=0.5):
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.outer = nn.Linear(n, n).double(), nn.Linear(n, n).double()
        with torch.no_grad():
            self.inner.weight *= gain / torch.linalg.matrix_norm(self.inner.weight, 2)

    def forward(self, z, x):
        return torch.tanh(self.inner(z) + self.outer(x))


def slopes(deq, x, v):
    x = x.clone().requires_grad_()
    return torch.autograd.grad((deq(x) * v).sum(), [x, *deq.layer.parameters()])


def unrolled(layer, x, v, steps=200):
    x = x.clone().requires_grad_()
    z = torch.zeros_like(x)
    for _ in range(steps):
        z = layer(z, x)
    return torch.autograd.grad((z * v).sum(), [x, *layer.parameters()])


@pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)
@pytest.mark.parametrize("solve", [solve_gmres, solve_normal_cg, solve_lu])
def test_the_implicit_gradient_is_that_of_the_endless_unroll(solver, solve):
    layer, x, v = Layer(), normal(5, 4), normal(5, 4, seed=1)
    deq = DEQ(layer, solver=solver, backward=ImplicitBackward(solve))
    assert_close(deq(x), layer(deq(x), x), rtol=1e-10, atol=1e-10)
    assert_close(slopes(deq, x, v), unrolled(layer, x, v), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e8])
def test_the_default_adjoint_is_good_to_four_digits_at_any_scale(scale):
    layer, x, v = Layer(gain=0.95), normal(50, 4), normal(50, 4, seed=1)
    deq = DEQ(layer, solver=SOLVERS["anderson"])
    for found, exact in zip(slopes(deq, x, scale * v), unrolled(layer, x, v, 600), strict=True):
        assert (found / scale - exact).norm() < 1e-3 * exact.norm()
    assert slopes(deq, x, 0 * v)[0].abs().max() == 0


def test_an_adjoint_that_is_not_solved_is_reported():
    deq = DEQ(Layer(gain=0.99), backward=ImplicitBackward(partial(solve_each, maxiter=1)))
    loss = deq(normal(5, 4)).sum()
    with pytest.warns(SolverWarning, match="`AndersonAcceleration` left 5 of 5 examples"):
        loss.backward()


def test_gradcheck_through_the_layer():
    deq = DEQ(Layer(2), solver=SOLVERS["anderson"], backward=ImplicitBackward(solve_lu))
    x = normal(2, 2).requires_grad_()
    assert gradcheck(lambda x: deq(x), (x,))


@pytest.mark.parametrize("damping", [0.0, 0.5])
def test_the_phantom_gradient_is_that_of_its_steps(damping):
    layer, x, v = Layer(), normal(5, 4), normal(5, 4, seed=1)
    exact = unrolled(layer, x, v)
    z = DEQ(layer, solver=SOLVERS["picard"]).solve(x).params
    jacobian = torch.func.vmap(torch.func.jacrev(layer))(z, x)
    x_slope = torch.func.vmap(torch.func.jacrev(layer, argnums=1))(z, x)
    errors = []
    for steps in (1, 3, 60):
        deq = DEQ(layer, solver=SOLVERS["picard"], backward=PhantomGradient(steps, damping))
        found = slopes(deq, x, v)
        series, power = torch.zeros_like(jacobian), torch.eye(4, dtype=x.dtype).expand(5, 4, 4)
        for _ in range(steps):
            series = series + (1 - damping) * power
            power = power @ ((1 - damping) * jacobian + damping * torch.eye(4, dtype=x.dtype))
        assert_close(found[0], torch.einsum("bi,bij,bjk->bk", v, series, x_slope))
        errors.append(sum((a - b).norm() for a, b in zip(found, exact, strict=True)))
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 1e-5


def test_a_warm_start_saves_iterations():
    deq = DEQ(Layer(gain=0.9), solver=SOLVERS["picard"])
    x = normal(5, 4)
    z, state = deq.solve(x)
    _, again = deq.solve(x + 1e-9, init=z)
    assert again.iter_num.max() < state.iter_num.max() / 2
    assert_close(deq(x, init=z), z, rtol=1e-9, atol=1e-10)


def test_without_gradients_nothing_is_recorded():
    deq = DEQ(Layer())
    with torch.no_grad():
        assert not deq(normal(2, 4)).requires_grad
    assert not deq.solve(normal(2, 4)).params.requires_grad
    assert deq(normal(2, 4)).requires_grad


def test_the_state_may_have_another_shape_than_the_input():
    class Wide(Layer):
        def forward(self, z, x):
            return torch.tanh(self.inner(z) + x.sum(-1, keepdim=True))

    layer, x = Wide(), normal(3, 2)
    deq = DEQ(layer, solver=SOLVERS["anderson"], backward=ImplicitBackward(solve_lu))
    z = deq(x, init=torch.zeros(3, 4, dtype=torch.float64))
    assert_close(layer(z, x), z, rtol=1e-9, atol=1e-10)


class Two(Layer):
    """A state of two leaves, one of them a number for each example."""

    def forward(self, z, x):
        h = torch.tanh(self.inner(z["h"]) + self.outer(x))
        return {"h": h, "sum": 0.5 * z["sum"] + h.sum(1)}


@pytest.mark.parametrize("count", [0, 3])
def test_states_are_trees_and_batches_may_be_empty(count):
    layer, x = Two(), normal(count, 4).requires_grad_()
    start = {"h": torch.zeros(count, 4).double(), "sum": torch.zeros(count).double()}
    deq = DEQ(layer, solver=SOLVERS["anderson"])
    z = deq(x, init=start)
    exact = layer(layer(z, x), x)
    assert_close(z, exact, rtol=1e-9, atol=1e-9)
    (slope,) = torch.autograd.grad(z["sum"].sum(), x)
    h = DEQ(Layer(), solver=SOLVERS["anderson"], backward=ImplicitBackward(solve_lu))
    assert_close(slope, 2 * slopes(h, x, torch.ones_like(x))[0], rtol=1e-3, atol=1e-4)


def test_a_compiled_model_breaks_its_graph_around_the_layer():
    deq = DEQ(Layer(), solver=SOLVERS["anderson"], backward=ImplicitBackward(solve_lu))
    x, v = normal(5, 4), normal(5, 4, seed=1)
    model = torch.compile(lambda x: deq(2 * x) * v, backend="eager")
    leaf = (x / 2).requires_grad_()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Dynamo's, about its own reading of `.grad`
        (slope,) = torch.autograd.grad(model(leaf).sum(), leaf)
    assert_close(slope / 2, slopes(deq, x, v)[0])


def test_it_is_a_module():
    deq = DEQ(Layer())
    assert deq.state_dict().keys() == {f"layer.{k}" for k in deq.layer.state_dict()}
    single = copy.deepcopy(deq).float()
    single(normal(2, 4).float()).sum().backward()
    assert single.layer.inner.weight.grad.dtype == torch.float32


def test_frozen_parameters_are_left_alone():
    deq = DEQ(Layer())
    deq.layer.inner.weight.requires_grad_(False)
    deq(normal(2, 4)).sum().backward()
    assert deq.layer.inner.weight.grad is None
    assert deq.layer.outer.weight.grad is not None


def test_dropout_is_refused_where_the_backward_is_implicit():
    class Noisy(Layer):
        def forward(self, z, x):
            return nn.functional.dropout(super().forward(z, x), training=self.training)

    deq = DEQ(Noisy())
    with pytest.raises(ValueError, match="`layer` draws random numbers"):
        deq(normal(2, 4))
    deq.eval()(normal(2, 4)).sum().backward()
    DEQ(Noisy(), backward=PhantomGradient())(normal(2, 4)).sum().backward()


def test_a_fixed_point_that_is_none_is_noticed():
    short = partial(AndersonAcceleration, maxiter=1, batched=True, on_failure="ignore")
    z = DEQ(Layer(gain=0.9), solver=short, backward=ImplicitBackward(solve_lu))(normal(5, 4))
    with pytest.warns(InexactRootWarning):
        z.sum().backward()


def test_one_wrong_fixed_point_among_many_is_noticed():
    layer, x = Layer(gain=0.5), normal(400, 4)
    z = DEQ(layer, solver=partial(AndersonAcceleration, tol=1e-12, batched=True))(x).detach()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ImplicitBackward(solve_lu)(layer, z, x).sum().backward()
    z[7] += 0.3 * z[7].norm()
    with pytest.warns(InexactRootWarning, match="The root is not solved"):
        ImplicitBackward(solve_lu)(layer, z, x).sum().backward()
    with pytest.raises(InexactRootError):
        ImplicitBackward(solve_lu, "raise")(layer, z, x).sum().backward()


@pytest.mark.parametrize("others", [0.0, 1.0])
def test_a_fixed_point_at_zero_is_not_called_wrong_for_rounding(others):
    class Product(nn.Module):
        def __init__(self):
            super().__init__()
            self.shift = nn.Parameter(torch.ones((), dtype=torch.float64))

        def forward(self, z, x):
            return 0.5 * z + x + (self.shift - 1 + 1e-17)

    x = torch.tensor([[0.0], [others]], dtype=torch.float64, requires_grad=True)
    z = torch.tensor([[1e-17 * others], [2 * others]], dtype=torch.float64)
    found = ImplicitBackward(solve_lu, "raise")(Product(), z, x)
    assert_close(torch.autograd.grad(found.sum(), x)[0], torch.full_like(x, 2.0))


def test_the_penalty_estimates_the_frobenius_norm():
    m, z = normal(40, 40), normal(40, seed=1)
    generator = torch.Generator().manual_seed(0)
    found = jacobian_penalty(lambda z: m @ z, z, probes=4000, generator=generator)
    assert_close(found, m.square().sum() / 40, rtol=0.03, atol=0)
    weight = torch.tensor(3.0, requires_grad=True)
    probe = partial(jacobian_penalty, z=torch.zeros(20_000), generator=generator)
    penalty = probe(lambda z: weight * z.tanh())
    (slope,) = torch.autograd.grad(penalty, weight)
    assert_close(penalty.detach(), torch.tensor(9.0), rtol=0.05, atol=0)
    assert_close(slope, torch.tensor(6.0), rtol=0.05, atol=0)
    with pytest.raises(ValueError, match=r"shape of `z`, \(40,\), got \(3,\)"):
        jacobian_penalty(lambda z: z[:3], z)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PhantomGradient(0), "`steps` must be positive"),
        (lambda: PhantomGradient(1, 1.0), r"`damping` must be in \[0, 1\)"),
        (lambda: jacobian_penalty(torch.sin, torch.ones(1), probes=0), "`probes` must be"),
    ],
)
def test_bad_options_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
