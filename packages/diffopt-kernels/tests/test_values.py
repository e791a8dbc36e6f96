"""Values of every rule: against torch.optim, and any layout, dtype, size and thread count."""

import itertools
from types import SimpleNamespace

import diffopt_kernels as dk
import pytest
import torch

SHAPES = [(3, 4), (5,), (), (0,), (2, 0, 3), (2, 3, 4, 5), (1,)]
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def randoms(shapes=SHAPES, seed=0, dtype=torch.float64):
    generator = torch.Generator(torch.get_default_device()).manual_seed(seed)
    return [torch.randn(s, generator=generator, dtype=torch.float64).to(dtype) for s in shapes]


def make(case, shapes=SHAPES, dtype=torch.float64):
    """Return gradients, states and parameters, and all of them in one list."""
    names = ("grads", *case.states, "params")
    g, *states, p = (randoms(shapes, k, dtype) for k in range(len(names)))
    for name, column in zip(case.states, states, strict=True):
        if "sq" in name or "sum" in name:
            column[:] = [x.abs() + 0.1 for x in column]
        elif name == "grad_avgs":
            column[:] = [0.1 * x for x in column]
    return SimpleNamespace(g=g, states=states, p=p, all=[x for c in (g, *states, p) for x in c])


def with_decay(case):
    return {**case.numbers, "weight_decay": 0.1}


def flat(columns):
    return [t for column in columns for t in column]


FLAGS = {
    "adam": {"eps": [1e-8, 1e-3], "beta1": [0.0, 0.9], "beta2": [0.0, 0.999]},
    "sgd": {"momentum": [0.5, 0.9], "dampening": [0.0, 0.3]},
    "rmsprop": {"alpha": [0.5, 0.99], "eps": [1e-8, 1e-3]},
    "adagrad": {"lr_decay": [0.0, 0.1], "eps": [1e-10, 1e-3]},
}
FLAGS["amsgrad"] = FLAGS["adam"]
FLAGS["nadam"] = {**FLAGS["adam"], "momentum_decay": [0.0, 4e-3]}


def grid(case):
    """Yield all combinations of the numbers that this case has."""
    flags = {k: v for k, v in FLAGS[case.name].items() if k in case.numbers}
    base = {k: v for k, v in case.numbers.items() if k != "eps_root"}
    for values in itertools.product([0.0, 0.1], *flags.values()):
        yield {**base, **dict(zip(("weight_decay", *flags), values, strict=True))}


@pytest.fixture
def default_float64():
    torch.set_default_dtype(torch.float64)  # in which torch.optim.NAdam keeps its product
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("in_place", [False, True])
def test_equals_torch_optim_over_steps(path, case, maximize, in_place, default_float64):
    if case.optim is None:
        assert case.name == "lion"  # which torch does not have
        return
    shapes = SHAPES[:4]
    # In place, each flag with some of the others is enough: the loops are the same.
    for numbers in itertools.islice(grid(case), 0, None, 3 if in_place else 1):
        expected = [p.requires_grad_() for p in randoms(shapes)]
        actual = [p.detach().clone() for p in expected]
        optimizer = case.make_optimizer(expected, numbers, maximize=maximize)
        states = [[torch.zeros_like(p) for p in actual] for _ in case.states]
        for step in range(1, 5):
            grads = randoms(shapes, seed=step)
            for p, g in zip(expected, grads, strict=True):
                p.grad = g.clone()
            optimizer.step()
            if in_place:
                case.step_(actual, grads, states, step, numbers, maximize=maximize)
            else:
                updates, *states = case.step(
                    grads, states, step, numbers, params=actual, maximize=maximize
                )
                actual = [p + u for p, u in zip(actual, updates, strict=True)]

            for p, q in zip(actual, expected, strict=True):
                torch.testing.assert_close(p, q.detach(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_lion_equals_its_algorithm_over_steps(path, weight_decay):
    p = torch.linspace(-1, 1, 20, dtype=torch.float64)
    expected, m, momentum = p.clone(), torch.zeros_like(p), torch.zeros_like(p)
    for step in range(5):
        g = (expected + step / 3).sin()
        (u,), (m,) = dk.lion_step(
            [g], [m], lr=0.1, betas=(0.9, 0.99), weight_decay=weight_decay, params=[p]
        )
        p = p + u

        direction = torch.sign(0.9 * momentum + 0.1 * g)
        expected = expected - 0.1 * (direction + weight_decay * expected)
        momentum = 0.99 * momentum + 0.01 * g
        torch.testing.assert_close(p, expected, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(m, momentum, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_paths_agree_in_every_dtype(on_path, case, dtype, weight_decay):
    x = make(case, dtype=dtype)
    x.g[0][0, :2] = torch.tensor([0.0, 1e-7])  # 1e-7 is subnormal in float16
    numbers = {**case.numbers, "weight_decay": weight_decay}

    def run():
        return flat(case.step(x.g, x.states, 7, numbers, params=x.p))

    eps = torch.finfo(dtype).eps
    for a, b in zip(on_path("fused", run), on_path("composed", run), strict=True):
        assert a.dtype == dtype
        torch.testing.assert_close(a, b, rtol=4 * eps, atol=eps / 2)


@pytest.mark.parametrize("dtype", DTYPES[2:])
def test_narrow_dtypes_are_computed_in_float32(path, case, dtype):
    x = make(case, dtype=dtype)
    g, p = [t.float() for t in x.g], [t.float() for t in x.p]
    states = [[t.float() for t in column] for column in x.states]
    wide = case.step(g, states, 3, with_decay(case), params=p)
    narrow = case.step(x.g, x.states, 3, with_decay(case), params=x.p)
    for a, b in zip(flat(narrow), flat(wide), strict=True):
        torch.testing.assert_close(a, b.to(dtype), rtol=torch.finfo(dtype).eps, atol=0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_zero_gradients_give_zero_updates_and_no_nan(path, case, dtype):
    zero = torch.zeros(40, dtype=dtype)
    numbers = {**case.numbers}
    if "eps" in numbers:
        numbers["eps"] = 1e-8  # 0 in float16
    for column in case.step([zero], [[zero] for _ in case.states], 1, numbers):
        assert torch.equal(column[0], zero)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_size_around_the_vector_width_and_any_thread_count_agree(case, dtype):
    shapes = [(n,) for n in range(71)] + [(511,), (513,), (16383,), (16385,), (70001,)]
    x = make(case, shapes, dtype)
    numbers = with_decay(case)

    alone = [
        flat(case.step([g], [[s] for s in states], 2, numbers, params=[p]))
        for g, *states, p in zip(x.g, *x.states, x.p, strict=True)
    ]
    expected = [row[k] for k in range(1 + len(case.states)) for row in alone]
    before = torch.get_num_threads()
    for threads in (1, 2, 3):
        try:
            torch.set_num_threads(threads)
            together = flat(case.step(x.g, x.states, 2, numbers, params=x.p))
        finally:
            torch.set_num_threads(before)
        for a, b in zip(together, expected, strict=True):
            assert torch.equal(a, b)


LAYOUTS = {
    "transposed": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
    "expanded": lambda x: x[:1].expand_as(x),
    "expanded from a sum": lambda x: torch.ones((), dtype=x.dtype).expand_as(x),
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "slice": lambda x: torch.cat([x, x, x], -1)[..., 1 : 1 + x.shape[-1]].clone(
        memory_format=torch.preserve_format
    ),
    "every second": lambda x: x.repeat_interleave(2, -1)[..., ::2],
    "permuted": lambda x: x.permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0),
    "plain": lambda x: x,
}


@pytest.mark.parametrize("first", LAYOUTS)
def test_any_layout_gives_what_contiguous_tensors_give(path, case, first):
    x = make(case, [(4, 3, 5, 4)])
    numbers = with_decay(case)
    for second in LAYOUTS:
        layouts = itertools.cycle([LAYOUTS[first], LAYOUTS[second]])
        g, *states, p = (layout(t) for layout, t in zip(layouts, x.all, strict=False))
        plain = [t.contiguous() for t in (g, *states, p)]

        actual = case.step([g], [[s] for s in states], 4, numbers, params=[p])

        expected = case.step(plain[:1], [[s] for s in plain[1:-1]], 4, numbers, params=plain[-1:])
        for a, b in zip(actual, expected, strict=True):
            torch.testing.assert_close(a[0], b[0], rtol=1e-14, atol=0)


def test_outputs_lie_in_memory_like_the_gradient(case):
    g = torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    states = [[torch.zeros(2, 3, 4, 5)] for _ in case.states]
    for column in case.step([g], states, 1, case.numbers):
        assert column[0].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("steps", [1, 2])
def test_arguments_are_not_mutated(path, case, steps):
    x = make(case)
    copies = [t.clone() for t in x.all]
    for numbers, maximize in ((case.numbers, False), (with_decay(case), True)):
        columns = case.step(x.g, x.states, steps, numbers, params=x.p, maximize=maximize)
        assert all(torch.equal(a, b) for a, b in zip(x.all, copies, strict=True))
        assert not {id(t) for t in x.all} & {id(t) for t in flat(columns)}


@pytest.mark.parametrize("steps", [1, 2])
def test_outputs_may_be_written_without_disturbing_each_other(path, case, steps):
    x = make(case)
    g = [t.requires_grad_() for t in x.g]
    updates, *states = case.step(g, x.states, steps, case.numbers)
    others = [*flat(states), *x.all]
    copies = [t.clone() for t in others]
    for u in updates:
        if u.requires_grad:
            u.mul_(2)
    assert all(torch.equal(a, b) for a, b in zip(others, copies, strict=True))
    torch.autograd.grad(sum(t.sum() for t in updates + flat(states)), g)


def test_each_tensor_may_be_at_its_own_step(path, case):
    x = make(case)
    if not case.counts_steps:
        return
    steps = list(range(1, len(x.g) + 1))
    updates, *_ = case.step(x.g, x.states, steps, case.numbers)
    for i, step in enumerate(steps):
        (alone,), *_ = case.step([x.g[i]], [[s[i]] for s in x.states], step, case.numbers)
        assert torch.equal(updates[i], alone)


def test_the_first_step_does_not_read_the_momentum_buffer(path):
    g, junk = torch.ones(3), torch.full((3,), float("nan"))
    (u,), (b,) = dk.sgd_step([g], [junk], 1, lr=0.1, momentum=0.9, dampening=0.5)
    assert torch.equal(b, g)
    assert torch.equal(u, -0.1 * g)


def test_states_that_are_not_in_use_come_back_as_they_are(path):
    g, b = [torch.ones(3)], [torch.zeros(3)]
    assert dk.sgd_step(g, b, 1, lr=0.1)[1][0] is b[0]
    assert dk.sgd_step(g, None, 1, lr=0.1)[1] == []
    *_, averages, buffers = dk.rmsprop_step(g, b, None, b, lr=0.1, alpha=0.9, eps=1e-8)
    assert averages == []
    assert buffers[0] is b[0]


def test_centered_averages_whose_variance_rounds_below_zero_give_no_nan(path):
    g = torch.full((1000,), 0.1).requires_grad_()
    s, a = [g.detach() ** 2 * (1 - 1e-7)], [g.detach()]
    (u,), *_ = dk.rmsprop_step([g], s, a, lr=0.1, alpha=0.9, eps=1e-8, centered=True)
    assert u.isfinite().all()
    assert torch.autograd.grad(u.sum(), g)[0].isfinite().all()


def test_no_tensors_give_no_tensors(path, case):
    columns = case.step([], [[] for _ in case.states], 1, case.numbers)
    assert all(column == [] for column in columns)
    case.step_([], [], [[] for _ in case.states], 1, case.numbers)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("maximize", [False, True])
def test_in_place_step_writes_what_the_pure_step_returns(path, case, dtype, maximize):
    x = make(case, dtype=dtype)
    x.p[0].requires_grad_()
    numbers = with_decay(case)
    g, *states, p = ([t.detach().double() for t in column] for column in (x.g, *x.states, x.p))
    updates, *new = case.step(g, states, 3, numbers, params=p, maximize=maximize)
    expected = [a + b for a, b in zip(p, updates, strict=True)] + flat(new)
    written = x.p + flat(x.states)
    versions = [t._version for t in written]

    case.step_(x.p, x.g, x.states, 3, numbers, maximize=maximize)

    tolerance = 1e-13 if dtype == torch.float64 else 8 * torch.finfo(dtype).eps
    if case.name != "lion":  # whose sign may turn by rounding
        for a, b in zip(written, expected, strict=True):
            torch.testing.assert_close(a.detach().double(), b, rtol=tolerance, atol=tolerance)
    assert all(t._version > old for t, old in zip(written, versions, strict=True))


def test_in_place_step_works_on_any_writable_layout(path, case):
    for layout in (LAYOUTS["transposed"], LAYOUTS["every second"], LAYOUTS["channels last"]):
        x = make(case, [(4, 3, 5, 4)])
        updates, *new = case.step(x.g, x.states, 2, case.numbers)
        expected = [x.p[0] + updates[0], *flat(new)]
        p, states = [layout(x.p[0])], [[layout(s[0])] if k else s for k, s in enumerate(x.states)]
        case.step_(p, [layout(x.g[0])], states, 2, case.numbers)
        for a, b in zip([*p, *flat(states)], expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-14, atol=1e-15)


def test_a_lazily_negated_gradient_is_negated(path, case):
    x = make(case)
    negated = [torch._neg_view(g) for g in x.g]
    expected = case.step([-g for g in x.g], x.states, 1, case.numbers)
    actual = case.step(negated, x.states, 1, case.numbers)
    for a, b in zip(flat(actual), flat(expected), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-14, atol=0)
