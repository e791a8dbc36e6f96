"""Heads that are fitted in closed form: ridge regression, support vectors, prototypes."""

import pytest
import torch
from diffopt_implicit import OSQP, matching_probabilities, prototypes, ridge, svm
from implicit_problems import LAM, RIDGE_SLOPE, RIDGE_W, X, Y, normal
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, jacrev, jvp, vmap
from torch.testing import assert_close


@pytest.mark.parametrize("shape", [(5, 7), (7, 5), (6, 6)])
@pytest.mark.parametrize("penalty", [0.1, 1.0])
def test_ridge_is_stationary_and_both_forms_agree(shape, penalty):  # O-5
    x, y = normal(*shape), normal(shape[0], 3, seed=1)
    w = ridge(x, y, penalty)
    loss = lambda w: (x @ w - y).square().sum() + penalty * w.square().sum()
    assert grad(loss)(w).abs().max() < 1e-10
    n, d = shape
    small = torch.linalg.solve(x.T @ x + penalty * torch.eye(d).double(), x.T @ y)
    large = x.T @ torch.linalg.solve(x @ x.T + penalty * torch.eye(n).double(), y)
    assert_close(w, small)
    assert_close(w, large)


def test_ridge_with_a_bias_and_a_mean_over_samples():
    ones = torch.ones(10, 1, dtype=torch.float64)
    w = ridge(torch.cat([X, ones], 1), Y[:, None], 0.1 * 10)
    mean = lambda w: (X @ w[:3] + w[3:] - Y[:, None]).square().mean() + 0.1 * w.square().sum()
    assert grad(mean)(w).abs().max() < 1e-10


def test_ridge_has_the_known_weights_and_slope():  # O-31
    fit = lambda lam: ridge(X, Y[:, None], 10 * lam)[:, 0]
    assert_close(fit(LAM), RIDGE_W, rtol=1e-8, atol=1e-8)
    assert_close(jvp(fit, (LAM,), (LAM / LAM,))[1], RIDGE_SLOPE, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("shape", [(2, 3, 4), (2, 4, 3)])
def test_derivatives_of_ridge(shape):
    x, y = normal(*shape).requires_grad_(), normal(2, shape[1], 2, seed=1).requires_grad_()
    penalty = torch.tensor([0.3, 1.0], dtype=torch.float64, requires_grad=True)
    assert gradcheck(ridge, (x, y, penalty), check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(ridge, (x, y, penalty), check_fwd_over_rev=True, check_rev_over_rev=True)
    each = torch.stack([ridge(*one) for one in zip(x, y, penalty, strict=True)])
    assert_close(ridge(x, y, penalty), each)
    assert_close(vmap(ridge)(x, y, penalty), each)
    assert_close(ridge(x, y[0], 1.0)[1], ridge(x[1], y[0], 1.0))


def test_least_squares_that_are_singular_are_refused():
    with pytest.raises(ValueError, match="The least squares are singular"):
        ridge(torch.ones(3, 2), torch.ones(3, 1), 0.0)
    with pytest.raises(ValueError, match=r"must have the shapes \(\.\.\., n, d\)"):
        ridge(torch.ones(3, 2), torch.ones(4, 1))
    with pytest.raises(ValueError, match="`penalty` must be at least 0"):
        ridge(torch.ones(3, 2), torch.ones(3, 1), -1.0)


# Support vectors

LABELS = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])


def hinge(w, x, labels, C):
    scores = x @ w
    right = scores.gather(1, labels[:, None])
    margins = (1 + scores - right).scatter(1, labels[:, None], 0.0)
    return 0.5 * w.square().sum() + C * margins.amax(1).sum()


@pytest.mark.parametrize("C", [0.05, 1.0, 20.0])
def test_no_other_weights_have_a_smaller_hinge_loss(C):  # O-35
    x = normal(8, 4)
    w = svm(x, LABELS, 3, C=C)
    least = hinge(w, x, LABELS, C)
    for seed in range(50):
        for size in (1e-4, 1e-2, 1.0):
            assert hinge(w + size * normal(4, 3, seed=seed), x, LABELS, C) >= least - 1e-12


def test_two_points_have_the_widest_margin_between_them():
    x = torch.tensor([[2.0, 1.0], [-2.0, -1.0]], dtype=torch.float64)
    w = svm(x, torch.tensor([0, 1]), 2, C=100.0)
    # The shortest w_0 - w_1 with scores apart by 1: along the difference of the points.
    assert_close(w[:, 0], x[0] / (2 * x[0] @ x[0]))
    assert_close(w[:, 1], -w[:, 0])


def test_derivatives_of_the_machine():
    x, C = normal(5, 2).requires_grad_(), torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    call = lambda x, C: svm(x, LABELS[:5], 3, C=C)
    assert gradcheck(call, (x, C), check_forward_ad=True)
    assert gradgradcheck(call, (x, C))


def test_a_batch_of_machines_is_a_loop():
    x, C = normal(3, 8, 4), torch.tensor([0.1, 1.0, 10.0], dtype=torch.float64)
    labels = torch.stack([LABELS, LABELS.flip(0), LABELS])
    each = torch.stack([svm(*one[:2], 3, C=one[2]) for one in zip(x, labels, C, strict=True)])
    assert_close(svm(x, labels, 3, C=C), each)
    assert_close(vmap(lambda x, k, C: svm(x, k, 3, C=C))(x, labels, C), each)
    assert_close(svm(x, LABELS, 3, solver=OSQP(sweeps=50))[2], svm(x[2], LABELS, 3))
    single = svm(x.float(), labels, 3, C=C.float())
    assert_close(single, each.float(), rtol=1e-3, atol=1e-3)


# Prototypes


def test_prototypes_are_means_and_zero_without_samples():  # O-6
    x = normal(2, 8, 4)
    found = prototypes(x, LABELS, 4)
    for k in range(3):
        assert_close(found[:, k], x[:, k == LABELS].mean(1))
    assert_close(found[:, 3], torch.zeros(2, 4, dtype=torch.float64))
    assert gradcheck(lambda x: prototypes(x, LABELS, 4), x.requires_grad_())
    assert_close(vmap(lambda x: prototypes(x, LABELS, 4))(x.detach()), found)


def test_matching_sums_the_softmax_of_cosines_by_class():  # O-6
    x, queries = normal(8, 4), normal(5, 4, seed=1)
    cosine = torch.nn.functional.cosine_similarity(queries[:, None], x, dim=-1)
    weights = cosine.softmax(-1)
    expected = torch.stack([weights[:, k == LABELS].sum(-1) for k in range(3)], -1)
    found = matching_probabilities(x, LABELS, queries, 3)
    assert_close(found, expected)
    assert_close(found.sum(-1), torch.ones(5, dtype=torch.float64))
    call = lambda x, q: matching_probabilities(x, LABELS, q, 3)
    assert gradcheck(call, (x.requires_grad_(), queries.requires_grad_()))


def test_embeddings_of_zero_have_finite_derivatives():
    x, queries = torch.zeros(8, 4), torch.zeros(2, 4)
    call = lambda x, q: matching_probabilities(x, LABELS, q, 3)
    assert_close(call(x, queries)[0], torch.tensor([3 / 8, 3 / 8, 2 / 8]))
    for slope in jacrev(call, (0, 1))(x, queries):
        assert_close(slope, torch.zeros_like(slope))


def test_labels_that_are_none_are_refused():
    x = torch.zeros(2, 3)
    with pytest.raises(ValueError, match="`labels` must be from 0 to `num_classes` - 1 = 1"):
        prototypes(x, torch.tensor([0, 2]), 2)
    with pytest.raises(ValueError, match="`labels` must be integers of the shape"):
        svm(x, torch.tensor([0.0, 1.0]), 2)
    with pytest.raises(ValueError, match="`labels` must be integers of the shape"):
        svm(x, torch.tensor([0, 1, 1]), 2)
    with pytest.raises(ValueError, match="`C` must be positive"):
        svm(x, torch.tensor([0, 1]), 2, C=0.0)
