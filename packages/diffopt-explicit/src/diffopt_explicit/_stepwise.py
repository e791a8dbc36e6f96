"""What transforms have in common that remember nothing but the step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

from diffopt_explicit._parameters import check_alike, check_params, check_state
from diffopt_explicit._transform import Tree


class StepState(NamedTuple):
    """How often a transform was used."""

    step: int  # updates made so far


class Stepwise(ABC):
    """A transform whose updates depend on gradients, parameters and the step alone."""

    def init(self, params: Tree) -> StepState:
        """Return the state before the first step."""
        check_params(params)
        return StepState(0)

    def update(
        self, updates: Tree, state: StepState, params: Tree | None = None, **extra: Any
    ) -> tuple[Tree, StepState]:
        """Return the transformed updates, and the state after this step."""
        check_state(self, state, StepState)
        check_alike(updates, params)
        return self.at(state.step, updates, params), StepState(state.step + 1)

    @abstractmethod
    def at(self, step: int, updates: Tree, params: Tree | None) -> Tree:
        """Return the transformed updates of this step, the first being 0."""
