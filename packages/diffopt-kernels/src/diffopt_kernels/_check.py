"""What one call asks for, checked once for both paths."""

import operator
from collections.abc import Callable, Sequence
from itertools import chain
from math import inf
from typing import Any

import torch
from torch import Tensor

from diffopt_kernels._native import Found
from diffopt_kernels._rule import Call, Rule, has_params

Number = float | Tensor | Sequence[float | Tensor]
Checked = float | Tensor | tuple[float, ...]


def check(
    rule: Rule,
    variant: int,
    grads: Sequence[Tensor],
    states: Sequence[Any],
    steps: int | Sequence[int],
    numbers: Sequence[Number],
    weight_decay: Number,
    params: Sequence[Tensor] | None,
    decoupled: bool,
    maximize: bool,
    applied: bool,
    look: Callable[..., Found | None],
) -> tuple[Call, tuple[Any, ...], Found | None]:
    """Return the call, its flat inputs, and where they lie if they may take the fused path.

    Raises what is wrong with the arguments. Tensors that may take it are known to be right, and
    are not looked at a second time.
    """
    each = zip(rule.names, (*numbers, weight_decay), rule.bounds, strict=True)
    hyper = tuple(check_number(name, value, below, grads) for name, value, below in each)
    plain = all(type(x) is float for x in hyper)
    decays = is_on(hyper[-1])
    if decays and params is None:
        raise ValueError("`params` must be given where there is `weight_decay`.")
    if applied and params is None:
        raise ValueError("`params` must be given where the updates are to be `applied`.")

    columns = (grads, *states) if params is None else (grads, *states, params)
    learned = [] if plain else [x for x in hyper if isinstance(x, Tensor)]
    found = look(columns, learned)
    if found is None:
        names = ("grads", *rule.states[variant], "params")[: len(columns)]
        check_tensors(dict(zip(names, columns, strict=True)))
        for name, value in zip(rule.names, hyper, strict=True):
            if isinstance(value, Tensor) and value.device.type != "cpu":
                _check_device(name, value, grads)

    kind = 0 if not decays else 2 if decoupled else 1
    steps = check_steps(steps, len(grads))
    call = Call(rule, variant, steps, kind, bool(maximize), bool(applied), plain)
    if params is not None and not has_params(call):
        columns = columns[:-1]
    return call, (*hyper, *chain.from_iterable(columns)), found


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
    for t in row:
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


def is_on(number: Any) -> bool:
    """Return whether a hyperparameter has an effect: unless it is the number 0, for all tensors."""
    if type(number) is float:
        return number != 0
    if isinstance(number, (list, tuple)):
        return any(is_on(x) for x in number)
    return isinstance(number, Tensor) or number != 0


def check_number(name: str, value: Any, below: float, grads: Sequence[Any]) -> Checked:
    """Return a hyperparameter that is right, for all tensors or one for each of them."""
    if isinstance(value, (list, tuple)):
        _check_length(name, value, grads)
        each = [_check_one(f"{name}[{i}]", x, below) for i, x in enumerate(value)]
        return _stack(each) if any(isinstance(x, Tensor) for x in each) else tuple(each)
    if isinstance(value, Tensor) and value.dim() == 1:
        _check_length(name, value, grads)
        return _check_dtype(name, value)
    return _check_one(name, value, below)


def _check_one(name: str, value: Any, below: float) -> Any:
    if isinstance(value, Tensor):
        # Its value is not looked at: on a device that would cost a synchronization, and under a
        # function transform there is none to look at.
        if value.dim() != 0:
            raise ValueError(
                f"`{name}` must be {_ALLOWED}, got shape {tuple(value.shape)}, {value.dtype}."
            )
        return _check_dtype(name, value)
    if isinstance(value, str) or not hasattr(value, "__float__"):
        raise TypeError(f"`{name}` must be {_ALLOWED}, got {type(value).__name__}.")
    number = float(value)
    # Negated so that a NaN is refused.
    if not (0 <= number < below or number == below == inf):
        allowed = "at least 0" if below == inf else f"in [0, {below:g})"
        raise ValueError(f"`{name}` must be {allowed}, got {number:g}.")
    return number


_ALLOWED = "a number or a 0-d floating-point tensor, or a list or 1-d tensor of one for each tensor"


def _check_dtype(name: str, value: Tensor) -> Tensor:
    if not value.is_floating_point():
        raise ValueError(f"`{name}` must be of a floating-point dtype, got {value.dtype}.")
    return value


def _check_length(name: str, values: Any, grads: Sequence[Any]) -> None:
    if len(values) != len(grads):
        raise ValueError(
            f"`{name}` must be one number, or as many as `grads`: "
            f"got {len(values)}, expected {len(grads)}."
        )


def _stack(numbers: Sequence[Any]) -> Tensor:
    """Return numbers, of which some are tensors, as one tensor; on a device if one of them is."""
    tensors = [x for x in numbers if isinstance(x, Tensor)]
    device = max((x.device for x in tensors), key=lambda device: device.type != "cpu")
    dtype = torch.float32 if device.type == "mps" else torch.float64
    return torch.stack(
        [
            x.to(device, dtype) if isinstance(x, Tensor)
            else torch.full((), x, dtype=dtype, device=device)
            for x in numbers
        ]
    )  # fmt: skip


def _check_device(name: str, value: Tensor, grads: Sequence[Tensor]) -> None:
    for i, grad in enumerate(grads):
        if grad.device != value.device:
            raise ValueError(
                f"`{name}` must be on the CPU or on the device of `grads[{i}]`: "
                f"got {value.device}, expected {grad.device}."
            )


def check_steps(steps: Any, count: int) -> tuple[int, ...]:
    """Return the step number of each tensor."""
    if type(steps) is int and steps > 0:
        return (steps,) * count
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
