"""The last move of a step: adding updates to parameters."""

from __future__ import annotations

from torch import Tensor

from diffopt_explicit._parameters import check_movable
from diffopt_explicit._transform import Tree
from diffopt_explicit._trees import tree_map


def apply_updates(params: Tree, updates: Tree) -> Tree:
    """Return the parameters moved by the updates: ``p + u``, leaf by leaf.

    Args:
        params: Tree of tensors. It is not changed.
        updates: Shaped like `params`; where it is `None`, the parameter stays as it is.

    Returns:
        New parameters, each of its old dtype, part of the graph of both arguments.

    Raises:
        ValueError: For an update of another shape or on another device than its parameter.

    Example:
        >>> import torch
        >>> from diffopt_explicit import apply_updates
        >>> apply_updates({"w": torch.tensor(1.0)}, {"w": torch.tensor(-0.5)})
        {'w': tensor(0.5000)}
    """
    check_movable(updates, params)

    def move(update: Tensor | None, param: Tensor) -> Tensor:
        return param if update is None else (param + update).to(param.dtype)

    return tree_map(move, updates, params, none_is_leaf=True)
