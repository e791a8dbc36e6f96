import pytest
import torch
from diffopt_zeroorder import dice
from torch.autograd import grad as autograd_grad
from torch.distributions import Categorical
from torch.func import grad, hessian
from torch.testing import assert_close

LOGITS = torch.tensor([0.3, -1.0, 0.6], dtype=torch.float64)
COSTS = torch.tensor([2.0, -1.0, 5.0], dtype=torch.float64)


def expected_cost(logits):
    return logits.softmax(0) @ COSTS


def boxed_cost(logits, weights):
    """Sum the boxed costs of all draws, each with the share that a sampler gives it."""
    return (weights * dice(logits.log_softmax(0)) * COSTS).sum()


def test_box_is_one_whatever_the_probability():
    log_prob = torch.tensor([[-1e4, -3.0], [0.0, 50.0]])
    assert torch.equal(dice(log_prob), torch.ones(2, 2))


def test_derivatives_of_a_bernoulli_draw():  # O-51
    t = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    p = t.sigmoid()
    (first,) = autograd_grad(dice(p.log()), t, create_graph=True)
    (second,) = autograd_grad(first, t)
    assert_close(first, 1 - p)
    assert_close(second, (1 - p) ** 2 - p * (1 - p))
    assert_close(second, torch.tensor(-0.06335914, dtype=torch.float64), atol=1e-8, rtol=0)


def test_mean_over_all_draws_has_the_derivatives_of_the_expected_cost():
    weights = LOGITS.softmax(0)
    assert_close(boxed_cost(LOGITS, weights), expected_cost(LOGITS))
    assert_close(grad(boxed_cost)(LOGITS, weights), grad(expected_cost)(LOGITS))
    assert_close(hessian(boxed_cost)(LOGITS, weights), hessian(expected_cost)(LOGITS))
    third = torch.func.jacrev(hessian(boxed_cost))(LOGITS, weights)
    assert_close(third, torch.func.jacrev(hessian(expected_cost))(LOGITS))


def test_derivatives_from_samples_are_within_their_standard_errors():
    n = 20000
    draws = torch.multinomial(
        LOGITS.softmax(0), n, replacement=True, generator=torch.Generator().manual_seed(0)
    )

    def costs(logits):
        return dice(Categorical(logits=logits).log_prob(draws)) * COSTS[draws]

    # Each draw is one of three, so the terms of the means are given by three derivatives.
    p = LOGITS.softmax(0)
    for order in (grad, hessian):
        each = torch.stack([order(boxed_cost)(LOGITS, one) for one in torch.eye(3).double()])
        exact = torch.tensordot(p, each, 1)
        variance = torch.tensordot(p, (each - exact) ** 2, 1)
        found = order(lambda logits: costs(logits).mean())(LOGITS)
        assert ((found - exact).abs() <= 5 * (variance / n).sqrt()).all()


def test_baseline_changes_no_mean_and_lowers_the_variance():
    weights, b = LOGITS.softmax(0), expected_cost(LOGITS)

    def with_baseline(logits, weights):
        box = dice(logits.log_softmax(0))
        return (weights * (box * COSTS - (box - 1) * b)).sum()

    assert_close(with_baseline(LOGITS, weights), expected_cost(LOGITS))
    assert_close(grad(with_baseline)(LOGITS, weights), grad(expected_cost)(LOGITS))
    spread = [
        torch.tensordot(
            weights, torch.stack([grad(f)(LOGITS, e) for e in torch.eye(3).double()]) ** 2, 1
        ).sum()
        for f in (with_baseline, boxed_cost)
    ]
    assert spread[0] < spread[1]


def test_two_steps_of_a_chain_have_the_second_derivative_of_their_product():
    def exact(t):
        p = t.sigmoid()
        return p * p * 3 + p * (1 - p) * 1.0 + (1 - p) * p * -2.0

    def boxed(t):
        log_p = torch.stack([(-t).sigmoid().log(), t.sigmoid().log()])
        total = 0.0
        for i, j, cost in ((1, 1, 3.0), (1, 0, 1.0), (0, 1, -2.0)):
            path = log_p[i] + log_p[j]
            total = total + path.detach().exp() * dice(path) * cost
        return total

    t = torch.tensor(0.4, dtype=torch.float64)
    assert_close(grad(boxed)(t), grad(exact)(t))
    assert_close(grad(grad(boxed))(t), grad(grad(exact))(t))


def test_what_is_no_log_probability_is_refused():
    with pytest.raises(TypeError, match=r"takes the log-probabilities.*got torch.int64"):
        dice(torch.tensor([1, 2]))
    with pytest.raises(TypeError, match="got float"):
        dice(0.5)  # type: ignore[arg-type]
