"""Derivatives: closed forms, finite differences, and one path against the other."""

import itertools

import diffopt_kernels as dk
import pytest
import torch
from diffopt_kernels import adam_step
from nodes import is_fused

SHAPES = [(3,), (2, 2), ()]


def inner(cotangents, outputs):
    return sum((c * o).sum() for c, o in zip(cotangents, outputs, strict=True))


def test_gradcheck_and_gradgradcheck_hold_for_every_input(path, make_problem, case):
    problem = make_problem(case, [(2,), ()])
    inputs = problem.inputs
    assert is_fused(problem.step(*inputs)[0]) == (path == "fused")
    # At eps_root = 0 the finite difference looks at a negative one, which is no trouble as v > 0.
    assert torch.autograd.gradcheck(problem.step, inputs, check_batched_grad=path == "fused")
    assert torch.autograd.gradgradcheck(problem.step, inputs)


@pytest.mark.parametrize("steps", [1, [2, 1]])
def test_gradcheck_and_gradgradcheck_hold_at_other_steps(path, make_problem, case, steps):
    if not case.counts_steps:
        return
    problem = make_problem(case, [(2,), ()], steps=steps, maximize=True)
    inputs = list(problem.inputs)
    if "eps_root" in problem.numbers:
        inputs[4] = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(problem.step, inputs)
    assert torch.autograd.gradgradcheck(problem.step, inputs)


@pytest.mark.parametrize("maximize", [False, True])
def test_paths_agree_in_values_and_first_second_and_third_derivatives(
    on_path, make_problem, case, maximize
):
    problem = make_problem(case, SHAPES, maximize=maximize)
    inputs = problem.inputs

    def derivatives():
        found = list(problem.step(*inputs))
        scalar = inner(problem.weights(), found) ** 2
        for order in (1, 2, 3):
            grads = torch.autograd.grad(scalar, inputs, create_graph=True, allow_unused=True)
            assert order > 1 or all(g is not None for g in grads)
            found += [g for g in grads if g is not None]
            generator = torch.Generator(torch.get_default_device()).manual_seed(order)
            scalar = sum(
                (g * torch.randn(g.shape, generator=generator, dtype=g.dtype)).sum()
                for g in grads
                if g is not None
            )
        return found

    fused, composed = on_path("fused", derivatives), on_path("composed", derivatives)

    assert is_fused(fused[0])
    for a, b in zip(fused, composed, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_native_vector_jacobian_product_agrees_with_the_composed_one(
    on_path, make_problem, case, dtype
):
    maximize = dtype == torch.float32
    size = 41_000 if dtype == torch.float32 else 1_000  # the larger one takes several threads
    problem = make_problem(case, [(300,), (4, 5), (), (0, 2), (size,)], maximize=maximize)
    inputs = [
        x.detach().to(dtype if i >= problem.width else x.dtype).requires_grad_()
        for i, x in enumerate(problem.inputs)
    ]
    weights = [w.to(dtype) for w in problem.weights()]

    def derivatives():
        return torch.autograd.grad(problem.step(*inputs), inputs, weights)

    eps = torch.finfo(dtype).eps
    for x, a, b in zip(
        inputs, on_path("fused", derivatives), on_path("composed", derivatives), strict=True
    ):
        assert a.dtype == x.dtype
        assert a.shape == x.shape
        # Sums over 41,000 random terms.
        scale = 0 if a.numel() == 0 else b.abs().max().item() + (300 if a.dim() == 0 else 0)
        torch.testing.assert_close(a, b, rtol=8 * eps, atol=8 * eps * scale)


def test_absent_cotangents_count_as_zero(on_path, make_problem, case):
    problem = make_problem(case, [(700,), (3,)])
    columns = range(1 + len(case.states))

    def derivatives(used):
        outputs = problem.step(*problem.inputs)
        weights = problem.weights()
        chosen = [2 * k for k in used]  # outputs of the first tensor only
        return torch.autograd.grad(
            [outputs[k] for k in chosen], problem.inputs, [weights[k] for k in chosen],
            allow_unused=True,
        )  # fmt: skip

    for size in columns:
        for used in itertools.combinations(columns, size + 1):
            fused, composed = (
                on_path("fused", derivatives, used),
                on_path("composed", derivatives, used),
            )
            for a, b in zip(fused, composed, strict=True):
                if a is None or b is None:
                    assert a is None or not a.any()
                    assert b is None or not b.any()
                else:
                    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_each_input_alone_gets_the_derivative_it_gets_among_all(make_problem, case):
    problem = make_problem(case, SHAPES)
    every = torch.autograd.grad(problem.step(*problem.inputs), problem.inputs, problem.weights())
    for name in dict.fromkeys(problem.names):
        places = [i for i, of in enumerate(problem.names) if of == name]
        inputs = [x if i in places else x.detach() for i, x in enumerate(problem.inputs)]

        outputs = problem.step(*inputs)

        pairs = [(o, w) for o, w in zip(outputs, problem.weights(), strict=True) if o.requires_grad]
        alone = torch.autograd.grad(
            [o for o, _ in pairs], [inputs[i] for i in places], [w for _, w in pairs]
        )
        for i, grad in zip(places, alone, strict=True):
            torch.testing.assert_close(grad, every[i], rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("steps", [[1, 2], 3])
def test_paths_agree_on_which_outputs_require_grad(on_path, make_problem, case, steps):
    problem = make_problem(case, [(3,), (2,)], steps=steps)
    for wanted in range(len(problem.inputs)):
        inputs = [x if i == wanted else x.detach() for i, x in enumerate(problem.inputs)]

        def flags(inputs=inputs):
            return [o.requires_grad for o in problem.step(*inputs)]

        assert on_path("fused", flags) == on_path("composed", flags)


def test_hypergradients_equal_central_differences(path, make_problem, case):
    problem = make_problem(case, [(50,)], steps=4)
    weights = problem.weights()
    for wanted in range(problem.width):
        inputs = [x.detach() for x in problem.inputs]
        if "eps_root" in problem.numbers:
            inputs[4] = torch.tensor(0.05, dtype=torch.float64)
        inputs[wanted].requires_grad_()
        (actual,) = torch.autograd.grad(inner(weights, problem.step(*inputs)), inputs[wanted])

        h = 1e-5 * max(inputs[wanted].item(), 0.1)
        sides = []
        for sign in (1, -1):
            moved = [x.detach() for x in inputs]
            moved[wanted] = moved[wanted] + sign * h
            sides.append(inner(weights, problem.step(*moved)))

        torch.testing.assert_close(actual, (sides[0] - sides[1]) / (2 * h), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    ("g", "expected"), [(0.5, -3.98404787e-4), (-1e-4, -82.6446281), (0, -100)]
)
@pytest.mark.parametrize("create_graph", [False, True])
def test_first_step_has_the_derivative_of_its_closed_form(path, g, expected, create_graph):
    # -lr g / (|g| + eps) has the derivative -lr eps / (|g| + eps)^2.
    g = torch.tensor([g], dtype=torch.float64, requires_grad=True)
    zero = torch.zeros_like(g)
    (u,), _, _ = adam_step([g], [zero], [zero], 1, lr=0.1, betas=(0.9, 0.999), eps=1e-3)

    (actual,) = torch.autograd.grad(u.sum(), g, create_graph=create_graph)

    torch.testing.assert_close(actual.item(), float(expected), rtol=1e-8, atol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_derivatives_where_all_is_zero_are_finite(path, make_problem, case, dtype):
    problem = make_problem(case, [(4,)], steps=1)
    inputs = [x.detach().to(dtype) for x in problem.inputs]
    inputs[problem.width :] = [torch.zeros_like(x) for x in inputs[problem.width :]]
    inputs = [x.requires_grad_() for x in inputs]
    outputs = problem.step(*inputs)
    weights = [w.to(dtype) for w in problem.weights()]

    native = torch.autograd.grad(
        outputs, inputs, weights, retain_graph=True, materialize_grads=True
    )
    first = torch.autograd.grad(outputs, inputs, weights, create_graph=True, materialize_grads=True)
    second = torch.autograd.grad(sum(x.sum() for x in first), inputs, allow_unused=True)

    assert all(x.isfinite().all() for x in (*native, *first))
    assert all(x.isfinite().all() for x in second if x is not None)
    for a, b in zip(native, first, strict=True):
        torch.testing.assert_close(a, b.detach())


@pytest.mark.parametrize("create_graph", [False, True])
def test_a_coordinate_without_gradient_gets_the_derivative_of_the_first_step(
    path, case, create_graph
):
    g = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    states = [[torch.zeros_like(g)] for _ in case.states]
    (u,), *_ = case.step([g], states, 1, case.numbers)
    (actual,) = torch.autograd.grad(u.sum(), g, create_graph=create_graph)
    lr, eps = case.numbers["lr"], case.numbers.get("eps", 1.0)
    nesterov = 1 + case.numbers["momentum"] if "nesterov" in case.options else 1
    expected = 0.0 if case.name == "lion" else -lr / eps * nesterov
    if case.name == "nadam":
        mu, next_mu = (0.9 * (1 - 0.5 * 0.96 ** (0.1 * t)) for t in (1, 2))
        expected *= 1 + next_mu / (1 - mu * next_mu) * 0.1
    torch.testing.assert_close(actual.item(), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("create_graph", [False, True])
def test_equal_second_moments_share_the_derivative_of_their_maximum(path, create_graph):
    g = torch.tensor([0.0, 1.0], dtype=torch.float64)
    v = torch.full_like(g, 0.25, requires_grad=True)
    top = torch.tensor([0.25, 0.625], dtype=torch.float64, requires_grad=True)  # as the new v
    step = dk.amsgrad_step(
        [g], [g], [v], [top], 1, lr=0.1, betas=(0.5, torch.tensor([1.0, 0.5])[1]), eps=1e-3
    )
    v_new, w = step[2][0], step[3][0]
    assert torch.equal(v_new[1:], w[1:])
    d_v, d_top = torch.autograd.grad(w[1], (v, top), create_graph=create_graph)
    assert d_top[1] == 0.5
    assert d_v[1] == 0.5 * 0.5


def test_coordinate_without_gradient_keeps_the_outer_gradient_finite(path):
    # Inner loss (w x)^2 at x = (1, 0), one step, outer loss (w1' + w2')^2.
    lr, eps = 0.1, 1e-3
    w = torch.tensor([0.7, -0.3], dtype=torch.float64, requires_grad=True)
    x = torch.tensor([1.0, 0.0], dtype=torch.float64)
    (g,) = torch.autograd.grad((w @ x) ** 2, w, create_graph=True)
    zero = torch.zeros_like(w)
    (u,), _, _ = adam_step([g], [zero], [zero], 1, lr=lr, betas=(0.9, 0.999), eps=eps)
    total = (w + u).sum()

    (actual,) = torch.autograd.grad(total**2, w)

    slope = 1 - 2 * lr * eps / (g[0].abs() + eps) ** 2
    expected = 2 * total * torch.stack([slope, torch.ones_like(slope)])
    torch.testing.assert_close(actual, expected.detach(), rtol=1e-12, atol=0)
