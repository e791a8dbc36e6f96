"""Modules as functions of their parameters and buffers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from diffopt_explicit._places import Kind, places, tensors


class FunctionalModule:
    """A module's forward pass with parameters and buffers of its own.

    Call it as the module. The module itself is never written to: tied weights stay tied,
    frozen parameters stay the module's, and running statistics go into `buffers`.

    Attributes:
        module: The module whose code is run.
        buffers: Copies of the module's buffers by name.
    """

    def __init__(
        self,
        module: nn.Module,
        params: Mapping[str, Tensor],
        *,
        track: bool = True,
        buffers: Mapping[str, Tensor] | None = None,
        ties: list[list[str]] | None = None,
    ) -> None:
        self.module = module
        self._track = track
        self._history = [dict(params)]
        self._ties = names_of(module) if ties is None else ties
        self._recurrent = [part for part in module.modules() if isinstance(part, nn.RNNBase)]
        if buffers is None:
            buffers = tensors(module, "_buffers", torch.clone)
        self.buffers = dict(buffers)

    @property
    def params(self) -> dict[str, Tensor]:
        """The fast weights by name; one entry for weights that are tied."""
        return self._history[-1]

    @params.setter
    def params(self, params: Mapping[str, Tensor]) -> None:
        kept = self._history if self._track else []
        self._history = [*kept, dict(params)]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the module's forward pass with the fast weights."""
        own = {**self.params, **self.buffers}
        everywhere = {name: own[tie[0]] for tie in self._ties if tie[0] in own for name in tie}
        with _flat_weights_kept(self._recurrent):
            out = functional_call(self.module, everywhere, args, kwargs, tie_weights=False)
        # torch leaves there what the forward pass has put in the places of buffers.
        self.buffers = {name: everywhere[name] for name in self.buffers}
        return out

    def parameters(self, time: int = -1) -> Iterator[Tensor]:
        """The fast weights, in the order of the module's parameters.

        Args:
            time: After how many steps: 0 for the first ones, -1 for the present ones.

        Raises:
            IndexError: If there are none of that time. Untracked loops keep the present ones only.
        """
        if not -len(self._history) <= time < len(self._history):
            reason = "" if self._track else ", because without `track` only the last ones are kept"
            raise IndexError(
                f"There are no fast weights of time {time}: there are those of times 0 to "
                f"{len(self._history) - 1}{reason}."
            )
        return iter(self._history[time].values())

    def __repr__(self) -> str:
        return f"FunctionalModule of {self.module!r}"


def names_of(module: nn.Module) -> list[list[str]]:
    """All names of each parameter and buffer, the first one first."""
    kinds: tuple[Kind, ...] = ("_parameters", "_buffers")
    return [[place.name for place in at] for kind in kinds for _, at in places(module, kind)]


@contextmanager
def _flat_weights_kept(layers: list[nn.RNNBase]) -> Iterator[None]:
    """Recurrent layers list their weights a second time, and keep those of the last call."""
    lists = [(layer, layer._flat_weights, layer._flat_weight_refs) for layer in layers]
    try:
        yield
    finally:
        for layer, weights, references in lists:
            layer._flat_weights, layer._flat_weight_refs = weights, references
