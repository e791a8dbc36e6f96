"""The formulas in ordinary torch operations: any device, dtype, transform and order."""

from typing import Any

import torch
from torch import Tensor

from diffopt_kernels._check import AdamCall


def adam(call: AdamCall, inputs: tuple[Any, ...]) -> list[Tensor]:
    """Return the updates, then the first moments, then the second moments."""
    updates, exp_avgs, exp_avg_sqs = _adam_wide(call, inputs)
    grads = inputs[6 : 6 + len(updates)]
    return [
        wide.to(grad.dtype)
        for column in (updates, exp_avgs, exp_avg_sqs)
        for wide, grad in zip(column, grads, strict=True)
    ]


@torch.no_grad()
def adam_(call: AdamCall, inputs: tuple[Any, ...], params: list[Tensor]) -> None:
    """Write the new parameters and moments over the old ones."""
    count = len(params)
    updates, exp_avgs, exp_avg_sqs = _adam_wide(call, inputs)
    new_params = [p.to(u.dtype) + u for p, u in zip(params, updates, strict=True)]
    old = (*params, *inputs[6 + count : 6 + 3 * count])
    for before, after in zip(old, (*new_params, *exp_avgs, *exp_avg_sqs), strict=True):
        before.copy_(after)


def _adam_wide(
    call: AdamCall, inputs: tuple[Any, ...]
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    count = len(call.steps)
    lr, beta1, beta2, eps, eps_root, weight_decay = (_widest(x) for x in inputs[:6])
    tensors = inputs[6:]
    updates, exp_avgs, exp_avg_sqs = [], [], []
    for i, step in enumerate(call.steps):
        g, m, v = (_widened(tensors[k * count + i]) for k in range(3))
        p = _widened(tensors[3 * count + i]) if call.has_params else None

        if call.maximize:
            g = -g
        if p is not None and not call.decoupled:
            g = g + _like(weight_decay, g) * p
        m = _like(beta1, m) * m + _like(1 - beta1, m) * g
        v = _like(beta2, v) * v + _like(1 - beta2, v) * (g * g)
        radicand = v * _like(1 / (1 - beta2**step), v)
        if isinstance(eps_root, Tensor) or eps_root != 0:
            radicand = radicand + _like(eps_root, v)
        denominator = root_or_zero(radicand) + _like(eps, v)
        u = _like(-lr / (1 - beta1**step), m) * m / denominator
        if p is not None and call.decoupled:
            u = u - _like(lr * weight_decay, p) * p

        updates.append(u)
        exp_avgs.append(m)
        exp_avg_sqs.append(v)
    return updates, exp_avgs, exp_avg_sqs


# NOTE [root of zero]
# A coordinate that never had a gradient has v = 0, and there the derivative of sqrt(v) is
# infinite: times the derivative of v = g^2, which is 0, it makes NaN of the whole gradient.
# Yet Adam's first step, -lr g / (|g| + eps), has the derivative -lr / eps at g = 0: there |g|
# enters only times g. So any finite choice for the derivative of |g| gives the exact result, and
# the one that favours neither side is 0. Higher derivatives jump at g = 0, between values of
# opposite sign, and 0 is again the middle. Hence: where the radicand is exactly 0, its root
# is the constant 0. A root of 0 put in by `where` would not do, since the derivative of the
# branch not taken is 0 times infinity: the radicand itself must be replaced first.
def root_or_zero(radicand: Tensor) -> Tensor:
    """Return the square root, whose derivatives at 0 are taken as 0."""
    is_zero = radicand == 0
    return radicand.masked_fill(is_zero, 1).sqrt().masked_fill(is_zero, 0)


def _widened(tensor: Tensor) -> Tensor:
    narrow = tensor.dtype in (torch.float16, torch.bfloat16)
    return tensor.to(torch.float32) if narrow else tensor


# Numbers are Any below: a float stays one, a tensor stays one.
def _widest(number: Any) -> Any:
    # As Python's floats: 1 - beta would lose digits in float32. (MPS has no float64.)
    if isinstance(number, Tensor) and number.device.type != "mps":
        return number.to(torch.float64)
    return number


def _like(number: Any, tensor: Tensor) -> Any:
    # A float64 number would otherwise make a 0-d float32 tensor float64.
    return number.to(tensor.dtype) if isinstance(number, Tensor) else number
