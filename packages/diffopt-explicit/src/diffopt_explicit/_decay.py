"""Weight decay."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from diffopt_explicit._hyperparameter import Hyperparameter, at_step, check_range
from diffopt_explicit._scale import ScaleState
from diffopt_explicit._transform import Tree
from diffopt_explicit._trees import map_present


@dataclass(frozen=True)
class AddDecayedWeights:
    """Updates plus a multiple of the parameters.

    Attributes:
        weight_decay: The multiple: a number, a 0-d tensor, or a schedule.
    """

    weight_decay: Hyperparameter

    def __post_init__(self) -> None:
        check_range("weight_decay", self.weight_decay, 0)

    def init(self, params: Tree) -> ScaleState:
        """Return the state before the first step."""
        return ScaleState(0)

    def update(
        self, updates: Tree, state: ScaleState, params: Tree | None = None, **extra: Any
    ) -> tuple[Tree, ScaleState]:
        """Add the decayed weights."""
        if params is None:
            raise ValueError(
                "`add_decayed_weights` needs `params`: call `update(g, state, params)`."
            )
        decay = at_step(self.weight_decay, state.step)

        def add(update: Tensor, param: Tensor) -> Tensor:
            return update + decay * param

        return map_present(add, updates, params), ScaleState(state.step + 1)


def add_decayed_weights(weight_decay: Hyperparameter) -> AddDecayedWeights:
    """Add ``weight_decay * param`` to each update.

    Before the optimizer's own rule this is an L2 penalty (``torch.optim.SGD``, ``Adam``),
    after it decoupled decay (``AdamW``).

    Args:
        weight_decay: A non-negative number, a 0-d tensor, or a schedule.

    Example:
        >>> import torch
        >>> from diffopt_explicit import add_decayed_weights
        >>> tx = add_decayed_weights(0.1)
        >>> params = [torch.full((2,), 3.0)]
        >>> tx.update([torch.ones(2)], tx.init(params), params)[0]
        [tensor([1.3000, 1.3000])]
    """
    return AddDecayedWeights(weight_decay)
