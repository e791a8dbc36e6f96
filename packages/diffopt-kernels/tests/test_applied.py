"""Steps that give the new parameters: the sum of parameters and updates, to the bit."""

import pytest
import torch
from diffopt_kernels import adam_step, sgd_step
from torch.autograd.graph import saved_tensors_hooks

SHAPES = [(3,), (2, 2), (), (0, 2), (700,)]


def flat(columns):
    return [t for column in columns for t in column]


def both(case, columns, numbers, **options):
    """Return the outputs with the updates applied by the step, and by hand."""
    grads, *states, params = columns
    at_once = case.step(grads, states, 3, numbers, params=params, applied=True, **options)
    updates, *new = case.step(grads, states, 3, numbers, params=params, **options)
    return flat(at_once), flat([[p + u for p, u in zip(params, updates, strict=True)], *new])


def columns_of(case, shapes, dtype, layout=lambda t: t):
    generator = torch.Generator(torch.get_default_device()).manual_seed(0)
    draw = lambda shape: torch.rand(shape, generator=generator, dtype=torch.float64).to(dtype)
    return [[layout(draw(shape)) for shape in shapes] for _ in ("grads", *case.states, "params")]


def apart(tensor):
    """The same numbers, not contiguous."""
    return tensor.unsqueeze(-1).expand(*tensor.shape, 2).contiguous()[..., 0]


@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("layout", [torch.clone, apart], ids=["contiguous", "apart"])
def test_new_parameters_and_all_derivatives_are_those_of_the_sum_to_the_bit(
    path, case, layout, dtype, weight_decay, maximize
):
    columns = [[t.requires_grad_() for t in c] for c in columns_of(case, SHAPES, dtype, layout)]
    numbers = {**case.numbers, "weight_decay": weight_decay}
    outputs, expected = both(case, columns, numbers, maximize=maximize)
    for a, b in zip(outputs, expected, strict=True):
        assert torch.equal(a, b)
    cotangents = [t.detach().cos() for t in expected]
    found, right = (
        torch.autograd.grad(results, flat(columns), cotangents) for results in (outputs, expected)
    )
    for a, b in zip(found, right, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_rounded_once(path, case, dtype, weight_decay):
    columns = columns_of(case, SHAPES, dtype)
    numbers = {**case.numbers, "weight_decay": weight_decay}
    outputs, _ = both(case, columns, numbers)
    _, expected = both(case, [[t.float() for t in c] for c in columns], numbers)
    for a, b in zip(outputs, expected, strict=True):
        assert torch.equal(a, b.to(dtype))


def test_gradcheck_and_gradgradcheck_hold_for_every_input(path, make_problem, case):
    problem = make_problem(case, [(2,), ()], applied=True)
    assert torch.autograd.gradcheck(problem.step, problem.inputs)
    assert torch.autograd.gradgradcheck(problem.step, problem.inputs)


@pytest.mark.parametrize("used", range(3))
def test_gradients_hold_where_one_output_alone_is_used(path, adam, used):
    columns = columns_of(adam, [(3,), (2,)], torch.float64)
    columns = [[t.requires_grad_() for t in c] for c in columns]
    for weight_decay in (0.0, 0.1):
        numbers = {**adam.numbers, "weight_decay": weight_decay}
        outputs, expected = both(adam, columns, numbers)
        found, right = (
            torch.autograd.grad(results[2 * used], flat(columns), torch.ones(3), allow_unused=True)
            for results in (outputs, expected)
        )
        for a, b, like in zip(found, right, flat(columns), strict=True):
            a, b = (torch.zeros_like(like) if t is None else t for t in (a, b))
            assert torch.equal(a, b)


def test_learned_numbers_get_the_derivatives_of_the_sum(path, case):
    columns = columns_of(case, SHAPES, torch.float64)
    numbers = {**case.numbers, "weight_decay": 0.1}
    learned = {k: torch.tensor(x, dtype=torch.float64, requires_grad=True)
               for k, x in numbers.items()}  # fmt: skip
    outputs, expected = both(case, columns, learned)
    found, right = (
        torch.autograd.grad(sum(t.cos().sum() for t in results), list(learned.values()))
        for results in (outputs, expected)
    )
    for a, b in zip(found, right, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=0)


def test_a_parameter_without_decay_gets_the_very_cotangent(device, emulation):
    if device != "cpu" or emulation:
        pytest.skip("of the native call on the CPU")
    g, p = torch.ones(5), torch.ones(5, requires_grad=True)
    seen = []
    p.register_hook(lambda grad: seen.append(grad.data_ptr()))
    ((after,), _, _) = adam_step(
        [g], [g], [g], 1, lr=0.1, betas=(0.9, 0.99), eps=1e-3, params=[p], applied=True
    )
    cotangent = torch.ones(5)
    torch.autograd.grad(after, p, cotangent)
    assert seen == [cotangent.data_ptr()]


@pytest.mark.parametrize("learned", [False, True])
def test_parameters_that_are_only_added_to_are_not_kept_and_may_be_written_over(device, learned):
    g, p = (torch.ones(5, requires_grad=True) for _ in range(2))
    lr = torch.tensor(0.1, requires_grad=True) if learned else 0.1
    saved = []
    with saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        after, _ = sgd_step([g], None, 1, lr=lr, params=[p], applied=True)
    assert p.data_ptr() not in {t.data_ptr() for t in saved}
    with torch.no_grad():
        p.zero_()
    inputs = [g, p, lr] if learned else [g, p]
    of_g, of_p, *of_lr = torch.autograd.grad(after[0].sum(), inputs, create_graph=True)
    assert torch.equal(of_g, torch.full((5,), -0.1))
    assert torch.equal(of_p, torch.ones(5))
    if learned:
        assert of_lr[0] == -5
        assert torch.equal(torch.autograd.grad(of_lr[0], g)[0], torch.full((5,), -1.0))


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_a_graph_of_the_derivative_reaches_the_cotangents_of_parameters_alone(
    path, case, weight_decay
):
    columns = columns_of(case, [(3,), ()], torch.float64)
    for param in columns[-1]:
        param.requires_grad_()
    numbers = {**case.numbers, "weight_decay": weight_decay}
    outputs, expected = both(case, columns, numbers)
    for of_p, right in zip(outputs[:2], expected[:2], strict=True):
        cotangent = torch.ones_like(of_p).requires_grad_()
        slopes = [
            torch.autograd.grad(o, columns[-1], cotangent, create_graph=True, allow_unused=True)
            for o in (of_p, right)
        ]
        for a, b in zip(*slopes, strict=True):
            assert (a is None) == (b is None)
            if a is not None:
                torch.testing.assert_close(a, b, rtol=1e-12, atol=0)
                again = [torch.autograd.grad(x.sum(), cotangent)[0] for x in (a, b)]
                torch.testing.assert_close(*again, rtol=1e-12, atol=0)


def test_parameters_that_decay_are_kept(device):
    g, p = (torch.ones(5, requires_grad=True) for _ in range(2))
    after, _ = sgd_step([g], None, 1, lr=0.1, params=[p], weight_decay=0.1, applied=True)
    with torch.no_grad():
        p.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(after[0].sum(), g)


@pytest.mark.parametrize("transform", ["grad", "vmap", "jvp", "jacrev", "jacfwd"])
def test_transforms_see_the_sum(transform, adam):
    numbers = {**adam.numbers, "weight_decay": 0.1}
    given = [torch.rand(4, 3, dtype=torch.float64) for _ in range(4)]

    def moved(*inputs):
        return [t[0] for t in adam.step(*arguments(inputs), params=[inputs[3]], applied=True)]

    def by_hand(*inputs):
        updates, *new = adam.step(*arguments(inputs), params=[inputs[3]])
        return [inputs[3] + updates[0], *(t[0] for t in new)]

    def arguments(inputs):
        return [inputs[0]], [[inputs[1]], [inputs[2]]], 3, numbers

    def total(function):
        return lambda *inputs: sum(t.sin().sum() for t in function(*inputs))

    places = tuple(range(4))
    results = []
    for function in (moved, by_hand):
        taken = {
            "grad": lambda f: torch.func.grad(total(f), places)(*given),
            "vmap": lambda f: torch.func.vmap(f)(*given),
            "jvp": lambda f: torch.func.jvp(f, tuple(given), tuple(t.cos() for t in given))[1],
            "jacrev": lambda f: torch.func.jacrev(total(f), places)(*given),
            "jacfwd": lambda f: torch.func.jacfwd(total(f), places)(*given),
        }[transform](function)
        results.append(taken)
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-15)


def test_it_compiles_into_one_graph(adam):
    given = [[torch.rand(3)] for _ in range(4)]

    def moved(g, m, v, p):
        return adam.step(g, [m, v], 3, adam.numbers, params=p, applied=True)

    compiled = torch.compile(moved, backend="eager", fullgraph=True)
    for a, b in zip(flat(compiled(*given)), flat(moved(*given)), strict=True):
        torch.testing.assert_close(a, b)


def test_parameters_must_be_given(path, case):
    columns = columns_of(case, [(2,)], torch.float32)
    with pytest.raises(ValueError, match="`params` must be given where the updates are to be"):
        case.step(columns[0], columns[1:-1], 3, case.numbers, applied=True)


def test_a_parameter_of_another_shape_is_refused(path, case):
    columns = columns_of(case, [(2,)], torch.float32)
    with pytest.raises(ValueError, match=r"`params\[0\]` must be shaped like `grads\[0\]`"):
        case.step(columns[0], columns[1:-1], 3, case.numbers, params=[torch.ones(3)], applied=True)
