"""Optimizers in place under the names of their recipes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from diffopt_explicit._named import Named
from diffopt_explicit._optimizer import Optimizer
from diffopt_explicit._recipes import adadelta, adagrad, asgd, rmsprop, rprop, sgd
from diffopt_explicit._recipes_adam import adam, adamax, adamw, amsgrad, nadam, radam
from diffopt_explicit._recipes_large import adafactor, lamb, lars, lion, muon
from diffopt_explicit._transform import Transform

# Flags of torch.optim that a recipe has no argument for. They stand in the groups, so that a state
# is not mistaken for one of another rule.
_IMPLIED: dict[Callable[..., Transform], dict[str, bool]] = {
    adam: {"amsgrad": False, "decoupled_weight_decay": False},
    adamw: {"amsgrad": False, "decoupled_weight_decay": True},
    amsgrad: {"amsgrad": True},
}


class NamedOptimizer(Named, Optimizer):
    """An `Optimizer` whose groups hold the arguments of a recipe."""

    def __init__(self, params: Iterable[Any], *args: Any, **kwargs: Any) -> None:
        recipe = type(self).recipe
        self._set_up(params, recipe, self.arguments(*args, **kwargs), **_IMPLIED.get(recipe, {}))


class SGD(NamedOptimizer, recipe=sgd):
    """`sgd` in place, in the manner of ``torch.optim.SGD``; see `Optimizer`.

    Example:
        >>> import torch
        >>> from diffopt_explicit import SGD
        >>> w = torch.tensor([3.0], requires_grad=True)
        >>> optimizer = SGD([w], lr=0.5)
        >>> w.square().sum().backward()
        >>> optimizer.step()
        >>> w
        tensor([0.], requires_grad=True)
    """


class Adam(NamedOptimizer, recipe=adam):
    """`adam` in place, in the manner of ``torch.optim.Adam``; see `Optimizer`."""


class AdamW(NamedOptimizer, recipe=adamw):
    """`adamw` in place, in the manner of ``torch.optim.AdamW``; see `Optimizer`."""


class AMSGrad(NamedOptimizer, recipe=amsgrad):
    """`amsgrad` in place: ``torch.optim.Adam`` with its flag; see `Optimizer`."""


class Adamax(NamedOptimizer, recipe=adamax):
    """`adamax` in place, in the manner of ``torch.optim.Adamax``; see `Optimizer`."""


class NAdam(NamedOptimizer, recipe=nadam):
    """`nadam` in place, in the manner of ``torch.optim.NAdam``; see `Optimizer`."""


class RAdam(NamedOptimizer, recipe=radam):
    """`radam` in place, in the manner of ``torch.optim.RAdam``; see `Optimizer`."""


class RMSProp(NamedOptimizer, recipe=rmsprop):
    """`rmsprop` in place, in the manner of ``torch.optim.RMSprop``; see `Optimizer`."""


class Adagrad(NamedOptimizer, recipe=adagrad):
    """`adagrad` in place, in the manner of ``torch.optim.Adagrad``; see `Optimizer`."""


class Adadelta(NamedOptimizer, recipe=adadelta):
    """`adadelta` in place, in the manner of ``torch.optim.Adadelta``; see `Optimizer`."""


class Rprop(NamedOptimizer, recipe=rprop):
    """`rprop` in place, in the manner of ``torch.optim.Rprop``; see `Optimizer`."""


class Lion(NamedOptimizer, recipe=lion):
    """`lion` in place; see `Optimizer`."""


class ASGD(NamedOptimizer, recipe=asgd):
    """`asgd` in place, in the manner of ``torch.optim.ASGD``; see `Optimizer`."""


class Adafactor(NamedOptimizer, recipe=adafactor):
    """`adafactor` in place, in the manner of ``torch.optim.Adafactor``; see `Optimizer`."""


class Muon(NamedOptimizer, recipe=muon):
    """`muon` in place, in the manner of ``torch.optim.Muon``; see `Optimizer`."""


class LAMB(NamedOptimizer, recipe=lamb):
    """`lamb` in place; see `Optimizer`."""


class LARS(NamedOptimizer, recipe=lars):
    """`lars` in place; see `Optimizer`."""
