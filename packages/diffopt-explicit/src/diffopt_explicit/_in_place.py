"""Whole chains as one native step that writes over parameters and states."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from diffopt_explicit import _fused
from diffopt_explicit._chain import Chain
from diffopt_explicit._hyperparameter import is_tree
from diffopt_explicit._transform import Transform

_FUSED = (torch.float64, torch.float32)  # the state of narrower parameters is wider than they are


def in_place(
    tx: Transform, grads: list[Tensor | None], state: Any, params: Sequence[Tensor]
) -> Callable[[], Any] | None:
    """Return the step of a chain as a call that writes it and returns the new state.

    `None` if it must be composed: see NOTE [fused chains].
    """
    plan = _fused.plan_of(tx.transforms) if isinstance(tx, Chain) else None
    step_ = None if plan is None else plan.kernel.step_
    if plan is None or step_ is None or is_tree(plan.parts["rate"].lr):
        return None
    if any(g is not None and g.dtype not in _FUSED for g in grads):
        return None
    step = _fused.FusedStep(plan, grads, state, params)
    pick = step.present.pick
    arguments = {**step.arguments(lambda tensor: tensor), "params": pick(params)}

    def write() -> Any:
        step_(grads=pick(grads), **arguments)
        return step.after(step.columns)

    return write
