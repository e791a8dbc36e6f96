"""Optimizers that rewrite a module's parameters and keep the graph of having done so."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from diffopt_explicit._from_torch import from_torch
from diffopt_explicit._gradient import Gradient, Recorded, check_gradient
from diffopt_explicit._module_loss import Loss, ToTake, inner_loss
from diffopt_explicit._note import Notes
from diffopt_explicit._places import places, put, tensors
from diffopt_explicit._step import GradCallback, step
from diffopt_explicit._transform import Transform, Tree, check_transform

if TYPE_CHECKING:
    from typing_extensions import Self


class MetaOptimizer:
    """An optimizer whose steps can be differentiated, in the manner of `torch.optim`.

    After ``step(loss)`` the module computes with new parameters, tensors that are part of
    the graph of the old ones. The graph of every step is kept until the module is given
    back its first parameters, by `reset` or at the end of a ``with`` block, or until
    `stop_gradient` cuts it. Meanwhile the module's parameters are no leaves of a graph, so
    that torch can neither deep-copy it nor optimize it; `module_clone` copies it as it is.

    Args:
        module: The module. Its trainable parameters are replaced at each step, at every
            place where they are tied; frozen ones and buffers are left alone.
        tx: The transform that makes the steps, or a ``torch.optim`` optimizer over the
            module's parameters, of which settings and state are taken (see `from_torch`).
        gradient: How inner gradients are differentiated, as in `unroll`. With any way but
            `Recorded()` steps are given losses as functions, and the module must be there until
            all is differentiated: ``optimizer.step(lambda fmodule: ...)``.

    Raises:
        TypeError: For `tx` that is neither.
        ValueError: For a module without trainable parameters.

    Example:
        >>> import torch
        >>> from diffopt_explicit import MetaOptimizer, sgd
        >>> module = torch.nn.Linear(2, 1)
        >>> weight, x = module.weight, torch.ones(4, 2)
        >>> with MetaOptimizer(module, sgd(lr=0.1)) as optimizer:
        ...     optimizer.step(module(x).square().mean())
        ...     module(x).square().mean().backward()
        >>> weight.grad.shape
        torch.Size([1, 2])
        >>> module.weight is weight
        True
    """

    def __init__(
        self,
        module: nn.Module,
        tx: Transform | torch.optim.Optimizer,
        *,
        gradient: Gradient = Recorded(),
    ) -> None:
        check_gradient(gradient)
        self.gradient = gradient
        self.module = module
        trainable = [(p, at) for p, at in places(module, "_parameters") if p.requires_grad]
        self._places = {at[0].name: at for _, at in trainable}
        self._initial = {at[0].name: param for param, at in trainable}
        if not self._initial:
            raise ValueError("The module has no parameter that requires grad, so nothing can move.")
        is_torch = isinstance(tx, torch.optim.Optimizer)
        self.tx = from_torch(tx, self._initial) if is_torch else check_transform(tx)
        self.state: Any = self.tx.init(self._initial)
        self._notes = Notes()

    @property
    def params(self) -> dict[str, Tensor]:
        """The module's present trainable parameters by name; one entry for tied ones."""
        return {name: at[0].read("_parameters") for name, at in self._places.items()}

    def step(
        self,
        loss: Loss,
        *arguments: Tree,
        first_order: bool = False,
        override: Mapping[str, Any] | None = None,
        grad_callback: GradCallback | None = None,
    ) -> None:
        """Move the module's parameters down the gradient of `loss`, as part of the graph.

        Args:
            loss: 0-d tensor, computed by calling the module; or a function
                ``loss(fmodule, *arguments)`` that computes it by calling the `FunctionalModule`
                that it is given; or `Segments`, which are given the parameters.
            arguments: What to pass to such a function besides: the batch, say.
            first_order: Take the gradient as a constant (first-order MAML).
            override: Hyperparameters to replace by name, in this step only.
            grad_callback: Given the gradients by name, returns those to step with.

        Raises:
            ValueError: If the loss is not a 0-d tensor, depends on no parameter, or has lost its
                graph. Module and state are then as before.
            TypeError: If `gradient` needs the loss as a function, and it is a tensor.
        """
        # Weak, since the module holds parameters whose graph would hold it.
        module, buffers = weakref.ref(self.module), tensors(self.module, "_buffers")
        given = inner_loss(loss, arguments, self.gradient, module, buffers)
        params, self.state = step(
            *(given, self.tx, self.state, self.params),
            create_graph=not first_order,
            override=override,
            grad_callback=grad_callback,
        )
        self._notes.step(params)
        self._write(params)
        if isinstance(given, ToTake):
            put(self.module, "_buffers", buffers)

    def reset(self) -> None:
        """Give the module back the parameters that it had first, and forget the state."""
        self._write(self._initial)
        self.state = self.tx.init(self._initial)
        self._notes = Notes()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.reset()

    def _write(self, params: dict[str, Tensor]) -> None:
        for name, at in self._places.items():
            for place in at:
                place.write("_parameters", params[name])
