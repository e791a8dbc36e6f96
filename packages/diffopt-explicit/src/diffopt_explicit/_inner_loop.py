"""Inner loops over a module: fast weights that leave the module as it was."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from diffopt_explicit._from_torch import from_torch
from diffopt_explicit._gradient import forward_mode, has_tangent, require_grad
from diffopt_explicit._note import Notes
from diffopt_explicit._override import override as overridden
from diffopt_explicit._places import places, tensors
from diffopt_explicit._step import GradCallback, step
from diffopt_explicit._transform import Transform, check_transform
from diffopt_explicit._trees import detach, tree_leaves


class FunctionalModule:
    """A module's forward pass with parameters and buffers of its own.

    Call it as the module. The module itself is never written to: tied weights stay tied,
    frozen parameters stay the module's, and running statistics go into `buffers`.

    Attributes:
        module: The module whose code is run.
        buffers: Copies of the module's buffers by name.
    """

    def __init__(
        self, module: nn.Module, params: Mapping[str, Tensor], *, track: bool = True
    ) -> None:
        self.module = module
        self._track = track
        self._history = [dict(params)]
        self._ties = [[place.name for place in at] for _, at in places(module, "_parameters")]
        self._recurrent = [part for part in module.modules() if isinstance(part, nn.RNNBase)]
        buffers = places(module, "_buffers")
        self.buffers = {at[0].name: buffer.clone() for buffer, at in buffers}
        self._ties += [[place.name for place in at] for _, at in buffers]

    @property
    def params(self) -> dict[str, Tensor]:
        """The fast weights by name; one entry for weights that are tied."""
        return self._history[-1]

    @params.setter
    def params(self, params: Mapping[str, Tensor]) -> None:
        kept = self._history if self._track else []
        self._history = [*kept, dict(params)]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the module's forward pass with the fast weights."""
        own = {**self.params, **self.buffers}
        everywhere = {name: own[tie[0]] for tie in self._ties if tie[0] in own for name in tie}
        with _flat_weights_kept(self._recurrent):
            out = functional_call(self.module, everywhere, args, kwargs, tie_weights=False)
        # torch leaves there what the forward pass has put in the places of buffers.
        self.buffers = {name: everywhere[name] for name in self.buffers}
        return out

    def parameters(self, time: int = -1) -> Iterator[Tensor]:
        """The fast weights, in the order of the module's parameters.

        Args:
            time: After how many steps: 0 for the first ones, -1 for the present ones.

        Raises:
            IndexError: If there are none of that time. Untracked loops keep the present ones only.
        """
        if not -len(self._history) <= time < len(self._history):
            reason = "" if self._track else ", because without `track` only the last ones are kept"
            raise IndexError(
                f"There are no fast weights of time {time}: there are those of times 0 to "
                f"{len(self._history) - 1}{reason}."
            )
        return iter(self._history[time].values())

    def __repr__(self) -> str:
        return f"FunctionalModule of {self.module!r}"


class InnerOptimizer:
    """Steps of a transform on the fast weights of a `FunctionalModule`.

    Attributes:
        tx: The transform.
        state: Its state.
    """

    def __init__(self, fmodule: FunctionalModule, tx: Transform, *, track: bool) -> None:
        self.tx = tx
        self.state = tx.init(fmodule.params)
        self._fmodule = fmodule
        self._track = track
        self._notes = Notes()

    def step(
        self,
        loss: Tensor,
        *,
        first_order: bool = False,
        override: Mapping[str, Any] | None = None,
        grad_callback: GradCallback | None = None,
    ) -> None:
        """Move the fast weights down the gradient of `loss`, as part of the graph.

        Args:
            loss: 0-d tensor, computed by calling the `FunctionalModule`.
            first_order: Take the gradient as a constant (first-order MAML).
            override: Hyperparameters to replace by name, in this step only.
            grad_callback: Given the gradients by name, returns those to step with. `None` stands
                where the loss does not depend on a parameter.

        Raises:
            ValueError: If the loss is not a 0-d tensor, depends on no fast weight, or has lost its
                graph. The weights and the state are then as before.
            RuntimeError: If an untracked loop meets tangents of forward mode.
        """
        with torch.set_grad_enabled(self._track):
            after, state = step(
                *(loss, self.tx, self.state, self._fmodule.params),
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
        self._fmodule.params = after if self._track else require_grad(detach(after))
        self.state = state


@contextmanager
def _flat_weights_kept(layers: list[nn.RNNBase]) -> Iterator[None]:
    """Recurrent layers list their weights a second time, and keep those of the last call."""
    lists = [(layer, layer._flat_weights, layer._flat_weight_refs) for layer in layers]
    try:
        yield
    finally:
        for layer, weights, references in lists:
            layer._flat_weights, layer._flat_weight_refs = weights, references


@contextmanager
def inner_loop(
    module: nn.Module,
    tx: Transform | torch.optim.Optimizer,
    *,
    detach_initial: bool = False,
    track: bool = True,
    override: Mapping[str, Any] | None = None,
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
    yield fast_weights(
        module, tx, detach_initial=detach_initial, track=track, override=override or {}
    )


def fast_weights(
    module: nn.Module,
    tx: Transform | torch.optim.Optimizer,
    *,
    detach_initial: bool,
    track: bool,
    override: Mapping[str, Any],
) -> tuple[FunctionalModule, InnerOptimizer]:
    """A module with fast weights, and the optimizer of those."""
    trainable = {
        name: param for name, param in tensors(module, "_parameters").items() if param.requires_grad
    }
    if not trainable:
        raise ValueError("The module has no parameter that requires grad, so nothing can adapt.")
    if isinstance(tx, torch.optim.Optimizer):
        tx = from_torch(tx, trainable)
    tx = overridden(check_transform(tx), **override)
    start = trainable if track and not detach_initial else detach(trainable)
    fmodule = FunctionalModule(module, require_grad(start), track=track)
    return fmodule, InnerOptimizer(fmodule, tx, track=track)
