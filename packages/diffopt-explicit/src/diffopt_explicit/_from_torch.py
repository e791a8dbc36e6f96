"""Transforms from configured `torch.optim` optimizers."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor

from diffopt_explicit._partition import freeze, partition
from diffopt_explicit._recipes import (
    adadelta,
    adagrad,
    adam,
    adamax,
    adamw,
    amsgrad,
    nadam,
    radam,
    rmsprop,
    rprop,
    sgd,
)
from diffopt_explicit._transform import Transform

_Kind: TypeAlias = type[torch.optim.Optimizer]
_ADAM = {"lr", "betas", "eps", "weight_decay", "maximize"}
_DECOUPLED = {"decoupled_weight_decay"}

_RECIPES: dict[_Kind, tuple[Callable[..., Transform], set[str]]] = {
    torch.optim.SGD: (
        sgd,
        {"lr", "momentum", "dampening", "weight_decay", "nesterov", "maximize"},
    ),
    torch.optim.Adam: (adam, _ADAM),
    torch.optim.AdamW: (adamw, _ADAM),
    torch.optim.Adamax: (adamax, _ADAM),
    torch.optim.NAdam: (nadam, _ADAM | _DECOUPLED | {"momentum_decay"}),
    torch.optim.RAdam: (radam, _ADAM | _DECOUPLED),
    torch.optim.RMSprop: (
        rmsprop,
        {"lr", "alpha", "eps", "weight_decay", "momentum", "centered", "maximize"},
    ),
    torch.optim.Adagrad: (
        adagrad,
        {"lr", "lr_decay", "weight_decay", "initial_accumulator_value", "eps", "maximize"},
    ),
    torch.optim.Adadelta: (adadelta, {"lr", "rho", "eps", "weight_decay", "maximize"}),
    torch.optim.Rprop: (rprop, {"lr", "etas", "step_sizes", "maximize"}),
}
_WITH_AMSGRAD = {torch.optim.Adam, torch.optim.AdamW}
_WITHOUT_EFFECT = {"params", "initial_lr", "foreach", "fused", "capturable", "differentiable"}


def from_torch(optimizer: torch.optim.Optimizer, params: Mapping[str, Tensor]) -> Transform:
    """Return the transform that does what a new `torch.optim` optimizer is set up to do.

    Args:
        optimizer: One of ``torch.optim`` (SGD, Adam, AdamW, Adamax, NAdam, RAdam, RMSprop,
            Adagrad, Adadelta, Rprop) with any parameter groups, that has not made a step yet.
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
    # Adagrad has its state from the beginning; other states without a count are of steps made.
    if any(state.get("step", 1) for state in optimizer.state.values()):
        raise ValueError(
            "The optimizer has made steps already, and its state (momentum, moments) would be "
            "lost. Give a new optimizer, or a transform together with its state."
        )
    names = {id(param): name for name, param in params.items()}
    labels: dict[str, Hashable] = dict.fromkeys(params, "frozen")
    transforms: dict[Hashable, Transform] = {"frozen": freeze()}
    for index, group in enumerate(optimizer.param_groups):
        transforms[index] = _transform(kind, group)
        for position, param in enumerate(group["params"]):
            if id(param) not in names:
                raise ValueError(
                    f"Parameter {position} of the optimizer's group {index}, of shape "
                    f"{tuple(param.shape)}, is not a trainable parameter of the module."
                )
            labels[names[id(param)]] = index
    return partition(transforms, labels)


def _transform(kind: _Kind, group: dict[str, Any]) -> Transform:
    """The transform of a parameter group; refuses a flag that would be lost."""
    recipe, known = _RECIPES[kind]
    if kind in _WITH_AMSGRAD and group["amsgrad"]:
        recipe, known = amsgrad, _ADAM | _DECOUPLED
    implied = {"amsgrad": recipe is amsgrad, "decoupled_weight_decay": kind is torch.optim.AdamW}
    for flag, value in group.items():
        if value and flag not in known | _WITHOUT_EFFECT and not implied.get(flag):
            raise ValueError(f"`{flag}={value!r}` of torch.optim.{kind.__name__} is not supported.")
    return recipe(**{name: group[name] for name in known})
