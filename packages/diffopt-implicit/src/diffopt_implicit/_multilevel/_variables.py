"""The parameters of a problem, as flat tensors and as its losses see them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from pytree_core import tree_flatten, tree_paths, tree_unflatten
from torch import Tensor, nn
from torch.func import functional_call

from diffopt_implicit._coordinates import Coordinates
from diffopt_implicit._torch import Tensors

Tree = Any


class Values:
    """What a loss is evaluated at: the parameters of its problem and of those it names.

    An attribute for each problem: a tree of tensors where the problem has one, a `BoundModule`
    where it has a module.
    """

    def __init__(self, problem: str, values: Mapping[str, Any]) -> None:
        self._problem = problem
        self.__dict__.update(values)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        named = ", ".join(key for key in vars(self) if key != "_problem")
        raise AttributeError(
            f"The loss of `{self._problem}` reads `{name}`, and the problem refers to {named} "
            f"alone. Add '{name}' to its `upper` if it is a constant there, or to its `lower`, "
            "with a method, if it is a solution to be differentiated."
        )


class BoundModule:
    """A module at given parameters: call it.

    Attributes:
        params: Its trained parameters, by name.
    """

    def __init__(self, module: nn.Module, params: dict[str, Tensor], buffers: dict[str, Tensor]):
        self.params = params
        self._module, self._buffers = module, buffers

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the module."""
        return functional_call(self._module, {**self.params, **self._buffers}, args, kwargs)


class Variables(Protocol):
    """Where a problem's parameters are, and how its losses see them.

    Attributes:
        leaves: The tensors that are trained, in place.
        names: What to call each.
        buffers: What else belongs to the state, by name.
    """

    leaves: Tensors
    names: tuple[str, ...]
    buffers: dict[str, Tensor]

    def tree(self, tensors: Tensors) -> Tree:
        """Give tensors the structure of the parameters."""
        ...

    def bind(self, tensors: Tensors, live: bool) -> Any:
        """Return what a loss is given; only if `live` may it change the problem's buffers."""
        ...


class TreeVariables:
    """A tree of tensors, copied so that the caller's stay as they are."""

    def __init__(self, name: str, tree: Tree) -> None:
        Coordinates.of(tree, f"The params of `{name}`")
        leaves, self.spec = tree_flatten(tree)
        self.leaves: Tensors = tuple(leaf.detach().clone().requires_grad_() for leaf in leaves)
        paths = tree_paths(tree)
        self.names = tuple("".join(f"[{key!r}]" for key in path) or "it" for path in paths)
        self.buffers: dict[str, Tensor] = {}

    def tree(self, tensors: Tensors) -> Tree:
        """Give tensors the structure of the parameters."""
        return tree_unflatten(self.spec, tensors)

    def bind(self, tensors: Tensors, live: bool) -> Tree:
        """Return the tree."""
        return self.tree(tensors)


class ModuleVariables:
    """The parameters of a module that require grad, trained where they are."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        # In the order in which a dictionary is flattened, and so transforms see them.
        named = {key: p for key, p in sorted(module.named_parameters()) if p.requires_grad}
        self.names = tuple(named)
        self.leaves: Tensors = tuple(named.values())
        self.buffers: dict[str, Tensor] = dict(module.named_buffers())

    def tree(self, tensors: Tensors) -> dict[str, Tensor]:
        """Name the tensors."""
        return dict(zip(self.names, tensors, strict=True))

    def bind(self, tensors: Tensors, live: bool) -> BoundModule:
        """Return the module at these parameters."""
        buffers = {} if live else {key: b.clone() for key, b in self.buffers.items()}
        return BoundModule(self.module, self.tree(tensors), buffers)


def variables_of(name: str, params: nn.Module | Tree) -> Variables:
    """Take hold of a problem's parameters."""
    module = isinstance(params, nn.Module)
    found = ModuleVariables(params) if module else TreeVariables(name, params)
    if not found.leaves:
        raise ValueError(
            f"`{name}` has no parameters to train: its `params` hold no tensor"
            + (" that requires grad." if module else ".")
        )
    return found


def detached_copy(tensors: Tensors) -> Tensors:
    """Copy the values."""
    return tuple(tensor.detach().clone() for tensor in tensors)


@torch.no_grad()
def overwrite(targets: Tensors, values: Tensors) -> None:
    """Copy values into tensors."""
    for target, value in zip(targets, values, strict=True):
        target.copy_(value)
