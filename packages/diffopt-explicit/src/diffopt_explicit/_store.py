"""Unrolls whose graph is stored, and what all ways to differentiate an unroll have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sized
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor

from diffopt_explicit._gradient import forward_mode
from diffopt_explicit._note import Notes
from diffopt_explicit._transform import Tree
from diffopt_explicit._trees import detach

Inputs: TypeAlias = Iterable[tuple[Tree, ...]]
"""What each step gets besides the carry; taken one by one, so that a step can end it."""
Step: TypeAlias = Callable[[Tree, tuple[Tree, ...], bool], tuple[Tree, Tensor, Any]]
"""``step(carry, arguments, create_graph) -> (carry, loss, extra)``: a pure function, in whose
result gradients that it takes itself have a graph if `create_graph`."""


class Unrolled(NamedTuple):
    """What some steps in a row gave."""

    carry: Tree  # after the last one
    losses: Tensor  # (steps,), each taken before its step
    extras: list[Any]  # a step an entry


def length(inputs: Inputs) -> int | None:
    """How many steps there will be, if that is known."""
    return len(inputs) if isinstance(inputs, Sized) else None


class Losses:
    """Losses of many steps, in few tensors."""

    def __init__(self) -> None:
        self._chunks: list[Tensor] = []
        self._last: list[Tensor] = []

    def append(self, loss: Tensor) -> None:
        """Add that of the next step."""
        self._last.append(loss)
        if len(self._last) == 64:
            self._chunks.append(torch.stack(self._last))
            self._last.clear()

    def stack(self) -> Tensor:
        """All as one tensor."""
        if self._last:
            self._chunks.append(torch.stack(self._last))
        return torch.cat(self._chunks) if self._chunks else torch.empty(0)


@runtime_checkable
class Adjoint(Protocol):
    """A way to differentiate an unroll."""

    def run(self, step: Step, start: Tree, inputs: Inputs, *, tracked_from: int) -> Unrolled:
        """Take one step for each of `inputs`; differentiable from step `tracked_from` on.

        That is 0 where the number of steps is not known.
        """
        ...


def track_last(
    adjoint: Adjoint, step: Step, start: Tree, inputs: Inputs, tracked_from: int
) -> Unrolled:
    """Take some steps without a graph, and the others by an adjoint."""
    listed = list(inputs)
    before = Store().run(step, start, listed[:tracked_from], tracked_from=tracked_from)
    after = adjoint.run(step, before.carry, listed[tracked_from:], tracked_from=0)
    losses = torch.cat([before.losses, after.losses])
    return Unrolled(after.carry, losses, [*before.extras, *after.extras])


@dataclass(frozen=True)
class Store:
    """Differentiate an unroll by ordinary autograd, which stores the graph of every step.

    The fastest way, exact to any order and under every transform of `torch.func`, with
    memory that grows with the number of steps.
    """

    def run(self, step: Step, start: Tree, inputs: Inputs, *, tracked_from: int) -> Unrolled:
        """Take one step for each of `inputs`; record the graph from step `tracked_from` on."""
        carry, losses, extras, notes = start, Losses(), [], Notes(tracked_from)
        for index, arguments in enumerate(inputs):
            if index >= tracked_from and (torch.is_grad_enabled() or forward_mode()):
                carry, loss, extra = step(carry, arguments, True)
                notes.step(carry)
            else:
                with torch.no_grad():
                    carry, loss, extra = detach(step(detach(carry), arguments, False))
            losses.append(loss)
            extras.append(extra)
        return Unrolled(carry, losses.stack(), extras)
