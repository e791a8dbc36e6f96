"""Looking at meta-gradients on their way through the updates."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diffopt_explicit._stepwise import Stepwise
from diffopt_explicit._transform import Tree
from diffopt_explicit._trees import map_present

Hook = Callable[[Tensor], Tensor | None]


@dataclass(frozen=True)
class RegisterHook(Stepwise):
    """Updates whose own gradients a function sees; see `register_hook`."""

    hook: Hook

    def at(self, step: int, updates: Tree, params: Tree | None) -> Tree:
        """Attach the hook to every update."""
        return map_present(lambda u: _Hooked.apply(u, self.hook), updates)


def register_hook(hook: Hook) -> RegisterHook:
    """Call a function with the gradient of every update, when the outer loss is differentiated.

    Args:
        hook: Called as ``hook(gradient)``, as by `torch.Tensor.register_hook`: it may return
            another gradient to go on with, or None. Must not change its argument.

    Example:
        >>> import torch
        >>> from diffopt_explicit import chain, register_hook, sgd, unroll
        >>> start = torch.tensor(1.0, requires_grad=True)
        >>> tx = chain(sgd(0.1), register_hook(lambda g: print("passing:", g.item())))
        >>> unroll(lambda w: w**2, tx, start, steps=1).params.backward()
        passing: 1.0
    """
    return RegisterHook(hook)


class _Hooked(torch.autograd.Function):
    """The identity, whose gradient a function sees."""

    generate_vmap_rule = True

    @staticmethod
    def forward(update: Tensor, hook: Hook) -> Tensor:
        return update.view_as(update)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Hook], output: Tensor) -> None:
        _, ctx.hook = inputs

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        (gradient,) = grad_outputs
        replaced = ctx.hook(gradient)
        return gradient if replaced is None else replaced, None

    @staticmethod
    def jvp(ctx: Any, *grad_inputs: Any) -> Tensor:
        tangent, _ = grad_inputs
        return tangent.view_as(tangent)
