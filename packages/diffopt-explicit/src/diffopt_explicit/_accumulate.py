"""One step for several gradients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from diffopt_explicit._parameters import check_alike
from diffopt_explicit._transform import Transform, Tree
from diffopt_explicit._trees import map_present, tree_map


class AccumulateState(NamedTuple):
    """The gradients that wait for their step."""

    waiting: int  # how many they are
    mean: Tree  # their part of the mean, like the parameters, or None where there is none yet
    inner: Any  # the state of the transform


@dataclass(frozen=True)
class Accumulate:
    """The mean of several gradients as one; see `accumulate`."""

    transform: Transform
    steps: int

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"`steps` must be at least 1, got {self.steps}.")

    def init(self, params: Tree) -> AccumulateState:
        """Return the state before the first gradient."""
        return AccumulateState(0, tree_map(lambda _: None, params), self.transform.init(params))

    def update(
        self, updates: Tree, state: AccumulateState, params: Tree | None = None, **extra: Any
    ) -> tuple[Tree, AccumulateState]:
        """Take the gradients into the mean, and make a step with it if they are enough."""
        check_alike(updates, params)

        def add(update: Tensor | None, mean: Tensor | None) -> Tensor | None:
            if update is None:
                return mean
            return update / self.steps if mean is None else mean + update / self.steps

        mean = tree_map(add, updates, state.mean, none_is_leaf=True)
        if state.waiting + 1 < self.steps:
            still = map_present(torch.zeros_like, updates)
            return still, AccumulateState(state.waiting + 1, mean, state.inner)
        updates, inner = self.transform.update(mean, state.inner, params, **extra)
        return updates, AccumulateState(0, tree_map(lambda _: None, mean), inner)


def accumulate(transform: Transform, steps: int) -> Accumulate:
    """Apply a transform once for every `steps` gradients, to their mean.

    In between, updates are 0 and the transform stands still: its schedules, too, count the
    steps that are made. A parameter without gradient in some of the `steps` has it counted as 0.

    Args:
        transform: What the mean gradients are given to.
        steps: How many gradients make one step.

    Raises:
        ValueError: For fewer than one.

    Example:
        >>> import torch
        >>> from diffopt_explicit import accumulate, sgd
        >>> tx = accumulate(sgd(1.0), steps=2)
        >>> first, state = tx.update([torch.tensor(1.0)], tx.init([torch.tensor(0.0)]))
        >>> second, state = tx.update([torch.tensor(4.0)], state)
        >>> first, second
        ([tensor(0.)], [tensor(-2.5000)])

    Source: the semantics are those of Optax's MultiSteps.
    """
    return Accumulate(transform, steps)
