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
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from torch import Tensor

from diffopt_explicit._decay import AddDecayedWeights
from diffopt_explicit._hyperparameter import everywhere, groups, is_tree, is_zero, spread, value_at
from diffopt_explicit._kernels import KERNELS, MOMENTUM, PRODUCTS, Kernel
from diffopt_explicit._parameters import check_alike, check_state, required
from diffopt_explicit._rule import Rule, RuleState
from diffopt_explicit._scale import Scale, ScaleByLearningRate
from diffopt_explicit._stepwise import StepState
from diffopt_explicit._trace import Trace, TraceState
from diffopt_explicit._transform import Transform, Tree
from diffopt_explicit._trees import Present, map_present, tree_leaves, wide

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

operation_by_operation = ContextVar("operation_by_operation", default=False)
"""Whether a mode must see all operations of torch that an update consists of."""


def update(
    transforms: Sequence[Transform], updates: Tree, states: Sequence[Any], params: Tree | None
) -> tuple[Tree, tuple[Any, ...]] | None:
    """Return what a chain of these transforms returns, or None if it must be composed."""
    plan = _plan_now(transforms)
    if plan is None:
        return None
    step = FusedStep(plan, updates, states, params)
    narrow = step.present.pick(updates)
    moved, after = step.take([wide(grad) for grad in narrow], step.arguments(wide))
    updates = step.present.put(updates, _with_dtypes(moved, narrow))
    rate = plan.parts["rate"]
    if is_tree(rate.lr):
        rates = everywhere(rate, "lr", 0, updates)
        updates = map_present(lambda u, lr: (lr * u).to(u.dtype), updates, rates)
    return updates, after


def moved(
    transforms: Sequence[Transform],
    updates: Tree,
    states: Sequence[Any],
    params: Tree,
    known: tuple[Tree, tuple[Any, ...]] | None = None,
) -> tuple[Tree, tuple[Any, ...]] | None:
    """Return the parameters that the update of a chain moves, and the states after it.

    None if one native step cannot do all of that to the bit: an update of less than single
    precision is rounded before it is added. What is `known` is only made part of the graph.
    """
    plan = _plan_now(transforms)
    if plan is None or is_tree(plan.parts["rate"].lr):
        return None
    step = FusedStep(plan, updates, states, params)
    grads, given = step.present.pick(updates), step.present.pick(params)
    if any(wide(tensor) is not tensor for tensor in (*grads, *given)):
        return None
    arguments = {**step.arguments(wide), "params": given, "applied": True}
    if known is not None:
        arguments["known"] = step.known(*known)
    after, states = step.take(grads, arguments)
    return step.present.put(params, after), states


def _plan_now(transforms: Sequence[Transform]) -> Plan | None:
    """How these transforms are fused, or None if they, or now all, must be composed."""
    composed = torch.compiler.is_compiling() or operation_by_operation.get()
    return None if composed else plan_of(transforms)


class Plan(NamedTuple):
    """The kernel that does all that a chain does, and the chain's parts by their roles."""

    kernel: Kernel
    parts: dict[str, Any]


def plan_of(transforms: Sequence[Transform]) -> Plan | None:
    """How these transforms are fused, or None if they must be composed."""
    parts: dict[str, Any] = {}
    for role, kind in ORDER.items():
        if len(parts) < len(transforms) and isinstance(transforms[len(parts)], kind):
            parts[role] = transforms[len(parts)]
    kernel = KERNELS.get(type(parts.get("rule")))
    if kernel is None or len(parts) < len(transforms) or "rate" not in parts:
        return None
    return Plan(kernel, parts) if _does(kernel, parts) else None


def _does(kernel: Kernel, parts: dict[str, Any]) -> bool:
    """Whether the kernel does all that these parts do."""
    if "flip" in parts:
        factor = parts["flip"].factor
        if not isinstance(factor, (int, float)) or factor != -1:
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
        is_tree(number) and not all(map(_is_single, tree_leaves(number)))
        for role, part in parts.items()
        for value in vars(part).values()
        for number in (value if isinstance(value, tuple) else (value,))
        if role != "rate"
    )


def _is_single(leaf: Any) -> bool:
    """Whether a hyperparameter is the same for all elements of a parameter."""
    return not isinstance(leaf, Tensor) or leaf.dim() == 0


class FusedStep:
    """What a kernel is given for one step of a chain, and the chain's states after it.

    Attributes:
        columns: The trees that the kernel updates, by its names for them.
        present: The parameters that take part.
    """

    def __init__(
        self, plan: Plan, updates: Tree, states: Sequence[Any], params: Tree | None
    ) -> None:
        self._kernel, self._parts = plan
        self._updates, self._params = updates, params
        self._states = dict(zip(self._parts, states, strict=True))
        for role, part in self._parts.items():
            check_state(part, self._states[role], STATES.get(role, StepState))
        self.columns = self._columns(self._states)
        check_alike(updates, params, *list(self.columns.values())[:1])
        self.present = Present(updates)
        counted = self._states.get("rule", self._states.get("momentum"))
        counts = self.present.pick(counted.counts) if counted else [0] * self.present.count
        self._steps = [count + 1 for count in counts]

    def arguments(self, prepare: Callable[[Tensor], Tensor]) -> dict[str, Any]:
        """All arguments but the gradients; what is updated is as `prepare` makes it."""
        kernel, pick = self._kernel, self.present.pick
        arguments: dict[str, Any] = dict.fromkeys(kernel.columns)
        for name, tree in self.columns.items():
            arguments[name] = [prepare(leaf) for leaf in pick(tree)]
        if kernel.counted:
            arguments["steps"] = self._steps
        role = next(iter(self._parts.keys() & {"coupled", "decoupled"}), None)
        if role is not None:
            params = required(self._params, "`add_decayed_weights`")
            arguments["params"] = [prepare(param) for param in pick(params)]
            arguments["weight_decay"] = self._now(role, "weight_decay")
            if len(kernel.decays) > 1:
                arguments["decoupled"] = role == "decoupled"
        return {**arguments, **self._numbers(), "maximize": "flip" in self._parts}

    def take(
        self, grads: list[Tensor], arguments: dict[str, Any]
    ) -> tuple[list[Tensor], tuple[Any, ...]]:
        """What the kernel gives for the updates, and the states after it."""
        first, *new = self._kernel.step(grads, **arguments)
        columns = {
            name: self.present.put(self.columns[name], _with_dtypes(column, grads))
            for name, column in zip(self._kernel.columns, new, strict=True)
            if name in self.columns
        }
        return first, self.after(columns)

    def known(self, params: Tree, states: Sequence[Any]) -> list[list[Tensor]]:
        """What the kernel would give, of the parameters and states after the step."""
        columns = self._columns(dict(zip(self._parts, states, strict=True)))
        columns.pop(PRODUCTS, None)
        in_order = [columns[name] for name in self._kernel.columns if name in columns]
        return [self.present.pick(tree) for tree in (params, *in_order)]

    def after(self, columns: dict[str, Tree]) -> tuple[Any, ...]:
        """The states after the step that made these columns, in the order of the chain."""
        after = {role: state._replace(step=state.step + 1) for role, state in self._states.items()}
        own = [tree for name, tree in columns.items() if name != MOMENTUM]
        for role, memory in (
            ("rule", {"slots": tuple(own)}),
            ("momentum", {"trace": columns.get(MOMENTUM)}),
        ):
            if role in after:
                counts = self.present.put(after[role].counts, self._steps)
                after[role] = after[role]._replace(counts=counts, **memory)
        return tuple(after.values())

    def _columns(self, states: dict[str, Any]) -> dict[str, Tree]:
        columns: dict[str, Tree] = {}
        if "rule" in states:
            own = [name for name in self._kernel.columns if name != MOMENTUM]
            columns.update(zip(own, states["rule"].slots, strict=False))
        if "momentum" in states:
            columns[MOMENTUM] = states["momentum"].trace
        return columns

    def _numbers(self) -> dict[str, Any]:
        # A tree of learning rates is multiplied with afterwards.
        numbers = {"lr": 1.0 if is_tree(self._parts["rate"].lr) else self._now("rate", "lr")}
        numbers.update({name: self._now("rule", name) for name in self._kernel.numbers})
        if "momentum" in self._parts:
            numbers["momentum"] = self._now("momentum", "momentum")
            if is_zero(numbers["momentum"]):  # as a number it would switch the buffers off
                numbers["momentum"] = torch.zeros((), dtype=torch.float64)
            if "rule" not in self._parts:
                numbers["dampening"] = self._now("momentum", "dampening")
                numbers["nesterov"] = self._parts["momentum"].nesterov
        return numbers

    def _now(self, role: str, name: str) -> Any:
        """The value of a field in this step, or a list of one for each parameter."""
        part = self._parts[role]
        value = value_at(part, name, self._states[role].step)
        if name in groups(part):
            return tuple(self._each(name, one) for one in value)
        return self._each(name, value)

    def _each(self, name: str, value: Any) -> Any:
        pick = self.present.pick
        return pick(spread(name, value, self._updates)) if is_tree(value) else value


def _with_dtypes(tensors: Iterable[Tensor], like: Iterable[Tensor]) -> list[Tensor]:
    pairs = zip(tensors, like, strict=True)
    return [new if new.dtype is old.dtype else new.to(old.dtype) for new, old in pairs]
