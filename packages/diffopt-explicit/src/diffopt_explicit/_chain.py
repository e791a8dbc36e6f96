"""One transform after the other."""

from __future__ import annotations

from collections.abc import Mapping
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
        self._check_state(state)
        whole = fused.update(self.transforms, updates, state, params)
        if whole is not None:
            return whole
        after = []
        for transform, before in zip(self.transforms, state, strict=True):
            updates, new = transform.update(updates, before, params, **extra)
            after.append(new)
        return updates, tuple(after)

    def moved(
        self,
        updates: Tree,
        state: tuple[Any, ...],
        params: Tree,
        known: tuple[Tree, tuple[Any, ...]] | None = None,
    ) -> tuple[Tree, tuple[Any, ...]] | None:
        """The parameters and the state after an update, if one native step gives them at once.

        If they are `known` already, they are only made part of the graph.
        """
        self._check_state(state)
        return fused.moved(self.transforms, updates, state, params, known)

    def _check_state(self, state: Any) -> None:
        if not isinstance(state, tuple):
            raise TypeError(
                f"The state of a chain is a tuple, got {state!r}. Begin with what `init` returns."
            )
        if len(state) != len(self.transforms):
            raise ValueError(
                f"This chain has {len(self.transforms)} transforms, but the state is that of "
                f"{len(state)}. Use the state that this very chain's `init` or `update` returned."
            )


@dataclass(frozen=True)
class NamedChain:
    """Transforms applied in turn, with names for their states.

    Attributes:
        transforms: The parts by name, in order. The state is the dict of their states.
    """

    transforms: Mapping[str, Transform]

    def init(self, params: Tree) -> dict[str, Any]:
        """Return the states of the parts before the first step."""
        return {name: transform.init(params) for name, transform in self.transforms.items()}

    def update(
        self, updates: Tree, state: dict[str, Any], params: Tree | None = None, **extra: Any
    ) -> tuple[Tree, dict[str, Any]]:
        """Pass the updates through all parts."""
        if state.keys() != self.transforms.keys():
            raise ValueError(
                f"This chain has the transforms {list(self.transforms)}, but the state is that of "
                f"{list(state)}. Use the state that this very chain's `init` or `update` returned."
            )
        before = tuple(state[name] for name in self.transforms)
        whole = Chain(tuple(self.transforms.values()))
        updates, after = whole.update(updates, before, params, **extra)
        return updates, dict(zip(self.transforms, after, strict=True))


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
        _check("chain", position, transform)
    return Chain(transforms)


def named_chain(*transforms: tuple[str, Transform]) -> NamedChain:
    """Apply transforms in turn, as `chain` does, with a name for the state of each.

    Args:
        transforms: Pairs of a name and a transform, the first one receiving the gradients.

    Raises:
        TypeError: For a part without `init` and `update`.
        ValueError: For a name that occurs twice.

    Example:
        >>> import torch
        >>> from diffopt_explicit import clip, named_chain, trace
        >>> tx = named_chain(("bounds", clip(1.0)), ("momentum", trace(0.9)))
        >>> tx.init([torch.ones(1)])["momentum"].trace
        [tensor([0.])]

    Source: the protocol is that of Optax.
    """
    for position, (name, transform) in enumerate(transforms):
        _check("named_chain", position, transform)
        if name in dict(transforms[:position]):
            raise ValueError(f"`named_chain` got the name {name!r} twice.")
    return NamedChain(dict(transforms))


def _check(chain: str, position: int, transform: Any) -> None:
    if isinstance(transform, type) or not isinstance(transform, Transform):
        raise TypeError(
            f"`{chain}` takes transforms, values with `init` and `update`; argument {position} "
            f"is {transform!r}."
        )
