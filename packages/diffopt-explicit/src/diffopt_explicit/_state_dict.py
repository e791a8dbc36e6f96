"""What modules and optimizers hold at a moment: taken, and given back."""

from __future__ import annotations

from typing import Any, NamedTuple

from pytree_core import tree_flatten_with_path, tree_map
from torch import Tensor, nn

from diffopt_explicit._func_optimizer import FuncOptimizer
from diffopt_explicit._inner_loop import InnerOptimizer
from diffopt_explicit._meta_optimizer import MetaOptimizer
from diffopt_explicit._places import Kind, put, tensors
from diffopt_explicit._replicate import By, Device, replicator
from diffopt_explicit._transform import Tree
from diffopt_explicit._trees import place

HOLDERS = (MetaOptimizer, FuncOptimizer, InnerOptimizer)


class ModuleState(NamedTuple):
    """The tensors of a module; one entry for those that are tied."""

    params: dict[str, Tensor]  # by name
    buffers: dict[str, Tensor] | None  # by name; None if they were not taken
    detach_buffers: bool = False  # whether each recovery gives copies of the buffers


def extract_state_dict(
    target: nn.Module | MetaOptimizer | FuncOptimizer | InnerOptimizer,
    *,
    by: By = "reference",
    device: Device = None,
    with_buffers: bool = True,
    detach_buffers: bool = False,
) -> Any:
    """Take what a module or a differentiable optimizer holds now, to `recover_state_dict` later.

    Args:
        target: A module, or an optimizer that keeps the graph. (`Optimizer` and others of
            ``torch.optim`` have a `state_dict` of their own.)
        by: ``"reference"`` takes the tensors themselves, ``"copy"`` clones that are part of their
            graph, ``"deepcopy"`` clones that are not.
        device: Where to move what is taken.
        with_buffers: Take a module's buffers too.
        detach_buffers: Take copies of the buffers, whatever `by` says, and recover copies of those:
            what is written to a buffer in place then does not reach the state.

    Returns:
        A `ModuleState`, or the state of the optimizer's transform.

    Raises:
        TypeError: For another kind of `target`.
        ValueError: For another `by`.

    Example:
        >>> import torch
        >>> from diffopt_explicit import MetaSGD, extract_state_dict, recover_state_dict
        >>> module = torch.nn.Linear(2, 1)
        >>> optimizer, weight = MetaSGD(module, lr=0.1), module.weight
        >>> start = extract_state_dict(module), extract_state_dict(optimizer)
        >>> optimizer.step(module(torch.ones(1, 2)).sum())
        >>> recover_state_dict(module, start[0])
        >>> recover_state_dict(optimizer, start[1])
        >>> module.weight is weight
        True
    """
    replicate = replicator(by, device)
    if isinstance(target, HOLDERS):
        return tree_map(lambda x: replicate(x) if isinstance(x, Tensor) else x, target.state)
    if not isinstance(target, nn.Module):
        raise TypeError(_not_a_holder(target))
    of_buffers = replicator("deepcopy", device) if detach_buffers else replicate
    params = tensors(target, "_parameters", replicate)
    buffers = tensors(target, "_buffers", of_buffers) if with_buffers else None
    return ModuleState(params, buffers, detach_buffers)


def recover_state_dict(
    target: nn.Module | MetaOptimizer | FuncOptimizer | InnerOptimizer, state: Any
) -> None:
    """Give a module or an optimizer back what `extract_state_dict` took.

    The tensors of the state take the places of the present ones, which are not written to. Tied
    weights stay tied.

    Args:
        target: What the state was taken from, or something alike.
        state: What `extract_state_dict` returned.

    Raises:
        TypeError: For another kind of `target`, or a state that is not of its kind.
        ValueError: If names, shapes or dtypes differ. Nothing is changed then.
    """
    if isinstance(target, HOLDERS):
        _check_same_tree(target.state, state)
        target.state = state
        return
    if not isinstance(target, nn.Module):
        raise TypeError(_not_a_holder(target))
    if not isinstance(state, ModuleState):
        raise TypeError(
            f"A module recovers a `ModuleState`, as `extract_state_dict` takes it from a module, "
            f"got a {type(state).__name__}."
        )
    _check_same_tensors(target, "_parameters", state.params)
    if state.buffers is not None:
        _check_same_tensors(target, "_buffers", state.buffers)
    put(target, "_parameters", state.params)
    if state.buffers is not None:
        fresh = replicator("deepcopy", None) if state.detach_buffers else lambda tensor: tensor
        put(target, "_buffers", {name: fresh(b) for name, b in state.buffers.items()})


def _check_same_tensors(module: nn.Module, kind: Kind, state: dict[str, Tensor]) -> None:
    what = "parameters" if kind == "_parameters" else "buffers"
    present = tensors(module, kind)
    if present.keys() != state.keys():
        missing, unknown = present.keys() - state.keys(), state.keys() - present.keys()
        raise ValueError(
            f"The state is that of another module: of its {what}, the module lacks "
            f"{sorted(unknown)}, and the state lacks {sorted(missing)}."
        )
    for name, tensor in state.items():
        _check_same(tensor, present[name], repr(name))


def _check_same_tree(present: Tree, state: Tree) -> None:
    """Refuse a state of another structure; an optimizer without a state yet takes any."""
    if present is None or state is None:
        return
    mine, theirs = (
        dict(zip(map(place, paths), leaves, strict=True))
        for paths, leaves, _ in map(tree_flatten_with_path, (present, state))
    )
    if mine.keys() != theirs.keys():
        difference = sorted(mine.keys() ^ theirs.keys())
        raise ValueError(
            "The state is that of another optimizer, or of other parameters: only one of it and "
            f"the present state has {difference[:4]}."
        )
    for where, leaf in theirs.items():
        _check_same(leaf, mine[where], where)


def _check_same(tensor: Any, present: Any, name: str) -> None:
    mine, theirs = (
        f"shape {tuple(x.shape)} and dtype {x.dtype}" if isinstance(x, Tensor) else "no tensor"
        for x in (present, tensor)
    )
    if mine != theirs:
        raise ValueError(f"{name} must have {mine}, but in the state it has {theirs}.")


def _not_a_holder(target: Any) -> str:
    own = " Use its own `state_dict` and `load_state_dict`."
    return (
        "`target` must be a module, or an optimizer that keeps the graph, got an "
        f"instance of {type(target).__name__}.{own if hasattr(target, 'load_state_dict') else ''}"
    )
