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
from diffopt_explicit._trees import Present

_FUSED = (torch.float64, torch.float32)  # the state of narrower parameters is wider than they are


def in_place(
    tx: Transform, grads: list[Tensor | None], state: Any, params: Sequence[Tensor]
) -> Callable[[], Any] | None:
    """Return the step of a chain as a call that writes it and returns the new state.

    `None` if it must be composed: see NOTE [fused chains].
    """
    parts = _fused._roles(tx.transforms) if isinstance(tx, Chain) else None
    kernel = None if parts is None else _fused.KERNELS.get(type(parts.get("rule")))
    if parts is None or kernel is None or not _fused._does(kernel, parts):
        return None
    step_ = kernel.step_
    if step_ is None:
        return None
    if is_tree(parts["rate"].lr) or any(g is not None and g.dtype not in _FUSED for g in grads):
        return None
    present, before = Present(grads), dict(zip(parts, state, strict=True))
    columns = _fused._columns(kernel, before)
    counts = [present.pick(part.counts) for part in before.values() if hasattr(part, "counts")]
    steps = [count + 1 for count in counts[0]] if counts else [1] * len(present.pick(grads))
    arguments = {
        **{name: None for name in kernel.columns if name not in columns},
        **{name: present.pick(tree) for name, tree in columns.items()},
        **({"steps": steps} if kernel.counted else {}),
        **_fused._numbers(kernel, parts, before),
        **_fused._decay(kernel, parts, before, present, params),
        "params": present.pick(params),
        "maximize": "flip" in parts,
    }

    def write() -> Any:
        step_(grads=present.pick(grads), **arguments)
        return _fused._after(before, columns, lambda tree: present.put(tree, steps))

    return write
