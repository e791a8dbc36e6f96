"""Trees and functions on the wire: tensors apart, all else as bytes."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import cloudpickle
from pytree_core import tree_map
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor


@dataclass(frozen=True)
class _Slot:
    """Stands in a tree for the tensor of this number."""

    index: int


class _Pickler(cloudpickle.Pickler):
    """Pickles functions by value, and refuses tensors whose gradient would be lost."""

    def persistent_id(self, obj: Any) -> None:
        if isinstance(obj, Tensor) and obj.requires_grad:
            raise ValueError(
                f"A tensor of shape {tuple(obj.shape)} that requires grad would reach the workers "
                "inside a function or an object (a closure, a module), where its gradient is "
                "lost. Pass it as an argument, or detach it."
            )


def separate(tree: Any) -> tuple[list[Tensor], Any]:
    """The tensors of a tree, and the tree with their numbers in their places."""
    tensors: list[Tensor] = []

    def take(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        if is_functorch_wrapped_tensor(leaf):
            raise ValueError(
                "A tensor inside a transform of torch.func (vmap, grad, jvp) cannot be sent to "
                "another process. Call the transform inside the function that is sent."
            )
        tensors.append(leaf)
        return _Slot(len(tensors) - 1)

    return tensors, tree_map(take, tree)


def put_back(tensors: list[Tensor], tree: Any) -> Any:
    """The tree with the tensors in their places again."""
    return tree_map(lambda leaf: tensors[leaf.index] if isinstance(leaf, _Slot) else leaf, tree)


def dump(value: Any) -> bytes:
    """Pickle functions and objects by value where need be.

    Raises:
        ValueError: If a tensor that requires grad is inside.
    """
    buffer = io.BytesIO()
    _Pickler(buffer).dump(value)
    return buffer.getvalue()
