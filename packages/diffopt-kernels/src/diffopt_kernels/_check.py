"""What one call asks for, checked once for both paths."""

import operator
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

HYPER = ("lr", "betas[0]", "betas[1]", "eps", "eps_root", "weight_decay")


class AdamCall(NamedTuple):
    """What a step is told besides its inputs.

    The inputs are one flat tuple, as an autograd function needs them: the six numbers of
    `HYPER`, then all gradients, all first moments, all second moments and, if `has_params`,
    all parameters.
    """

    steps: tuple[int, ...]  # one a tensor
    has_params: bool  # which is to say, there is weight decay
    decoupled: bool
    maximize: bool


def check_adam(
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    steps: int | Sequence[int],
    lr: float | Tensor,
    betas: tuple[float | Tensor, float | Tensor],
    eps: float | Tensor,
    eps_root: float | Tensor,
    weight_decay: float | Tensor,
    params: Sequence[Tensor] | None,
    decoupled: bool,
    maximize: bool,
) -> tuple[AdamCall, tuple[Any, ...]]:
    """Return the call and its flat inputs, or raise what is wrong with the arguments."""
    if not isinstance(betas, (tuple, list)) or len(betas) != 2:
        raise ValueError(f"`betas` must be a pair, got {betas!r}.")
    hyper = tuple(
        _check_number(name, value, below=1.0 if name.startswith("betas") else None)
        for name, value in zip(
            HYPER, (lr, betas[0], betas[1], eps, eps_root, weight_decay), strict=True
        )
    )
    decay = hyper[-1]
    has_params = isinstance(decay, Tensor) or decay != 0
    if has_params and params is None:
        raise ValueError("`params` must be given where there is `weight_decay`.")

    columns: dict[str, Sequence[Tensor]] = {
        "grads": grads,
        "exp_avgs": exp_avgs,
        "exp_avg_sqs": exp_avg_sqs,
    }
    if params is not None:
        columns["params"] = params
    check_tensors(columns)
    for name, value in zip(HYPER, hyper, strict=True):
        if isinstance(value, Tensor) and value.device.type != "cpu":
            _check_device(name, value, grads)

    call = AdamCall(_check_steps(steps, len(grads)), has_params, decoupled, maximize)
    if has_params and params is not None:
        return call, (*hyper, *grads, *exp_avgs, *exp_avg_sqs, *params)
    return call, (*hyper, *grads, *exp_avgs, *exp_avg_sqs)


def check_tensors(columns: dict[str, Sequence[Tensor]]) -> None:
    """Raise unless these lists match the first of them in length, shape, dtype and device."""
    for name, column in columns.items():
        if not isinstance(column, (list, tuple)):
            raise TypeError(f"`{name}` must be a list of tensors, got {type(column).__name__}.")
    first = next(iter(columns))
    for name, column in columns.items():
        if len(column) != len(columns[first]):
            raise ValueError(
                f"`{name}` must be as long as `{first}`: "
                f"got {len(column)}, expected {len(columns[first])}."
            )
    for i, row in enumerate(zip(*columns.values(), strict=True)):
        if not _match(row):
            for name, tensor in zip(columns, row, strict=True):
                _check_tensor(f"{name}[{i}]", tensor, f"{first}[{i}]", row[0])


def _match(row: tuple[Any, ...]) -> bool:
    like = row[0]
    if not isinstance(like, Tensor) or not like.is_floating_point():
        return False
    shape, dtype, device = like.shape, like.dtype, like.device
    for t in row:  # a loop, and not `all`, because this is a good part of a small step
        if (
            not isinstance(t, Tensor)
            or t.dtype is not dtype
            or t.shape != shape
            or t.device != device
            or t.layout is not torch.strided
        ):
            return False
    return True


def _check_tensor(name: str, tensor: Any, like_name: str, like: Tensor) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"`{name}` must be a tensor, got {type(tensor).__name__}.")
    if tensor.layout is not torch.strided:
        raise ValueError(f"`{name}` must be dense, got layout {tensor.layout}.")
    if not tensor.is_floating_point():
        raise ValueError(f"`{name}` must be of a floating-point dtype, got {tensor.dtype}.")
    if tensor.shape != like.shape:
        raise ValueError(
            f"`{name}` must be shaped like `{like_name}`: "
            f"got {tuple(tensor.shape)}, expected {tuple(like.shape)}."
        )
    if tensor.dtype != like.dtype:
        raise ValueError(
            f"`{name}` must have the dtype of `{like_name}`: "
            f"got {tensor.dtype}, expected {like.dtype}."
        )
    if tensor.device != like.device:
        raise ValueError(
            f"`{name}` must be on the device of `{like_name}`: "
            f"got {tensor.device}, expected {like.device}."
        )


def _check_number(name: str, value: Any, below: float | None) -> float | Tensor:
    if isinstance(value, Tensor):
        # Its value is not looked at: on a device that would cost a synchronization, and under a
        # function transform there is none to look at.
        if value.dim() != 0 or not value.is_floating_point():
            raise ValueError(
                f"`{name}` must be a number or a 0-d floating-point tensor, "
                f"got shape {tuple(value.shape)}, {value.dtype}."
            )
        return value
    if isinstance(value, str) or not hasattr(value, "__float__"):
        raise TypeError(
            f"`{name}` must be a number or a 0-d floating-point tensor, got {type(value).__name__}."
        )
    number = float(value)
    # Claims are negated so that a NaN is refused.
    if below is not None:
        if not 0 <= number < below:
            raise ValueError(f"`{name}` must be in [0, {below:g}), got {number:g}.")
    elif not number >= 0:
        raise ValueError(f"`{name}` must be at least 0, got {number:g}.")
    return number


def _check_device(name: str, value: Tensor, grads: Sequence[Tensor]) -> None:
    for i, grad in enumerate(grads):
        if grad.device != value.device:
            raise ValueError(
                f"`{name}` must be on the CPU or on the device of `grads[{i}]`: "
                f"got {value.device}, expected {grad.device}."
            )


def _check_steps(steps: Any, count: int) -> tuple[int, ...]:
    listed = isinstance(steps, (list, tuple))
    if listed and len(steps) != count:
        raise ValueError(f"`steps` must be as long as `grads`: got {len(steps)}, expected {count}.")
    checked = tuple(_integer(step) for step in (steps if listed else (steps,)))
    for i, step in enumerate(checked):
        if step < 1:
            name = f"steps[{i}]" if listed else "steps"
            raise ValueError(f"`{name}` must count from 1, got {step}.")
    return checked if listed else checked * count


def _integer(step: Any) -> int:
    if isinstance(step, int):  # `index` would make torch.compile compile each step anew
        return step
    try:
        return operator.index(step)
    except TypeError:
        raise TypeError(f"`steps` must be an integer or a list of them, got {step}.") from None
