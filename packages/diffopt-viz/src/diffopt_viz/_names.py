"""Names of tensors, from whatever the user has them in."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields as fields_of
from dataclasses import is_dataclass
from typing import Any

import torch
from torch import Tensor, nn


def named_tensors(source: Any) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors in modules, optimizers and trees, with dotted names.

    A module's parameters and buffers have the module's own names for them; an item of a
    mapping is named by its key, one of a sequence by its index, a field of a named tuple or
    dataclass by its name. A `torch.optim` optimizer's tensors are called as in its `state_dict`:
    ``state.0.exp_avg`` is of its first parameter, ``param_groups.0.lr`` of its first group.
    A pair of a string and a tensor, as `named_parameters` gives, is named by the string.
    """
    pending: list[tuple[str, Any]] = [("", source)]
    while pending:
        name, value = pending.pop()
        if isinstance(value, Tensor):
            yield name or "tensor", value
        else:
            pending.extend(reversed([(_join(name, key), part) for key, part in _parts(value)]))


def _parts(value: Any) -> list[tuple[str, Any]]:
    if isinstance(value, nn.Module):
        return [
            *value.named_parameters(remove_duplicate=False),
            *value.named_buffers(remove_duplicate=False),
        ]
    if isinstance(value, torch.optim.Optimizer):
        groups = value.param_groups
        params = [param for group in groups for param in group["params"]]
        state = {k: value.state[param] for k, param in enumerate(params) if param in value.state}
        settings = [{k: v for k, v in group.items() if k != "params"} for group in groups]
        return [("state", state), ("param_groups", settings)]
    if isinstance(value, Mapping):
        return [(str(key), part) for key, part in value.items()]
    fields = getattr(value, "_fields", None)
    if isinstance(value, tuple) and fields:
        return list(zip(fields, value, strict=True))
    if is_dataclass(value) and not isinstance(value, type):
        return [(field.name, getattr(value, field.name)) for field in fields_of(value)]
    if isinstance(value, Iterable) and not isinstance(value, (str, bytes)):
        return [part if _is_named(part) else (str(index), part) for index, part in enumerate(value)]
    return []


def _is_named(part: Any) -> bool:
    return (
        isinstance(part, tuple)
        and len(part) == 2
        and isinstance(part[0], str)
        and isinstance(part[1], Tensor)
    )


def _join(prefix: str, name: str) -> str:
    if not prefix:
        return name
    # "step 3" is a label, not a part of a module's path
    return f"{prefix} / {name}" if " " in prefix else f"{prefix}.{name}"


def operation_name(function: Any) -> str:
    """The operation behind autograd's name for a node: ``mean`` for ``MeanBackward1``."""
    name = re.sub(r"Backward\d*$", "", function.name().rpartition("::")[2]).strip("_")
    return re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z0-9])(?=[A-Z][a-z])", "_", name).lower()
