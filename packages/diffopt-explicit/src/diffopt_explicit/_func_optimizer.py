"""An optimizer of parameters that are passed in and out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from diffopt_explicit._note import Notes
from diffopt_explicit._step import GradCallback, step
from diffopt_explicit._transform import Transform, Tree, check_transform


class FuncOptimizer:
    """A transform that keeps its state to itself, for steps of ``params = opt.step(loss, params)``.

    Every step is part of the graph. It is kept by the parameters that are returned, and by the
    state, until `reset`.

    Args:
        tx: The transform that makes the steps.

    Attributes:
        tx: The transform.
        state: Its state; `None` before the first step.

    Example:
        >>> import torch
        >>> from diffopt_explicit import FuncOptimizer, sgd
        >>> lr = torch.tensor(0.25, requires_grad=True)
        >>> params = start = {"w": torch.tensor(1.0, requires_grad=True)}
        >>> optimizer = FuncOptimizer(sgd(lr))
        >>> for _ in range(2):
        ...     params = optimizer.step(params["w"] ** 2, params)
        >>> params["w"]
        tensor(0.2500, grad_fn=<...>)
        >>> torch.autograd.grad(params["w"], (start["w"], lr))
        (tensor(0.2500), tensor(-2.))
    """

    def __init__(self, tx: Transform) -> None:
        self.tx = check_transform(tx)
        self.state: Any = None
        self._notes = Notes()

    def step(
        self,
        loss: Tensor,
        params: Tree,
        *,
        first_order: bool = False,
        override: Mapping[str, Any] | None = None,
        grad_callback: GradCallback | None = None,
    ) -> Tree:
        """Return the parameters after a step down the gradient of `loss`, as part of the graph.

        Args:
            loss: 0-d tensor, computed from `params`.
            params: Tree of floating-point tensors. It is not changed.
            first_order: Take the gradient as a constant (first-order MAML).
            override: Hyperparameters to replace by name, in this step only.
            grad_callback: Given the tree of gradients, returns the one to step with.

        Raises:
            ValueError: If the loss is not a 0-d tensor, depends on none of the parameters, or has
                lost its graph. The state is then as before.
        """
        state = self.tx.init(params) if self.state is None else self.state
        params, self.state = step(
            *(loss, self.tx, state, params),
            create_graph=not first_order,
            override=override,
            grad_callback=grad_callback,
        )
        self._notes.step(params)
        return params

    def reset(self) -> None:
        """Forget the state, and with it the graph of the steps made."""
        self.state = None
        self._notes = Notes()
