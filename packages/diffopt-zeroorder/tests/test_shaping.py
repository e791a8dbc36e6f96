import pytest
import torch
from diffopt_zeroorder import zero_order
from torch.autograd import grad as autograd_grad
from torch.testing import assert_close

A = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
VALUES = [3.0, -1.0, 3.0, 10.0]


def gradient(f, **options):
    x = A.clone().requires_grad_()
    options.setdefault("generator", torch.Generator().manual_seed(0))
    return autograd_grad(zero_order(**options)(f)(x), x)[0]


def shaped(shaping):
    """Return what becomes of `VALUES`, read from naive estimates along unit directions."""
    rows = iter(torch.eye(4, dtype=torch.float64))
    values = iter([0.0, *VALUES])
    x = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    options = {"method": "naive", "baseline": 0.0, "num_samples": 4, "shaping": shaping}
    estimated = zero_order(lambda shape, **_: next(rows), **options)
    return 4 * autograd_grad(estimated(lambda x: next(values))(x), x)[0]


def test_ranks_go_from_zero_to_one_and_are_shared_by_equals():
    assert_close(shaped("rank"), torch.tensor([0.5, 0.0, 0.5, 1.0], dtype=torch.float64))
    assert_close(shaped("centered_rank"), shaped("rank") - 0.5)


def test_z_scores_have_mean_zero_and_variance_one():
    values = torch.tensor(VALUES, dtype=torch.float64)
    expected = (values - values.mean()) / values.std(correction=0)
    assert_close(shaped("z_score"), expected)


def test_a_callable_shapes_all_values_at_once():
    assert_close(shaped(lambda v: v - v.min()), torch.tensor([4.0, 0.0, 4.0, 11.0]).double())


@pytest.mark.parametrize("method", ["naive", "forward", "antithetic", "spsa", "orthogonal"])
def test_ranks_see_no_increasing_function(method):
    options = {"method": method, "num_samples": 20, "shaping": "centered_rank"}
    plain = gradient(lambda x: A @ x, **options)
    assert_close(gradient(lambda x: torch.exp(5 * A @ x), **options), plain)
    assert_close(gradient(lambda x: -A @ x, **options), -plain)
    assert plain @ A > 0


@pytest.mark.parametrize("method", ["naive", "antithetic"])
def test_z_scores_see_no_scale_and_shift(method):
    options = {"method": method, "num_samples": 20, "shaping": "z_score"}
    plain = gradient(lambda x: A @ x, **options)
    assert_close(gradient(lambda x: 100 * A @ x - 7, **options), plain)


@pytest.mark.parametrize("shaping", ["rank", "centered_rank", "z_score"])
def test_a_constant_has_gradient_zero_after_shaping(shaping):
    found = gradient(lambda x: 3.7, num_samples=5, shaping=shaping)
    assert torch.equal(found, torch.zeros_like(A))


def test_shaping_is_refused_where_it_says_nothing():
    with pytest.raises(ValueError, match=r"one only. Raise `num_samples`"):
        gradient(lambda x: x.sum(), method="naive", baseline=0.0, shaping="rank")
    with pytest.raises(ValueError, match=r"must return a tensor of the shape \(2,\).*got \(\)"):
        gradient(lambda x: x.sum(), shaping=lambda v: v.sum())
    with pytest.raises(ValueError, match="made NaN or infinity"):
        gradient(lambda x: x.sum(), shaping=lambda v: v / 0)
