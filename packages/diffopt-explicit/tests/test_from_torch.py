import copy

import pytest
import torch
from diffopt_explicit import SGD, from_torch, inner_loop, linear, muon
from pytree_core import tree_all, tree_map
from torch import nn


def lift(kind, module=None, **flags):
    module = module or nn.Linear(2, 1)
    return from_torch(kind(module.parameters(), **flags), dict(module.named_parameters()))


def test_an_unsupported_flag_is_refused_by_name():
    module = nn.Linear(2, 1)
    optimizer = torch.optim.Adam(module.parameters())
    optimizer.param_groups[0]["lookahead"] = True
    message = r"`lookahead=True` of torch\.optim\.Adam is not supported"
    with pytest.raises(ValueError, match=message):
        from_torch(optimizer, dict(module.named_parameters()))


def test_flags_of_implementation_are_ignored():
    assert lift(torch.optim.SGD, foreach=True) == lift(torch.optim.SGD)


def test_muon_is_taken_with_its_settings_and_momentum():
    module = nn.Linear(2, 2, bias=False)
    optimizer = torch.optim.Muon(module.parameters(), lr=0.1, momentum=0.8)
    assert from_torch(optimizer, {"weight": module.weight}).transforms[0] == muon(0.1, momentum=0.8)
    run(module, optimizer, 2)
    state = from_torch(optimizer, {"weight": module.weight}).init({"weight": module.weight})

    buffer = optimizer.state[module.weight]["momentum_buffer"]
    assert torch.equal(state[0][0].slots[0]["weight"], buffer)


def test_another_optimizer_is_refused_by_name():
    with pytest.raises(TypeError, match=r"counterpart of torch.optim.lbfgs.LBFGS"):
        lift(torch.optim.LBFGS)


def run(module, optimizer, steps):
    for _ in range(steps):
        optimizer.zero_grad()
        module(torch.ones(1, 2, dtype=module.weight.dtype)).square().sum().backward()
        optimizer.step()


def test_an_optimizer_of_ours_is_gone_on_with():
    """Also where a schedule stands, although no parameter took part in every step."""
    module = nn.Linear(2, 1).double()
    optimizer = SGD(module.parameters(), lr=linear(0.1, 0.01, 6), momentum=0.5)
    x = torch.ones(1, 2, dtype=torch.float64)

    def run(module, optimizer, steps):
        for step in steps:
            optimizer.zero_grad()
            (module(x).square() + 1 if step % 2 else module.bias.square()).sum().backward()
            if step == 2:
                module.bias.grad = None
                module.weight.grad = module.weight.detach()
            optimizer.step()

    run(module, optimizer, [0, 0, 2])
    reference = copy.deepcopy((module, optimizer))
    run(*reference, [1, 1])
    with inner_loop(module, optimizer) as (fmodule, opt):
        for _ in range(2):
            opt.step((fmodule(x).square() + 1).sum())

    for ours, expected in zip(fmodule.parameters(), reference[0].parameters(), strict=True):
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-12)


def test_a_schedule_of_ours_goes_on_without_other_state():
    module = nn.Linear(2, 1)
    optimizer = SGD(module.parameters(), lr=linear(0.3, 0.0, 3))
    run(module, optimizer, 2)
    with inner_loop(module, optimizer) as (fmodule, opt):
        opt.step(fmodule.params["bias"].sum())

    torch.testing.assert_close(fmodule.params["bias"], module.bias - 0.1)


def test_a_schedule_begins_where_the_optimizer_stands():
    module = nn.Linear(2, 1)
    optimizer = torch.optim.Adam(module.parameters(), lr=0.1)
    run(module, optimizer, 3)
    seen = []
    with inner_loop(module, optimizer, override={"lr": lambda step: seen.append(step) or 0.1}) as (
        fmodule,
        opt,
    ):
        opt.step(fmodule(torch.ones(1, 2)).sum())

    assert set(seen) == {3}


def test_an_optimizer_that_is_gone_on_with_is_left_alone():
    module = nn.Linear(2, 1)
    params = dict(module.named_parameters())
    optimizer = torch.optim.Adam(module.parameters(), lr=0.1)
    run(module, optimizer, 2)
    tx = from_torch(optimizer, params)
    before = tree_map(lambda leaf: torch.as_tensor(leaf).clone(), tx.init(params))
    run(module, optimizer, 1)
    after = tree_map(torch.as_tensor, tx.init(params))

    assert optimizer.state[module.weight]["step"] == 3
    assert tree_all(tree_map(torch.equal, before, after))
    assert tx.init(params)[0][0].counts == {"weight": 2, "bias": 2}


def test_frozen_parameters_of_the_optimizer_are_left_alone():
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    module[0].requires_grad_(False)
    with inner_loop(module, optimizer) as (fmodule, opt):
        opt.step(fmodule(torch.ones(1, 2)).sum())

    assert list(fmodule.params) == ["1.weight", "1.bias"]


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
