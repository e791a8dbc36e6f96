"""Isotonic regression by pooling, and sorting and ranking by it."""

import itertools

import pytest
import torch
from diffopt_implicit import isotonic_kl, isotonic_l2, soft_rank, soft_sort
from hypothesis import given
from hypothesis import strategies as st
from implicit_problems import normal
from torch.autograd import gradcheck, gradgradcheck
from torch.testing import assert_close

VECTORS = st.lists(st.integers(-9, 9), min_size=1, max_size=12)


def minimax(x, w):
    # v_i = max over j <= i of min over k >= i of the average from j to k.
    n = len(x)
    mean = lambda j, k: (w[j : k + 1] * x[j : k + 1]).sum() / w[j : k + 1].sum()
    return torch.stack(
        [
            torch.stack(
                [torch.stack([mean(j, k) for k in range(i, n)]).min() for j in range(i + 1)]
            ).max()
            for i in range(n)
        ]
    )


@given(values=VECTORS)
def test_the_fit_is_the_minimax_of_averages(values):
    x = torch.tensor(values, dtype=torch.float64)
    w = 0.5 + torch.arange(len(x), dtype=torch.float64) % 3
    assert_close(isotonic_l2(x, w), minimax(x, w))


@given(values=VECTORS)
def test_the_fit_in_relative_entropy_is_that_of_the_exponentials(values):
    x = torch.tensor(values, dtype=torch.float64)
    w = 0.3 * torch.arange(len(x), dtype=torch.float64).cos()
    expected = minimax((x - w).exp(), w.exp()).log()
    assert_close(isotonic_kl(x, w), expected, rtol=1e-9, atol=1e-9)


def test_known_fit_and_its_averages_over_blocks():  # O-44
    x = torch.tensor([1.0, 3.0, 2.0, 4.0, 3.5, 6.0], dtype=torch.float64)
    assert_close(isotonic_l2(x), torch.tensor([1, 2.5, 2.5, 3.75, 3.75, 6], dtype=torch.float64))
    pair = torch.full((2, 2), 0.5, dtype=torch.float64)
    one = torch.ones(1, 1, dtype=torch.float64)
    expected = torch.block_diag(one, pair, pair, one)
    assert_close(torch.func.jacrev(isotonic_l2)(x), expected)
    assert_close(torch.func.jacfwd(isotonic_l2)(x), expected)


def test_equal_neighbours_stay_apart():
    x = torch.tensor([1.0, 1.0, 1.0, 2.0], dtype=torch.float64)
    assert_close(torch.func.jacrev(isotonic_l2)(x), torch.eye(4, dtype=torch.float64))


@pytest.mark.parametrize("function", [isotonic_l2, isotonic_kl])
def test_derivatives_in_values_and_weights(function):
    x = normal(2, 7).requires_grad_()
    w = (0.5 + normal(7, seed=1).abs()).requires_grad_()
    assert gradcheck(function, (x, w), check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(function, (x, w))


@pytest.mark.parametrize("function", [isotonic_l2, isotonic_kl, soft_sort, soft_rank])
def test_a_batch_is_a_loop_and_a_map(function):
    x = normal(3, 4, 9)
    each = torch.stack([torch.stack([function(v) for v in rows]) for rows in x])
    assert_close(function(x), each, rtol=1e-12, atol=1e-12)
    assert_close(torch.vmap(torch.vmap(function))(x), each, rtol=1e-12, atol=1e-12)
    assert function(x.float()).dtype == torch.float32


def test_large_values_do_not_overflow():
    x = torch.tensor([800.0, -800.0, 1e4], dtype=torch.float64)
    found = isotonic_kl(x)
    half = 800 - torch.tensor(2.0, dtype=torch.float64).log()
    assert_close(found, torch.stack([half, half, x[2]]))
    assert torch.func.jacrev(isotonic_kl)(x).isfinite().all()
    far = 1e9 + torch.tensor([0.0, -1.0, 1.0])
    assert_close(isotonic_l2(far.double()), 1e9 + torch.tensor([-0.5, -0.5, 1.0]).double())


def permutahedron_distance(y, w):
    # y is between all orders of w: sums of its k largest are at most those of w.
    gap = y.sort(descending=True).values.cumsum(0) - w.sort(descending=True).values.cumsum(0)
    return torch.cat([gap.clamp(min=0), gap[-1:].abs()]).max()


@pytest.mark.parametrize("strength", [0.05, 0.7, 5.0])
def test_soft_sorting_and_ranking_are_projections(strength):
    x = normal(6, seed=3)
    count = torch.arange(1, 7, dtype=torch.float64)
    for found, near, corners in (
        (soft_sort(x, strength), count / strength, x),
        (soft_rank(x, strength), x / strength, count),
    ):
        assert permutahedron_distance(found, corners) < 1e-12
        for order in itertools.permutations(range(6)):
            corner = corners[list(order)]
            assert torch.dot(near - found, corner - found) < 1e-9


def test_weak_smoothing_sorts_and_ranks_exactly():
    x = torch.tensor([0.3, -1.0, 2.0, 0.9], dtype=torch.float64)
    assert_close(soft_sort(x, 1e-3), x.sort().values)
    assert_close(soft_sort(x, 1e-3, descending=True), x.sort(descending=True).values)
    assert_close(soft_rank(x, 1e-3), torch.tensor([2.0, 1, 4, 3], dtype=torch.float64))
    assert_close(
        soft_rank(x, 1e-3, descending=True), torch.tensor([3.0, 4, 1, 2], dtype=torch.float64)
    )
    assert_close(soft_sort(x, 1e3), x.mean().expand(4), rtol=0, atol=1e-2)
    order = x.argsort()
    assert_close(torch.func.jacrev(soft_sort)(x, 1e-3), torch.eye(4).double()[order])


@pytest.mark.parametrize("function", [soft_sort, soft_rank])
def test_derivatives_of_sorting_and_ranking(function):
    x = normal(2, 6).requires_grad_()
    strength = torch.tensor(0.8, dtype=torch.float64, requires_grad=True)
    for descending in (False, True):
        call = lambda x, s, d=descending: function(x, s, descending=d)
        assert gradcheck(call, (x, strength), check_forward_ad=True)
        assert gradgradcheck(call, (x, strength))


def test_input_that_means_nothing_is_refused():
    with pytest.raises(ValueError, match="`weights` must be positive"):
        isotonic_l2(torch.ones(2), torch.tensor([1.0, 0.0]))
    with pytest.raises(ValueError, match=r"floating-point vectors of the shape \(\.\.\., n\)"):
        isotonic_l2(torch.tensor(1.0))
    with pytest.raises(ValueError, match="`strength` must be positive"):
        soft_rank(torch.ones(2), 0.0)
