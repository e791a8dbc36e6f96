"""Whole chains as one native step, where `diffopt_kernels` is installed and has it.

NOTE [fused chains]
What is fused is the chain, and not a recipe: gradients, maybe negated (`maximize`), maybe with
weight decay, go through at most one rule and one momentum, and are scaled by the learning rate.
A chain of these parts in this order is one call of a kernel, with the states that its parts
would have had. Any other is composed, and so is every chain under `torch.compile`, whose own
fusion does better with the plain operations.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from diffopt_explicit._decay import AddDecayedWeights
from diffopt_explicit._hyperparameter import at_step, is_tree, is_zero
from diffopt_explicit._moments import ScaleByAdam, ScaleByAMSGrad
from diffopt_explicit._parameters import check_alike, required
from diffopt_explicit._rule import Rule
from diffopt_explicit._scale import Scale, ScaleByLearningRate
from diffopt_explicit._signs import ScaleByLion
from diffopt_explicit._squares import ScaleByAdagrad, ScaleByRMS
from diffopt_explicit._trace import Trace
from diffopt_explicit._transform import Transform, Tree
from diffopt_explicit._trees import Present, map_present, wide


class Kernel(NamedTuple):
    """A function of `diffopt_kernels`, and what it can do."""

    step: Callable[..., Any]
    columns: tuple[str, ...]  # the lists that it updates
    numbers: tuple[str, ...]  # those fields of the rule that it takes
    decays: frozenset[str] = frozenset({"coupled"})
    counted: bool = True  # whether it takes the counts of steps


MOMENTUM = "momentum_buffers"  # the one column that is not the rule's own
KERNELS: dict[type, Kernel] = {}

# A broken installation of the kernels must not pass for none: only their absence is looked for.
if importlib.util.find_spec("diffopt_kernels"):
    import diffopt_kernels as native

    moments, numbers = ("exp_avgs", "exp_avg_sqs"), ("betas", "eps")
    both = frozenset({"coupled", "decoupled"})
    KERNELS = {
        type(None): Kernel(native.sgd_step, (MOMENTUM,), ()),
        ScaleByAdam: Kernel(native.adam_step, moments, (*numbers, "eps_root"), both),
        ScaleByAMSGrad: Kernel(native.amsgrad_step, (*moments, "max_exp_avg_sqs"), numbers, both),
        ScaleByAdagrad: Kernel(native.adagrad_step, ("state_sums",), ("lr_decay", "eps")),
        ScaleByRMS: Kernel(
            native.rmsprop_step,
            ("square_avgs", "grad_avgs", MOMENTUM),
            ("alpha", "eps", "centered"),
            counted=False,
        ),
        ScaleByLion: Kernel(
            native.lion_step, ("exp_avgs",), ("betas",), frozenset({"decoupled"}), counted=False
        ),
    }


# The parts of a chain that may be fused, in their order.
ORDER: dict[str, type] = {
    "flip": Scale,
    "coupled": AddDecayedWeights,
    "rule": Rule,
    "momentum": Trace,
    "decoupled": AddDecayedWeights,
    "rate": ScaleByLearningRate,
}


def update(
    transforms: Sequence[Transform], updates: Tree, states: Sequence[Any], params: Tree | None
) -> tuple[Tree, tuple[Any, ...]] | None:
    """Return what a chain of these transforms returns, or None if it must be composed."""
    parts = None if torch.compiler.is_compiling() else _roles(transforms)
    kernel = None if parts is None else KERNELS.get(type(parts.get("rule")))
    if parts is None or kernel is None or not _does(kernel, parts):
        return None
    before = dict(zip(parts, states, strict=True))
    columns = _columns(kernel, before)
    check_alike(updates, params, *columns.values())
    present = Present(updates)
    counts = [present.pick(state.counts) for state in before.values() if hasattr(state, "counts")]
    grads = present.pick(updates)
    steps = [count + 1 for count in counts[0]] if counts else [1] * len(grads)
    moved, *new = kernel.step(
        [wide(grad) for grad in grads],
        **{name: None for name in kernel.columns if name not in columns},
        **{name: [wide(leaf) for leaf in present.pick(tree)] for name, tree in columns.items()},
        **({"steps": steps} if kernel.counted else {}),
        **_numbers(kernel, parts, before),
        **_decay(kernel, parts, before, present, params),
        maximize="flip" in parts,
    )
    new_columns = {
        name: present.put(columns[name], column)
        for name, column in zip(kernel.columns, new, strict=True)
        if name in columns
    }
    updates = present.put(updates, [u.to(g.dtype) for u, g in zip(moved, grads, strict=True)])
    if is_tree(parts["rate"].lr):
        updates = map_present(lambda u, lr: (lr * u).to(u.dtype), updates, parts["rate"].lr)
    return updates, _after(before, new_columns, lambda tree: present.put(tree, steps))


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
        value = getattr(parts[role], name)
        each = [at_step(v, states[role].step) for v in value] if isinstance(value, tuple) else None
        return at_step(value, states[role].step) if each is None else tuple(each)

    # A tree of learning rates is multiplied with afterwards.
    numbers = {"lr": 1.0 if is_tree(parts["rate"].lr) else now("rate", "lr")}
    numbers.update({name: now("rule", name) for name in kernel.numbers})
    if "momentum" in parts:
        numbers["momentum"] = now("momentum", "momentum")
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
        "weight_decay": at_step(parts[role].weight_decay, states[role].step),
        "params": [wide(weight) for weight in weights],
    }
    return arguments | ({"decoupled": role == "decoupled"} if len(kernel.decays) > 1 else {})
