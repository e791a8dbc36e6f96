import copy

import pytest
import torch
from diffopt_explicit import (
    Adam,
    FuncOptimizer,
    MetaAdam,
    MetaSGD,
    adam,
    extract_state_dict,
    inner_loop,
    recover_state_dict,
)
from pytree_core import tree_leaves
from state_problem import loss, network, stepped
from torch import nn


def test_references_bring_the_very_tensors_back():
    module = network()
    optimizer = MetaAdam(module, lr=0.1)
    params = dict(module.named_parameters(remove_duplicate=False))
    start = extract_state_dict(module), extract_state_dict(optimizer)
    optimizer.step(loss(module))
    recover_state_dict(module, start[0])
    recover_state_dict(optimizer, start[1])

    now = dict(module.named_parameters(remove_duplicate=False))
    assert all(now[name] is param for name, param in params.items())
    assert all(weight.is_leaf for weight in module[3]._flat_weights)
    assert optimizer.state is start[1] or optimizer.state == start[1]


def test_two_inner_loops_from_one_state_share_their_start():
    module = network()
    optimizer, lr = MetaSGD(module, lr=0.1), []
    start = extract_state_dict(module, detach_buffers=True)
    loss(module)  # which writes to the buffers
    for _ in range(2):
        recover_state_dict(module, start)
        optimizer.step(loss(module))
        lr.append(loss(module))
    recover_state_dict(module, start)
    sum(lr).backward()

    assert torch.equal(*lr)
    assert module[0].weight.grad is not None
    assert module[1].num_batches_tracked == 0


@pytest.mark.parametrize(("by", "on_graph"), [("copy", True), ("deepcopy", False)])
def test_clones_are_on_the_graph_or_off_it(by, on_graph):
    module, optimizer = stepped()
    state = extract_state_dict(module, by=by)
    moments = tree_leaves(extract_state_dict(optimizer, by=by))
    weight, present = state.params["0.weight"], module[0].weight

    assert torch.equal(weight, present)
    assert weight.data_ptr() != present.data_ptr()
    assert (weight.grad_fn is not None) == on_graph
    assert weight.requires_grad
    assert any(isinstance(m, torch.Tensor) and m.grad_fn is not None for m in moments) == on_graph
    assert not state.params["2.bias"].requires_grad


def test_a_deep_copy_outlives_what_happens_to_the_module():
    module = network()
    state = extract_state_dict(module, by="deepcopy")
    before = copy.deepcopy(module.state_dict())
    loss(module)
    with torch.no_grad():
        module[0].weight.zero_()
    recover_state_dict(module, state)

    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
    assert module[2].weight is module[0].weight
    assert isinstance(module[0].weight, nn.Parameter)


def test_states_move_between_devices():
    module, optimizer = stepped()
    state = extract_state_dict(module, device="meta")
    moments = extract_state_dict(optimizer, device="meta")

    assert all(tensor.is_meta for tensor in [*state.params.values(), *state.buffers.values()])
    assert all(t.is_meta for t in tree_leaves(moments) if isinstance(t, torch.Tensor))


def test_buffers_are_left_out_on_demand():
    module = network()
    state = extract_state_dict(module, with_buffers=False)
    loss(module)
    recover_state_dict(module, state)

    assert state.buffers is None
    assert module[1].num_batches_tracked == 1


def test_an_inner_optimizer_and_a_functional_one_are_holders_too():
    module = nn.Linear(2, 1)
    with inner_loop(module, adam(0.1)) as (fmodule, opt):
        start = extract_state_dict(opt)
        opt.step(fmodule(torch.ones(1, 2)).sum())
        recover_state_dict(opt, start)
    functional, params = FuncOptimizer(adam(0.1)), {"w": torch.ones(2, requires_grad=True)}
    nothing = extract_state_dict(functional)
    functional.step(params["w"].sum(), params)
    recover_state_dict(functional, nothing)

    assert opt.state[0].step == 0
    assert functional.state is None


def test_recovering_into_another_module_names_the_difference_and_changes_nothing():
    module, other = nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4))
    params = list(other.parameters())
    message = (
        r"of its parameters, the module lacks \['bias', 'weight'\], and the state lacks \['0\."
    )
    with pytest.raises(ValueError, match=message):
        recover_state_dict(other, extract_state_dict(module))

    assert all(a is b for a, b in zip(params, other.parameters(), strict=True))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (lambda: nn.Linear(4, 5), r"'weight' must have shape \(4, 4\) .* has shape \(5, 4\)"),
        (lambda: nn.Linear(4, 4).half(), r"'weight' must have .* has .* dtype torch\.float16"),
        (
            lambda: nn.Linear(4, 4, bias=False),
            r"the module lacks \[\], and the state lacks",
        ),
    ],
)
def test_recovering_other_tensors_is_refused(source, message):
    module = nn.Linear(4, 4)
    weight = module.weight
    with pytest.raises(ValueError, match=message):
        recover_state_dict(module, extract_state_dict(source()))

    assert module.weight is weight


def test_a_buffer_that_differs_is_refused_before_parameters_change():
    module, other = nn.BatchNorm1d(4), nn.BatchNorm1d(4)
    other.running_mean = torch.zeros(5)
    weight = module.weight
    with pytest.raises(ValueError, match=r"'running_mean' must have shape \(4,\)"):
        recover_state_dict(module, extract_state_dict(other))

    assert module.weight is weight


@pytest.mark.parametrize(
    ("of", "message"),
    [
        (lambda: MetaSGD(nn.Linear(4, 4), 0.1, 0.9), "The state is that of another optimizer"),
        (lambda: MetaAdam(nn.Linear(4, 5)), r"\['bias'\] must have shape \(4,\)"),
    ],
)
def test_the_state_of_another_optimizer_is_refused(of, message):
    optimizer = MetaAdam(nn.Linear(4, 4))
    before = optimizer.state
    with pytest.raises(ValueError, match=message):
        recover_state_dict(optimizer, extract_state_dict(of()))

    assert optimizer.state is before


@pytest.mark.parametrize("function", [extract_state_dict, lambda t: recover_state_dict(t, None)])
def test_other_targets_are_refused_with_a_way_out(function):
    optimizer = Adam(nn.Linear(2, 1).parameters())
    with pytest.raises(TypeError, match=r"got an instance of Adam\. Use its own `state_dict`"):
        function(optimizer)


def test_a_module_recovers_module_states_only():
    with pytest.raises(TypeError, match=r"A module recovers a `ModuleState`.* got a dict"):
        recover_state_dict(nn.Linear(2, 1), {})


def test_another_way_of_copying_is_refused():
    with pytest.raises(ValueError, match=r"`by` must be one of .*, got 'shallow'"):
        extract_state_dict(nn.Linear(2, 1), by="shallow")
