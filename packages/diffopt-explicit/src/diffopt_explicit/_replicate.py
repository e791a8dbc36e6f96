"""Ways of taking a tensor: itself, a clone on its graph, a clone off it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

By: TypeAlias = Literal["reference", "copy", "deepcopy"]
Device: TypeAlias = torch.device | str | int | None


def replicator(by: str, device: Device) -> Callable[[Tensor], Tensor]:
    """How tensors are taken."""

    def deepcopy(tensor: Tensor) -> Tensor:
        new = tensor.detach().to(device, copy=True).requires_grad_(tensor.requires_grad)
        is_parameter = isinstance(tensor, nn.Parameter)
        return nn.Parameter(new, tensor.requires_grad) if is_parameter else new

    kinds: dict[str, Callable[[Tensor], Tensor]] = {
        "reference": lambda tensor: tensor if device is None else tensor.to(device),
        "copy": lambda tensor: tensor.to(device, copy=True),
        "deepcopy": deepcopy,
    }
    if by not in kinds:
        raise ValueError(f"`by` must be one of {list(kinds)}, got {by!r}.")
    return kinds[by]
