"""Hyperparameters with one number for each tensor."""

import pytest
import torch
from diffopt_kernels import adam_step, adam_step_, nadam_step, sgd_step

SHAPES = [(3,), (0,), (2, 2), ()]


def spread(problem, of=torch.Tensor):
    """Return a problem's numbers, a different one for each tensor."""
    factors = torch.linspace(0.7, 0.9, problem.count, dtype=torch.float64)
    return [x.detach() * factors for x in problem.inputs[: problem.width]]


def one_by_one(problem, numbers, tensors):
    """Return the outputs of a step for each tensor alone, by columns."""
    n, rows = problem.count, []
    for i in range(n):
        grads, *states, params = ([tensors[k + i]] for k in range(0, len(tensors), n))
        named = dict(zip(problem.numbers, [x[i] for x in numbers], strict=True))
        rows.append(problem.case.step(grads, states, problem.steps, named, params=params))
    return [row[k][0] for k in range(len(rows[0])) for row in rows]


@pytest.mark.parametrize("kind", ["list of floats", "list of tensors", "tensor"])
def test_one_number_for_each_tensor_equals_one_call_for_each_tensor(path, make_problem, case, kind):
    problem = make_problem(case, SHAPES)
    numbers = spread(problem)
    given = {
        "list of floats": [x.tolist() for x in numbers],
        "list of tensors": [[1.0 * x for x in number] for number in numbers],
        "tensor": numbers,
    }[kind]
    tensors = problem.inputs[problem.width :]
    expected = one_by_one(problem, numbers, tensors)
    for a, b in zip(problem.step(*given, *tensors), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-14)


def test_derivatives_in_one_number_for_each_tensor_are_those_of_each_tensor_alone(
    path, make_problem, case
):
    problem = make_problem(case, SHAPES)
    tensors, weights = problem.inputs[problem.width :], problem.weights()
    numbers = [x.requires_grad_() for x in spread(problem)]
    outputs = problem.step(*numbers, *tensors)

    actual = torch.autograd.grad(outputs, [*numbers, *tensors], weights)

    outputs = one_by_one(problem, numbers, tensors)
    expected = torch.autograd.grad(outputs, [*numbers, *tensors], weights)
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)


def test_gradcheck_and_gradgradcheck_hold_for_one_number_for_each_tensor(make_problem, case):
    problem = make_problem(case, [(2,), ()])
    numbers = [x.requires_grad_() for x in spread(problem)]
    inputs = [*numbers, *problem.inputs[problem.width :]]
    assert torch.autograd.gradcheck(problem.step, inputs)
    assert torch.autograd.gradgradcheck(problem.step, inputs)


def test_a_tensor_without_cotangent_adds_nothing_to_its_number(on_path):
    g = [torch.ones(3, dtype=torch.float64), torch.ones(5, dtype=torch.float64)]
    lr = torch.tensor([0.1, 0.2], dtype=torch.float64, requires_grad=True)

    def derivative():
        updates, _ = sgd_step(g, None, 1, lr=lr)
        return torch.autograd.grad(updates[1].sum(), lr)[0]

    expected = torch.tensor([0, -5], dtype=torch.float64)
    assert torch.equal(on_path("fused", derivative), expected)
    assert torch.equal(on_path("composed", derivative), expected)


def test_numbers_and_tensors_may_be_mixed(path):
    g = [torch.ones(2), torch.ones(2)]
    lr = torch.tensor(0.1, requires_grad=True)
    (u, w), _ = sgd_step(g, None, 1, lr=[lr, 0.5])
    torch.testing.assert_close(w, torch.full((2,), -0.5))
    assert torch.autograd.grad(u.sum() + w.sum(), lr)[0] == -2


def test_momentum_of_zero_for_every_tensor_is_none_at_all(path):
    g = [torch.ones(2), torch.ones(2)]
    assert sgd_step(g, None, 1, lr=0.1, momentum=[0.0, 0.0])[1] == []


def test_in_place_step_takes_one_number_for_each_tensor(path):
    g = [torch.ones(2), torch.ones(2)]
    p, m, v = ([torch.zeros(2), torch.zeros(2)] for _ in range(3))
    adam_step_(p, g, m, v, 1, lr=[0.1, 0.2], betas=(0.9, [0.9, 0.99]), eps=0.0)
    torch.testing.assert_close(p, [torch.full((2,), -0.1), torch.full((2,), -0.2)])


def test_functional_gradient_by_a_learning_rate_for_each_tensor_equals_autograd(path):
    g = [torch.tensor([0.3, -0.2]), torch.tensor([0.5])]
    zero = [torch.zeros_like(x) for x in g]

    def loss(lr):
        updates, _, _ = adam_step(g, zero, zero, 1, lr=lr, betas=(0.9, 0.99), eps=0.1)
        return sum(u.pow(2).sum() for u in updates)

    lr = torch.tensor([0.1, 0.2], requires_grad=True)
    (expected,) = torch.autograd.grad(loss(lr), lr)
    torch.testing.assert_close(torch.func.grad(loss)(lr.detach()), expected)


def test_product_of_momenta_carries_derivatives_over_steps(on_path):
    beta = torch.tensor(0.9, dtype=torch.float64, requires_grad=True)
    decay = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)

    def total(beta, decay):
        product, w = 1.0, torch.tensor([1.0, -0.5], dtype=torch.float64)
        m, v = torch.zeros_like(w), torch.zeros_like(w)
        for step in range(1, 5):
            (u,), (m,), (v,), product = nadam_step(
                [w.sin()], [m], [v], product, step,
                lr=0.1, betas=(beta, 0.99), eps=1e-3, momentum_decay=decay,
            )  # fmt: skip
            w = w + u
        return w.pow(3).sum()

    for path in ("fused", "composed"):
        assert on_path(path, torch.autograd.gradcheck, total, (beta, decay))
        assert on_path(path, torch.autograd.gradgradcheck, total, (beta, decay))


def test_product_of_momenta_is_a_number_unless_tensors_differ_in_it(path):
    g = [torch.ones(2), torch.ones(3)]
    zero = [torch.zeros_like(x) for x in g]
    numbers = {"lr": 0.1, "betas": (0.5, 0.9), "eps": 0.1, "momentum_decay": 0.0}
    assert nadam_step(g, zero, zero, 0.5, 2, **numbers)[3] == 0.125
    assert nadam_step(g, zero, zero, [1.0, 0.5], [1, 2], **numbers)[3] == [0.25, 0.125]
    (product,) = torch.unique(
        nadam_step(g, zero, zero, torch.tensor(0.5), 2, **numbers)[3], sorted=True
    )
    assert product == 0.125
