"""Values of optimizers by torch.optim, or by their papers where torch has none."""

import pytest
import torch
from diffopt_explicit import adafactor, apply_updates, asgd, lamb, lars, lion, muon, radam
from every_optimizer import F64

GRID = [
    (asgd, torch.optim.ASGD, {}),
    (asgd, torch.optim.ASGD, {"lr": 0.1, "lambd": 0.3, "alpha": 0.5, "t0": 2}),
    (asgd, torch.optim.ASGD, {"lr": 0.1, "weight_decay": 0.2, "maximize": True, "t0": 0}),
    (adafactor, torch.optim.Adafactor, {}),
    (adafactor, torch.optim.Adafactor, {"lr": 0.9, "d": 2.0, "weight_decay": 0.1}),
    (adafactor, torch.optim.Adafactor, {"eps": (0.1, 0.9), "beta2_decay": -0.3, "maximize": True}),
    (muon, torch.optim.Muon, {"lr": 0.1}),
    (muon, torch.optim.Muon, {"lr": 0.1, "momentum": 0.5, "nesterov": False, "weight_decay": 0.0}),
    (muon, torch.optim.Muon, {"lr": 0.1, "adjust_lr_fn": "match_rms_adamw", "ns_steps": 3}),
    (muon, torch.optim.Muon, {"lr": 0.1, "ns_coefficients": (2.0, -1.5, 0.5), "eps": 1e3}),
]
SHAPES = {muon: [(5, 3), (3, 5), (2, 2)]}


@pytest.fixture(autouse=True)
def double_precision():
    """Also for the numbers that torch.optim keeps in the default dtype (rates in ASGD)."""
    torch.set_default_dtype(F64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(("recipe", "kind", "flags"), GRID)
def test_steps_equal_those_of_torch_optim(recipe, kind, flags, monkeypatch):
    # To which torch's Muon rounds. Ours does not.
    monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.clone)
    generator = torch.Generator().manual_seed(0)
    shapes = SHAPES.get(recipe, [(5, 3), (4,), (), (2, 3, 4)])
    ours = [torch.randn(shape, generator=generator, dtype=F64) for shape in shapes]
    theirs = [p.clone().requires_grad_() for p in ours]
    reference = kind(theirs, **flags)
    tx = recipe(**flags)
    state = tx.init(ours)
    for step in range(6):
        grads = [torch.randn(shape, generator=generator, dtype=F64) for shape in shapes]
        grads[1] = None if step % 2 else grads[1]
        for p, grad in zip(theirs, grads, strict=True):
            p.grad = None if grad is None else grad.clone()
        reference.step()
        updates, state = tx.update(grads, state, ours)
        ours = apply_updates(ours, updates)

        torch.testing.assert_close(ours, [p.detach() for p in theirs], rtol=0, atol=1e-12)


def test_asgd_averages_the_weights_as_torch_optim_does():
    p = torch.tensor([1.0, -2.0], dtype=F64)
    theirs = p.clone().requires_grad_()
    reference, tx = torch.optim.ASGD([theirs], 0.1, t0=1), asgd(0.1, t0=1)
    state = tx.init(p)
    for _ in range(5):
        theirs.grad = theirs.detach().clone()
        reference.step()
        updates, state = tx.update(p, state, p)
        p = apply_updates(p, updates)

    expected = reference.state[theirs]["ax"]
    torch.testing.assert_close(state[0].slots[0], expected, rtol=0, atol=1e-15)


def test_muon_refuses_what_is_no_matrix_by_its_place():
    with pytest.raises(ValueError, match=r"at \['bias'\]: Muon is for matrices.*`partition`"):
        muon().init({"weight": torch.ones(2, 2), "bias": torch.ones(2)})


def lion_by_its_paper(g, p, m):
    beta1, beta2, lr, decay = 0.9, 0.99, 0.1, 0.5
    update = -lr * (torch.sign(beta1 * m + (1 - beta1) * g) + decay * p)
    return update, beta2 * m + (1 - beta2) * g


def lars_by_its_paper(g, p, v):
    momentum, lr, decay, trust = 0.9, 0.1, 0.5, 0.2
    local = trust * p.norm() / (g.norm() + decay * p.norm())
    v = momentum * v + lr * local * (g + decay * p)
    return -v, v


@pytest.mark.parametrize(
    ("tx", "paper"),
    [
        (lion(0.1, (0.9, 0.99), 0.5), lion_by_its_paper),
        (lars(0.1, 0.9, 0.5, 0.2), lars_by_its_paper),
    ],
)
def test_steps_follow_the_paper(tx, paper):
    p = torch.tensor([1.0, -2.0], dtype=F64)
    state, memory = tx.init(p), torch.zeros(2, dtype=F64)
    for g in torch.tensor([[1.0, 0.1], [-0.05, -2.0], [-3.0, 0.0]], dtype=F64):
        expected, memory = paper(g, p, memory)
        update, state = tx.update(g, state, p)

        torch.testing.assert_close(update, expected)
        p = p + update


def test_lamb_follows_its_paper():
    p = torch.tensor([1.0, -2.0], dtype=F64)
    beta1, beta2, eps, decay, lr = 0.8, 0.9, 0.01, 0.5, 0.1
    tx = lamb(lr, (beta1, beta2), eps, decay)
    state, m, v = tx.init(p), torch.zeros(2, dtype=F64), torch.zeros(2, dtype=F64)
    for t, g in enumerate(torch.tensor([[1.0, 0.1], [-0.05, -2.0], [-3.0, 0.0]], dtype=F64), 1):
        m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g**2
        r = (m / (1 - beta1**t)) / ((v / (1 - beta2**t)).sqrt() + eps) + decay * p
        update, state = tx.update(g, state, p)

        torch.testing.assert_close(update, -lr * p.norm() / r.norm() * r)
        p = p + update


@pytest.mark.parametrize("weights", [[0.0, 0.0], [3.0, 4.0]])
@pytest.mark.parametrize("tx", [lamb(0.1), lars(0.1, momentum=0.0)], ids=["lamb", "lars"])
def test_a_trust_ratio_is_one_where_weights_or_gradients_are_zero(tx, weights):
    p = torch.tensor(weights)
    g = torch.tensor([0.5, 0.0]) if weights == [0.0, 0.0] else torch.zeros(2)
    update, _ = tx.update(g, tx.init(p), p)
    expected = -0.1 * (g if len(tx.transforms) == 2 else g.sign())

    torch.testing.assert_close(update, expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("beta2", [0.5, 0.6])  # where the rectification is 0 / 0, and not used
def test_a_learned_beta_of_radam_passes_where_nothing_is_rectified(beta2):
    learned = torch.tensor(beta2, dtype=F64, requires_grad=True)
    g = torch.tensor([1.0, -2.0], dtype=F64, requires_grad=True)
    tx, fixed = radam(0.1, (0.9, learned)), radam(0.1, (0.9, beta2))
    update, _ = tx.update(g, tx.init(g), g)
    expected, _ = fixed.update(g, fixed.init(g), g)
    to_g, to_beta = torch.autograd.grad(update.sum(), (g, learned))

    torch.testing.assert_close(update, expected)
    torch.testing.assert_close(to_g, torch.full_like(g, -0.1))
    assert to_beta.item() == 0.0
