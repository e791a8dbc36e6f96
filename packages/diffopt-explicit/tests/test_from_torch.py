import pytest
import torch
from diffopt_explicit import from_torch
from torch import nn


def lift(kind, module=None, **flags):
    module = module or nn.Linear(2, 1)
    return from_torch(kind(module.parameters(), **flags), dict(module.named_parameters()))


def test_an_unsupported_flag_is_refused_by_name():
    message = r"`decoupled_weight_decay=True` of torch\.optim\.Adam is not supported"
    with pytest.raises(ValueError, match=message):
        lift(torch.optim.Adam, decoupled_weight_decay=True)


def test_flags_of_implementation_are_ignored():
    assert lift(torch.optim.SGD, foreach=True) == lift(torch.optim.SGD)


def test_another_optimizer_is_refused_by_name():
    with pytest.raises(TypeError, match=r"counterpart of torch.optim.asgd.ASGD"):
        lift(torch.optim.ASGD)


def test_an_optimizer_with_state_is_refused():
    module = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    module(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    with pytest.raises(ValueError, match="its state"):
        from_torch(optimizer, dict(module.named_parameters()))


def test_a_parameter_of_another_module_is_refused():
    with pytest.raises(ValueError, match=r"group 0, of shape \(1, 2\)"):
        from_torch(
            torch.optim.SGD(nn.Linear(2, 1).parameters()), {"w": nn.Parameter(torch.ones(1))}
        )


def test_parameters_in_no_group_are_left_alone():
    module = nn.Linear(2, 1)
    params = dict(module.named_parameters())
    tx = from_torch(torch.optim.SGD([module.weight], lr=0.1), params)
    updates, _ = tx.update(dict(params), tx.init(params), params)

    assert updates["bias"] is None
    assert updates["weight"] is not None
