"""Stopping gradients, and clones of modules."""

import copy

import pytest
import torch
from diffopt_explicit import (
    Adam,
    MetaSGD,
    ModuleState,
    extract_state_dict,
    module_clone,
    module_detach_,
    stop_gradient,
)
from pytree_core import tree_leaves
from state_problem import X, stepped
from torch import nn


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
