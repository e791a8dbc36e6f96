"""Both passes in one call each: the same as step by step, and only where all is as usual."""

from types import SimpleNamespace

import pytest
import torch
from diffopt_kernels import _fused, _native
from diffopt_kernels._adam import ADAM
from diffopt_kernels._explain import _TYPES, DTYPES

NUMBERS = (0.1, 0.9, 0.99, 1e-3, 0.0, 0.0)
# As with a torch before 2.10, which must make the outputs itself.
BY_ATTRIBUTES = _native.Looker(_TYPES, tuple(DTYPES), None)


@pytest.fixture(autouse=True)
def device():
    """Stay on the CPU, whatever else there is."""
    return "cpu"


@pytest.fixture(autouse=True)
def emulation():
    """Leave the CPU's own kernels to it."""
    return False


def tensors(*shapes, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(s, generator=generator, dtype=torch.float64).to(dtype) for s in shapes]


def forward(passes=_fused.passes, **changes):
    like = tensors((3, 4), (5,))
    arguments = {"decoupled": False, "applied": False, "numbers": NUMBERS}
    arguments |= {"columns": (like, like, like), "steps": 2, "known": None}
    decoupled, applied, numbers, columns, steps, known = (arguments | changes).values()
    return passes.forward(
        ADAM.code, 0, decoupled, False, applied, numbers, ADAM.bounds, columns, steps, known, 1
    )  # fmt: skip


def replaced(place, value):
    return (*NUMBERS[:place], value, *NUMBERS[place + 1 :])


def columns_with(third):
    return (tensors((3, 4), (5,)), tensors((3, 4), (5,)), [torch.ones(3, 4), third])


def turned(tensor):
    """The same numbers, with the last two dimensions in the other order in memory."""
    return tensor.mT.contiguous().mT if tensor.dim() > 1 else tensor


def test_the_usual_step_is_taken_at_once():
    grads, m, v, params = (tensors((3, 4), (5,)) for _ in range(4))
    decay, plain, steps, sizes, arrays, outputs = forward(columns=(grads, m, v), steps=[2, 3])
    assert (decay, plain, steps, sizes) == (0, True, (2, 3), (12, 5))
    assert all(a is b for a, b in zip(arrays, (*grads, *m, *v), strict=True))
    assert [t.shape for t in outputs] == [(3, 4), (5,)] * 3
    decaying = {"numbers": replaced(5, 0.1), "columns": (grads, m, v, params)}
    assert forward(**decaying)[0] == 1
    assert forward(**decaying, decoupled=True)[0] == 2
    assert len(forward(**decaying)[4]) == 8
    assert len(forward(columns=(grads, m, v, params))[4]) == 6  # without the unused parameters
    known = tuple(tensors((3, 4), (5,)) * 3)
    assert forward(columns=(grads, m, v), known=known)[-1] is known


@pytest.mark.parametrize(
    "changes",
    [
        {"numbers": replaced(0, -0.1)},
        {"numbers": replaced(1, 1.0)},
        {"numbers": replaced(0, float("nan"))},
        {"numbers": replaced(0, float("inf"))},
        {"numbers": replaced(0, 1)},
        {"numbers": replaced(0, None)},
        {"numbers": replaced(0, (0.1, 0.1))},
        {"numbers": replaced(0, torch.full((2,), 0.1))},
        {"numbers": replaced(0, torch.tensor(1))},
        {"numbers": replaced(0, torch.zeros((), device="meta"))},
        {"numbers": replaced(5, 0.1)},
        {"numbers": replaced(5, torch.tensor(0.0))},
        {"applied": True},  # without parameters
        {"steps": 0},
        {"steps": -1},
        {"steps": True},
        {"steps": 1.0},
        {"steps": 2**70},
        {"steps": [1]},
        {"steps": [1, 0]},
        {"columns": ([], [], [])},
        {"columns": (torch.ones(2, 3),) * 3},
        {"columns": (tensors((3, 4)), tensors((3, 4)), tensors((3, 4), (5,)))},
        {"columns": (tensors((3, 4)), tensors((3, 4)))},
        {"columns": columns_with(torch.ones(6))},
        {"columns": columns_with(torch.ones(5, dtype=torch.float64))},
        {"columns": columns_with(torch.ones(5, device="meta"))},
        {"columns": columns_with(torch.ones(10)[::2])},
        {"columns": columns_with(torch._neg_view(torch.ones(5)))},
        {"columns": columns_with(None)},
        {"columns": columns_with(0.5)},
        {"columns": ([torch.ones(3).expand(2, 3)],) * 3},
        {"columns": ([torch.ones(3, 2, 2).mT[:, :1]],) * 3},
        {"columns": ([turned(torch.ones(3, 2))], [torch.ones(3, 2)], [torch.ones(3, 2)])},
        {"columns": ([torch.ones(3, 2)], [torch.ones(3, 2)], [turned(torch.ones(3, 2))])},
        {"known": ()},
        {"known": tuple(tensors((3, 4), (5,)) * 2)},
        {"known": tuple(tensors((3, 4), (5,), (3, 4), (5,), (3, 4), (6,)))},
        {"known": (*tensors((3, 4), (5,), (3, 4), (5,), (3, 4)), 0.5)},
        {"known": (*tensors((3, 4), (5,), (3, 4), (5,)), *tensors((3, 4), (5,), dtype=torch.half))},
    ],
    ids=str,
)
def test_what_is_unusual_or_wrong_is_left_to_others(changes):
    assert forward(**changes) is None


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_learned_number_may_be_of_any_dtype(dtype):
    _, plain, *_, outputs = forward(numbers=replaced(0, torch.tensor(0.25, dtype=dtype)))
    assert not plain
    expected = forward(numbers=replaced(0, 0.25))[-1]
    assert all(torch.equal(a, b) for a, b in zip(outputs, expected, strict=True))


@pytest.mark.parametrize("layout", [torch.clone, turned], ids=["contiguous", "turned"])
@pytest.mark.parametrize("unused", [(), (0,), (1, 3)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_at_once_gives_the_bits_of_step_by_step(case, dtype, unused, layout, monkeypatch):
    shapes = [(3, 4), (), (0, 2), (700,), (1, 5, 2), (131, 127)]
    names = ("grads", *case.states, "params")
    columns = [[layout(t) for t in tensors(*shapes, dtype=dtype)] for _ in names]
    numbers = {**case.numbers, "weight_decay": 0.1}

    def results():
        learned = {k: torch.tensor(x, requires_grad=True) for k, x in numbers.items()}
        grads, *states, params = ([x.detach().requires_grad_() for x in c] for c in columns)
        outputs = case.step(grads, states, 3, learned, params=params)
        used = [t for c in outputs for i, t in enumerate(c) if i not in unused]
        inputs = [*learned.values(), *(t for c in (grads, *states, params) for t in c)]
        cotangents = [t.detach().sin() for t in used]
        return *used, *torch.autograd.grad(used, inputs, cotangents, allow_unused=True)

    said = []
    monkeypatch.setattr(_fused, "passes", spied(said))
    at_once = results()
    assert len(said) == 2
    assert all(said)
    monkeypatch.setattr(_fused, "passes", SimpleNamespace(forward=none, vjp=none))
    for a, b in zip(at_once, results(), strict=True):
        assert (a is None) == (b is None)
        assert a is None or (torch.equal(a, b) and a.stride() == b.stride())


def none(*_):
    return None


def spied(said):
    """Passes that note whether they took a call."""

    def note(function):
        def call(*arguments):
            result = function(*arguments)
            said.append(result is not None)
            return result

        return call

    return SimpleNamespace(forward=note(_fused.passes.forward), vjp=note(_fused.passes.vjp))


def test_each_tensor_has_its_own_step():
    both = forward(steps=[2, 9])[-1]
    first, second = forward(steps=2)[-1], forward(steps=9)[-1]
    assert torch.equal(both[0], first[0])
    assert torch.equal(both[1], second[1])
    assert not torch.equal(first[1], second[1])


def test_only_what_needs_a_derivative_gets_one():
    g, m, v, p = tensors(*[(2,)] * 4)
    needed = (False, True, False, True, False)
    arguments = (ADAM.code, 0, 2, False, False, (None, *NUMBERS[1:5], 0.1), (3,), (2,))
    lr = torch.tensor(0.1)
    cotangents = (g, None, m)
    first, *results = _fused.passes.vjp(
        *arguments, (lr, g, m, v, p), cotangents, (False, *needed), 1
    )
    assert first is None
    assert [r is not None for r in results] == list(needed)


def test_a_saved_tensor_of_another_size_is_left_to_others():
    g = torch.ones(2)
    arguments = (ADAM.code, 0, 0, False, False, NUMBERS, (3,))
    given = ((g, g, g), (g, g, g), (True,) * 3, 1)
    assert _fused.passes.vjp(*arguments, (2,), *given) is not None
    assert _fused.passes.vjp(*arguments, (3,), *given) is None


def test_lists_may_change_while_it_runs():
    column = tensors((3, 4), (5,))

    def empty_like(tensor):
        column.clear()
        return torch.empty_like(tensor)

    outputs = forward(_native.Passes(BY_ATTRIBUTES, empty_like), columns=(column,) * 3)[-1]
    expected = forward()[-1]
    assert all(torch.equal(a, b) for a, b in zip(outputs, expected, strict=True))


@pytest.mark.parametrize(
    "empty_like",
    [lambda t: t[:1], lambda t: t.half(), lambda t: t[..., :1].expand(t.shape), lambda t: None],
)
def test_memory_that_is_not_like_the_input_is_not_written(empty_like):
    with pytest.raises(ValueError, match=r"unlike|no plain tensor"):
        forward(_native.Passes(BY_ATTRIBUTES, empty_like))


def test_bounds_of_another_rule_are_refused():
    columns = (tensors((2,)),) * 3
    with pytest.raises(ValueError, match="bounds: wrong count"):
        _fused.passes.forward(
            ADAM.code, 0, False, False, False, NUMBERS, (1.0,), columns, 1, None, 1
        )
