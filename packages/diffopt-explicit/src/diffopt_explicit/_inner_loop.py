"""Inner loops over a module: fast weights that leave the module as it was."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from diffopt_explicit._from_torch import from_torch
from diffopt_explicit._functional_module import FunctionalModule
from diffopt_explicit._gradient import (
    Gradient,
    Recorded,
    check_gradient,
    forward_mode,
    has_tangent,
    require_grad,
)
from diffopt_explicit._module_loss import Loss, inner_loss
from diffopt_explicit._note import Notes
from diffopt_explicit._override import override as overridden
from diffopt_explicit._places import tensors
from diffopt_explicit._step import GradCallback, step
from diffopt_explicit._transform import Transform, Tree, check_transform
from diffopt_explicit._trees import detach, tree_leaves


class InnerOptimizer:
    """Steps of a transform on the fast weights of a `FunctionalModule`.

    Attributes:
        tx: The transform.
        state: Its state.
        gradient: How the gradients of losses are differentiated that are given as functions.
    """

    def __init__(
        self,
        fmodule: FunctionalModule,
        tx: Transform,
        *,
        track: bool,
        gradient: Gradient = Recorded(),
    ) -> None:
        self.tx = tx
        self.state = tx.init(fmodule.params)
        self.gradient = gradient
        self._fmodule = fmodule
        self._track = track
        self._notes = Notes()

    def step(
        self,
        loss: Loss,
        *arguments: Tree,
        first_order: bool = False,
        override: Mapping[str, Any] | None = None,
        grad_callback: GradCallback | None = None,
    ) -> None:
        """Move the fast weights down the gradient of `loss`, as part of the graph.

        Args:
            loss: 0-d tensor, computed by calling the `FunctionalModule`; or a function
                ``loss(fmodule, *arguments)`` that computes it by calling the `FunctionalModule`
                that it is given; or `Segments`, which are given the fast weights.
            arguments: What to pass to such a function besides: the batch, say.
            first_order: Take the gradient as a constant (first-order MAML).
            override: Hyperparameters to replace by name, in this step only.
            grad_callback: Given the gradients by name, returns those to step with. `None` stands
                where the loss does not depend on a parameter.

        Raises:
            ValueError: If the loss is not a 0-d tensor, depends on no fast weight, or has lost its
                graph. The weights and the state are then as before.
            TypeError: If `gradient` needs the loss as a function, and it is a tensor.
            RuntimeError: If an untracked loop meets tangents of forward mode.
        """
        fmodule = self._fmodule
        module = fmodule.module  # which holds none of the fast weights
        given = inner_loss(loss, arguments, self.gradient, lambda: module, fmodule.buffers)
        with torch.set_grad_enabled(self._track):
            after, state = step(
                *(given, self.tx, self.state, fmodule.params),
                create_graph=self._track and not first_order,
                override=override,
                grad_callback=grad_callback,
            )
        if not self._track and forward_mode() and any(map(has_tangent, tree_leaves(after))):
            raise RuntimeError(
                "Steps of an inner loop with `track=False` keep no derivative, so the tangents "
                "that arrive here in forward mode would be lost. Track them, or give the loop "
                "values without tangents."
            )
        self._notes.step(after)
        fmodule.params = after if self._track else require_grad(detach(after))
        self.state = state


@contextmanager
def inner_loop(
    module: nn.Module,
    tx: Transform | torch.optim.Optimizer,
    *,
    detach_initial: bool = False,
    track: bool = True,
    override: Mapping[str, Any] | None = None,
    gradient: Gradient = Recorded(),
) -> Iterator[tuple[FunctionalModule, InnerOptimizer]]:
    """Adapt a module in an inner loop, and differentiate through the adaptation.

    Inside the block, call the first value as the module and step the second with losses.
    What the first one returns is then part of the graph of the module's parameters, so
    that an outer loss can be differentiated with respect to them. The module itself is
    not changed, by nothing that happens in the block.

    On CUDA, torch refuses to differentiate cuDNN's recurrent layers twice: with such layers, run
    the block under ``torch.backends.cudnn.flags(enabled=False)``.

    Args:
        module: Its trainable parameters are the start of the fast weights.
        tx: The inner optimizer: a transform, or a ``torch.optim`` optimizer over the
            module's parameters, of which the settings are taken (see `from_torch`).
        detach_initial: Start from copies, so that nothing leads back to the module's
            parameters; hyperparameters can still be learned.
        track: Record the graph. Without it the same steps are taken in constant memory,
            for evaluation.
        override: Hyperparameters to replace by name, for instance with learned tensors.
        gradient: How inner gradients are differentiated, as in `unroll`. With any way but
            `Recorded()` steps are given losses as functions: ``opt.step(lambda fmodule: ...)``.

    Yields:
        The module with fast weights, and the optimizer of those.

    Raises:
        TypeError: For `tx` that is neither a transform nor an optimizer with a counterpart here.
        ValueError: For a module without trainable parameters, or an unknown name in `override`.

    Example:
        >>> import torch
        >>> from diffopt_explicit import inner_loop, sgd
        >>> module = torch.nn.Linear(2, 1)
        >>> x, y = torch.ones(4, 2), torch.zeros(4, 1)
        >>> with inner_loop(module, sgd(lr=0.1)) as (fmodule, opt):
        ...     for _ in range(3):
        ...         opt.step((fmodule(x) - y).square().mean())
        ...     (fmodule(x) - y).square().mean().backward()
        >>> module.weight.grad.shape
        torch.Size([1, 2])

    Source: the idiom is that of Grefenstette et al., *Generalized inner loop
    meta-learning*, 2019.
    """
    check_gradient(gradient)
    trainable = {
        name: param for name, param in tensors(module, "_parameters").items() if param.requires_grad
    }
    if not trainable:
        raise ValueError("The module has no parameter that requires grad, so nothing can adapt.")
    if isinstance(tx, torch.optim.Optimizer):
        tx = from_torch(tx, trainable)
    tx = overridden(check_transform(tx), **override or {})
    start = trainable if track and not detach_initial else detach(trainable)
    fmodule = FunctionalModule(module, require_grad(start), track=track)
    yield fmodule, InnerOptimizer(fmodule, tx, track=track, gradient=gradient)
