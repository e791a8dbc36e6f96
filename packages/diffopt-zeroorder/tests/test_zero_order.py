import pickle
import warnings

import numpy as np
import pytest
import torch
from diffopt_zeroorder import Antithetic, zero_order
from torch import nn
from torch.autograd import grad as autograd_grad
from torch.distributions import Laplace, Normal, Uniform
from torch.func import grad, jacrev, vmap
from torch.testing import assert_close

A = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def gradient(f, x, **options):
    options.setdefault("generator", seeded())
    leaf = x.clone().requires_grad_()
    return autograd_grad(zero_order(**options)(f)(leaf), leaf)[0]


def half_square(x):
    return 0.5 * x.square().sum()


# What the estimate is


@pytest.mark.parametrize(
    "distribution",
    [None, Normal(3.0, 0.2), Uniform(-1.0, 1.0), Uniform(0.0, 10.0), Laplace(0.0, 5.0)],
    ids=["normal", "shifted", "uniform", "uniform off zero", "laplace"],
)
def test_mean_on_a_linear_function_is_its_slope(distribution):  # O-50, D25
    repeats = 4000
    estimate = gradient(lambda x: A @ x, A, num_samples=repeats, distribution=distribution)
    # The normal's variance; for independent z it is |a|^2 + (kurtosis - 2) a_i^2, laplace 6.
    kurtosis = 6 if isinstance(distribution, Laplace) else 3
    variance = (A @ A + (kurtosis - 2) * A**2) / repeats
    assert ((estimate - A).abs() < 5 * variance.sqrt()).all()


def test_variance_on_a_linear_function_is_the_known_one():  # O-50
    estimated = zero_order(num_samples=4, sigma=0.3, generator=seeded())(lambda x: A @ x)
    x = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    repeats = 4000
    draws = torch.stack([autograd_grad(estimated(x), x)[0] for _ in range(repeats)])
    variance = (A @ A + A**2) / 4
    assert_close(variance, torch.tensor([6.25, 9.25, 5.5], dtype=torch.float64) / 4)
    # The estimate averages four products z (a.z), of kurtosis below 15 each.
    error = variance * (14 / 4 + 2) ** 0.5 / repeats**0.5
    assert ((draws.var(0) - variance).abs() < 5 * error).all()
    assert ((draws.mean(0) - A).abs() < 5 * (variance / repeats).sqrt()).all()


def test_estimate_on_a_quadratic_does_not_depend_on_sigma():  # O-50, D5
    reference = gradient(half_square, A, sigma=1.0, num_samples=3)
    for sigma in (1e-3, 0.1, 10.0, 1e3):
        other = gradient(half_square, A, sigma=sigma, num_samples=3)
        assert_close(other, reference, rtol=1e-9, atol=1e-9)


def test_estimate_equals_the_formula_written_out():
    f, sigma = (lambda x: x.sin().sum() + x[0] * x[1]), 0.7
    seen = []

    def sampler(shape, *, dtype, device, generator):
        seen.append(torch.randn(shape, dtype=dtype, device=device, generator=generator))
        return seen[-1]

    estimate = gradient(f, A, sigma=sigma, num_samples=5, distribution=sampler)
    terms = [(f(A + sigma * z) - f(A - sigma * z)) / (2 * sigma) * z for z in seen]
    assert len(seen) == 5
    assert_close(estimate, torch.stack(terms).mean(0), rtol=1e-12, atol=1e-12)


def test_all_sign_directions_together_give_the_exact_gradient_of_a_quadratic():  # O-52
    signs = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=torch.float64)] * 3)
    rows = iter(signs)
    estimate = gradient(
        lambda x: half_square(x) + x[0] * x[2],
        A,
        num_samples=8,
        distribution=lambda shape, **_: next(rows),
    )
    exact = A + torch.tensor([A[2], 0, A[0]], dtype=torch.float64)
    assert_close(estimate, exact, rtol=1e-12, atol=1e-12)


def test_constant_function_has_gradient_exactly_zero():  # O-50
    for sigma in (1e-6, 1.0):
        assert_close(gradient(lambda x: 3.7, A, sigma=sigma), torch.zeros_like(A), rtol=0, atol=0)


def test_step_function_has_the_slope_of_its_smoothing():
    x = torch.zeros(1, dtype=torch.float64)
    estimate = gradient(lambda x: float(x > 0), x, sigma=0.5, num_samples=4000)
    # d/dx Phi(x / sigma) at 0; each term is |z| / (2 sigma).
    exact = 1 / (0.5 * (2 * torch.pi) ** 0.5)
    error = ((1 - 2 / torch.pi) / 4000) ** 0.5
    assert abs(estimate.item() - exact) < 5 * error


# Noise


def test_noise_is_fixed_in_the_forward_pass():  # D25
    estimated = zero_order(generator=seeded(), num_samples=2)(half_square)
    x = A.clone().requires_grad_()
    value = estimated(x)
    first = autograd_grad(value, x, retain_graph=True)[0]
    torch.manual_seed(99)
    estimated(x)
    assert_close(autograd_grad(value, x)[0], first, rtol=0, atol=0)
    assert not torch.equal(autograd_grad(estimated(x), x)[0], first)


@pytest.mark.parametrize("distribution", [None, Uniform(-1.0, 1.0)])
def test_a_seed_of_either_generator_fixes_the_gradient(distribution):
    options = {"distribution": distribution, "num_samples": 3}
    first = gradient(half_square, A, generator=seeded(7), **options)
    assert torch.equal(gradient(half_square, A, generator=seeded(7), **options), first)
    assert not torch.equal(gradient(half_square, A, generator=seeded(8), **options), first)
    results = []
    for _ in range(2):
        torch.manual_seed(3)
        results.append(gradient(half_square, A, generator=None, **options))
    assert torch.equal(*results)


def test_backward_leaves_the_global_generator_alone():
    x = A.clone().requires_grad_()
    value = zero_order(Uniform(-1.0, 1.0), num_samples=2)(half_square)(x)
    state = torch.get_rng_state()
    value.backward()
    assert torch.equal(torch.get_rng_state(), state)


# Values, trees, and what the function may do


def test_value_is_that_of_the_function_itself():
    x = A.clone().requires_grad_()
    assert torch.equal(zero_order(sigma=100.0)(half_square)(x), half_square(A))


def test_calls_are_one_forward_and_two_per_sample_backward():
    calls = []

    def counted(x):
        calls.append(x.requires_grad or torch.is_grad_enabled())
        return x.sum()

    x = A.clone().requires_grad_()
    value = zero_order(num_samples=4)(counted)(x)
    assert len(calls) == 1
    value.backward()
    assert len(calls) == 9
    grad(zero_order(num_samples=4)(counted))(A)
    assert len(calls) == 18
    assert not any(calls)


@pytest.mark.parametrize("convert", [float, np.asarray, lambda v: np.float64(v), lambda v: v])
def test_numpy_functions_and_numbers(convert):
    def f(x):
        return convert((np.asarray(x) * A.numpy()).sum())

    x = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    value = zero_order(num_samples=20, generator=seeded())(f)(x)
    assert value.dtype == torch.float64
    expected = gradient(lambda x: A @ x, torch.zeros_like(A), num_samples=20)
    assert_close(autograd_grad(value, x)[0], expected)


@pytest.mark.parametrize("count", [lambda x: (x > 0).sum(), lambda x: int((x > 0).sum())])
def test_integer_values_become_differentiable(count):
    x = torch.zeros(3, requires_grad=True)
    value = zero_order(num_samples=50, generator=seeded())(count)(x)
    assert value.dtype == torch.float32
    assert (autograd_grad(value, x)[0] != 0).all()


def test_values_that_are_not_scalars_take_a_cotangent():
    m = torch.tensor([[1.0, 2.0, 3.0], [0.0, 1.0, -1.0]], dtype=torch.float64)
    v = torch.tensor([2.0, -1.0], dtype=torch.float64)
    x = A.clone().requires_grad_()
    estimated = zero_order(num_samples=6, generator=seeded())(lambda x: m @ x)
    whole = autograd_grad(estimated(x), x, v)[0]
    assert_close(whole, gradient(lambda x: v @ m @ x, A, num_samples=6))


def test_trees_in_and_out():
    def f(params, factor, *, offset):
        w, (b, steps), name = params["w"], params["b"], params["name"]
        assert name == "kept"
        assert steps.dtype == torch.int64
        total = factor * (w.sum() + b.sum()) + offset
        return {"loss": total, "parts": (w.sum(), 2.0), "nothing": None}

    w = torch.ones(2, 2, dtype=torch.float64, requires_grad=True)
    b = torch.ones(3, requires_grad=True)
    params = {"w": w, "b": (b, torch.tensor(5)), "name": "kept"}
    factor = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    out = zero_order(num_samples=4000, generator=seeded())(f)(params, factor, offset=1.0)
    assert out["nothing"] is None
    assert out["parts"][1] == 2
    grads = autograd_grad(out["loss"] + out["parts"][0], (w, b, factor), allow_unused=True)
    assert grads[0].dtype == torch.float64
    assert grads[1].dtype == torch.float32
    # |slope|^2 = 4 * 16 + 3 * 9 = 91
    assert (grads[0] - 4).abs().max() < 5 * ((91 + 16) / 4000) ** 0.5
    assert (grads[1] - 3).abs().max() < 5 * ((91 + 9) / 4000) ** 0.5
    assert grads[2] is None


def test_argnums_choose_the_arguments():
    x, y = A.clone().requires_grad_(), A.clone().requires_grad_()

    def f(x, y):
        return (x * y).sum()

    for argnums, expected in ((1, (False, True)), ((0, 1), (True, True)), ((1, 0), (True, True))):
        value = zero_order(argnums=argnums)(f)(x, y)
        grads = autograd_grad(value, (x, y), allow_unused=True)
        assert tuple(g is not None for g in grads) == expected
    assert not zero_order(argnums=1)(f)(x, A).requires_grad


def test_module_parameters_as_arguments():
    net = nn.Linear(3, 1, dtype=torch.float64)
    params = dict(net.named_parameters())
    accuracy = zero_order(num_samples=3, sigma=0.1)(
        lambda p: (torch.func.functional_call(net, p, (A[None],)) > 0).double().mean()
    )
    accuracy(params).backward()
    assert net.weight.grad is not None
    assert net.weight.grad.isfinite().all()


def test_leaves_of_half_precision_keep_their_dtype():
    x = torch.ones(4, dtype=torch.bfloat16, requires_grad=True)
    (g,) = autograd_grad(zero_order(num_samples=3)(lambda x: x.sum())(x), x)
    assert g.dtype == torch.bfloat16


# Transforms


def test_torch_func_gives_what_autograd_gives():
    expected = gradient(half_square, A, num_samples=3)
    options = {"num_samples": 3}
    assert_close(grad(zero_order(generator=seeded(), **options)(half_square))(A), expected)
    _, pull = torch.func.vjp(zero_order(generator=seeded(), **options)(half_square), A)
    assert_close(pull(torch.ones((), dtype=torch.float64))[0], expected)
    numpy = zero_order(generator=seeded(), **options)(lambda x: 0.5 * (x.numpy() ** 2).sum())
    assert_close(grad(numpy)(A), expected)


def test_jacrev_uses_the_same_noise_for_each_row():
    m = torch.tensor([[1.0, 2.0, 3.0], [0.0, 1.0, -1.0]], dtype=torch.float64)
    rows = [gradient(lambda x, row=row: row @ x, A, num_samples=2) for row in m]
    estimated = zero_order(num_samples=2, generator=seeded())(lambda x: m @ x)
    assert_close(jacrev(estimated)(A), torch.stack(rows))


@pytest.mark.parametrize("f", [half_square, lambda x: float((x.numpy() ** 2).sum()) / 2])
def test_vmap_is_the_loop(f):
    estimated = zero_order(num_samples=3)(f)
    x = torch.stack([A, 2 * A, 3 * A])
    torch.manual_seed(0)
    batched = vmap(grad(estimated), randomness="different")(x)
    torch.manual_seed(0)
    one = vmap(grad(estimated), randomness="same")(x)
    torch.manual_seed(0)
    assert_close(one[0], grad(estimated)(A))
    assert_close(one[1], 2 * one[0])
    assert not torch.equal(batched[1], 2 * batched[0])
    assert_close(vmap(estimated, randomness="same")(x), torch.stack([half_square(y) for y in x]))
    torch.manual_seed(0)
    through = grad(lambda x: vmap(estimated, randomness="same")(x).sum())(x)
    assert_close(through, one)


def test_vmap_asks_for_its_randomness():
    with pytest.raises(RuntimeError, match="randomness"):
        vmap(grad(zero_order()(half_square)))(torch.stack([A, A]))


def test_around_a_compiled_call():
    estimated = zero_order(num_samples=2, generator=seeded())(half_square)
    compiled = torch.compile(lambda x: 3 * estimated(2 * x), backend="eager")
    x = (A / 2).requires_grad_()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Dynamo's, about its own reading of `.grad`
        (g,) = autograd_grad(compiled(x), x)
    assert_close(g, 6 * gradient(half_square, A, num_samples=2))


# Refusals


def test_methods_are_values():
    assert Antithetic() == pickle.loads(pickle.dumps(Antithetic()))
    by_name = gradient(half_square, A, method="antithetic")
    assert torch.equal(gradient(half_square, A, method=Antithetic()), by_name)
