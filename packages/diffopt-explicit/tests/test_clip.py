import pytest
import torch
from diffopt_explicit import adaptive_clip, chain, clip, clip_by_global_norm, sgd, unroll
from torch import tensor

G = torch.tensor([3.0, 4.0, 12.0], dtype=torch.float64)


def once(tx, updates, params=None):
    return tx.update(updates, tx.init(params), params)[0]


def jacobian(tx, g):
    return torch.autograd.functional.jacobian(lambda g: once(tx, g, g), g)


def test_above_the_bound_the_result_and_its_jacobian_are_those_of_the_projection():
    unit = G / 13
    expected = (torch.eye(3, dtype=torch.float64) - torch.outer(unit, unit)) / 13

    torch.testing.assert_close(once(clip_by_global_norm(1.0), G), unit, rtol=1e-14, atol=0)
    torch.testing.assert_close(jacobian(clip_by_global_norm(1.0), G), expected)


@pytest.mark.parametrize("g", [G, torch.zeros(3, dtype=torch.float64)])
def test_below_the_bound_and_at_zero_it_is_the_identity(g):
    eye = torch.eye(3, dtype=torch.float64)

    assert torch.equal(once(clip_by_global_norm(13.5), g), g)
    assert torch.equal(jacobian(clip_by_global_norm(13.5), g), eye)
    assert torch.equal(jacobian(clip(99.0), g), eye)


def test_the_norm_is_that_of_all_present_updates_together():
    updates = {"a": tensor([3.0]), "b": [None, tensor([[4.0]])]}
    clipped = once(clip_by_global_norm(1.0), updates)

    assert clipped["a"].item() == pytest.approx(0.6)
    assert clipped["b"][0] is None
    assert clipped["b"][1].item() == pytest.approx(0.8)
    assert once(clip_by_global_norm(1.0), {"a": None}) == {"a": None}


@pytest.mark.parametrize("make", [clip, clip_by_global_norm, lambda c: adaptive_clip(c, 0.1)])
def test_gradcheck_and_gradgradcheck_through_learned_bounds(make):
    bound = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    start = torch.tensor([[0.9, -1.1], [0.2, 0.1]], dtype=torch.float64, requires_grad=True)

    def end(start, bound):
        return unroll(lambda w: (w**4).sum(), chain(make(bound), sgd(0.1)), start, steps=2).params

    assert torch.autograd.gradcheck(end, (start, bound))
    assert torch.autograd.gradgradcheck(end, (start, bound))


def test_clipped_elements_depend_on_the_bound_alone():
    bound = tensor(1.0, requires_grad=True)
    g = tensor([-3.0, 0.5, 2.0], requires_grad=True)
    to_g, to_bound = torch.autograd.grad(once(clip(bound), g) @ tensor([1.0, 10, 100]), (g, bound))

    assert to_g.tolist() == [0.0, 10.0, 0.0]
    assert to_bound.item() == 99.0


def test_each_unit_is_clipped_by_its_own_weights():
    params = [torch.tensor([[3.0, 4.0], [0.0, 0.0]]), torch.tensor([2.0, -0.5]), torch.tensor(4.0)]
    updates = [
        torch.tensor([[0.0, 9.0], [1.0, 0.0]]),
        torch.tensor([1.0, -1.0]),
        torch.tensor(-1.0),
    ]
    matrix, vector, scalar = once(adaptive_clip(0.1, eps=0.5), updates, params)

    torch.testing.assert_close(matrix, torch.tensor([[0.0, 0.5], [0.05, 0.0]]))
    torch.testing.assert_close(vector, torch.tensor([0.2, -0.05]))
    torch.testing.assert_close(scalar, torch.tensor(-0.4))


def test_half_precision_norms_do_not_overflow():
    huge = torch.full((4,), 30000.0, dtype=torch.float16)

    torch.testing.assert_close(
        once(clip_by_global_norm(2.0), huge), torch.ones(4, dtype=torch.float16)
    )


@pytest.mark.parametrize("make", [clip, clip_by_global_norm, adaptive_clip])
def test_negative_bounds_are_refused(make):
    with pytest.raises(ValueError, match="must be at least 0, got -1"):
        make(-1.0)


def test_adaptive_clipping_asks_for_parameters():
    with pytest.raises(ValueError, match="needs `params`"):
        adaptive_clip(0.1).update([G], adaptive_clip(0.1).init([G]))
