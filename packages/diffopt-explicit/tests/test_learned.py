"""Learned update rules, and products along the axes of parameters."""

import pytest
import torch
from diffopt_explicit import chain, kronecker, kronecker_factors, learned, sgd, unroll
from every_optimizer import F64
from torch import nn


def quartic(params):
    return sum((p**4).sum() for p in params.values())


@pytest.fixture
def params():
    generator = torch.Generator().manual_seed(0)
    return {
        "w": torch.randn(3, 2, generator=generator, dtype=F64),
        "b": torch.randn(3, generator=generator, dtype=F64),
    }


def test_a_function_equals_the_optimizer_that_it_spells(params):
    ours = learned(lambda g, m: (-0.1 * (0.9 * m + g), 0.9 * m + g), torch.zeros_like)
    theirs = sgd(0.1, 0.9)
    ends = [unroll(quartic, tx, params, steps=3).params for tx in (ours, theirs)]

    torch.testing.assert_close(*ends)


def test_a_recurrent_module_learns_by_exact_meta_gradients(params):
    torch.manual_seed(0)
    cell, out = nn.LSTMCell(1, 4).double(), nn.Linear(4, 1).double()
    weights = {**dict(cell.named_parameters("cell")), **dict(out.named_parameters("out"))}

    def rule(g, memory):
        memory = cell(g.reshape(-1, 1), memory)
        return 0.1 * out(memory[0]).view_as(g), memory

    def begin(p):
        return tuple(torch.zeros(p.numel(), 4, dtype=p.dtype) for _ in range(2))

    def outer():
        return quartic(unroll(quartic, learned(rule, begin), params, steps=3).params)

    weight, h = weights["cell.weight_hh"], 1e-5
    exact = torch.autograd.grad(outer(), weight)[0]
    shifted = []
    for shift in (h, -h):
        with torch.no_grad():
            weight[0, 0] += shift
            shifted.append(outer().item())
            weight[0, 0] -= shift

    assert exact[0, 0].item() == pytest.approx((shifted[0] - shifted[1]) / (2 * h), rel=1e-6)
    assert all(g.norm() > 0 for g in torch.autograd.grad(outer(), list(weights.values())))


def test_a_stateless_module_is_a_rule_under_torch_func_too(params):
    module = nn.PReLU(dtype=F64)

    def outer(weights):
        call = lambda g: torch.func.functional_call(module, weights, g)
        return quartic(unroll(quartic, chain(learned(call), sgd(0.05)), params, steps=2).params)

    weights = dict(module.named_parameters())
    by_func = torch.func.grad(outer)({name: w.detach() for name, w in weights.items()})
    expected = torch.autograd.grad(outer(weights), list(weights.values()))

    torch.testing.assert_close(list(by_func.values()), list(expected))


def test_each_parameter_may_have_a_rule_of_its_own(params):
    tx = learned({"w": lambda g: 2 * g, "b": lambda g: -g})
    updates, _ = tx.update(params, tx.init(params))

    assert torch.equal(updates["w"], 2 * params["w"])
    assert torch.equal(updates["b"], -params["b"])


def test_a_missing_gradient_leaves_memory_and_rule_alone(params):
    tx = learned(lambda g, m: (g, m + 1), torch.zeros_like)
    updates, state = tx.update({**params, "b": None}, tx.init(params))

    assert updates["b"] is None
    assert state.memory["b"].tolist() == [0.0] * 3
    assert state.memory["w"].unique().item() == 1.0


def test_an_update_of_another_shape_is_refused_by_its_place(params):
    tx = learned(lambda g: g.sum())
    with pytest.raises(ValueError, match=r"parameter at \['b'\] returned .*shape \(\)"):
        tx.update(params, tx.init(params))


def test_products_along_both_axes_are_the_kronecker_product():
    generator = torch.Generator().manual_seed(0)
    x, left, right = (
        torch.randn(shape, generator=generator, dtype=F64) for shape in ((3, 2), (3, 3), (2, 2))
    )
    update, _ = kronecker((left, right)).update(x, kronecker((left, right)).init(x))

    vec = lambda matrix: matrix.T.reshape(-1)
    torch.testing.assert_close(update, left @ x @ right, rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(vec(update), torch.kron(right.T.contiguous(), left) @ vec(x))


def test_products_along_all_axes_of_a_filter_count_the_last_ones_as_one():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 2, 2, 2, generator=generator, dtype=F64)
    a, b, c = (torch.randn(n, n, generator=generator, dtype=F64) for n in (3, 2, 4))
    update, _ = kronecker([(a, b, c)]).update([x], kronecker([(a, b, c)]).init([x]))
    expected = torch.einsum("ia,abc,bj,ck->ijk", a, x.flatten(2), b, c)

    torch.testing.assert_close(update[0], expected.view_as(x))


def test_factors_begin_as_the_identity_and_are_learned(params):
    factors = kronecker_factors(params)
    tx = chain(kronecker(factors), sgd(0.05))
    end = unroll(quartic, tx, params, steps=3).params
    torch.testing.assert_close(end, unroll(quartic, sgd(0.05), params, steps=3).params)

    left, right = factors["w"]

    def outer(left, right):
        tx = chain(kronecker({"w": (left, right), "b": ()}), sgd(0.05))
        return quartic(unroll(quartic, tx, params, steps=2).params)

    assert torch.autograd.gradcheck(outer, (left, right))
    assert torch.autograd.gradgradcheck(outer, (left, right))


def test_factors_of_another_size_are_refused_by_their_place(params):
    tx = kronecker({"w": (torch.eye(3), torch.eye(5)), "b": ()})
    with pytest.raises(ValueError, match=r"at \['w'\] .* sizes \[3, 2\], got .*\(5, 5\)"):
        tx.init(params)
