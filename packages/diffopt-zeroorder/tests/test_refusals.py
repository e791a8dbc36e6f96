"""What has no estimate, or would have a wrong one, is refused with advice."""

import pytest
import torch
from diffopt_zeroorder import zero_order
from torch.autograd import grad as autograd_grad
from torch.distributions import Cauchy, MultivariateNormal, Normal
from torch.func import grad, jacfwd, jvp

A = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)


def half_square(x):
    return 0.5 * x.square().sum()


def test_second_derivatives_are_refused_with_advice():  # D25
    estimated = zero_order()(half_square)
    x = A.clone().requires_grad_()
    (g,) = autograd_grad(estimated(x), x, create_graph=True)
    assert g.requires_grad
    with pytest.raises(NotImplementedError, match=r"cannot be differentiated again.*detach"):
        g.sum().backward()
    with pytest.raises(NotImplementedError, match="cannot be differentiated again"):
        grad(lambda x: grad(estimated)(x).sum())(A)
    (g,) = autograd_grad(estimated(x) + x.square().sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="cannot be differentiated again"):
        g.sum().backward()


def test_forward_mode_is_refused():
    estimated = zero_order()(half_square)
    with pytest.raises(NotImplementedError, match="reverse mode only"):
        jvp(estimated, (A,), (A,))
    with pytest.raises(NotImplementedError, match=r"reverse mode only|differentiated again"):
        jacfwd(grad(estimated), randomness="same")(A)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_nan_and_infinity_at_a_perturbed_point_are_refused(bad):
    x = torch.zeros(2, requires_grad=True)
    value = zero_order()(lambda x: bad if (x != 0).any() else 0.0)(x)
    with pytest.raises(ValueError, match="NaN or infinity"):
        value.backward()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sigma": 0.0}, r"`sigma` must be positive and finite, got 0\.0"),
        ({"sigma": -1}, "`sigma` must be positive"),
        ({"sigma": float("nan")}, "`sigma` must be positive"),
        ({"sigma": torch.tensor(1.0, requires_grad=True)}, "`sigma` has no gradient here"),
        ({"num_samples": 0}, "`num_samples` must be an integer of at least 1, got 0"),
        ({"num_samples": 1.5}, r"`num_samples` must be an integer of at least 1, got 1\.5"),
        ({"argnums": ()}, "`argnums` is empty"),
        ({"argnums": -1}, "`argnums` must not be negative, got -1"),
        ({"argnums": (0, 0)}, "`argnums` must be different numbers"),
        ({"method": "nave"}, r"one of \['antithetic', 'central'.*'spsa'\], got 'nave'"),
        ({"method": "central", "num_samples": 2}, "`Central` goes along each coordinate once"),
        ({"method": "spsa", "distribution": Normal(0.0, 1.0)}, "`SPSA` has directions of its own"),
        ({"method": "forward", "baseline": 0.0}, "`baseline` is for the method `Naive`"),
        ({"method": "naive", "baseline": torch.nan}, "`baseline` must be None or a finite number"),
        (
            {"method": "naive", "baseline": torch.tensor(1.0, requires_grad=True)},
            "`baseline` has no gradient here",
        ),
        ({"shaping": "ranks"}, r"`shaping` must be None.*'z_score'\], got 'ranks'"),
        ({"distribution": Cauchy(0.0, 1.0)}, "positive finite variance"),
        ({"distribution": MultivariateNormal(torch.zeros(2), torch.eye(2))}, "single numbers"),
        ({"distribution": Normal(torch.zeros(2), 1.0)}, "single numbers"),
    ],
)
def test_options_out_of_range_are_refused_when_decorating(options, message):
    with pytest.raises(ValueError, match=message):
        zero_order(**options)


def test_a_distribution_of_another_kind_is_refused():
    with pytest.raises(TypeError, match=r"must be None, a `torch.distributions.Distribution`"):
        zero_order(distribution="normal")


def test_calls_with_nothing_to_differentiate_are_refused():
    with pytest.raises(ValueError, match=r"no floating-point tensor.*integers have no gradient"):
        zero_order()(half_square)(torch.arange(3))
    with pytest.raises(ValueError, match="names positional argument 1, but this call has 1"):
        zero_order(argnums=1)(half_square)(A)
    with pytest.raises(ValueError, match="names positional argument 0, but this call has 0"):
        zero_order()(half_square)(x=A)


def test_values_of_another_kind_or_shape_are_refused():
    with pytest.raises(TypeError, match=r"must return tensors, arrays or numbers.*type str"):
        zero_order()(lambda x: "text")(A)
    sizes = iter([2, 3, 3])
    x = A.clone().requires_grad_()
    value = zero_order()(lambda x: torch.zeros(next(sizes)))(x)
    with pytest.raises(ValueError, match=r"returned \(2,\) once and \(3,\) now"):
        value.sum().backward()


def test_noise_of_another_shape_is_refused():
    value = zero_order(lambda shape, **_: torch.zeros(1))(half_square)(A.clone().requires_grad_())
    with pytest.raises(ValueError, match=r"must return a tensor of the shape \(3,\)"):
        value.backward()
