"""Inner gradients that keep no graph, and are taken again to be differentiated."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from diffopt_explicit._gradient import (
    Recorded,
    gradient,
    inner_leaf,
    transformed,
    with_nothing,
)
from diffopt_explicit._node import Pulled, Work, attach
from diffopt_explicit._outside import Outside, differentiable
from diffopt_explicit._places import put, tensors
from diffopt_explicit._snapshots import Random, nothing_changed
from diffopt_explicit._transform import Tree
from diffopt_explicit._trees import detach, tree_flatten, tree_leaves, tree_map, tree_unflatten
from diffopt_explicit._verify import agree


@dataclass(frozen=True)
class Recomputed:
    """Keep no graph of an inner gradient: take it again, with one, when it is differentiated.

    Of each step only its parameters are kept, besides what the optimizer needs. On the way back
    loss and gradient of one step at a time are computed once more, and differentiated. Exact: what
    `Recorded` gives, to rounding and any order, for parameters, `meta_params`, batches and all
    that the loss closes over. The memory is that of the parameters of all steps and of the graph of
    one; the time that of one more gradient a step, or less than none where memory was the limit.

    Random numbers and `torch.autocast` are the same again. What the loss closes over should be
    leaves of the graph: work that leads to such a tensor is differentiated anew in each step. Under
    `torch.func`, `torch.compile` and forward mode the gradient is that of `Recorded`.

    Attributes:
        modules: Modules whose buffers the loss changes, such as running statistics. They are put
            back for a gradient that is taken again, and left as they were after it.

    Example:
        >>> import torch
        >>> from diffopt_explicit import Recomputed, sgd, unroll
        >>> start = torch.tensor(1.0, requires_grad=True)
        >>> loss = lambda w: w**2 / 2
        >>> result = unroll(loss, sgd(lr=0.5), start, steps=3, gradient=Recomputed())
        >>> torch.autograd.grad(result.params, start)
        (tensor(0.1250),)

    Source: Kemaev et al., *Scalable meta-learning via mixed-mode differentiation*, ICML 2025, for
    the gradient as a unit with a derivative of its own.
    """

    modules: tuple[nn.Module, ...] = ()

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
        if transformed() or not torch.is_grad_enabled():
            return Recorded().take(loss, params, arguments, aux=aux, create_graph=create_graph)
        whole = Whole(loss if aux else with_nothing(loss), params, arguments, self.modules)
        value, extra, grads = whole.evaluate(whole.leaves(), create_graph=False)
        outside = Outside()
        outside.find((value, extra))
        whole.outside = outside.leaves
        return whole.attached(whole, value, extra, grads, create_graph=create_graph)


class Variables:
    """A tree that is made of some of its tensors.

    They are the floating-point ones among its first leaves, and those of the others that are part
    of a graph.

    Attributes:
        places: Which leaves these are.
        tensors: The leaves themselves, until what is computed of them is part of the graph.
    """

    def __init__(self, tree: Tree, count: int) -> None:
        self.leaves, self.spec = tree_flatten(tree)
        first = [i for i in range(count) if differentiable(self.leaves[i])]
        others = range(count, len(self.leaves))
        in_graph = [i for i in others if getattr(self.leaves[i], "requires_grad", False)]
        self.places = [*first, *in_graph]
        self.tensors: list[Tensor] = [self.leaves[place] for place in self.places]
        for place, tensor in zip(self.places, self.tensors, strict=True):
            self.leaves[place] = tensor.detach()  # the graph is kept by autograd alone

    @property
    def device(self) -> torch.device:
        """Where the first of them is."""
        return self.leaves[self.places[0]].device

    def tree(self, tensors: Sequence[Tensor]) -> Any:
        """The tree made of such tensors."""
        leaves = list(self.leaves)
        for place, tensor in zip(self.places, tensors, strict=True):
            leaves[place] = tensor
        return tree_unflatten(self.spec, leaves)


class Whole:
    """A loss, its gradient and what it returns besides, as a function of tensors.

    These are the parameters, and those of the arguments that are part of a graph.
    """

    def __init__(
        self,
        loss: Callable[..., tuple[Tensor, Any]],
        params: Tree,
        arguments: tuple[Tree, ...],
        modules: tuple[nn.Module, ...],
    ) -> None:
        self._loss = loss
        self.count = len(tree_leaves(params))
        self.variables = Variables((params, arguments), self.count)
        self._params_spec = self.variables.spec.child(0)
        self.outside: list[Tensor] = []
        self.past = Past(self.variables.leaves, modules)

    @property
    def tensors(self) -> list[Tensor]:
        """What it is a function of, until that is part of the graph."""
        return self.variables.tensors

    def leaves(self) -> list[Tensor]:
        """The same tensors, each a leaf of the graph."""
        return [inner_leaf(tensor) for tensor in self.tensors]

    def trees(self, tensors: Sequence[Tensor]) -> tuple[Tree, tuple[Tree, ...]]:
        """Parameters and arguments made of such tensors."""
        return self.variables.tree(tensors)

    def evaluate(
        self, tensors: Sequence[Tensor], *, create_graph: bool
    ) -> tuple[Tensor, Any, list[Tensor | None]]:
        """Compute the loss, what it returns besides, and the gradients of the parameters."""
        params, arguments = self.trees(tensors)
        value, extra = self._loss(params, *arguments)
        grads = gradient(value, params, create_graph=create_graph, keep_graph=create_graph)
        return value, extra, self._params_spec.flatten_up_to(grads)

    def run(self, tensors: Sequence[Any], *, create_graph: bool) -> list[Tensor | None]:
        """Compute all again, as it was the first time."""
        with self.past.again():
            value, extra, grads = self.evaluate(tensors, create_graph=create_graph)
        self.past.compare(value)
        return [value, *grads, *filter(differentiable, tree_flatten(extra)[0])]

    def pulled(self, inputs: int) -> Work:
        """The gradient of all this, by autograd."""
        return Pulled(self, inputs)

    def attached(
        self,
        work: Work,
        value: Tensor,
        extra: Any,
        grads: Sequence[Tensor | None],
        *,
        create_graph: bool,
    ) -> tuple[Tensor, Any, Tree]:
        """First results of `work`, part of the graph of `tensors`."""
        self.past.remember(value)
        besides, spec = tree_flatten(detach(extra))
        places = [i for i, leaf in enumerate(besides) if differentiable(leaf)]
        outputs = [value, *grads, *(besides[i] for i in places)]
        tensors, self.variables.tensors = self.tensors, []
        value, *rest = attach(work, outputs, tensors)  # type: ignore[assignment]
        grads, kept = rest[: self.count], rest[self.count :]
        for i, leaf in zip(places, kept, strict=True):
            besides[i] = leaf
        if not create_graph:
            grads = [None if grad is None else grad.detach() for grad in grads]
        return value, tree_unflatten(spec, besides), tree_unflatten(self._params_spec, grads)


class _Precision(NamedTuple):
    """The arguments of `torch.autocast`."""

    device: str
    dtype: torch.dtype
    enabled: bool
    cached: bool

    @staticmethod
    def now(device: str) -> _Precision:
        """Those with which it holds now."""
        dtype, enabled = torch.get_autocast_dtype(device), torch.is_autocast_enabled(device)
        return _Precision(device, dtype, enabled, torch.is_autocast_cache_enabled())


class Past:
    """What a function depended on besides its arguments, and what loss it gave."""

    def __init__(self, tree: Sequence[Any], modules: tuple[nn.Module, ...]) -> None:
        self._tree, self._modules = tree, modules
        self.random = Random.of(tree)
        devices = {"cpu", *(leaf.device.type for leaf in tree if isinstance(leaf, Tensor))}
        self._precisions = [_Precision.now(device) for device in sorted(devices)]
        self._buffers = [tensors(module, "_buffers", _copy) for module in modules]
        self._value: Tensor | None = None

    def now(self) -> Past:
        """The same a moment later."""
        return Past(self._tree, self._modules)

    @contextmanager
    def again(self) -> Iterator[None]:
        """Let random numbers, precision and buffers be what they were then."""
        live = [tensors(module, "_buffers") for module in self._modules]
        with nothing_changed(self._tree, ()), ExitStack() as stack:
            self.random.restore()
            for precision in self._precisions:
                stack.enter_context(torch.autocast(*precision))
            # Others in their places, since a graph may hold those that are there.
            _put_all(self._modules, [tree_map(_copy, saved) for saved in self._buffers])
            try:
                yield
            finally:
                _put_all(self._modules, live)

    def remember(self, value: Tensor) -> None:
        """Keep the loss, to compare with."""
        self._value = value.detach()

    def compare(self, value: Tensor) -> None:
        """Refuse a loss that is another one than before, if that is known."""
        if self._value is None:
            return
        expected, found = self._value.item(), value.item()
        if agree(found, expected, value.dtype):
            return
        raise RuntimeError(
            f"The loss of an inner step was {expected:.6g} and is {found:.6g} when "
            "computed again, so its gradient would be wrong. It must be a function of its "
            "arguments and of torch's default random numbers: name modules with running statistics "
            "in `modules`, use no generator of your own, and differentiate in the contexts in "
            "which it was computed."
        )


def _copy(buffer: Tensor) -> Tensor:
    return buffer.detach().clone()


def _put_all(modules: tuple[nn.Module, ...], buffers: list[dict[str, Tensor]]) -> None:
    for module, own in zip(modules, buffers, strict=True):
        put(module, "_buffers", own)
