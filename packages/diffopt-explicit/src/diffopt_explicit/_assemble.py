"""What recipes have in common: where weight decay, sign and learning rate come in."""

from __future__ import annotations

from diffopt_explicit._chain import Chain, chain
from diffopt_explicit._decay import add_decayed_weights
from diffopt_explicit._hyperparameter import Hyperparameter, is_zero
from diffopt_explicit._scale import scale, scale_by_learning_rate
from diffopt_explicit._transform import Transform


def before(weight_decay: Hyperparameter, maximize: bool) -> list[Transform]:
    """What comes before an optimizer's own rule."""
    parts: list[Transform] = [scale(-1.0)] if maximize else []
    return parts if is_zero(weight_decay) else [*parts, add_decayed_weights(weight_decay)]


def with_decay(
    rule: Transform,
    lr: Hyperparameter,
    weight_decay: Hyperparameter,
    decoupled: bool,
    maximize: bool,
) -> Chain:
    """A rule with weight decay before it, or after it if decoupled."""
    if decoupled:
        return chain(
            *before(0.0, maximize), rule, *before(weight_decay, False), scale_by_learning_rate(lr)
        )
    return chain(*before(weight_decay, maximize), rule, scale_by_learning_rate(lr))
