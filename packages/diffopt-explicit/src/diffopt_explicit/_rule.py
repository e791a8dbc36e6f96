"""What optimizers have in common that treat every parameter by itself."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from diffopt_explicit._hyperparameter import Hyperparameter, resolve
from diffopt_explicit._parameters import check_alike, check_state, required, zeros_like
from diffopt_explicit._transform import Tree
from diffopt_explicit._trees import (
    place,
    tree_flatten,
    tree_flatten_with_path,
    tree_map,
    tree_unflatten,
    wide,
)

Slots = tuple[Tensor, ...]


class RuleState(NamedTuple):
    """What such an optimizer remembers between steps."""

    step: int  # updates made so far
    counts: Tree  # of each parameter, the updates that it took part in
    slots: tuple[Tree, ...]  # moments and the like, each like the parameters


class Rule(ABC):
    """A frozen dataclass of hyperparameters with a rule for one parameter.

    Deals with what the rules have in common: missing gradients, counts, schedules, trees of
    hyperparameters, and half precision, for which slots and arithmetic are in float32.

    Attributes:
        needs_params: Whether `apply` looks at the parameter.
    """

    needs_params: ClassVar[bool] = False

    @abstractmethod
    def begin(self, zeros: Tensor) -> Slots:
        """Return the slots of a parameter before its first step, given zeros like it.

        A `ValueError` tells that the rule is not for such parameters.
        """

    @abstractmethod
    def apply(self, g: Tensor, slots: Slots, t: int, p: Tensor) -> tuple[Tensor, Slots]:
        """Return update and slots after a parameter's step ``t = 1, 2, ...``.

        Hyperparameters that are schedules or trees have been replaced by their values. `p` is
        the parameter if the rule needs it.
        """

    def init(self, params: Tree) -> RuleState:
        """Return the state before the first step."""
        paths, leaves, spec = tree_flatten_with_path(zeros_like(params))
        columns = zip(*map(self._begin, paths, leaves), strict=True)
        slots = tuple(tree_unflatten(spec, column) for column in columns)
        return RuleState(0, tree_map(lambda _: 0, params), slots)

    def _begin(self, path: tuple[Any, ...], zeros: Tensor) -> Slots:
        try:
            return self.begin(zeros)
        except ValueError as error:
            raise ValueError(f"For the parameter at {place(path)}: {error}") from None

    def update(
        self, updates: Tree, state: RuleState, params: Tree | None = None, **extra: Any
    ) -> tuple[Tree, RuleState]:
        """Apply the rule to every parameter that has an update."""
        check_state(self, state, RuleState)
        if self.needs_params:
            params = required(params, type(self).__name__)
        # Other slots need not be shaped like the parameters.
        check_alike(updates, params, *([] if self.needs_params else state.slots[:1]))
        grads, spec = tree_flatten(updates, none_is_leaf=True)
        counts, *columns = (spec.flatten_up_to(tree) for tree in (state.counts, *state.slots))
        weights = spec.flatten_up_to(params) if self.needs_params else grads
        rules = resolve(self, state.step, spec, len(grads))
        for index, grad in enumerate(grads):
            if grad is None:
                continue
            counts[index] = counts[index] + 1
            g, slots = wide(grad), tuple(wide(column[index]) for column in columns)
            update, slots = rules[index].apply(g, slots, counts[index], wide(weights[index]))
            grads[index] = update.to(grad.dtype)
            for column, slot in zip(columns, slots, strict=True):
                column[index] = slot.to(g.dtype)
        counts, *after = (tree_unflatten(spec, column) for column in (counts, *columns))
        return tree_unflatten(spec, grads), RuleState(state.step + 1, counts, tuple(after))


def numbers(*hyperparameters: Hyperparameter | None) -> tuple[Any, ...]:
    """The hyperparameters of a rule, in which no schedules are left."""
    return hyperparameters


def power(base: Any, t: int) -> Any:
    """``base**t``, in a form that is compiled well where `t` is a symbol of the compiler."""
    if not torch.compiler.is_compiling() or (not isinstance(base, Tensor) and base <= 0):
        return base**t
    if isinstance(base, Tensor):  # torch has no derivative where it is raised to a symbol
        return base ** torch.full((), t, dtype=base.dtype, device=base.device)
    # A power of numbers would be computed again for each few elements; an exponential of a tensor
    # is one that torch's compiler computes once.
    return torch.full((), t * math.log(base), dtype=torch.float64).exp()


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
