"""What optimizers in place refuse, and leave unchanged."""

import diffopt_explicit as ours
import pytest
import torch
from optimizer_problems import network, train
from torch import nn


@pytest.fixture(autouse=True)
def double_precision():
    """Also for the numbers that torch.optim keeps in the default dtype (a product in NAdam)."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def w() -> torch.Tensor:
    return torch.ones(2, requires_grad=True)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: ours.Optimizer([w()], 0.1), TypeError, "`tx` must be a transform"),
        (lambda: ours.Adam([w()], lr=-1.0), ValueError, r"`lr` must be at least 0, got -1\.0"),
        (lambda: ours.Adam([w()], lr=float("nan")), ValueError, "`lr` must be at least 0, got nan"),
        (lambda: ours.SGD([{"params": w(), "lr": -1.0}]), ValueError, "`lr` must be at least 0"),
        (lambda: ours.SGD([w()], momentun=0.9), TypeError, "momentun"),
        (
            lambda: ours.SGD([torch.ones(2, dtype=torch.int64)]),
            TypeError,
            r"Parameter 0 of group 0 has dtype torch\.int64",
        ),
        (
            lambda: ours.SGD([w()], lr=torch.tensor(0.1, requires_grad=True)),
            ValueError,
            "`lr` of group 0 requires grad",
        ),
    ],
)
def test_what_no_step_could_be_taken_with_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_a_refused_group_is_not_added():
    optimizer = ours.SGD([w()])
    with pytest.raises(ValueError, match="`lr` must be"):
        optimizer.add_param_group({"params": w(), "lr": -1.0})

    assert len(optimizer.param_groups) == 1


def test_a_sparse_gradient_is_refused_before_anything_moves():
    layer, other = nn.Embedding(3, 2, sparse=True), w()
    (layer(torch.tensor([1])).sum() + other.sum()).backward()
    optimizer = ours.SGD([{"params": other}, {"params": layer.parameters()}], lr=0.1)
    with pytest.raises(ValueError, match="gradient of parameter 0 of group 1 is sparse"):
        optimizer.step()

    assert other.tolist() == [1, 1]


@pytest.mark.parametrize(
    ("saved", "loading", "message"),
    [
        (ours.SGD, ours.Adam, r"has \['momentum_buffer', 'step'\], but the optimizer remembers"),
        (torch.optim.AdamW, ours.Adam, "`decoupled_weight_decay=True`, which Adam does not do"),
    ],
)
def test_the_state_of_another_kind_is_refused_and_changes_nothing(saved, loading, message):
    module = network()
    other = saved(module.parameters(), **({"momentum": 0.9} if saved is ours.SGD else {}))
    train(module, other, 1)
    optimizer = loading(module.parameters(), lr=0.5)
    with pytest.raises(ValueError, match=message):
        optimizer.load_state_dict(other.state_dict())

    assert optimizer.param_groups[0]["lr"] == 0.5
    assert not optimizer.state


def test_the_state_of_other_parameters_is_refused():
    narrow, wide = w(), torch.ones(3, requires_grad=True)
    narrow.sum().backward()
    optimizer = ours.Adam([narrow])
    optimizer.step()
    message = r"`exp_avg` of .* must have shape \(3,\), got shape \(2,\)"
    with pytest.raises(ValueError, match=message):
        ours.Adam([wide]).load_state_dict(optimizer.state_dict())
