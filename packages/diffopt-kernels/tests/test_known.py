"""Steps whose results are known: nothing is computed, only made part of the graph."""

import pytest
import torch
from diffopt_kernels import adam_step

SHAPES = [(3,), (2, 2), (), (0, 2), (700,)]


def flat(columns):
    return [t for column in columns for t in column]


def columns_of(case, layout=lambda t: t):
    generator = torch.Generator(torch.get_default_device()).manual_seed(0)
    draw = lambda shape: torch.rand(shape, generator=generator, dtype=torch.float64)
    return [
        [layout(draw(shape)).requires_grad_() for shape in SHAPES]
        for _ in ("grads", *case.states, "params")
    ]


def detached(columns):
    return [[t.detach() for t in column] for column in columns]


@pytest.mark.parametrize("applied", [False, True])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_all_derivatives_are_those_of_the_step_to_the_bit(path, case, weight_decay, applied):
    columns = columns_of(case)
    grads, *states, params = columns
    learned = {k: torch.tensor(x, requires_grad=True) for k, x in case.numbers.items()}
    given = [x for k, x in learned.items() if k != "momentum_decay"]
    options = {"params": params, "applied": applied, "weight_decay": weight_decay}
    first = case.step(grads, states, 3, learned, **options)
    known = detached(first)
    again = case.step(grads, states, 3, learned, known=known, **options)
    inputs = [*flat(columns if applied or weight_decay else columns[:-1]), *given]
    results = []
    for outputs in map(flat, (first, again)):
        total = sum(t.cos().sum() for t in outputs)
        slopes = torch.autograd.grad(total, inputs, create_graph=True, allow_unused=True)
        curved = sum(s.square().sum() for s in slopes if s is not None and s.requires_grad)
        results.append([*outputs, *slopes, *torch.autograd.grad(curved, inputs, allow_unused=True)])
    for one, other in zip(*results, strict=True):
        assert (one is None and other is None) or torch.equal(one, other)
    for t in flat(known):
        assert not t.requires_grad


def test_nothing_is_computed(adam):
    grads, *states, _ = columns_of(adam)
    first = adam.step(grads, states, 3, adam.numbers)
    other = [[t + 1 for t in column] for column in detached(first)]
    again = adam.step(grads, states, 3, adam.numbers, known=other)
    for one, given in zip(flat(again), flat(other), strict=True):
        assert torch.equal(one, given)
        assert one.numel() == 0 or one.data_ptr() == given.data_ptr()
    with torch.no_grad():
        plain = adam.step(grads, states, 3, adam.numbers, known=other)
    for one, given in zip(flat(plain), flat(other), strict=True):
        assert torch.equal(one, given)
        assert not one.requires_grad


def test_inputs_may_lie_in_any_order(path, adam):
    apart = lambda t: t.unsqueeze(-1).expand(*t.shape, 2).contiguous()[..., 0]
    grads, *states, _ = columns_of(adam, apart)
    first = adam.step(grads, states, 3, adam.numbers)
    again = adam.step(grads, states, 3, adam.numbers, known=detached(first))
    inputs = flat([grads, *states])
    found, expected = (
        torch.autograd.grad(sum(t.sin().sum() for t in flat(o)), inputs) for o in (again, first)
    )
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


def test_transforms_compute_the_step_all_the_same(adam):
    grads, *states, _ = detached(columns_of(adam))
    known = detached(adam.step(grads, states, 3, adam.numbers))

    def total(grads, **options):
        return sum(
            t.cos().sum() for t in flat(adam.step(grads, states, 3, adam.numbers, **options))
        )

    found = torch.func.grad(lambda g: total(g, known=known))(grads)
    for one, other in zip(found, torch.func.grad(total)(grads), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-14, atol=0)


def test_what_cannot_be_the_result_is_refused(device):
    one, other = [torch.ones(3)], [torch.ones(4)]
    single, numbers = [torch.ones(3, dtype=torch.float64)], {"lr": 0.1, "betas": (0.9, 0.9)}
    for known, error, message in [
        ([one, one], ValueError, "`known` must be the 3 lists that the step gives anew, got 2"),
        ([one, one, [*one, *one]], ValueError, r"`known\[2\]` must be as long as `grads`: got 2"),
        ([one, other, one], ValueError, r"`known\[1\]\[0\]` must be shaped like .*got \(4,\)"),
        ([single, one, one], ValueError, r"`known\[0\]\[0\]` must have the dtype of"),
        ([one, one, 3], TypeError, r"`known\[2\]` must be a list of tensors, got int"),
        ([one, one, [3]], TypeError, r"`known\[2\]\[0\]` must be a tensor, got int"),
        (3, TypeError, "`known` must be lists of tensors, got int"),
    ]:
        with pytest.raises(error, match=message):
            adam_step(one, one, one, 1, eps=1e-8, known=known, **numbers)
