"""Transforms from configured `torch.optim` optimizers."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Any

import torch
from torch import Tensor

from diffopt_explicit._partition import freeze, partition
from diffopt_explicit._recipes import adam, adamw, sgd
from diffopt_explicit._transform import Transform

_RECIPES: dict[type[torch.optim.Optimizer], Callable[..., Transform]] = {
    torch.optim.SGD: sgd,
    torch.optim.Adam: adam,
    torch.optim.AdamW: adamw,
}
_HYPERPARAMETERS: dict[type[torch.optim.Optimizer], set[str]] = {
    torch.optim.SGD: {"lr", "momentum", "dampening", "weight_decay", "nesterov", "maximize"},
    torch.optim.Adam: {"lr", "betas", "eps", "weight_decay", "maximize"},
    torch.optim.AdamW: {"lr", "betas", "eps", "weight_decay", "maximize"},
}
_IMPLIED: dict[type[torch.optim.Optimizer], set[str]] = {
    torch.optim.AdamW: {"decoupled_weight_decay"},
}
_WITHOUT_EFFECT = {"params", "initial_lr", "foreach", "fused", "capturable", "differentiable"}


def from_torch(optimizer: torch.optim.Optimizer, params: Mapping[str, Tensor]) -> Transform:
    """Return the transform that does what a new `torch.optim` optimizer is set up to do.

    Args:
        optimizer: A ``torch.optim.SGD``, ``Adam`` or ``AdamW``, with any parameter groups,
            that has not made a step yet.
        params: The parameters by name. Those that are in no group are left as they are.

    Raises:
        TypeError: For another kind of optimizer.
        ValueError: For a flag that has no counterpart here, a parameter that is not among
            `params`, or an optimizer that has made steps, whose state would be lost.

    Example:
        >>> import torch
        >>> from diffopt_explicit import from_torch
        >>> module = torch.nn.Linear(2, 1)
        >>> optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        >>> from_torch(optimizer, dict(module.named_parameters())).transforms
        {'frozen': Freeze(), 0: Chain(transforms=(ScaleByLearningRate(lr=0.1),))}
    """
    kind = type(optimizer)
    if kind not in _RECIPES:
        raise TypeError(
            f"There is no differentiable counterpart of {kind.__module__}.{kind.__qualname__}; "
            f"there are those of {[known.__name__ for known in _RECIPES]}."
        )
    if optimizer.state:
        raise ValueError(
            "The optimizer has made steps already, and its state (momentum, moments) would be "
            "lost. Give a new optimizer, or a transform together with its state."
        )
    names = {id(param): name for name, param in params.items()}
    labels: dict[str, Hashable] = dict.fromkeys(params, "frozen")
    transforms: dict[Hashable, Transform] = {"frozen": freeze()}
    for index, group in enumerate(optimizer.param_groups):
        transforms[index] = _RECIPES[kind](**_settings(kind, group))
        for position, param in enumerate(group["params"]):
            if id(param) not in names:
                raise ValueError(
                    f"Parameter {position} of the optimizer's group {index}, of shape "
                    f"{tuple(param.shape)}, is not a trainable parameter of the module."
                )
            labels[names[id(param)]] = index
    return partition(transforms, labels)


def _settings(kind: type[torch.optim.Optimizer], group: dict[str, Any]) -> dict[str, Any]:
    """The hyperparameters of a parameter group; refuses a flag that would be lost."""
    known = _HYPERPARAMETERS[kind]
    for flag, value in group.items():
        if value and flag not in known | _WITHOUT_EFFECT | _IMPLIED.get(kind, set()):
            raise ValueError(f"`{flag}={value!r}` of torch.optim.{kind.__name__} is not supported.")
    return {name: group[name] for name in known}
