"""A function of a tree as a function of a vector, with its gradient."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from diffopt_implicit._arguments import without_graph
from diffopt_implicit._coordinates import Coordinates
from diffopt_implicit._linear_system import Tree
from diffopt_implicit._solvers._form import Form
from diffopt_implicit._torch import Tensors, is_transforming


class Evaluation(NamedTuple):
    """What a function is at a point.

    Attributes:
        value: Scalar.
        grad: Like the vector.
        aux: What the function returns beside its value, () where that is nothing.
    """

    value: Tensor
    grad: Tensor
    aux: Any


@dataclass(frozen=True)
class Objective:
    """A function of vectors, in the working dtype of the parameters.

    Attributes:
        fun: ``(params, *args, **kwargs) ->`` a scalar, or ``(scalar, aux)``.
        has_aux: Whether it returns the latter.
        space: What the parameters look like.
        args: Further arguments of `fun`.
        kwargs: The same.
    """

    fun: Callable[..., Any]
    has_aux: bool
    space: Coordinates
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def value(self, x: Tensor) -> tuple[Tensor, Any]:
        """Return the value and what comes with it."""
        found = self.fun(self.space.tree(x), *self.args, **self.kwargs)
        value, aux = split_aux(found, self.has_aux)
        return scalar(value).to(x.dtype), aux

    def at(self, x: Tensor) -> Evaluation:
        """Return value, gradient and aux, of one call."""
        if not torch.is_grad_enabled() and not is_transforming():
            return self._plainly_at(x)
        forms = []  # of aux, of which a function transform takes tensors alone

        def on_tensors(x: Tensor) -> tuple[Tensor, Tensors]:
            value, aux = self.value(x)
            tensors, form = Form.of(aux)
            forms.append(form)
            return value, tensors

        grad, (value, tensors) = torch.func.grad_and_value(on_tensors, has_aux=True)(x)
        return Evaluation(value, grad, forms[0].tree(tensors))

    def _plainly_at(self, x: Tensor) -> Evaluation:
        # Where nothing differentiates the gradient, autograd takes it in a third of the time.
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            value, aux = self.value(leaf)
            if not value.requires_grad:
                return Evaluation(value, torch.zeros_like(x), without_graph(aux))
            (grad,) = torch.autograd.grad(value, leaf, allow_unused=True, materialize_grads=True)
        return Evaluation(value.detach(), grad, without_graph(aux))


def gradient(
    fun: Callable[..., Any], has_aux: bool, params: Tree, args: tuple[Any, ...], kwargs: Any
) -> Tree:
    """Return the gradient of `fun`, a tree like `params`."""

    def value(params: Tree) -> Tensor:
        return scalar(split_aux(fun(params, *args, **kwargs), has_aux)[0])

    return torch.func.grad(value)(params)


def split_aux(found: Any, has_aux: bool) -> tuple[Any, Any]:
    """Split what an objective returned into value and aux."""
    if not has_aux:
        return found, ()  # not None, which `torch.func.vmap` refuses as a result
    if not isinstance(found, tuple) or len(found) != 2:
        raise ValueError(
            f"With `has_aux` the function must return `(value, aux)`, got {type(found).__name__}."
        )
    return found


def scalar(value: Any) -> Tensor:
    """Return `value`, which must be a real scalar tensor."""
    if not isinstance(value, Tensor):
        hint = "; with `(value, aux)` set `has_aux=True`" if isinstance(value, tuple) else ""
        raise TypeError(
            f"The function must return a scalar tensor, got {type(value).__name__}{hint}."
        )
    if value.numel() != 1 or not value.is_floating_point():
        raise ValueError(
            f"The function must return a real scalar, got {value.dtype} of shape "
            f"{tuple(value.shape)}. Reduce it with `.sum()` or `.mean()`."
        )
    return value.reshape(())
