"""One step of an inner loop, differentiable as a whole."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from torch import Tensor

from diffopt_explicit._apply import apply_updates
from diffopt_explicit._chain import Chain
from diffopt_explicit._gradient import gradient
from diffopt_explicit._module_loss import ToTake
from diffopt_explicit._note import leave_note, next_number
from diffopt_explicit._override import override as overridden
from diffopt_explicit._transform import Transform, Tree

GradCallback: TypeAlias = Callable[[Tree], Tree]


def step(
    loss: Tensor | ToTake,
    tx: Transform,
    state: Any,
    params: Tree,
    *,
    create_graph: bool,
    override: Mapping[str, Any] | None,
    grad_callback: GradCallback | None,
) -> tuple[Tree, Any]:
    """Return the parameters and the state after a step down the gradient of `loss`."""
    if override:
        tx = overridden(tx, **override)
    if isinstance(loss, ToTake):
        options = {"aux": False, "create_graph": create_graph}
        _, _, grads = loss.way.take(loss.function, params, loss.arguments, **options)
    else:
        grads = gradient(loss, params, create_graph=create_graph)
    if grad_callback is not None:
        grads = grad_callback(grads)
    return updated(tx, grads, state, params)


def updated(
    tx: Transform, grads: Tree, state: Any, params: Tree, known: tuple[Tree, Any] | None = None
) -> tuple[Tree, Any]:
    """Return the parameters and the state after an update by these gradients.

    If they are `known`, because the same was done before, they need not be computed again.
    """
    first = next_number()
    at_once = tx.moved(grads, state, params, known) if isinstance(tx, Chain) else None
    if at_once is None:
        updates, state = tx.update(grads, state, params)
        at_once = apply_updates(params, updates), state
    leave_note("update", first, at_once[0])
    return at_once
