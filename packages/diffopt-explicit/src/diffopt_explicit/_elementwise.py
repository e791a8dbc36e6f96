"""What optimizers have in common that treat every element of every parameter alike."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import fields, replace
from typing import Any, NamedTuple

import torch
from pytree_core import tree_flatten, tree_map, tree_unflatten
from torch import Tensor

from diffopt_explicit._hyperparameter import Hyperparameter, at_step
from diffopt_explicit._transform import Tree
from diffopt_explicit._trees import zeros_like

Slots = tuple[Tensor, ...]


class ElementwiseState(NamedTuple):
    """What such an optimizer remembers between steps."""

    step: int  # updates made so far
    counts: Tree  # of each parameter, the updates that it took part in
    slots: tuple[Tree, ...]  # moments and the like, each like the parameters


class Elementwise(ABC):
    """A frozen dataclass of hyperparameters with a rule for one parameter.

    Deals with what the rules have in common: missing gradients, counts, schedules, and half
    precision, which is computed with in float32.
    """

    @abstractmethod
    def begin(self, zeros: Tensor) -> Slots:
        """Return the slots of a parameter before its first step, given zeros like it."""

    @abstractmethod
    def rule(self, g: Tensor, slots: Slots, t: int) -> tuple[Tensor, Slots]:
        """Return update and slots after a parameter's step ``t = 1, 2, ...``.

        Hyperparameters that are schedules have been replaced by their values.
        """

    def init(self, params: Tree) -> ElementwiseState:
        """Return the state before the first step."""
        leaves, spec = tree_flatten(zeros_like(params))
        columns = zip(*[self.begin(leaf) for leaf in leaves], strict=True)
        slots = tuple(tree_unflatten(spec, column) for column in columns)
        return ElementwiseState(0, tree_map(lambda _: 0, params), slots)

    def update(
        self, updates: Tree, state: ElementwiseState, params: Tree | None = None, **extra: Any
    ) -> tuple[Tree, ElementwiseState]:
        """Apply the rule to every parameter that has an update."""
        rule = _evaluated(self, state.step).rule
        grads, spec = tree_flatten(updates, none_is_leaf=True)
        counts, *columns = (spec.flatten_up_to(tree) for tree in (state.counts, *state.slots))
        for index, grad in enumerate(grads):
            if grad is None:
                continue
            counts[index] += 1
            slots = tuple(column[index] for column in columns)
            wide = torch.promote_types(grad.dtype, torch.float32)
            grads[index], new = rule(
                grad.to(wide), tuple(slot.to(wide) for slot in slots), counts[index]
            )
            grads[index] = grads[index].to(grad.dtype)
            for column, old, slot in zip(columns, slots, new, strict=True):
                column[index] = slot.to(old.dtype)
        after = tuple(tree_unflatten(spec, column) for column in columns)
        counts = tree_unflatten(spec, counts)
        return tree_unflatten(spec, grads), ElementwiseState(state.step + 1, counts, after)


def numbers(*hyperparameters: Hyperparameter) -> tuple[Any, ...]:
    """The hyperparameters of a rule, in which no schedules are left."""
    return hyperparameters


def safe_sqrt(x: Tensor) -> Tensor:
    """The square root, with derivative 0 at 0.

    NOTE [the derivative of an optimizer at a zero gradient]
    A second moment is exactly 0 only where every gradient so far was 0. There the update
    ``-lr * g / (|g| + eps)`` of a first step has the derivative ``-lr / eps``, all of it by
    way of the first moment: what the second moment contributes vanishes with ``g``. By the
    chain rule it would be 0 * inf; a slope of 0 gives the limit.
    """
    zero = x == 0
    return torch.where(zero, torch.zeros_like(x), torch.where(zero, torch.ones_like(x), x).sqrt())


def _evaluated(transform: Any, step: int) -> Any:
    """The transform with its schedules replaced by their values in this step."""

    def value(hyperparameter: Any) -> Any:
        if isinstance(hyperparameter, tuple):
            return tuple(value(part) for part in hyperparameter)
        return at_step(hyperparameter, step)

    values = {field.name: value(getattr(transform, field.name)) for field in fields(transform)}
    return replace(transform, **values)
