"""Hyperparameters in the state, where they can be changed from step to step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from diffopt_explicit._override import override
from diffopt_explicit._transform import Transform, Tree


class InjectState(NamedTuple):
    """Hyperparameters beside the state of the transform that uses them."""

    hyperparameters: dict[str, Any]  # by name
    inner: Any  # the state of the transform


@dataclass(frozen=True)
class Inject:
    """A transform with some of its hyperparameters in the state; see `inject`."""

    transform: Transform
    hyperparameters: dict[str, Any]

    def init(self, params: Tree) -> InjectState:
        """Return the state before the first step."""
        return InjectState(dict(self.hyperparameters), self.transform.init(params))

    def update(
        self, updates: Tree, state: InjectState, params: Tree | None = None, **extra: Any
    ) -> tuple[Tree, InjectState]:
        """Let the transform work with the hyperparameters of the state."""
        transform = override(self.transform, **state.hyperparameters)
        updates, inner = transform.update(updates, state.inner, params, **extra)
        return updates, InjectState(state.hyperparameters, inner)


def inject(transform: Transform, **hyperparameters: Any) -> Inject:
    """Keep some hyperparameters in the state, from where each step takes them.

    There they can be replaced between steps, differentiated, and stacked for `torch.vmap`, like
    any other part of the state. (`override` gives a transform other ones once and for all.)

    Args:
        transform: A transform made of frozen dataclasses, as all of ours are.
        hyperparameters: First values by name, as for `override`.

    Raises:
        ValueError: For a name that no part of the transform has.

    Example:
        >>> import torch
        >>> from diffopt_explicit import inject, sgd
        >>> tx = inject(sgd(), lr=0.1)
        >>> state = tx.init([torch.ones(1)])
        >>> state.hyperparameters["lr"] = 0.5
        >>> tx.update([torch.ones(1)], state)[0]
        [tensor([-0.5000])]

    Source: the semantics are those of Optax's inject_hyperparams.
    """
    override(transform, **hyperparameters)  # refuses an unknown name
    return Inject(transform, hyperparameters)
