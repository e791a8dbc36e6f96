"""The gradient of an inner loss, in whatever mode the caller differentiates."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.autograd import forward_ad

from diffopt_explicit._transform import Tree
from diffopt_explicit._trees import tree_flatten, tree_map, tree_unflatten


def require_grad(params: Tree) -> Tree:
    """The parameters, each a tensor of its own in the graph.

    A view, where it is part of a graph already: the loss may depend on the same tensor in another
    way, such as by its distance from the start, or by a parameter that was computed from it.
    """

    def in_graph(param: Tensor) -> Tensor:
        return param.view_as(param) if param.requires_grad else inner_leaf(param)

    return tree_map(in_graph, params)


def inner_leaf(tensor: Tensor) -> Tensor:
    """The tensor as a leaf of the graph, for the time of one step."""
    leaf = tensor.detach().requires_grad_()
    leaf.is_inner_leaf = True  # type: ignore[attr-defined]
    return leaf


def is_inner_leaf(leaf: Tensor) -> bool:
    """Whether `inner_leaf` has made a leaf."""
    return hasattr(leaf, "is_inner_leaf")


def gradient(loss: Tensor, params: Tree, *, create_graph: bool, keep_graph: bool = False) -> Tree:
    """Return the gradient of `loss`, shaped like `params`; `None` where it does not depend on one.

    Args:
        loss: 0-d tensor, a function of `params` by ordinary autograd.
        params: Tree of tensors.
        create_graph: Whether the gradient can be differentiated in turn.
        keep_graph: Whether at least the loss can be differentiated once more.

    Raises:
        ValueError: If the loss is not a 0-d tensor, depends on no parameter at all, has lost the
            graph by which it does, or has none because of a transform of `torch.func`.
    """
    check_scalar(loss)
    leaves, spec = tree_flatten(params)
    if any(map(is_functorch_wrapped_tensor, (loss, *leaves))):
        raise ValueError(
            "The loss was computed under a transform of `torch.func`, where it has no graph of "
            "autograd. Use `unroll`, which is given the loss as a function."
        )
    grads: list[Tensor | None] = [None] * len(leaves)
    learned = [index for index, leaf in enumerate(leaves) if leaf.requires_grad]
    if loss.requires_grad and learned:
        chosen = [leaves[index] for index in learned]
        found = _autograd(loss, chosen, create_graph=create_graph, keep_graph=keep_graph)
        for index, grad in zip(learned, found, strict=True):
            grads[index] = grad
    check_any(grads)
    return tree_unflatten(spec, grads)


def check_scalar(loss: Any) -> None:
    """Refuse a loss that has no gradient because it is not one number."""
    if not isinstance(loss, Tensor) or loss.dim():
        found = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else repr(loss)
        raise ValueError(f"The loss must be a 0-d tensor, got {found}. Take its mean or sum.")


def check_any(grads: Iterable[Tensor | None]) -> None:
    """Refuse gradients of which there is none."""
    if all(grad is None for grad in grads):
        raise ValueError(
            "The loss depends on none of the parameters, so a step would change nothing. Was it "
            "computed from other tensors, under `torch.no_grad()`, or through `detach()`?"
        )


def _autograd(
    loss: Tensor, leaves: list[Tensor], *, create_graph: bool, keep_graph: bool
) -> tuple[Tensor | None, ...]:
    keep_graph = keep_graph or create_graph
    try:
        return torch.autograd.grad(
            loss, leaves, create_graph=create_graph, retain_graph=keep_graph, allow_unused=True
        )
    except RuntimeError as error:
        if "backward through the graph a second time" not in str(error):
            raise
        raise ValueError(
            "The graph of the loss is gone: a `backward()`, a `torch.autograd.grad` or a step has "
            "freed it. Compute the loss anew for each step, from the present parameters."
        ) from error


@runtime_checkable
class Gradient(Protocol):
    """A way to take, and to differentiate, the gradient of an inner loss."""

    def take(
        self,
        loss: Callable[..., Any],
        params: Tree,
        arguments: tuple[Tree, ...],
        *,
        aux: bool,
        create_graph: bool,
    ) -> tuple[Tensor, Any, Tree]:
        """Call ``loss(params, *arguments)``; return the loss, what came besides, the gradient."""
        ...


def check_gradient(way: Any) -> None:
    """Refuse what is no way to take a gradient."""
    if not isinstance(way, Gradient):
        raise TypeError(
            "`gradient` must be a way to take it, such as `Recorded()` or `Recomputed()`, "
            f"got {way!r}."
        )


@dataclass(frozen=True)
class Recorded:
    """Keep the graph of an inner gradient, by which ordinary autograd differentiates it.

    Under a transform of `torch.func`, a compiler or in forward mode it is taken by
    `torch.func.grad`, which gives zeros where the loss does not depend on a parameter.
    """

    def take(
        self,
        loss: Callable[..., Any],
        params: Tree,
        arguments: tuple[Tree, ...],
        *,
        aux: bool,
        create_graph: bool,
    ) -> tuple[Tensor, Any, Tree]:
        """Return the loss, what it returns besides, and its gradient, shaped like `params`."""
        with_aux = loss if aux else with_nothing(loss)
        if transformed():
            return by_transform(with_aux, params, arguments, create_graph=create_graph)
        way = preferred(self)
        if way is not self:
            return way.take(loss, params, arguments, aux=aux, create_graph=create_graph)
        keep_graph = torch.is_grad_enabled()  # then the loss itself is part of the result
        with torch.enable_grad():
            params = require_grad(params)
            value, extra = with_aux(params, *arguments)
            grads = gradient(value, params, create_graph=create_graph, keep_graph=keep_graph)
            return value, extra, grads


# What takes the place of `Recorded`, within a meta-step that is compiled step by step.
PREFERRED: ContextVar[Gradient | None] = ContextVar("PREFERRED", default=None)


def preferred(way: Gradient) -> Gradient:
    """The way itself, or what takes its place."""
    if torch.compiler.is_compiling() or not isinstance(way, Recorded):
        return way
    return PREFERRED.get() or way


def with_nothing(loss: Callable[..., Tensor]) -> Callable[..., tuple[Tensor, None]]:
    """The loss, with `None` for what it returns besides."""
    return lambda *arguments: (loss(*arguments), None)


def transformed() -> bool:
    """Whether a compiler, a transform of `torch.func` or forward mode is at work."""
    functorch = torch._C._are_functorch_transforms_active
    return torch.compiler.is_compiling() or functorch() or forward_mode()


def forward_mode() -> bool:
    """Whether tensors may have tangents, which `detach` would drop, and `no_grad` does not."""
    return forward_ad._current_level >= 0


def has_tangent(tensor: Tensor) -> bool:
    """Whether a tensor carries a tangent of forward mode."""
    return forward_ad.unpack_dual(tensor).tangent is not None


def by_transform(
    loss: Callable[..., Any], params: Tree, arguments: tuple[Tree, ...], *, create_graph: bool
) -> tuple[Tensor, Any, Tree]:
    """The same by `torch.func.grad`, whose own trees know fewer types than ours."""
    leaves, spec = tree_flatten(params)
    rebuild: list[Callable[[list[Tensor]], Any]] = []

    def of_leaves(leaves: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        value, aux = loss(tree_unflatten(spec, leaves), *arguments)
        kept, kept_spec = tree_flatten(aux)
        tensors = [leaf for leaf in kept if isinstance(leaf, Tensor)]

        def put_back(tensors: list[Tensor]) -> Any:
            remaining = iter(tensors)
            both = [next(remaining) if isinstance(leaf, Tensor) else leaf for leaf in kept]
            return tree_unflatten(kept_spec, both)

        rebuild.append(put_back)
        return value, tensors

    grads, (value, tensors) = torch.func.grad_and_value(of_leaves, has_aux=True)(leaves)
    grads = grads if create_graph else [grad.detach() for grad in grads]
    return value, rebuild[-1](tensors), tree_unflatten(spec, grads)
