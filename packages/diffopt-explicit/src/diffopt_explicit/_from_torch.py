"""Transforms from configured `torch.optim` optimizers."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from diffopt_explicit._optimizer import Optimizer
from diffopt_explicit._partition import freeze, partition
from diffopt_explicit._recipes import adadelta, adagrad, asgd, rmsprop, rprop, sgd
from diffopt_explicit._recipes_adam import adam, adamax, adamw, amsgrad, nadam, radam
from diffopt_explicit._recipes_large import adafactor, muon
from diffopt_explicit._rows import loaded, resumed, start
from diffopt_explicit._transform import Transform, Tree

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
    torch.optim.ASGD: (asgd, {"lr", "lambd", "alpha", "t0", "weight_decay", "maximize"}),
    torch.optim.Adafactor: (
        adafactor,
        {"lr", "beta2_decay", "eps", "d", "weight_decay", "maximize"},
    ),
    torch.optim.Muon: (
        muon,
        {"lr", "weight_decay", "momentum", "nesterov", "ns_coefficients", "eps", "ns_steps"}
        | {"adjust_lr_fn"},
    ),
}
_WITH_FLAGS = {torch.optim.Adam, torch.optim.AdamW}
_WITHOUT_EFFECT = {"params", "initial_lr", "foreach", "fused", "capturable", "differentiable"}


def from_torch(optimizer: torch.optim.Optimizer, params: Mapping[str, Tensor]) -> Transform:
    """Return the transform that goes on with what a `torch.optim` optimizer is doing.

    If the optimizer has made steps, the transform's `init` returns a copy of the state that it
    has now. What the optimizer does later is not followed.

    Args:
        optimizer: One of ``torch.optim`` (SGD, Adam, AdamW, Adamax, NAdam, RAdam, RMSprop,
            Adagrad, Adadelta, Rprop, ASGD, Adafactor, Muon) with any parameter groups, or an
            `Optimizer`.
        params: The parameters by name. Those that are in no group are left as they are.

    Raises:
        TypeError: For another kind of optimizer.
        ValueError: For a flag that has no counterpart here, or a parameter that requires grad
            and is not among `params`.

    Example:
        >>> import torch
        >>> from diffopt_explicit import from_torch
        >>> module = torch.nn.Linear(2, 1)
        >>> optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        >>> from_torch(optimizer, dict(module.named_parameters())).transforms
        {'frozen': Freeze(), 0: Chain(transforms=(ScaleByLearningRate(lr=0.1),))}
    """
    kind = type(optimizer)
    if kind not in _RECIPES and not isinstance(optimizer, Optimizer):
        raise TypeError(
            f"There is no differentiable counterpart of {kind.__module__}.{kind.__qualname__}; "
            f"there are those of {[known.__name__ for known in _RECIPES]}."
        )
    names = {id(param): name for name, param in params.items()}
    labels: dict[str, Hashable] = dict.fromkeys(params, "frozen")
    transforms: dict[Hashable, Transform] = {"frozen": freeze()}
    for index, group in enumerate(optimizer.param_groups):
        for position, param in enumerate(group["params"]):
            if id(param) in names:
                labels[names[id(param)]] = index
            elif param.requires_grad:
                raise ValueError(
                    f"Parameter {position} of the optimizer's group {index}, of shape "
                    f"{tuple(param.shape)}, is not a trainable parameter of the module."
                )
        own = {name: param if labels[name] == index else None for name, param in params.items()}
        transforms[index] = _going_on(_transform(optimizer, group), own, optimizer, group)
    return partition(transforms, labels)


@dataclass(frozen=True)
class GoingOn:
    """A transform that begins in the middle.

    Attributes:
        tx: The transform.
        state: Where it begins.
    """

    tx: Transform
    state: Any

    def init(self, params: Tree) -> Any:
        """Return the state to begin with, which is of these parameters."""
        return self.state

    def update(
        self, updates: Tree, state: Any, params: Tree | None = None, **extra: Any
    ) -> tuple[Tree, Any]:
        """Do what the transform does."""
        return self.tx.update(updates, state, params, **extra)


def _going_on(
    tx: Transform,
    params: dict[str, Tensor | None],
    optimizer: torch.optim.Optimizer,
    group: dict[str, Any],
) -> Transform:
    """The transform of a group with the state of its parameters, if there is any."""
    known = [{} if p is None else optimizer.state.get(p, {}) for p in params.values()]
    if not any(known) and "shared" not in group:
        return tx
    form, fresh, shared = start(tx, params)
    rows = [
        loaded(row, new, f"the parameter {name!r}")
        for name, row, new in zip(params, known, fresh, strict=True)
    ]
    rows, shared = resumed(fresh, shared, rows)
    return GoingOn(tx, form.state(rows, {**shared, **group.get("shared", {})}, params))


def _transform(optimizer: torch.optim.Optimizer, group: dict[str, Any]) -> Transform:
    """The transform of a parameter group; refuses a flag that would be lost."""
    if isinstance(optimizer, Optimizer):
        return optimizer.transform(group)
    kind = type(optimizer)
    recipe, known = _RECIPES[kind]
    implied: set[str] = set()
    if kind in _WITH_FLAGS:
        recipe = adamw if group["decoupled_weight_decay"] else adam
        implied = {"amsgrad", "decoupled_weight_decay"}
        if group["amsgrad"]:
            recipe, known = amsgrad, _ADAM | _DECOUPLED
    for flag, value in group.items():
        if value and flag not in known | _WITHOUT_EFFECT | implied:
            raise ValueError(f"`{flag}={value!r}` of torch.optim.{kind.__name__} is not supported.")
    return recipe(**{name: group[name] for name in known})
