"""Weight decay."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from diffopt_explicit._hyperparameter import Hyperparameter, Scalar, check_range, everywhere
from diffopt_explicit._parameters import required
from diffopt_explicit._partition import masked
from diffopt_explicit._stepwise import Stepwise
from diffopt_explicit._transform import Transform, Tree
from diffopt_explicit._trees import map_present


@dataclass(frozen=True)
class AddDecayedWeights(Stepwise):
    """Updates plus a multiple of the parameters.

    Attributes:
        weight_decay: The multiple: a number, a 0-d tensor, or a schedule.
    """

    weight_decay: Hyperparameter

    def __post_init__(self) -> None:
        check_range("weight_decay", self.weight_decay, 0)

    def at(self, step: int, updates: Tree, params: Tree | None) -> Tree:
        """Add the decayed weights."""
        params = required(params, "`add_decayed_weights`")
        decays = everywhere(self, "weight_decay", step, updates)

        def add(update: Tensor, param: Tensor, decay: Scalar) -> Tensor:
            return (update + decay * param).to(update.dtype)

        return map_present(add, updates, params, decays)


def add_decayed_weights(
    weight_decay: Hyperparameter, mask: Tree | Callable[[Tree], Tree] | None = None
) -> Transform:
    """Add ``weight_decay * param`` to each update.

    Before the optimizer's own rule this is an L2 penalty (``torch.optim.SGD``, ``Adam``),
    after it decoupled decay (``AdamW``).

    Args:
        weight_decay: A non-negative number, a 0-d tensor, a schedule, or a tree.
        mask: Which parameters decay: a tree of truth values shaped like them, or a function
            from the parameters to such a tree. By default all.

    Example:
        >>> import torch
        >>> from diffopt_explicit import add_decayed_weights
        >>> tx = add_decayed_weights(0.1)
        >>> params = [torch.full((2,), 3.0)]
        >>> tx.update([torch.ones(2)], tx.init(params), params)[0]
        [tensor([1.3000, 1.3000])]
    """
    decay = AddDecayedWeights(weight_decay)
    return decay if mask is None else masked(decay, mask)
