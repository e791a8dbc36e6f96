"""A bilevel problem at a point: the derivatives of its two losses, on flat tuples of tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from pytree_core import tree_leaves, tree_unflatten
from torch import Tensor

from diffopt_implicit._coordinates import Coordinates
from diffopt_implicit._equation import LinearMap, pull_params, transposed_jacobian
from diffopt_implicit._linear_system import Tree
from diffopt_implicit._products import Selection
from diffopt_implicit._torch import Tensors

Loss = Callable[[Tree, Tree], Tensor]


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
            name = "inner_loss" if loss is self.inner_loss else "outer_loss"
            got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"`{name}` must return a scalar tensor, got {got}. Take its mean.")
        return value

    def inner_slope(self, params: Tensors, hparams: Tensors) -> Tensors:
        """Return the derivative of the inner loss in the parameters: the optimality condition."""
        every = tuple(range(len(params)))

        def value(*x: Tensor) -> Tensor:
            return self.loss(self.inner_loss, x, hparams)

        return torch.func.grad(value, argnums=every)(*params)

    def inner_slopes(self, params: Tensors) -> tuple[Tensors, Tensors]:
        """Return the derivatives of the inner loss in parameters and hyperparameters."""
        return self.slopes(self.inner_loss, params)

    def outer_slopes(self, params: Tensors) -> tuple[Tensors, Tensors]:
        """Return the derivatives of the outer loss in parameters and hyperparameters."""
        return self.slopes(self.outer_loss, params)

    def slopes(self, loss: Loss, params: Tensors) -> tuple[Tensors, Tensors]:
        """Return the derivatives of a loss in parameters and hyperparameters."""
        count = len(params)
        every = tuple(range(count + len(self.hparams)))

        def value(*x: Tensor) -> Tensor:
            return self.loss(loss, x[:count], x[count:])

        found = torch.func.grad(value, argnums=every)(*params, *self.hparams)
        return found[:count], found[count:]

    def hessian(self) -> LinearMap:
        """Return ``u -> H u``, `H` the second derivative of the inner loss in the parameters."""
        return self.hessian_at((*self.params, *self.hparams), len(self.params))

    def hessian_at(self, values: Tensors, count: int) -> LinearMap:
        """Return ``u -> H u`` at other parameters, the first `count`, and hyperparameters."""
        return transposed_jacobian(self.inner_slope)(values, count)

    def mixed(self) -> LinearMap:
        """Return ``u -> B^T u``, `B` the derivative of the inner slope in hyperparameters."""
        every = range(len(self.hparams))
        return pull_params(self.inner_slope, self.params, self.hparams, every)[1]

    def vector(self, tree: Tree, name: str) -> Tensors:
        """Take the leaves of a tree that looks like the parameters."""
        return tuple(tree_leaves(self.space.tree(self.space.vector(tree, name))))

    def tree(self, tensors: Tensors) -> Tree:
        """Give tensors the structure of the parameters."""
        return tree_unflatten(self.space.spec, tensors)


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
