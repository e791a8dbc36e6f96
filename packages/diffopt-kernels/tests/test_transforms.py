"""torch.func, forward mode, torch.compile, vectorized backward passes."""

import os
import warnings

import pytest
import torch
from diffopt_kernels import adam_step, adam_step_, explain
from torch.utils.flop_counter import FlopCounterMode

CASE_COUNT = 14  # of conftest.py, checked below
NUMBERS = {"lr": 0.1, "betas": (0.9, 0.99), "eps": 1e-3}


@pytest.fixture(autouse=True)
def device():
    """Stay on the CPU: what is tested here takes composed operations anyway."""
    return "cpu"


def randoms(*shape, seed=0):
    generator = torch.Generator(torch.get_default_device()).manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def scalar(g, lr):
    """Return a number that depends on two chained steps in every way."""
    m, v = 0.1 * g, g * g + 0.01
    (u,), (m,), (v,) = adam_step([g], [m], [v], 2, **{**NUMBERS, "lr": lr})
    (w,), _, _ = adam_step(
        [g + u], [m], [v], 3, **{**NUMBERS, "lr": lr}, weight_decay=lr, params=[u]
    )
    return (u * w).sum() + w.pow(3).sum()


def autograd(order, function, x):
    """Return the derivative of this order along ones, by plain autograd."""
    x = x.clone().requires_grad_()
    y = function(x)
    for _ in range(order - 1):
        (grad,) = torch.autograd.grad(y, x, create_graph=True)
        y = grad.sum()
    return torch.autograd.grad(y, x)[0]


def nested(order, function):
    for _ in range(order - 1):
        function = (lambda f: lambda x: torch.func.grad(f)(x).sum())(function)
    return torch.func.grad(function)


G = randoms(4)
LR = torch.tensor(0.1, dtype=torch.float64)


def of_g(g):
    return scalar(g, LR)


def of_lr(lr):
    return scalar(G, lr)


def of_case(case):
    """Return a number that depends on a step of a rule in every way, as a function of g."""

    def function(g):
        def state(name):
            return g * g + 0.01 if "sq" in name or "sum" in name else 0.1 * g

        states = [[state(name)] for name in case.states]
        (u,), *states = case.step([g], states, 2, {**case.numbers, "weight_decay": 0.1}, params=[g])
        return (u * g.sin()).sum() + sum(s[0].sin().sum() for s in states)

    return function


X, TANGENT = randoms(3), randoms(3, seed=1)
BATCH = torch.stack([X, TANGENT])
vmap, jvp, grad = torch.func.vmap, torch.func.jvp, torch.func.grad

# Each transform of a function, and its truth by plain autograd.
TRANSFORMS = {
    "grad": (grad, lambda f: autograd(1, f, X)),
    "grad of grad": (lambda f: nested(2, f), lambda f: autograd(2, f, X)),
    "grad of grad of grad": (lambda f: nested(3, f), lambda f: autograd(3, f, X)),
    "vmap": (lambda f: lambda _: vmap(f)(BATCH), lambda f: torch.stack([f(x) for x in BATCH])),
    "vmap of grad of grad": (
        lambda f: lambda _: vmap(nested(2, f))(BATCH),
        lambda f: torch.stack([autograd(2, f, x) for x in BATCH]),
    ),
    "jvp": (lambda f: lambda x: jvp(f, (x,), (TANGENT,))[1], lambda f: autograd(1, f, X) @ TANGENT),
    "jvp of grad": (
        lambda f: lambda x: jvp(grad(f), (x,), (TANGENT,))[1],
        lambda f: torch.autograd.functional.hessian(f, X) @ TANGENT,
    ),
    "jacrev": (
        lambda f: torch.func.jacrev(grad(f)),
        lambda f: torch.autograd.functional.hessian(f, X),
    ),
    "jacfwd": (
        lambda f: torch.func.jacfwd(grad(f)),
        lambda f: torch.autograd.functional.hessian(f, X),
    ),
    "hessian": (torch.func.hessian, lambda f: torch.autograd.functional.hessian(f, X)),
}


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_every_transform_of_every_rule_equals_autograd(case, transform):
    function = of_case(case)
    apply, truth = TRANSFORMS[transform]
    torch.testing.assert_close(apply(function)(X), truth(function), rtol=1e-9, atol=1e-10)


def compiled_pairs():
    """Return numbers of cases with transforms; to compile each with each takes minutes.

    All transforms of the first rule, and every rule in one, such that each transform has another
    rule, too. DIFFOPT_WHOLE_TABLE=1 asks for all.
    """
    whole = os.environ.get("DIFFOPT_WHOLE_TABLE") == "1"
    return [
        (i, transform)
        for i in range(CASE_COUNT)
        for j, transform in enumerate(TRANSFORMS)
        if whole or i == 0 or (i + j) % 10 == 0
    ]


@pytest.mark.parametrize(("number", "transform"), compiled_pairs())
def test_compiled_transforms_equal_autograd(cases, number, transform):
    assert len(cases) == CASE_COUNT
    torch.compiler.reset()
    function = of_case(cases[number])
    apply, truth = TRANSFORMS[transform]
    compiled = torch.compile(apply(function), backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(X), truth(function), rtol=1e-9, atol=1e-10)


def test_the_default_compiler_gives_the_derivative(adam):
    torch.compiler.reset()
    function = of_case(adam)
    compiled = torch.compile(grad(function), fullgraph=True)
    torch.testing.assert_close(compiled(X), autograd(1, function, X), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize(("function", "x"), [(of_g, G), (of_lr, LR)])
def test_nested_grad_of_two_steps_equals_autograd(order, function, x):
    actual = nested(order, function)(x)
    torch.testing.assert_close(actual, autograd(order, function, x), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("order", [0, 1, 2])
def test_vmap_of_nested_grad_equals_the_loop(order):
    batch = randoms(5, 4)
    function = nested(order, of_g) if order else of_g
    actual = torch.func.vmap(function)(batch)
    torch.testing.assert_close(actual, torch.stack([function(x) for x in batch]))


def test_vmap_over_a_learning_rate_equals_the_loop():
    rates = torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64)
    actual = torch.func.vmap(torch.func.grad(of_lr))(rates)
    torch.testing.assert_close(actual, torch.stack([autograd(1, of_lr, r) for r in rates]))


def test_forward_mode_equals_reverse_mode():
    x, tangent = randoms(4), randoms(4, seed=1)
    gradient = autograd(1, of_g, x)

    _, by_func = torch.func.jvp(of_g, (x,), (tangent,))
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, tangent)
        by_dual = torch.autograd.forward_ad.unpack_dual(of_g(dual)).tangent

    torch.testing.assert_close(by_func, gradient @ tangent)
    torch.testing.assert_close(by_dual, gradient @ tangent)


def test_hessians_of_all_modes_agree():
    x = randoms(4)
    expected = torch.autograd.functional.hessian(of_g, x)
    for hessian in (
        torch.func.hessian(of_g),
        torch.func.jacrev(torch.func.jacrev(of_g)),
        torch.func.jacrev(torch.func.grad(of_g)),
        torch.func.jacfwd(torch.func.grad(of_g)),
    ):
        torch.testing.assert_close(hessian(x), expected)
    _, product = torch.func.jvp(torch.func.grad(of_g), (x,), (torch.ones_like(x),))
    torch.testing.assert_close(product, expected.sum(1))


def test_vectorized_jacobian_of_the_fused_step_equals_the_loop():
    def step(g):
        return adam_step([g], [0.1 * g], [g * g + 0.01], 2, **NUMBERS)[0][0]

    x = randoms(4)
    assert explain([x]).startswith("fused")
    actual = torch.autograd.functional.jacobian(step, x, vectorize=True)
    torch.testing.assert_close(actual, torch.autograd.functional.jacobian(step, x))


def test_a_tensor_that_outlived_its_transform_is_still_read():
    leaked = []
    torch.func.grad(lambda x: (leaked.append(x * 1), x.sum())[1])(randoms(4))
    zero = torch.zeros(4, dtype=torch.float64)
    (u,), _, _ = adam_step(leaked, [zero], [zero], 1, **NUMBERS)
    (expected,), _, _ = adam_step([randoms(4)], [zero], [zero], 1, **NUMBERS)
    torch.testing.assert_close(u + 0, expected, rtol=1e-14, atol=0)


def test_dispatch_modes_see_the_operations():
    zero = torch.zeros(4)
    with FlopCounterMode(display=False):
        assert "a dispatch mode is active" in explain([zero])
        adam_step([zero], [zero], [zero], 1, **NUMBERS)


def test_jit_trace_records_the_step():
    def step(g):
        return adam_step([g], [0.1 * g], [g * g], 2, **NUMBERS)[0][0]

    x, y = randoms(4), randoms(4, seed=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing is deprecated, and warns of Python's numbers
        traced = torch.jit.trace(step, x)
    torch.testing.assert_close(traced(y), step(y))


@pytest.mark.parametrize(("function", "x"), [(of_g, G), (of_lr, LR)])
def test_whole_graphs_of_two_steps_compile_and_equal_eager(function, x):
    torch.compiler.reset()
    function = nested(2, function)
    compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), function(x))


def test_compiled_step_can_be_differentiated_from_outside():
    torch.compiler.reset()
    compiled = torch.compile(scalar, backend="aot_eager", fullgraph=True)
    g, lr = randoms(4).requires_grad_(), LR.clone().requires_grad_()
    actual = torch.autograd.grad(compiled(g, lr), (g, lr))
    torch.testing.assert_close(actual, torch.autograd.grad(scalar(g, lr), (g, lr)))


def test_step_numbers_do_not_recompile_for_ever():
    torch.compiler.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")

    @torch.compile(backend=counter, fullgraph=True)
    def step(g, t):
        return adam_step([g], [0.1 * g], [g * g], t, **NUMBERS)[0][0]

    g = randoms(4)
    for t in range(1, 8):
        (expected,), _, _ = adam_step([g], [0.1 * g], [g * g], t, **NUMBERS)
        torch.testing.assert_close(step(g, t), expected)
    assert counter.frame_count <= 3


def test_in_place_step_compiles():
    torch.compiler.reset()
    g = randoms(4)

    def step(p, m, v):
        adam_step_([p], [g], [m], [v], 1, **NUMBERS)

    mine, expected = ([torch.zeros(4, dtype=torch.float64) for _ in range(3)] for _ in range(2))
    torch.compile(step, backend="eager", fullgraph=True)(*mine)
    step(*expected)
    torch.testing.assert_close(mine, expected)


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # Dynamo's own look at a tensor
def test_backward_pass_below_a_graph_break_stays_out_of_dynamo():
    torch.compiler.reset()

    def step(g):
        g = g.detach().requires_grad_()
        torch._dynamo.graph_break()
        loss = fused(g)
        junk = [torch.full((50,), -1.0, dtype=torch.float64) for _ in range(8)]
        loss.backward()
        return g.grad + 0 * junk[0][0]

    @torch.compiler.disable
    def fused(g):
        (u,), _, _ = adam_step([g[::2]], [0.1 * g[1::2]], [g[::2] ** 2 + 0.1], 2, **NUMBERS)
        assert u.grad_fn.name().endswith("StepBackward")
        return (u * u).sum()

    g = randoms(100)
    torch.testing.assert_close(torch.compile(step, backend="eager")(g), step(g))
