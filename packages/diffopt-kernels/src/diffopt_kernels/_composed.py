"""The formulas in ordinary torch operations: any device, dtype, transform and order."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from diffopt_kernels._rule import Call, depth, has_params, split


def step(call: Call, inputs: tuple[Any, ...]) -> list[Tensor]:
    """Return the updates, or the new parameters, then each column of new states."""
    columns = _step_wide(call, inputs)
    width = call.rule.width
    grads = inputs[width : width + len(call.steps)]
    return [
        wide.to(grad.dtype) for column in columns for wide, grad in zip(column, grads, strict=True)
    ]


@torch.no_grad()
def step_(call: Call, inputs: tuple[Any, ...], params: list[Tensor]) -> None:
    """Write the new parameters and states over the old ones."""
    updates, *new = _step_wide(call, inputs)
    _, (_, *old) = split(call, inputs)
    moved = [p.to(u.dtype) + u for p, u in zip(params, updates, strict=True)]
    for before, after in zip([params, *old], [moved, *new], strict=False):
        for x, y in zip(before, after, strict=True):
            x.copy_(y)


def vjp(
    call: Call,
    inputs: tuple[Any, ...],
    cotangents: Sequence[Tensor | None],
    needed: Sequence[bool],
) -> list[Tensor | None]:
    """Return the cotangents of inputs where needed, with a graph if one is asked for."""
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        # Aliases, because one input may be computed from another (a moment from a gradient): asked
        # for the inputs themselves, autograd would follow that path too and count it twice.
        aliases = tuple(x.view_as(x) if need else x for x, need in zip(inputs, needed, strict=True))
        outputs = step(call, aliases)
        pairs = [
            (output, cotangent)
            for output, cotangent in zip(outputs, cotangents, strict=True)
            if cotangent is not None and output.requires_grad
        ]
        if not pairs:
            return [None] * len(inputs)
        found = iter(
            torch.autograd.grad(
                [output for output, _ in pairs],
                [alias for alias, need in zip(aliases, needed, strict=True) if need],
                [cotangent for _, cotangent in pairs],
                create_graph=create_graph,
                allow_unused=True,
            )
        )
    return [next(found) if need else None for need in needed]


def _step_wide(call: Call, inputs: tuple[Any, ...]) -> list[list[Tensor]]:
    numbers, columns = split(call, inputs)
    rows = zip(*[_for_each(widest(x), len(call.steps)) for x in numbers], strict=True)
    results: list[list[Tensor]] = [[] for _ in range(1 + depth(call))]
    for i, (step, numbers) in enumerate(zip(call.steps, rows, strict=True)):
        lr, weight_decay = numbers[0], numbers[-1]
        row = [_widened(column[i]) for column in columns]
        g, states = row[0], row[1 : 1 + depth(call)]
        p = row[-1] if has_params(call) else None

        if call.maximize:
            g = -g
        if p is not None and call.decay == 1:
            g = g + like(weight_decay, g) * p
        u, *states = call.rule.formula(call.variant, step, numbers, g, states)
        if p is not None and call.decay == 2:
            u = u - like(lr * weight_decay, p) * p
        if p is not None and call.applied:
            u = p + u

        for column, result in zip(results, (u, *states), strict=True):
            column.append(result)
    return results


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
def widest(number: Any) -> Any:
    """Return a number as what it is computed with."""
    # As Python's floats: 1 - beta would lose digits in float32. (MPS has no float64.)
    if isinstance(number, Tensor) and number.device.type != "mps":
        return number.to(torch.float64)
    return number


def _for_each(number: Any, count: int) -> Sequence[Any]:
    if isinstance(number, Tensor):
        return number.unbind() if number.dim() else [number] * count
    return number if isinstance(number, tuple) else [number] * count


def like(number: Any, tensor: Tensor) -> Any:
    """Return a number such that the product with the tensor keeps the tensor's dtype."""
    # A float64 number would otherwise make a 0-d float32 tensor float64.
    return number.to(tensor.dtype) if isinstance(number, Tensor) else number
