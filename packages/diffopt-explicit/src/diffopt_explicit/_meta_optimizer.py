"""Optimizers that rewrite a module's parameters and keep the graph of having done so."""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor, nn

from diffopt_explicit._apply import apply_updates
from diffopt_explicit._gradient import gradient
from diffopt_explicit._hyperparameter import Hyperparameter
from diffopt_explicit._places import places
from diffopt_explicit._recipes import adam, adamw, sgd
from diffopt_explicit._transform import Transform, Tree


class MetaOptimizer:
    """An optimizer whose steps can be differentiated, in the manner of `torch.optim`.

    After ``step(loss)`` the module computes with new parameters, tensors that are part of
    the graph of the old ones. The graph of every step is kept until the module is given
    back its first parameters by `reset`, or is dropped.

    Args:
        module: The module. Its trainable parameters are replaced at each step, at every
            place where they are tied; frozen ones and buffers are left alone.
        tx: The transform that makes the steps.

    Example:
        >>> import torch
        >>> from diffopt_explicit import MetaOptimizer, sgd
        >>> module = torch.nn.Linear(2, 1)
        >>> weight, x = module.weight, torch.ones(4, 2)
        >>> optimizer = MetaOptimizer(module, sgd(lr=0.1))
        >>> optimizer.step(module(x).square().mean())
        >>> module(x).square().mean().backward()
        >>> weight.grad.shape
        torch.Size([1, 2])
        >>> optimizer.reset()
        >>> module.weight is weight
        True
    """

    def __init__(self, module: nn.Module, tx: Transform) -> None:
        self.module = module
        self.tx = tx
        trainable = [(p, at) for p, at in places(module, "_parameters") if p.requires_grad]
        self._places = {at[0].name: at for _, at in trainable}
        self._initial = {at[0].name: param for param, at in trainable}
        if not self._initial:
            raise ValueError("The module has no parameter that requires grad, so nothing can move.")
        self.state: Any = tx.init(self._initial)

    @property
    def params(self) -> dict[str, Tensor]:
        """The module's present trainable parameters by name; one entry for tied ones."""
        return {name: getattr(at[0].owner, at[0].attribute) for name, at in self._places.items()}

    def step(self, loss: Tensor) -> None:
        """Move the module's parameters down the gradient of `loss`, as part of the graph.

        Args:
            loss: 0-d tensor, computed by calling the module.

        Raises:
            ValueError: If the loss is not a 0-d tensor, or depends on no parameter. Module and
                state are then as before.
        """
        params = self.params
        grads = gradient(loss, params, create_graph=True)
        updates, state = self.tx.update(grads, self.state, params)
        self._write(apply_updates(params, updates))
        self.state = state

    def reset(self) -> None:
        """Give the module back the parameters that it had first, and forget the state."""
        self._write(self._initial)
        self.state = self.tx.init(self._initial)

    def _write(self, params: dict[str, Tensor]) -> None:
        for name, at in self._places.items():
            for place in at:
                # Past `__setattr__`, which lets only `nn.Parameter` replace a parameter.
                place.owner._parameters[place.attribute] = cast(nn.Parameter, params[name])


class MetaSGD(MetaOptimizer):
    """`MetaOptimizer` with `sgd`: same arguments, same defaults.

    Example:
        >>> import torch
        >>> from diffopt_explicit import MetaSGD
        >>> optimizer = MetaSGD(torch.nn.Linear(2, 1), lr=0.1, momentum=0.9)
    """

    def __init__(
        self,
        module: nn.Module,
        lr: Hyperparameter | Tree = 1e-3,
        momentum: Hyperparameter = 0.0,
        dampening: Hyperparameter = 0.0,
        weight_decay: Hyperparameter = 0.0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
    ) -> None:
        tx = sgd(lr, momentum, dampening, weight_decay, nesterov, maximize=maximize)
        super().__init__(module, tx)


class MetaAdam(MetaOptimizer):
    """`MetaOptimizer` with `adam`: same arguments, same defaults.

    Example:
        >>> import torch
        >>> from diffopt_explicit import MetaAdam
        >>> optimizer = MetaAdam(torch.nn.Linear(2, 1), lr=torch.tensor(0.1, requires_grad=True))
    """

    def __init__(
        self,
        module: nn.Module,
        lr: Hyperparameter | Tree = 1e-3,
        betas: tuple[Hyperparameter, Hyperparameter] = (0.9, 0.999),
        eps: Hyperparameter = 1e-8,
        weight_decay: Hyperparameter = 0.0,
        *,
        eps_root: Hyperparameter = 0.0,
        maximize: bool = False,
    ) -> None:
        tx = adam(lr, betas, eps, weight_decay, eps_root=eps_root, maximize=maximize)
        super().__init__(module, tx)


class MetaAdamW(MetaOptimizer):
    """`MetaOptimizer` with `adamw`: same arguments, same defaults.

    Example:
        >>> import torch
        >>> from diffopt_explicit import MetaAdamW
        >>> optimizer = MetaAdamW(torch.nn.Linear(2, 1), lr=0.1, weight_decay=0.01)
    """

    def __init__(
        self,
        module: nn.Module,
        lr: Hyperparameter | Tree = 1e-3,
        betas: tuple[Hyperparameter, Hyperparameter] = (0.9, 0.999),
        eps: Hyperparameter = 1e-8,
        weight_decay: Hyperparameter = 1e-2,
        *,
        eps_root: Hyperparameter = 0.0,
        maximize: bool = False,
    ) -> None:
        tx = adamw(lr, betas, eps, weight_decay, eps_root=eps_root, maximize=maximize)
        super().__init__(module, tx)
