import pytest
import torch
from diffopt_explicit import FuncOptimizer, adam, sgd, unroll

START = {"w": torch.tensor([0.5, -1.0], dtype=torch.float64), "b": (torch.ones(1),)}


def loss(params):
    return (params["w"].sin() * 3).square().sum() + params["b"][0].double().square().sum()


def test_steps_are_those_of_an_unroll():
    lr = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
    expected = unroll(loss, adam(lr), START, steps=3).params
    optimizer = FuncOptimizer(adam(lr))
    params = {"w": START["w"].requires_grad_(), "b": START["b"]}
    for _ in range(3):
        params = optimizer.step(loss(params), params)
    ours, theirs = (torch.autograd.grad(p["w"].sum(), lr)[0] for p in (params, expected))

    torch.testing.assert_close(params["w"], expected["w"], rtol=1e-12, atol=0)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0)
    assert params["b"][0] is START["b"][0]  # which does not require grad, and so has no gradient


def test_the_state_is_there_to_be_looked_at_and_forgotten():
    w = torch.ones(2, requires_grad=True)
    optimizer = FuncOptimizer(adam(0.1))
    assert optimizer.state is None
    optimizer.step(w.sum(), w)
    assert optimizer.state[0].step == 1
    optimizer.reset()
    assert optimizer.state is None


def test_the_options_of_a_step_are_those_of_the_inner_loop():
    w, rate = torch.tensor(2.0, requires_grad=True), torch.tensor(0.5, requires_grad=True)
    moved = FuncOptimizer(sgd(0.1)).step(
        *(w.square(), w),
        first_order=True,
        override={"lr": rate},
        grad_callback=lambda grad: 3 * grad,
    )

    assert torch.autograd.grad(moved, (w, rate)) == (1.0, -12.0)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda w: w, r"must be a 0-d tensor, got shape \(2,\)"),
        (lambda w: 0.5, r"must be a 0-d tensor, got 0\.5"),
        (lambda w: w.detach().sum(), "depends on none of the parameters"),
        (lambda w: torch.ones((), requires_grad=True).sum(), "depends on none of the parameters"),
    ],
)
def test_a_loss_without_a_gradient_is_refused_and_changes_nothing(loss, message):
    w = torch.ones(2, requires_grad=True)
    optimizer = FuncOptimizer(sgd(0.1))
    with pytest.raises(ValueError, match=message):
        optimizer.step(loss(w), w)

    assert optimizer.state is None


def test_what_is_no_transform_is_refused():
    with pytest.raises(TypeError, match="`tx` must be a transform"):
        FuncOptimizer(0.1)
