"""What a step's node keeps, and how it stands what happens to that."""

from math import inf

import pytest
import torch
from diffopt_kernels import adam_step
from nodes import is_fused


def test_one_input_computed_from_another_is_not_counted_twice(on_path):
    g = torch.tensor([0.3, -0.2], dtype=torch.float64, requires_grad=True)

    def derivatives():
        m, v = 0.5 * g, g * g + 0.1
        (u,), _, _ = adam_step([g], [m], [v], 2, lr=g.sum(), betas=(0.9, 0.99), eps=1e-3)
        (first,) = torch.autograd.grad(u.sum(), g, create_graph=True)
        (second,) = torch.autograd.grad(first.sum(), g, retain_graph=True)
        (native,) = torch.autograd.grad(u.sum(), g)
        return first.detach(), second, native

    fused, composed = on_path("fused", derivatives), on_path("composed", derivatives)
    for a, b in zip(fused, composed, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(fused[0], fused[2], rtol=1e-12, atol=1e-12)


def test_unrolled_steps_agree_to_the_second_derivative(on_path):
    lr = torch.tensor(0.05, dtype=torch.float64, requires_grad=True)
    a = torch.tensor([[2.0, 0.3], [0.3, 1.0]], dtype=torch.float64)

    def derivatives():
        w = torch.tensor([1.0, -0.5], dtype=torch.float64, requires_grad=True)
        start, m, v = w, torch.zeros_like(w), torch.zeros_like(w)
        for step in range(1, 6):
            (g,) = torch.autograd.grad(0.5 * w @ a @ w, w, create_graph=True)
            (u,), (m,), (v,) = adam_step([g], [m], [v], step, lr=lr, betas=(0.9, 0.99), eps=1e-3)
            w = w + u
        loss = w.pow(4).sum()
        native = torch.autograd.grad(loss, (start, lr), retain_graph=True)
        first = torch.autograd.grad(loss, (start, lr), create_graph=True)
        second = torch.autograd.grad(first[0].sum() + first[1], (start, lr))
        return [x.detach() for x in (*native, *first, *second)]

    for x, y in zip(on_path("fused", derivatives), on_path("composed", derivatives), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-10, atol=1e-12)


LAYOUTS = {
    "expanded": lambda x: x.sum().expand(x.shape),
    "transposed": lambda x: x.t().contiguous().t(),
    "every second": lambda x: x.repeat_interleave(2, -1)[:, ::2],
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("cotangents", LAYOUTS)
def test_derivatives_survive_any_layout(on_path, make_problem, case, layout, cotangents):
    problem = make_problem(case, [(4, 3)])
    width = problem.width

    def derivatives():
        inputs = [*problem.inputs[:width], *(LAYOUTS[layout](x) for x in problem.inputs[width:])]
        outputs = problem.step(*inputs)
        weights = [LAYOUTS[cotangents](w) for w in problem.weights()]
        return torch.autograd.grad(outputs, problem.inputs, weights)

    for x, y in zip(on_path("fused", derivatives), on_path("composed", derivatives), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-12, atol=1e-12)


def test_only_inputs_are_saved_for_the_backward_pass(make_problem, case):
    problem = make_problem(case, [(100,), (20, 3)])
    saved = []

    def pack(x):
        saved.append(x)
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        outputs = problem.step(*problem.inputs)

    assert is_fused(outputs[0])
    saved = [x for x in saved if x.dim()]  # numbers aside, of which some are computed
    tensors = problem.inputs[problem.width :]
    assert {x.data_ptr() for x in saved} <= {x.data_ptr() for x in tensors}
    in_bytes = sum(x.numel() * x.element_size() for x in tensors)
    assert sum(x.numel() * x.element_size() for x in saved) == in_bytes


def test_nothing_of_autograd_is_made_where_nothing_requires_grad(make_problem, case):
    problem = make_problem(case, [(3,)])
    inputs = [x.detach() for x in problem.inputs]
    assert all(o.grad_fn is None and not o.requires_grad for o in problem.step(*inputs))
    with torch.no_grad():
        assert all(o.grad_fn is None for o in problem.step(*problem.inputs))


def test_writing_to_a_saved_state_is_an_error_and_not_a_wrong_gradient(path, make_problem, adam):
    problem = make_problem(adam, [(3,)])
    m = torch.zeros(3, dtype=torch.float64)
    outputs = problem.step(*problem.inputs[:7], m, *problem.inputs[8:])
    m.add_(1)
    if path == "fused":  # the composed operations happen to save it too
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            torch.autograd.grad(outputs[0].sum(), problem.inputs[6])


def test_hooks_that_change_saved_tensors_cannot_lead_out_of_bounds(make_problem, adam):
    problem = make_problem(adam, [(1000,)])

    def gradient(unpack):
        with torch.autograd.graph.saved_tensors_hooks(lambda x: x, unpack):
            outputs = problem.step(*problem.inputs)
        return torch.autograd.grad(outputs, problem.inputs, problem.weights())

    narrower = gradient(lambda x: x.detach().float().requires_grad_())
    for a, b in zip(narrower, gradient(lambda x: x), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)
    with pytest.raises(RuntimeError, match="gave back a tensor of another size"):
        gradient(lambda x: x[:10] if x.dim() else x)


def test_tensors_whose_outputs_are_not_used_add_nothing_to_a_learned_number(path):
    lr = torch.tensor(0.1, requires_grad=True)
    g, m, v = ([torch.full((2,), x), torch.full((2,), inf)] for x in (1.0, 0.0, 1.0))
    (u, _), _, _ = adam_step(g, m, v, 2, lr=lr, betas=(0.9, 0.99), eps=1e-3)
    assert is_fused(u) == (path == "fused")
    (derivative,) = torch.autograd.grad(u.sum(), lr)
    torch.testing.assert_close(derivative, u.sum().detach() / lr.detach())
