"""Modules and trees cloned, with or without their graph, and cut off from it."""

from __future__ import annotations

import copy
from typing import Any, TypeVar

from pytree_core import all_leaves, tree_flatten_with_path, tree_map
from torch import Tensor, nn

from diffopt_explicit._places import places, put, tensors
from diffopt_explicit._replicate import By, Device, replicator
from diffopt_explicit._state_dict import HOLDERS, ModuleState
from diffopt_explicit._transform import Tree
from diffopt_explicit._trees import detach, place

T = TypeVar("T")


def stop_gradient(target: Any) -> None:
    """Cut tensors off the graph that they are part of, keeping their values.

    A module gets leaves in the places of the tensors that are not, views among them, and keeps
    those that are: afterwards it can be deep-copied, and optimized by ``torch.optim``. So do an
    optimizer's state and a `ModuleState`. In any other tree the tensors themselves are cut off,
    in place.

    Args:
        target: A module, a `ModuleState`, an optimizer that keeps the graph, or a tree of tensors.

    Raises:
        TypeError: For another object.
        ValueError: For a tree with a view that is part of a graph, which torch cannot cut off in
            place. Nothing is changed then.

    Example:
        >>> import torch
        >>> from diffopt_explicit import MetaSGD, stop_gradient
        >>> module = torch.nn.Linear(2, 1)
        >>> MetaSGD(module, lr=0.1).step(module(torch.ones(1, 2)).sum())
        >>> stop_gradient(module)
        >>> optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    """
    if isinstance(target, HOLDERS):
        target.state = detach(target.state)
    elif isinstance(target, nn.Module):
        put(target, "_parameters", tensors(target, "_parameters", _leaf))
        put(target, "_buffers", tensors(target, "_buffers", _constant))
    elif isinstance(target, ModuleState):
        target.params.update({name: _leaf(p) for name, p in target.params.items()})
        buffers = target.buffers or {}
        buffers.update({name: _constant(b) for name, b in buffers.items()})
    else:
        _stop_in_place(target)


def module_clone(
    target: T, *, by: By = "reference", device: Device = None, detach_buffers: bool = False
) -> T:
    """Clone a module, also one whose parameters are part of a graph, or a tree of tensors.

    Args:
        target: A module, or a tree of tensors.
        by: ``"reference"`` makes a new module with the same tensors, ``"copy"`` one with clones
            that are part of their graph, ``"deepcopy"`` one with clones that are not.
        device: Where to move the clone's tensors.
        detach_buffers: Copy the buffers, whatever `by` says.

    Raises:
        TypeError: For another object; for an optimizer, which belongs to a module.
        ValueError: For another `by`.

    Example:
        >>> import torch
        >>> from diffopt_explicit import module_clone
        >>> module = torch.nn.Linear(2, 1)
        >>> clone = module_clone(module, by="copy")
        >>> clone(torch.ones(1, 2)).sum().backward()
        >>> module.weight.grad
        tensor([[1., 1.]])

    Source: cloning as part of the graph is that of Arnold et al., *learn2learn: a library for
    meta-learning research*, 2020.
    """
    replicate = replicator(by, device)
    if isinstance(target, HOLDERS):
        raise TypeError(
            "An optimizer is not cloned, because it belongs to a module. Construct one for the "
            "clone of the module, and recover the state of this one."
        )
    if not isinstance(target, nn.Module):
        _check_tree(target)
        return tree_map(lambda leaf: replicate(leaf) if isinstance(leaf, Tensor) else leaf, target)
    of_buffers = replicator("deepcopy", device) if detach_buffers else replicate
    memo: dict[int, Any] = {id(p): replicate(p) for p, _ in places(target, "_parameters")}
    memo.update({id(buffer): of_buffers(buffer) for buffer, _ in places(target, "_buffers")})
    return copy.deepcopy(target, memo)


def module_detach_(target: T) -> T:
    """Cut a module, or whatever `stop_gradient` takes, off the graph in place, and return it.

    Example:
        >>> import torch
        >>> from diffopt_explicit import module_clone, module_detach_
        >>> module = torch.nn.Linear(2, 1)
        >>> module_detach_(module_clone(module, by="copy")).weight.is_leaf
        True
    """
    stop_gradient(target)
    return target


def _leaf(tensor: Tensor) -> Tensor:
    if tensor.grad_fn is None:
        return tensor
    return tensor.detach().requires_grad_(tensor.requires_grad)


def _constant(tensor: Tensor) -> Tensor:
    return tensor if tensor.grad_fn is None else tensor.detach()


def _check_tree(target: Any) -> None:
    """Refuse an object of which nothing would be touched."""
    if target is not None and not isinstance(target, Tensor) and all_leaves([target]):
        raise TypeError(
            "`target` must be a module, an optimizer that keeps the graph, or a tree of tensors, "
            f"got an instance of {type(target).__name__}."
        )


def _stop_in_place(tree: Tree) -> None:
    _check_tree(tree)
    paths, leaves, _ = tree_flatten_with_path(tree)
    parts = [
        (path, leaf)
        for path, leaf in zip(paths, leaves, strict=True)
        if isinstance(leaf, Tensor) and leaf.grad_fn is not None
    ]
    for path, leaf in parts:
        if leaf._is_view():
            raise ValueError(
                f"The tensor at {place(path)} is a view, which cannot be cut off the graph in "
                "place. Replace it by its `detach()`."
            )
    for _, leaf in parts:
        leaf.detach_().requires_grad_()
