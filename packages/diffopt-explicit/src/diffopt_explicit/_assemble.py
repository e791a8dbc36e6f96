"""What recipes have in common: where weight decay, sign and learning rate come in."""

from __future__ import annotations

from collections.abc import Callable

from diffopt_explicit._chain import Chain, chain
from diffopt_explicit._decay import add_decayed_weights
from diffopt_explicit._hyperparameter import Hyperparameter, is_zero
from diffopt_explicit._scale import scale, scale_by_learning_rate
from diffopt_explicit._transform import Transform, Tree


def before(
    weight_decay: Hyperparameter, maximize: bool, mask: Tree | Callable[[Tree], Tree] | None = None
) -> list[Transform]:
    """What comes before an optimizer's own rule."""
    parts: list[Transform] = [scale(-1.0)] if maximize else []
    return parts if is_zero(weight_decay) else [*parts, add_decayed_weights(weight_decay, mask)]


def with_decay(
    rule: Transform,
    lr: Hyperparameter,
    weight_decay: Hyperparameter,
    decoupled: bool,
    maximize: bool,
    mask: Tree | Callable[[Tree], Tree] | None = None,
) -> Chain:
    """A rule with weight decay before it, or after it if decoupled."""
    decay = before(weight_decay, False, mask)
    parts = [rule, *decay] if decoupled else [*decay, rule]
    return chain(*before(0.0, maximize), *parts, scale_by_learning_rate(lr))
