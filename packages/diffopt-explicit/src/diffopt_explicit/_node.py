"""Functions that keep no graph and are computed again to be differentiated, to any order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from diffopt_explicit._gradient import inner_leaf
from diffopt_explicit._pull import gradients_of


class Work(Protocol):
    """A function of tensors, and of leaves of the graph that it closes over."""

    @property
    def outside(self) -> list[Tensor]:
        """These leaves."""
        ...

    def run(self, tensors: Sequence[Any], *, create_graph: bool) -> list[Tensor | None]:
        """Compute it; what it returns has a graph if `create_graph`."""
        ...

    def pulled(self, inputs: int) -> Work:
        """The function that takes `inputs` tensors and a cotangent for each result of this one.

        It returns the gradients of the tensors and of `outside`.
        """
        ...


class Pulled:
    """The gradient of another work, by autograd."""

    def __init__(self, work: Work, inputs: int) -> None:
        self._work, self._inputs, self.outside = work, inputs, work.outside

    def run(self, tensors: Sequence[Any], *, create_graph: bool) -> list[Tensor | None]:
        """Compute the other work with a graph, and follow it back."""
        inputs, cotangents = tensors[: self._inputs], tensors[self._inputs :]
        outputs = self._work.run(inputs, create_graph=True)
        wanted = [*inputs, *self.outside]
        return gradients_of(
            outputs,
            cotangents,
            wanted,
            create_graph=create_graph,
            # What led to tensors from outside is needed again.
            retain_graph=create_graph or bool(self.outside),
        )

    def pulled(self, inputs: int) -> Work:
        """The gradient of the gradient."""
        return Pulled(self, inputs)


def compute(work: Work, tensors: Sequence[Tensor | None]) -> list[Tensor | None]:
    """What a work gives, as part of the graph of the tensors, which alone are kept for it."""
    with torch.enable_grad():
        leaves = [None if tensor is None else inner_leaf(tensor) for tensor in tensors]
        outputs = work.run(leaves, create_graph=False)
    return attach(work, outputs, tensors)


def attach(
    work: Work, outputs: Sequence[Tensor | None], tensors: Sequence[Tensor | None]
) -> list[Tensor | None]:
    """What a work gave, as part of the graph of the tensors."""
    outputs = [None if output is None else output.detach() for output in outputs]
    inputs = [*tensors, *work.outside]
    in_graph = any(tensor is not None and tensor.requires_grad for tensor in inputs)
    if not torch.is_grad_enabled() or not in_graph:
        return outputs
    return list(_Node.apply(work, len(outputs), *outputs, *inputs))


class _Node(torch.autograd.Function):
    """Results of a work, whose gradient is a work in turn."""

    @staticmethod
    def forward(ctx: Any, work: Work, count: int, *tensors: Any) -> Any:
        ctx.work, ctx.count = work, count
        ctx.save_for_backward(*tensors[count:])
        ctx.set_materialize_grads(False)
        return tuple(None if t is None else t.view_as(t) for t in tensors[:count])

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> Any:
        work, saved = ctx.work, ctx.saved_tensors
        tensors = saved[: len(saved) - len(work.outside)]
        gradients = compute(work.pulled(len(tensors)), [*tensors, *cotangents])
        return None, None, *[None] * ctx.count, *gradients
