"""What users pass as a quadratic program, checked."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from diffopt_implicit._torch import any_true


def checked_objective(params_obj: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Refuse an objective that is none."""
    Q, c = tensors_of("params_obj", params_obj, "(Q, c)")
    if c.dim() != 1 or Q.shape != (len(c), len(c)):
        raise ValueError(
            "`params_obj` must be `(Q, c)` of the shapes (n, n) and (n,), got "
            f"{tuple(Q.shape)} and {tuple(c.shape)}. Map over batches with `torch.func.vmap`."
        )
    return Q, c


def equation(params_eq: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Return rows and their bounds, which are equal."""
    A, b = tensors_of("params_eq", params_eq, "(A, b)")
    return A, b, b


def bounds(params_ineq: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """Return rows and their bounds, infinite where none is given."""
    G, *ends = tensors_of("params_ineq", params_ineq, "(G, upper)", "(G, lower, upper)")
    lower = ends[0] if len(ends) == 2 else torch.full_like(ends[0], -torch.inf)
    return G, lower, ends[-1]


def tensors_of(name: str, given: Any, *forms: str) -> tuple[Tensor, ...]:
    """Refuse what is no tuple of tensors of one of the forms."""
    parts = tuple(given) if isinstance(given, (tuple, list)) else (given,)
    fits = any(len(parts) == form.count(",") + 1 for form in forms)
    if not fits or not all(isinstance(part, Tensor) for part in parts):
        kinds = ", ".join(type(part).__name__ for part in parts)
        raise TypeError(
            f"`{name}` must be tensors `{'` or `'.join(forms)}`, got ({kinds}). Make tensors of "
            "numbers and lists with `torch.tensor`."
        )
    return parts


def checked_rows(
    name: str, c: Tensor, C: Tensor, lower: Tensor, upper: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Refuse rows and bounds that do not fit."""
    if C.dim() != 2 or C.shape[1] != len(c) or not C.shape[:1] == lower.shape == upper.shape:
        raise ValueError(
            f"`{name}` must hold a matrix of the shape (m, {len(c)}) and bounds of the shape (m,), "
            f"got {tuple(C.shape)}, {tuple(lower.shape)} and {tuple(upper.shape)}."
        )
    if any_true((lower > upper) | lower.isnan() | upper.isnan()):
        raise ValueError(f"In `{name}` a lower bound is above its upper one, or NaN.")
    return C, lower, upper
