"""One transform after the other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from diffopt_explicit import _fused as fused
from diffopt_explicit._transform import Transform, Tree


@dataclass(frozen=True)
class Chain:
    """Transforms applied in turn, each to what the one before it returned.

    Attributes:
        transforms: The parts. The state is the tuple of their states.
    """

    transforms: tuple[Transform, ...]

    def init(self, params: Tree) -> tuple[Any, ...]:
        """Return the states of the parts before the first step."""
        return tuple(transform.init(params) for transform in self.transforms)

    def update(
        self, updates: Tree, state: tuple[Any, ...], params: Tree | None = None, **extra: Any
    ) -> tuple[Tree, tuple[Any, ...]]:
        """Pass the updates through all parts."""
        if len(state) != len(self.transforms):
            raise ValueError(
                f"This chain has {len(self.transforms)} transforms, but the state is that of "
                f"{len(state)}. Use the state that this very chain's `init` or `update` returned."
            )
        whole = fused.update(self.transforms, updates, state, params)
        if whole is not None:
            return whole
        after = []
        for transform, before in zip(self.transforms, state, strict=True):
            updates, new = transform.update(updates, before, params, **extra)
            after.append(new)
        return updates, tuple(after)


def chain(*transforms: Transform) -> Chain:
    """Apply transforms in turn, each to what the one before it returned.

    Args:
        transforms: The parts, the first one receiving the gradients.

    Raises:
        TypeError: For a part without `init` and `update`.

    Example:
        >>> from diffopt_explicit import add_decayed_weights, chain, scale_by_learning_rate, trace
        >>> chain(add_decayed_weights(1e-4), trace(0.9), scale_by_learning_rate(0.1))
        Chain(transforms=(AddDecayedWeights(weight_decay=0.0001), Trace(momentum=0.9, ...

    Source: the protocol is that of Optax (DeepMind, 2020).
    """
    for position, transform in enumerate(transforms):
        if isinstance(transform, type) or not isinstance(transform, Transform):
            raise TypeError(
                f"`chain` takes transforms, values with `init` and `update`; argument {position} "
                f"is {transform!r}."
            )
    return Chain(transforms)
