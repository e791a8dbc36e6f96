"""Momentum."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from diffopt_explicit._hyperparameter import (
    Hyperparameter,
    Scalar,
    check_range,
    everywhere,
    is_zero,
)
from diffopt_explicit._parameters import check_alike, check_state, zeros_like
from diffopt_explicit._transform import Tree
from diffopt_explicit._trees import advance, map_present, tree_map, wide


class TraceState(NamedTuple):
    """What momentum remembers between steps."""

    step: int  # updates made so far
    counts: Tree  # of each parameter, the updates that it took part in
    trace: Tree  # like the parameters


@dataclass(frozen=True)
class Trace:
    """Sum past updates with exponentially decaying weight: heavy-ball momentum.

    For an incoming update ``g`` and a trace ``m``, in the order of ``torch.optim.SGD``::

        m <- g                                        in a parameter's first step
        m <- momentum * m + (1 - dampening) * g       in every later step
        update = g + momentum * m  if nesterov else  m

    Attributes:
        momentum: Share of the trace kept at each step: a number, 0-d tensor or schedule.
        dampening: Share of each gradient left out, in the same three forms.
        nesterov: Evaluate the update one step ahead along the trace.
    """

    momentum: Hyperparameter
    dampening: Hyperparameter = 0.0
    nesterov: bool = False

    def __post_init__(self) -> None:
        check_range("momentum", self.momentum, 0)
        check_range("dampening", self.dampening, -float("inf"))
        if self.nesterov and not is_zero(self.dampening):
            raise ValueError(
                f"`nesterov` needs zero `dampening`, got dampening={self.dampening!r}."
            )

    def init(self, params: Tree) -> TraceState:
        """Return the state before the first step."""
        return TraceState(0, tree_map(lambda _: 0, params), zeros_like(params))

    def update(
        self, updates: Tree, state: TraceState, params: Tree | None = None, **extra: Any
    ) -> tuple[Tree, TraceState]:
        """Take the updates into the trace."""
        check_state(self, state, TraceState)
        check_alike(updates, params, state.trace)
        momenta = everywhere(self, "momentum", state.step, updates)
        dampenings = everywhere(self, "dampening", state.step, updates)

        def accumulate(
            trace: Tensor, update: Tensor, count: int, momentum: Scalar, dampening: Scalar
        ) -> Tensor:
            g = wide(update)
            return (momentum * wide(trace) + (1 - dampening) * g).to(g.dtype) if count else g

        def ahead(update: Tensor, trace: Tensor, momentum: Scalar) -> Tensor:
            moved = update + momentum * trace if self.nesterov else trace
            return moved.to(update.dtype)

        trace = advance(accumulate, state.trace, updates, state.counts, momenta, dampenings)
        counts = advance(lambda count, _: count + 1, state.counts, updates)
        moved = map_present(ahead, updates, trace, momenta)
        return moved, TraceState(state.step + 1, counts, trace)


def trace(
    momentum: Hyperparameter, dampening: Hyperparameter = 0.0, nesterov: bool = False
) -> Trace:
    """Sum past updates with exponentially decaying weight: heavy-ball or Nesterov momentum.

    Args:
        momentum: Share of the trace kept at each step, non-negative and usually below 1.
        dampening: Share of each gradient left out of the trace, from the second step on.
        nesterov: Evaluate the update one step ahead along the trace; needs a momentum
            and no dampening.

    Raises:
        ValueError: For a negative momentum, or Nesterov's with dampening.

    Example:
        >>> import torch
        >>> from diffopt_explicit import trace
        >>> tx = trace(0.5)
        >>> state = tx.init([torch.zeros(1)])
        >>> _, state = tx.update([torch.ones(1)], state)
        >>> tx.update([torch.ones(1)], state)[0]
        [tensor([1.5000])]

    Source: Sutskever et al., *On the importance of initialization and momentum in deep
    learning*, ICML 2013, eqs. 1-4, with the learning rate factored out.
    """
    if nesterov and is_zero(momentum):  # which a schedule may well give in some step
        raise ValueError(f"`nesterov` needs a `momentum`, got momentum={momentum!r}.")
    return Trace(momentum, dampening, nesterov)
