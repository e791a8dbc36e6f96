"""Optimizers that keep the graph, under the names of their recipes."""

from __future__ import annotations

from typing import Any

from torch import nn

from diffopt_explicit._meta_optimizer import MetaOptimizer
from diffopt_explicit._named import Named
from diffopt_explicit._recipes import adadelta, adagrad, asgd, rmsprop, rprop, sgd
from diffopt_explicit._recipes_adam import adam, adamax, adamw, amsgrad, nadam, radam
from diffopt_explicit._recipes_large import adafactor, lamb, lars, lion, muon


class NamedMetaOptimizer(Named, MetaOptimizer):
    """A `MetaOptimizer` with the transform of a recipe."""

    def __init__(self, module: nn.Module, *args: Any, **kwargs: Any) -> None:
        super().__init__(module, type(self).recipe(*args, **kwargs))


class MetaSGD(NamedMetaOptimizer, recipe=sgd):
    """`MetaOptimizer` with `sgd`: same arguments, same defaults.

    Example:
        >>> import torch
        >>> from diffopt_explicit import MetaSGD
        >>> optimizer = MetaSGD(torch.nn.Linear(2, 1), lr=torch.tensor(0.1, requires_grad=True))
    """


class MetaAdam(NamedMetaOptimizer, recipe=adam):
    """`MetaOptimizer` with `adam`: same arguments, same defaults."""


class MetaAdamW(NamedMetaOptimizer, recipe=adamw):
    """`MetaOptimizer` with `adamw`: same arguments, same defaults."""


class MetaAMSGrad(NamedMetaOptimizer, recipe=amsgrad):
    """`MetaOptimizer` with `amsgrad`: same arguments, same defaults."""


class MetaAdamax(NamedMetaOptimizer, recipe=adamax):
    """`MetaOptimizer` with `adamax`: same arguments, same defaults."""


class MetaNAdam(NamedMetaOptimizer, recipe=nadam):
    """`MetaOptimizer` with `nadam`: same arguments, same defaults."""


class MetaRAdam(NamedMetaOptimizer, recipe=radam):
    """`MetaOptimizer` with `radam`: same arguments, same defaults."""


class MetaRMSProp(NamedMetaOptimizer, recipe=rmsprop):
    """`MetaOptimizer` with `rmsprop`: same arguments, same defaults."""


class MetaAdagrad(NamedMetaOptimizer, recipe=adagrad):
    """`MetaOptimizer` with `adagrad`: same arguments, same defaults."""


class MetaAdadelta(NamedMetaOptimizer, recipe=adadelta):
    """`MetaOptimizer` with `adadelta`: same arguments, same defaults."""


class MetaRprop(NamedMetaOptimizer, recipe=rprop):
    """`MetaOptimizer` with `rprop`: same arguments, same defaults."""


class MetaLion(NamedMetaOptimizer, recipe=lion):
    """`MetaOptimizer` with `lion`: same arguments, same defaults."""


class MetaASGD(NamedMetaOptimizer, recipe=asgd):
    """`MetaOptimizer` with `asgd`: same arguments, same defaults."""


class MetaAdafactor(NamedMetaOptimizer, recipe=adafactor):
    """`MetaOptimizer` with `adafactor`: same arguments, same defaults."""


class MetaMuon(NamedMetaOptimizer, recipe=muon):
    """`MetaOptimizer` with `muon`: same arguments, same defaults."""


class MetaLAMB(NamedMetaOptimizer, recipe=lamb):
    """`MetaOptimizer` with `lamb`: same arguments, same defaults."""


class MetaLARS(NamedMetaOptimizer, recipe=lars):
    """`MetaOptimizer` with `lars`: same arguments, same defaults."""
