"""Whole chains as one native step, where `diffopt_kernels` is installed and has it.

NOTE [fused chains]
What is fused is the chain, and not a recipe: gradients, maybe negated (`maximize`), maybe with
weight decay, go through at most one rule and one momentum, and are scaled by the learning rate.
A chain of these parts in this order is one call of a kernel, with the states that its parts
would have had. Any other is composed, and so is every chain under `torch.compile`, whose own
fusion does better with the plain operations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from diffopt_explicit._decay import AddDecayedWeights
from diffopt_explicit._hyperparameter import everywhere, is_tree, is_zero, value_at
from diffopt_explicit._kernels import KERNELS, MOMENTUM, Kernel
from diffopt_explicit._parameters import check_alike, check_state, required
from diffopt_explicit._rule import Rule, RuleState
from diffopt_explicit._scale import Scale, ScaleByLearningRate
from diffopt_explicit._stepwise import StepState
from diffopt_explicit._trace import Trace, TraceState
from diffopt_explicit._transform import Transform, Tree
from diffopt_explicit._trees import Present, map_present, wide

# The parts of a chain that may be fused, in their order.
ORDER: dict[str, type] = {
    "flip": Scale,
    "coupled": AddDecayedWeights,
    "rule": Rule,
    "momentum": Trace,
    "decoupled": AddDecayedWeights,
    "rate": ScaleByLearningRate,
}
STATES: dict[str, type] = {"rule": RuleState, "momentum": TraceState}


def update(
    transforms: Sequence[Transform], updates: Tree, states: Sequence[Any], params: Tree | None
) -> tuple[Tree, tuple[Any, ...]] | None:
    """Return what a chain of these transforms returns, or None if it must be composed."""
    parts = None if torch.compiler.is_compiling() else _roles(transforms)
    kernel = None if parts is None else KERNELS.get(type(parts.get("rule")))
    if parts is None or kernel is None or not _does(kernel, parts):
        return None
    before = dict(zip(parts, states, strict=True))
    for role, part in parts.items():
        check_state(part, before[role], STATES.get(role, StepState))
    columns = _columns(kernel, before)
    check_alike(updates, params, *list(columns.values())[:1])
    present = Present(updates)
    counts = [present.pick(state.counts) for state in before.values() if hasattr(state, "counts")]
    steps = [count + 1 for count in counts[0]] if counts else [1] * present.count
    moved, after = _call(
        kernel,
        columns,
        present,
        updates,
        **({"steps": steps} if kernel.counted else {}),
        **_numbers(kernel, parts, before),
        **_decay(kernel, parts, before, present, params),
        maximize="flip" in parts,
    )
    if is_tree(parts["rate"].lr):
        rates = everywhere(parts["rate"], "lr", 0, updates)
        moved = map_present(lambda u, lr: (lr * u).to(u.dtype), moved, rates)
    return moved, _after(before, after, lambda tree: present.put(tree, steps))


def _call(
    kernel: Kernel, columns: dict[str, Tree], present: Present, updates: Tree, **arguments: Any
) -> tuple[Tree, dict[str, Tree]]:
    """The kernel's step: trees in, and trees out."""
    narrow = present.pick(updates)
    grads = [wide(grad) for grad in narrow]
    lists = {name: [wide(leaf) for leaf in present.pick(tree)] for name, tree in columns.items()}
    unused = dict.fromkeys(name for name in kernel.columns if name not in columns)
    moved, *new = kernel.step(grads, **lists, **unused, **arguments)
    after = {
        name: present.put(columns[name], _with_dtypes(column, grads))
        for name, column in zip(kernel.columns, new, strict=True)
        if name in columns
    }
    return present.put(updates, _with_dtypes(moved, narrow)), after


def _with_dtypes(tensors: Iterable[Tensor], like: Iterable[Tensor]) -> list[Tensor]:
    pairs = zip(tensors, like, strict=True)
    return [new if new.dtype is old.dtype else new.to(old.dtype) for new, old in pairs]


def _roles(transforms: Sequence[Transform]) -> dict[str, Any] | None:
    """The transforms by the roles that they play, if each plays one."""
    roles: dict[str, Any] = {}
    for role, kind in ORDER.items():
        if len(roles) < len(transforms) and isinstance(transforms[len(roles)], kind):
            roles[role] = transforms[len(roles)]
    return roles if len(roles) == len(transforms) and "rate" in roles else None


def _does(kernel: Kernel, parts: dict[str, Any]) -> bool:
    """Whether the kernel does all that these parts do."""
    if "flip" in parts and not (
        isinstance(parts["flip"].factor, int | float) and parts["flip"].factor == -1
    ):
        return False
    decays = parts.keys() & {"coupled", "decoupled"}
    if len(decays) > 1 or not decays <= kernel.decays:
        return False
    if "momentum" in parts:
        momentum = parts["momentum"]
        plain = is_zero(momentum.dampening) and not momentum.nesterov
        if MOMENTUM not in kernel.columns or not (plain or "rule" not in parts):
            return False
    return not any(
        is_tree(number)
        for role, part in parts.items()
        for value in vars(part).values()
        for number in (value if isinstance(value, tuple) else (value,))
        if role != "rate"
    )


def _columns(kernel: Kernel, states: dict[str, Any]) -> dict[str, Tree]:
    """The trees that the kernel updates, by its names for them."""
    columns: dict[str, Tree] = {}
    if "rule" in states:
        own = [name for name in kernel.columns if name != MOMENTUM]
        columns.update(zip(own, states["rule"].slots, strict=False))
    if "momentum" in states:
        columns[MOMENTUM] = states["momentum"].trace
    return columns


def _after(
    states: dict[str, Any], columns: dict[str, Tree], count: Callable[[Tree], Tree]
) -> tuple[Any, ...]:
    """The states after the step, in the order of the chain."""
    after = {role: state._replace(step=state.step + 1) for role, state in states.items()}
    if "momentum" in after:
        trace = columns.pop(MOMENTUM)
        counts = count(states["momentum"].counts)
        after["momentum"] = after["momentum"]._replace(counts=counts, trace=trace)
    if "rule" in after:
        counts = count(states["rule"].counts)
        after["rule"] = after["rule"]._replace(counts=counts, slots=tuple(columns.values()))
    return tuple(after.values())


def _numbers(kernel: Kernel, parts: dict[str, Any], states: dict[str, Any]) -> dict[str, Any]:
    """The hyperparameters of this step, but for the weight decay."""

    def now(role: str, name: str) -> Any:
        return value_at(parts[role], name, states[role].step)

    # A tree of learning rates is multiplied with afterwards.
    numbers = {"lr": 1.0 if is_tree(parts["rate"].lr) else now("rate", "lr")}
    numbers.update({name: now("rule", name) for name in kernel.numbers})
    if "momentum" in parts:
        numbers["momentum"] = now("momentum", "momentum")
        if is_zero(numbers["momentum"]):  # as a number it would switch the buffers off
            numbers["momentum"] = torch.zeros((), dtype=torch.float64)
        if "rule" not in parts:
            numbers["dampening"] = now("momentum", "dampening")
            numbers["nesterov"] = parts["momentum"].nesterov
    return numbers


def _decay(
    kernel: Kernel,
    parts: dict[str, Any],
    states: dict[str, Any],
    present: Present,
    params: Tree | None,
) -> dict[str, Any]:
    """The weight decay of this step, and the parameters for it."""
    role = next(iter(parts.keys() & {"coupled", "decoupled"}), None)
    if role is None:
        return {}
    weights = present.pick(required(params, "`add_decayed_weights`"))
    arguments = {
        "weight_decay": value_at(parts[role], "weight_decay", states[role].step),
        "params": [wide(weight) for weight in weights],
    }
    return arguments | ({"decoupled": role == "decoupled"} if len(kernel.decays) > 1 else {})
