"""Steps of any kind in a row, differentiable in the memory of a few."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch

from diffopt_explicit._replay import Replay
from diffopt_explicit._store import Adjoint
from diffopt_explicit._transform import Tree


def replay(
    step: Callable[[Tree, Any], tuple[Tree, Any]],
    carry: Tree,
    xs: Iterable[Tree],
    *,
    adjoint: Adjoint = Replay(),
) -> tuple[Tree, list[Any]]:
    """Carry a state through steps that need not be those of an optimizer.

    A recurrent network over a long sequence, a simulation, a solver: what `unroll` does for the
    steps of an optimizer, for any function.

    Args:
        step: A pure function ``step(carry, x) -> (carry, out)``. What it closes over is
            differentiated too.
        carry: The state before the first step, a tree.
        xs: What to pass to the steps, one an item.
        adjoint: How all is differentiated: `Replay()`, `Store()` or `Forward()`.

    Returns:
        The state after the last step, and what the steps returned besides, a step an entry.

    Example:
        >>> import torch
        >>> from diffopt_explicit import replay
        >>> rate = torch.tensor(0.5, requires_grad=True)
        >>> decay = lambda state, x: (rate * state + x, state)
        >>> last, before = replay(decay, torch.tensor(0.0), [1.0, 2.0, 3.0])
        >>> last, torch.autograd.grad(last, rate)  # 3 + 2 rate + rate ** 2
        (tensor(4.2500, grad_fn=<...>), (tensor(3.),))
    """

    def with_loss(carry: Tree, arguments: tuple[Tree, ...], create_graph: bool) -> Any:
        with torch.enable_grad():  # a step may differentiate something itself
            after, out = step(carry, *arguments)
        return after, torch.zeros(()), out

    done = adjoint.run(with_loss, carry, [(x,) for x in xs], tracked_from=0)
    return done.carry, done.extras
