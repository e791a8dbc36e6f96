"""Whole meta-steps, compiled."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from diffopt_explicit._compiled import Compiled, explained, one_graph, value_and_gradient
from diffopt_explicit._gradient import (
    PREFERRED,
    Gradient,
    Recorded,
    gradient,
    require_grad,
    with_nothing,
)
from diffopt_explicit._transform import Tree
from diffopt_explicit._trees import detach, tree_flatten, tree_unflatten


def compile_meta_step(
    loss: Callable[..., Tensor],
    *,
    max_steps: int = 8,
    dynamic: bool | None = None,
    backend: str | Callable[..., Any] = "inductor",
) -> Callable[..., tuple[Tensor, Tree]]:
    """Compile an outer loss, with the unrolls in it, and its gradient.

    Up to `max_steps` inner steps become one graph with all that surrounds them, which is fastest
    to run; but the time that it takes to compile grows with the steps, by seconds for each. With
    more of them, the gradient of the inner loss and its derivative are compiled, each once for all
    steps (`Compiled`), and the rest is done step by step. The steps are counted during the first
    call, which is not compiled. Graphs are kept by torch on disk (``TORCHINDUCTOR_CACHE_DIR``),
    from where a second run of the program has them sooner.

    Args:
        loss: The outer loss ``loss(meta_params, *arguments)``, giving a 0-d tensor, which calls
            `unroll` with the adjoint `Store()`; with another one if its steps are more than
            `max_steps`. Tensors that it closes over count as constants.
        max_steps: How many inner steps, in all unrolls of one call, become one graph.
        dynamic: Whether sizes are variables of the graph: ``None`` once a second size was met,
            ``True`` from the first on, ``False`` never, so that each size has its own graph.
        backend: Which compiler, as `torch.compile` has it.

    Returns:
        A function ``meta_step(meta_params, *arguments) -> (loss, gradient)``, whose gradient is
        shaped like `meta_params` and zero where the loss does not depend on them.

    Raises:
        RuntimeError: By that function, if the loss cannot be compiled.

    Example:
        >>> import torch
        >>> from diffopt_explicit import compile_meta_step, sgd, unroll
        >>> def outer(start, target):
        ...     end = unroll(lambda w: w**2 / 2, sgd(lr=0.5), start, steps=3).params
        ...     return (end - target) ** 2
        >>> meta_step = compile_meta_step(outer)
        >>> meta_step(torch.tensor(8.0), torch.tensor(2.0))
        (tensor(1.), tensor(-0.2500))
    """
    if max_steps < 0:
        raise ValueError(f"`max_steps` must be a number of steps, got {max_steps}.")
    whole = one_graph(value_and_gradient, dynamic=dynamic, backend=backend)
    return _MetaStep(loss, max_steps, whole, Compiled(dynamic, backend))


class _MetaStep:
    """A meta-step that finds out in its first call how to be compiled."""

    def __init__(
        self,
        loss: Callable[..., Tensor],
        max_steps: int,
        whole: Callable[..., Any],
        stepwise: Gradient,
    ) -> None:
        self._loss, self._max_steps = loss, max_steps
        self._with_aux, self._whole, self._stepwise = with_nothing(loss), whole, stepwise
        self._steps: int | None = None  # known after the first call

    def __call__(self, meta_params: Tree, *arguments: Tree) -> tuple[Tensor, Tree]:
        meta_params = detach(meta_params)
        if self._steps is None:
            counting = _Counting()
            result = self._by_autograd(counting, meta_params, arguments)
            self._steps = counting.steps
            return result
        if self._steps > self._max_steps:
            return self._by_autograd(self._stepwise, meta_params, arguments)
        with torch.no_grad(), explained():
            value, _, grads = self._whole(self._with_aux, meta_params, arguments)
        return value, grads

    def _by_autograd(
        self, inner: Gradient, meta_params: Tree, arguments: tuple[Tree, ...]
    ) -> tuple[Tensor, Tree]:
        """The outer gradient without compilation, with inner ones taken in this way."""
        with torch.enable_grad(), _preferred(inner):
            params = require_grad(meta_params)
            value = self._loss(params, *arguments)
            grads = gradient(value, params, create_graph=False)
        leaves, spec = tree_flatten(params)
        found = spec.flatten_up_to(grads)
        pairs = zip(leaves, found, strict=True)
        filled = [torch.zeros_like(param) if grad is None else grad for param, grad in pairs]
        return value.detach(), tree_unflatten(spec, filled)


class _Counting:
    """The ordinary way to take inner gradients, counting them."""

    def __init__(self) -> None:
        self.steps = 0

    def take(
        self,
        loss: Callable[..., Any],
        params: Tree,
        arguments: tuple[Tree, ...],
        *,
        aux: bool,
        create_graph: bool,
    ) -> tuple[Tensor, Any, Tree]:
        """Return the loss, what it returns besides, and its gradient."""
        self.steps += 1
        with _preferred(None):
            return Recorded().take(loss, params, arguments, aux=aux, create_graph=create_graph)


@contextmanager
def _preferred(way: Gradient | None) -> Iterator[None]:
    token = PREFERRED.set(way)
    try:
        yield
    finally:
        PREFERRED.reset(token)
