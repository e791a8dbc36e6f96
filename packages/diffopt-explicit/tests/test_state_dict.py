import copy

import pytest
import torch
from diffopt_explicit import (
    Adam,
    FuncOptimizer,
    MetaAdam,
    MetaSGD,
    ModuleState,
    adam,
    extract_state_dict,
    inner_loop,
    module_clone,
    module_detach_,
    recover_state_dict,
    stop_gradient,
)
from pytree_core import tree_leaves
from torch import nn

X = torch.linspace(-1, 1, 12).reshape(3, 4)


def network() -> nn.Sequential:
    """Tied weights, statistics, a frozen bias and a recurrent layer."""
    torch.manual_seed(0)
    first = nn.Linear(4, 4)
    module = nn.Sequential(first, nn.BatchNorm1d(4), nn.Linear(4, 4), nn.GRU(4, 4))
    module[2].weight = first.weight
    module[2].bias.requires_grad_(False)
    return module


def loss(module: nn.Module) -> torch.Tensor:
    return module(X)[0].square().mean()


def stepped() -> tuple[nn.Sequential, MetaAdam]:
    module = network()
    optimizer = MetaAdam(module, lr=0.1)
    optimizer.step(loss(module))
    return module, optimizer


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


def test_a_stopped_module_is_copied_and_optimized_by_torch():
    module, _ = stepped()
    module[1].running_mean = module[0].weight.sum(0)  # a buffer that is part of the graph
    values = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    frozen = module[2].bias
    stop_gradient(module)

    assert all(torch.equal(values[name], now) for name, now in module.state_dict().items())
    assert all(param.is_leaf for param in module.parameters())
    assert module[0].weight.requires_grad
    assert module[2].bias is frozen
    assert module[2].weight is module[0].weight
    assert not module[1].running_mean.requires_grad
    assert torch.optim.SGD([p for p in module.parameters() if p.requires_grad], lr=0.1)
    assert copy.deepcopy(module)(X)[0].shape == (3, 4)


def test_views_in_a_module_are_stopped():
    module = nn.Linear(4, 4)
    flat = torch.ones(16, requires_grad=True) * 2
    module._parameters["weight"] = flat.view(4, 4)
    stop_gradient(module)

    assert module.weight.is_leaf
    assert module.weight.requires_grad
    assert flat.grad_fn is not None


def test_optimizers_and_states_are_stopped():
    module, optimizer = stepped()
    state = extract_state_dict(module)
    stop_gradient(optimizer)
    stop_gradient(state)

    tensors = [t for t in tree_leaves(optimizer.state) if isinstance(t, torch.Tensor)]
    assert not any(t.requires_grad for t in tensors)
    assert all(param.is_leaf for param in state.params.values())
    assert not module[0].weight.is_leaf


def test_a_tree_is_stopped_in_place():
    start = torch.ones(2, requires_grad=True)
    tree = {"a": start * 2, "b": (start, torch.zeros(1), 3)}
    product = tree["a"]
    stop_gradient(tree)

    assert tree["a"] is product
    assert product.is_leaf
    assert product.requires_grad
    assert start.requires_grad


def test_a_view_in_a_tree_is_refused_and_changes_nothing():
    start = torch.ones(2, requires_grad=True)
    tree = [start * 2, (start * 2).view(2, 1)]
    with pytest.raises(ValueError, match=r"tensor at \[1\] is a view"):
        stop_gradient(tree)

    assert tree[0].grad_fn is not None


@pytest.mark.parametrize("by", ["reference", "copy", "deepcopy"])
def test_a_clone_computes_the_same_with_its_own_tensors(by):
    module, _ = stepped()
    clone = module_clone(module, by=by)
    weight = clone[0].weight

    assert torch.equal(clone.eval()(X)[0], module.eval()(X)[0])
    assert (weight is module[0].weight) == (by == "reference")
    assert (weight.grad_fn is None) == (by == "deepcopy")
    assert clone[2].weight is weight
    assert all(a is b for a, b in zip(clone[3]._flat_weights, clone[3].parameters(), strict=True))


def test_gradients_of_a_clone_reach_the_module():
    """O-53: ``p + u - c = 0`` for a clone ``c`` that was moved by ``u``."""
    module = nn.Sequential(nn.Conv1d(2, 2, 1), nn.BatchNorm1d(2))
    clone = module_clone(module, by="copy")
    clone.train()(torch.randn(3, 2, 4))
    optimizer = MetaSGD(clone, lr=0.5)
    optimizer.step(sum(param.sum() for param in clone.parameters()))
    sum(param.sum() for param in clone.parameters()).backward()

    for param, moved in zip(module.parameters(), clone.parameters(), strict=True):
        torch.testing.assert_close(param - 0.5 - moved, torch.zeros_like(param))
        assert torch.equal(param.grad, torch.ones_like(param))
    assert module[1].num_batches_tracked == 0


def test_trees_are_cloned_and_detached():
    tree = {"w": torch.ones(2, requires_grad=True)}
    clone = module_clone(tree, by="copy")

    assert clone["w"].grad_fn is not None
    assert module_detach_(clone) is clone
    assert clone["w"].is_leaf


def test_buffers_of_a_clone_are_copied_on_demand():
    module = nn.BatchNorm1d(4)
    shared, own = module_clone(module), module_clone(module, detach_buffers=True)
    module(X)

    assert shared.num_batches_tracked == 1
    assert own.num_batches_tracked == 0
    assert own.weight is module.weight


def test_an_optimizer_is_not_cloned():
    with pytest.raises(TypeError, match="Construct one for the clone of the module"):
        module_clone(MetaSGD(nn.Linear(2, 1), lr=0.1))


@pytest.mark.parametrize("function", [stop_gradient, module_clone])
def test_objects_of_which_nothing_would_be_touched_are_refused(function):
    with pytest.raises(TypeError, match="tree of tensors, got an instance of Adam"):
        function(Adam(nn.Linear(2, 1).parameters()))


def test_module_states_are_data():
    state = extract_state_dict(nn.Linear(2, 1))

    assert isinstance(state, ModuleState)
    assert list(state.params) == ["weight", "bias"]
    assert state.buffers == {}
