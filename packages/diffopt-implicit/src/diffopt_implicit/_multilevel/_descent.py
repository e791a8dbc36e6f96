"""How a problem's parameters take a step: by an optimizer of torch, or by a transform."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, Protocol, TypeGuard

import torch
from pytree_core import tree_leaves, tree_map, tree_structure, tree_unflatten
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from diffopt_implicit._multilevel._variables import Variables, detached_copy, overwrite
from diffopt_implicit._torch import Tensors

Tree = Any


class Transform(Protocol):
    """Optax's protocol, with updates to be added to the parameters."""

    def init(self, params: Tree) -> Any:
        """Return the state before the first step."""
        ...

    def update(self, updates: Tree, state: Any, params: Tree | None = None) -> tuple[Tree, Any]:
        """Return what to add to the parameters, and the state after the step."""
        ...


class Descent(Protocol):
    """The steps of one problem."""

    def step(self, gradients: Tensors) -> None:
        """Change the parameters in place."""
        ...

    def learning_rate(self) -> float | None:
        """Return the learning rate of the next step, if there is one to tell."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return all that is remembered between steps; not a copy."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to an earlier state."""
        ...


class TorchDescent:
    """Steps of an optimizer of torch, and of its learning rate's schedule."""

    def __init__(
        self,
        name: str,
        variables: Variables,
        optimizer: Callable[[list[Any]], Optimizer],
        scheduler: Callable[[Optimizer], LRScheduler] | None,
    ) -> None:
        self.leaves = variables.leaves
        self.optimizer = optimizer(list(self.leaves))
        check_made(name, self.optimizer, self.leaves)
        self.scheduler = None if scheduler is None else scheduler(self.optimizer)

    def step(self, gradients: Tensors) -> None:
        """Change the parameters in place."""
        for leaf, gradient in zip(self.leaves, gradients, strict=True):
            leaf.grad = gradient
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.scheduler is not None:
            self.scheduler.step()

    def learning_rate(self) -> float | None:
        """Return that of the first group."""
        return float(self.optimizer.param_groups[0]["lr"])

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the optimizer and of its schedule."""
        scheduler = None if self.scheduler is None else self.scheduler.state_dict()
        return {"optimizer": self.optimizer.state_dict(), "scheduler": scheduler}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to an earlier state."""
        # Copied, because an optimizer goes on to write into what it is given.
        self.optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))
        if self.scheduler is not None:
            self.scheduler.load_state_dict(copy.deepcopy(state["scheduler"]))


class TransformDescent:
    """Steps of a transform, which can be taken again as functions."""

    def __init__(self, variables: Variables, transform: Transform) -> None:
        self.variables, self.transform = variables, transform
        self.state = transform.init(variables.tree(detached_copy(variables.leaves)))

    def step(self, gradients: Tensors) -> None:
        """Change the parameters in place."""
        now = tuple(leaf.detach() for leaf in self.variables.leaves)
        moved, self.state = self.advance(now, self.state, gradients)
        overwrite(self.variables.leaves, moved)

    def advance(self, params: Tensors, state: Any, gradients: Tensors) -> tuple[Tensors, Any]:
        """Return parameters and state after a step, and change nothing."""
        tree = self.variables.tree
        updates, state = self.transform.update(tree(gradients), state, tree(params))
        return tuple(tree_leaves(tree_map(torch.add, tree(params), updates))), state

    def learning_rate(self) -> float | None:
        """Return None: it is the transform's own."""
        return None

    def state_dict(self) -> dict[str, Any]:
        """Return the leaves of the transform's state."""
        return {"transform": tree_leaves(self.state)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to an earlier state."""
        self.state = self.like_state(copy.deepcopy(state["transform"]))

    def like_state(self, leaves: list[Any]) -> Any:
        """Give leaves the structure of the transform's state."""
        return tree_unflatten(tree_structure(self.state), leaves)


def is_transform(optimizer: Any) -> TypeGuard[Transform]:
    """Tell whether an optimizer is a transform."""
    return not isinstance(optimizer, type) and hasattr(optimizer, "init")


def check_made(name: str, optimizer: Any, leaves: Tensors) -> None:
    """Refuse what would not step exactly the parameters of a problem."""
    if not isinstance(optimizer, Optimizer):
        raise TypeError(
            f"`optimizer` of `{name}` made a {type(optimizer).__name__}, and an optimizer of torch "
            "is expected. Write `functools.partial(torch.optim.SGD, lr=0.1)`."
        )
    stepped = {id(p) for group in optimizer.param_groups for p in group["params"]}
    if stepped != {id(leaf) for leaf in leaves}:
        raise ValueError(
            f"`optimizer` of `{name}` made an optimizer of other tensors than it was given. Pass "
            "it on all of the list that it is called with, in groups or not."
        )


def descent_of(name: str, variables: Variables, optimizer: Any, scheduler: Any) -> Descent:
    """Make what steps a problem."""
    if is_transform(optimizer):
        return TransformDescent(variables, optimizer)
    return TorchDescent(name, variables, optimizer, scheduler)
