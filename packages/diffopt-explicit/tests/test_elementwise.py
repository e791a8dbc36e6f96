"""Derivatives of optimizers with a rule for each element; their values are in test_inner_loop."""

import pytest
import torch
from diffopt_explicit import (
    adadelta,
    adagrad,
    adamax,
    amsgrad,
    lion,
    nadam,
    radam,
    rmsprop,
    rprop,
    unroll,
)

pytestmark = pytest.mark.usefixtures("path")

# For each recipe all its hyperparameters, at values where none is without effect.
RECIPES = {
    "rmsprop": (
        lambda lr, alpha, eps, wd, mu: rmsprop(lr, alpha, eps, wd, mu),
        (0.05, 0.8, 0.1, 0.1, 0.7),
    ),
    "centered": (
        lambda lr, alpha, eps, wd: rmsprop(lr, alpha, eps, wd, centered=True),
        (0.05, 0.8, 0.3, 0.1),
    ),
    "adagrad": (lambda lr, decay, wd, eps: adagrad(lr, decay, wd, 0.1, eps), (0.1, 0.2, 0.1, 0.1)),
    "adadelta": (adadelta, (0.8, 0.7, 0.1, 0.1)),
    "amsgrad": (
        lambda lr, b1, b2, eps, wd: amsgrad(lr, (b1, b2), eps, wd),
        (0.05, 0.7, 0.5, 0.1, 0.1),
    ),
    "adamax": (
        lambda lr, b1, b2, eps, wd: adamax(lr, (b1, b2), eps, wd),
        (0.05, 0.7, 0.97, 0.1, 0.1),
    ),
    "nadam": (
        lambda lr, b1, b2, eps, wd, decay: nadam(lr, (b1, b2), eps, wd, decay),
        (0.05, 0.7, 0.8, 0.1, 0.1, 0.3),
    ),
    "radam": (
        lambda lr, b1, b2, eps, wd: radam(lr, (b1, b2), eps, wd, decoupled_weight_decay=True),
        (0.05, 0.7, 0.9, 0.1, 0.1),
    ),
}
STEPS = 8  # enough for the variance of radam to be judged


def end(make, start, *numbers):
    target = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)
    loss = lambda w: ((w - target) ** 4).sum()
    return unroll(loss, make(*numbers), start, steps=STEPS).params


@pytest.mark.parametrize("name", RECIPES)
def test_hypergradients_equal_central_differences(name):
    make, values = RECIPES[name]
    start = torch.tensor([-0.7, 0.3, 1.1], dtype=torch.float64)
    direction = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    numbers = [torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in values]
    exact = torch.autograd.grad(direction @ end(make, start, *numbers), numbers)
    h = 1e-5
    for index, gradient in enumerate(exact):
        with torch.no_grad():
            high, low = (
                direction
                @ end(make, start, *values[:index], values[index] + s, *values[index + 1 :])
                for s in (h, -h)
            )
        central = ((high - low) / (2 * h)).item()

        assert gradient.item() == pytest.approx(central, rel=1e-6)
        assert abs(central) > 1e-6


@pytest.mark.parametrize("name", RECIPES)
def test_gradcheck_and_gradgradcheck_in_the_start_and_the_learning_rate(name):
    make, values = RECIPES[name]
    start = torch.tensor([-0.7, 0.3, 1.1], dtype=torch.float64, requires_grad=True)
    lr = torch.tensor(values[0], dtype=torch.float64, requires_grad=True)
    f = lambda start, lr: end(make, start, lr, *values[1:])

    assert torch.autograd.gradcheck(f, (start, lr))
    assert torch.autograd.gradgradcheck(f, (start, lr))


ZERO = {
    "rmsprop": (rmsprop(0.1, alpha=0.99, eps=0.01), -0.1 / 0.01),
    "centered": (rmsprop(0.1, alpha=0.99, eps=0.01, centered=True), -0.1 / 0.01),
    "adagrad": (adagrad(0.1, eps=0.01), -0.1 / 0.01),
    "adadelta": (adadelta(0.1, eps=0.01), -0.1),
    "amsgrad": (amsgrad(0.1, eps=0.01), -0.1 / 0.01),
    "adamax": (adamax(0.1, eps=0.01), -0.1 / 0.01),
    "radam": (radam(0.1, eps=0.01), -0.1),
    "lion": (lion(0.1), 0.0),
    "rprop": (rprop(0.1), 0.0),
}


@pytest.mark.parametrize("name", ZERO)
def test_the_derivative_of_a_first_step_at_a_zero_gradient_is_exact(name):
    tx, derivative = ZERO[name]
    g = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    update, _ = tx.update(g, tx.init(torch.zeros_like(g)))
    (first,) = torch.autograd.grad(update.sum(), g, create_graph=True, materialize_grads=True)

    assert update.tolist() == [0.0, 0.0]
    assert first.tolist() == pytest.approx([derivative] * 2)
    if first.requires_grad:
        assert torch.autograd.grad(first.sum(), g, materialize_grads=True)[0].isfinite().all()


@pytest.mark.parametrize("name", [*ZERO, "nadam"])
def test_many_steps_at_a_zero_gradient_keep_the_meta_gradient_finite(name):
    tx = nadam(0.1) if name == "nadam" else ZERO[name][0]
    start = torch.tensor([0.0, 1.0], requires_grad=True)
    end = unroll(lambda w: (w * torch.tensor([0.0, 1.0])).square().sum(), tx, start, steps=4).params

    assert torch.autograd.grad(end.square().sum(), start)[0].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", [*ZERO, "nadam"])
def test_half_precision_with_zero_gradients_is_not_nan_and_has_its_state_in_single(name, dtype):
    tx = nadam() if name == "nadam" else ZERO[name][0]
    zeros = torch.zeros(3, dtype=dtype)
    update, state = tx.update(zeros, tx.init(zeros))

    assert update.dtype == dtype
    assert update.tolist() == [0.0] * 3
    assert state[0].slots[0].dtype == torch.float32


def test_root_mean_square_has_the_closed_form_derivative():
    g = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    tx = rmsprop(lr=0.1, alpha=0.99, eps=0.01)
    update, _ = tx.update(g, tx.init(torch.zeros_like(g)))

    assert torch.autograd.grad(update, g)[0].item() == pytest.approx(-0.625, rel=1e-12)


def test_lion_follows_its_paper():
    beta1, beta2, lr, decay = 0.9, 0.99, 0.1, 0.5
    p = torch.tensor([1.0, -2.0], dtype=torch.float64)
    tx, m = lion(lr, (beta1, beta2), decay), torch.zeros(2, dtype=torch.float64)
    state = tx.init(p)
    for g in torch.tensor([[1.0, 0.1], [-0.05, -2.0], [-3.0, 0.0]], dtype=torch.float64):
        expected = -lr * (torch.sign(beta1 * m + (1 - beta1) * g) + decay * p)
        m = beta2 * m + (1 - beta2) * g
        update, state = tx.update(g, state, p)

        torch.testing.assert_close(update, expected)
        p = p + update


def test_the_rates_of_rprop_are_learned_exactly():
    start = torch.tensor([1.0, -0.3], dtype=torch.float64)
    numbers = [torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (0.2, 0.4, 1.3)]

    def end(lr, shrink, grow):
        return unroll(lambda w: (w**2).sum(), rprop(lr, (shrink, grow)), start, steps=6).params

    assert torch.autograd.gradcheck(end, numbers)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: rmsprop(alpha=-0.1), "`alpha` must be at least 0"),
        (lambda: adagrad(lr_decay=-1.0), "`lr_decay` must be at least 0"),
        (lambda: adadelta(rho=-1.0), "`rho` must be at least 0"),
        (lambda: nadam(betas=(0.9, 1.0)), r"`betas\[1\]` must be in \[0, 1\)"),
        (lambda: rprop(etas=(1.5, 1.2)), r"`etas\[0\]` must be in"),
        (lambda: lion(betas=(1.0, 0.9)), r"`betas\[0\]` must be in"),
    ],
)
def test_hyperparameters_out_of_range_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
