"""A bilevel problem at a point: the derivatives of its two losses, on flat tuples of tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from pytree_core import tree_leaves, tree_unflatten
from torch import Tensor

from diffopt_implicit._closure import graph_leaves
from diffopt_implicit._coordinates import Coordinates
from diffopt_implicit._equation import LinearMap, cut, pull_params, transposed_jacobian
from diffopt_implicit._kept_graph import fresh, gradients, pulled, symmetric
from diffopt_implicit._linear_system import Tree
from diffopt_implicit._products import Selection
from diffopt_implicit._torch import Tensors, is_recorded

Loss = Callable[[Tree, Tree], Tensor]


class Products(NamedTuple):
    """Products with the second derivatives of the inner loss.

    Attributes:
        hessian: ``u -> H u``, `H` that in the parameters.
        mixed: ``u -> B^T u``, `B` the derivative of the slope in the hyperparameters.
    """

    hessian: LinearMap
    mixed: LinearMap


@dataclass(frozen=True)
class InnerProblem:
    """Two losses at the parameters that minimize the inner one.

    Attributes:
        inner_loss: ``(params, hparams) ->`` scalar, on trees.
        outer_loss: The same.
        space: What the parameters look like.
        selection: What the hyperparameters look like.
        params: The leaves of the parameters.
        hparams: The floating-point tensors of the hyperparameters.
    """

    inner_loss: Loss
    outer_loss: Loss
    space: Coordinates
    selection: Selection
    params: Tensors
    hparams: Tensors

    @classmethod
    def at(cls, inner_loss: Loss, outer_loss: Loss, params: Tree, hparams: Tree) -> InnerProblem:
        """Pose the problem at a point given as trees."""
        space, selection = Coordinates.of(params, "`params`"), Selection.of((hparams,), None)
        leaves, tensors = tuple(tree_leaves(params)), selection.tensors()
        return cls(inner_loss, outer_loss, space, selection, leaves, tensors)

    def loss(self, loss: Loss, params: Tensors, hparams: Tensors) -> Tensor:
        """Evaluate one of the losses."""
        value = loss(self.tree(params), *self.selection.with_tensors(hparams))
        if not isinstance(value, Tensor) or value.ndim != 0:
            got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            name = self.name_of(loss)
            raise ValueError(f"`{name}` must return a scalar tensor, got {got}. Take its mean.")
        return value

    def name_of(self, loss: Loss) -> str:
        """Return what errors call a loss."""
        return "inner_loss" if loss is self.inner_loss else "outer_loss"

    def inner_slope(self, params: Tensors, hparams: Tensors) -> Tensors:
        """Return the derivative of the inner loss in the parameters: the optimality condition."""
        every = tuple(range(len(params)))

        def value(*x: Tensor) -> Tensor:
            found = self.loss(self.inner_loss, x, hparams)
            # At the level of this gradient, whatever else requires grad.
            if x and not (torch.compiler.is_compiling() or found.requires_grad):
                raise ValueError(independent("inner_loss"))
            return found

        return torch.func.grad(value, argnums=every)(*params)

    def inner_slopes(self, params: Tensors) -> tuple[Tensors, Tensors]:
        """Return the derivatives of the inner loss in parameters and hyperparameters."""
        return self.slopes(self.inner_loss, params)

    def outer_slopes(self, params: Tensors) -> tuple[Tensors, Tensors]:
        """Return the derivatives of the outer loss in parameters and hyperparameters."""
        return self.slopes(self.outer_loss, params)

    def slopes(self, loss: Loss, params: Tensors) -> tuple[Tensors, Tensors]:
        """Return the derivatives of a loss in parameters and hyperparameters."""
        count, at = len(params), (*params, *self.hparams)

        def value(*x: Tensor) -> Tensor:
            return self.loss(loss, x[:count], x[count:])

        if is_recorded():
            return cut(torch.func.grad(value, argnums=tuple(range(len(at))))(*at), count)
        with torch.enable_grad():
            leaves = fresh(at)
            found = value(*leaves)
        return cut(self.gradients(loss, found, leaves), count)

    def gradients(
        self, loss: Loss, value: Tensor, leaves: Tensors, create_graph: bool = False
    ) -> Tensors:
        """Return the derivatives of a loss in the leaves of its graph, parameters first."""
        found = gradients(value, leaves, create_graph)
        if self.params and all(slope is None for slope in found[: len(self.params)]):
            given = {id(leaf) for leaf in leaves}
            others = any(id(leaf) not in given for leaf in graph_leaves([value.grad_fn]))
            # An outer loss of the hyperparameters alone has a derivative, if no use of this.
            if loss is self.inner_loss or others:
                raise ValueError(independent(self.name_of(loss)))
        return tuple(
            torch.zeros_like(leaf) if slope is None else slope
            for leaf, slope in zip(leaves, found, strict=True)
        )

    def products(self) -> Products:
        """Return the products with second derivatives, each of which is linear in its vector."""
        if is_recorded():
            at = (*self.params, *self.hparams)
            return Products(self.matrix_at(at, len(self.params)), self.mixed_at(self.params))
        with torch.enable_grad():
            params, hparams = fresh(self.params), fresh(self.hparams)
            value = self.loss(self.inner_loss, params, hparams)
            slope = self.gradients(self.inner_loss, value, params, create_graph=True)
        return Products(symmetric(partial(pulled, slope, params)), partial(pulled, slope, hparams))

    def matrix_at(self, values: Tensors, count: int) -> LinearMap:
        """Return ``u -> H u`` at parameters, the first `count`, and hyperparameters, recorded."""
        return transposed_jacobian(self.inner_slope)(values, count)

    def mixed_at(self, params: Tensors) -> LinearMap:
        """Return ``u -> B^T u`` at parameters, recorded."""
        every = range(len(self.hparams))
        return pull_params(self.inner_slope, params, self.hparams, every)[1]

    def vector(self, tree: Tree, name: str) -> Tensors:
        """Take the leaves of a tree that looks like the parameters."""
        return tuple(tree_leaves(self.space.tree(self.space.vector(tree, name))))

    def tree(self, tensors: Tensors) -> Tree:
        """Give tensors the structure of the parameters."""
        return tree_unflatten(self.space.spec, tensors)


def independent(name: str) -> str:
    """Say that a loss makes no use of the parameters."""
    return (
        f"`{name}` does not depend on `params`. Is a module called with parameters of its own? "
        "Call it with the given ones, `torch.func.functional_call(module, params, inputs)`; and "
        "detach nothing on the way."
    )


def scaled(factor: float | Tensor, tensors: Tensors) -> Tensors:
    """Multiply each tensor, in its own dtype."""
    if not isinstance(factor, Tensor):
        return tuple(factor * tensor for tensor in tensors)
    return tuple(factor.to(tensor.dtype) * tensor for tensor in tensors)


def plus(ours: Tensors, theirs: Tensors) -> Tensors:
    """Add tensors in pairs."""
    return tuple(a + b for a, b in zip(ours, theirs, strict=True))


def minus(ours: Tensors, theirs: Tensors) -> Tensors:
    """Subtract tensors in pairs."""
    return tuple(a - b for a, b in zip(ours, theirs, strict=True))
