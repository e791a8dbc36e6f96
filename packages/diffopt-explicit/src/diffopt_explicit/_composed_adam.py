"""The Adam step in ordinary torch operations, for where `diffopt_kernels` is not installed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from diffopt_explicit._elementwise import safe_sqrt
from diffopt_explicit._hyperparameter import Scalar


def adam_step(
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    steps: Sequence[int],
    *,
    lr: Scalar,
    betas: tuple[Scalar, Scalar],
    eps: Scalar,
    eps_root: Scalar = 0.0,
    weight_decay: Scalar = 0.0,
    params: Sequence[Tensor] | None = None,
    decoupled: bool = False,
    maximize: bool = False,
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Return updates and new moments of each tensor; see `diffopt_kernels.adam_step`.

    Half-precision tensors are computed with in float32, so that `eps` does not vanish.
    """
    moved = []
    for index, (g, m, v, step) in enumerate(zip(grads, exp_avgs, exp_avg_sqs, steps, strict=True)):
        dtype = torch.promote_types(g.dtype, torch.float32)
        p = torch.zeros((), dtype=dtype) if params is None else params[index].to(dtype)
        hyperparameters = (lr, *betas, eps, eps_root, weight_decay)
        step_of_one = _adam(
            *(-g.to(dtype) if maximize else g.to(dtype), m.to(dtype), v.to(dtype), p, step),
            *hyperparameters,
            decoupled=decoupled,
        )
        moved.append([new.to(g.dtype) for new in step_of_one])
    updates, new_exp_avgs, new_exp_avg_sqs = zip(*moved, strict=True) if moved else ((), (), ())
    return list(updates), list(new_exp_avgs), list(new_exp_avg_sqs)


def _adam(
    g: Tensor,
    m: Tensor,
    v: Tensor,
    p: Tensor,
    t: int,
    lr: Scalar,
    beta1: Scalar,
    beta2: Scalar,
    eps: Scalar,
    eps_root: Scalar,
    weight_decay: Scalar,
    *,
    decoupled: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    decays = isinstance(weight_decay, Tensor) or weight_decay != 0
    if decays and not decoupled:
        g = g + weight_decay * p
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * g * g
    direction = m / (1 - beta1**t) / (safe_sqrt(v / (1 - beta2**t) + eps_root) + eps)
    if decays and decoupled:
        direction = direction + weight_decay * p
    return -lr * direction, m, v
