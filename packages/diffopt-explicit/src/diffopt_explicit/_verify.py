"""Telling states of a run apart without keeping them."""

from __future__ import annotations

import math
from typing import TypeAlias

import torch
from torch import Tensor

from diffopt_explicit._outside import differentiable
from diffopt_explicit._transform import Tree
from diffopt_explicit._trees import tree_leaves, wide

Fingerprint: TypeAlias = list[float]
# So many elements of a tensor are looked at: all of them would take as long as a fused step.
SAMPLE = 1024


def fingerprint(carry: Tree) -> Fingerprint:
    """The norm of each leaf, or of a sample of its elements."""
    return [_norm(leaf.detach()) for leaf in tree_leaves(carry) if differentiable(leaf)]


def is_alike(expected: Fingerprint, carry: Tree) -> bool:
    """Whether a state has this fingerprint, to half the digits of its dtype."""
    found, leaves = fingerprint(carry), filter(differentiable, tree_leaves(carry))
    dtypes = {leaf.dtype for leaf in leaves}
    return len(found) == len(expected) and all(
        agree(one, other, *dtypes) for one, other in zip(found, expected, strict=True)
    )


def agree(one: float, other: float, *dtypes: torch.dtype) -> bool:
    """Whether two numbers are the same, to half the digits of the coarsest of some dtypes."""
    tolerance = max(torch.finfo(dtype).eps for dtype in dtypes) ** 0.5
    return math.isclose(one, other, rel_tol=tolerance) or (math.isnan(one) and math.isnan(other))


def _norm(tensor: Tensor) -> float:
    if tensor.numel() > SAMPLE:
        tensor = tensor.reshape(-1)[:: tensor.numel() // SAMPLE]
    return torch.linalg.vector_norm(wide(tensor)).item()
