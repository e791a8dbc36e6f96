"""The inputs of a step in a row: hyperparameters, then the columns of its tensors."""

import functools
from collections.abc import Sequence
from typing import Any

import torch

from diffopt_kernels import _composed
from diffopt_kernels._rule import Call


def in_columns(flat: Sequence[Any], count: int) -> list[Sequence[Any]]:
    """Return the pieces of `count` each, one for every tensor."""
    return [flat[k : k + count] for k in range(0, len(flat), count)]


def merged(known: Sequence[Any], flat: Sequence[Any]) -> tuple[Sequence[Any], Sequence[Any]]:
    """Return what stands for each hyperparameter, from `flat` where it is None, and the rest."""
    missing = known.count(None)
    if not missing:
        return known, flat
    head = iter(flat)
    return [next(head) if x is None else x for x in known], flat[missing:]


def merged_needs(call: Call, known: Sequence[Any], needed: Sequence[bool]) -> tuple[Any, Any]:
    """Return the same of whether a derivative is needed."""
    if call.plain:
        return (False,) * len(known), needed
    of_numbers, of_arrays = merged([None if x is None else False for x in known], needed)
    return tuple(of_numbers), of_arrays


def constant_outputs(call: Call, known: Sequence[Any], needed: tuple[bool, ...]) -> list[int]:
    """Return the places of outputs that no input that requires grad enters."""
    count = len(call.steps)
    of_numbers, of_arrays = merged_needs(call, known, needed)
    constant = []
    for i, (step, *row) in enumerate(zip(call.steps, *in_columns(of_arrays, count), strict=True)):
        one = call._replace(steps=(1 if step == 1 else 2,), maximize=False, plain=False)
        constant += [k * count + i for k in _constant_of_one(one, of_numbers, tuple(row))]
    return constant


@functools.cache
def _constant_of_one(call: Call, numbers: tuple[bool, ...], row: tuple[bool, ...]) -> list[int]:
    # The composed formula is asked: it is the only place that says what enters where.
    half = torch.full((), 0.5, dtype=torch.float64, device="cpu")
    inputs = tuple(half.clone().requires_grad_(need) for need in (*numbers, *row))
    # The user's hooks on saved tensors have no business here.
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: x):
        return [k for k, t in enumerate(_composed.step(call, inputs)) if not t.requires_grad]
