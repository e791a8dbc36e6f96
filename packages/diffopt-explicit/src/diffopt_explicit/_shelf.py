"""Memory for the small tensors of many states, in few large pieces.

NOTE [states between temporaries]
What each step allocates and frees lies in one heap with the states that stay. Small tensors of
thousands of steps, each left between such temporaries, split the heap into gaps that later
temporaries do not fit: it grows to a multiple of what is alive. So they are copied to rows of
pieces that were allocated for this. Large tensors have pages of their own, and stay where they are.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor

from diffopt_explicit._transform import Tree
from diffopt_explicit._trees import tree_flatten, tree_unflatten

SMALL = 2**16  # bytes: of larger ones few are needed for what the C library maps by itself
PIECE = 2**20  # bytes of rows that are allocated at once
LINE = 64  # bytes that tensors are aligned to, as torch allocates them: some results depend on it


class Shelf:
    """Rows for states, each of which is taken again once its state is gone."""

    def __init__(self) -> None:
        self._free: dict[int, list[Tensor]] = {}  # by their sizes in bytes

    def take(self, size: int) -> Tensor:
        """A row of so many bytes."""
        free = self._free.setdefault(size, [])
        if not free:
            free.extend(torch.empty(max(1, PIECE // size), size, dtype=torch.uint8).unbind())
        return free.pop()

    def give_back(self, row: Tensor) -> None:
        """Let a row be taken for another state."""
        self._free[row.numel()].append(row)


class _Place(NamedTuple):
    """What stands for a leaf that lies in a row."""

    begin: int
    size: int  # bytes
    dtype: torch.dtype
    shape: torch.Size

    def within(self, row: Tensor) -> Tensor:
        """The leaf."""
        return row[self.begin : self.begin + self.size].view(self.dtype).view(self.shape)


class Shelved:
    """A tree whose small tensors lie on a shelf."""

    __slots__ = ("_leaves", "_row", "_shelf", "_spec")

    def __init__(self, tree: Tree, shelf: Shelf) -> None:
        self._shelf, self._row, size = shelf, None, 0
        self._leaves, self._spec = tree_flatten(tree)
        small = [(i, leaf) for i, leaf in enumerate(self._leaves) if _is_small(leaf)]
        for i, leaf in small:
            self._leaves[i] = _Place(size, leaf.nbytes, leaf.dtype, leaf.shape)
            size += -(-leaf.nbytes // LINE) * LINE
        if small:
            self._row = row = shelf.take(size)
            for i, leaf in small:
                self._leaves[i].within(row).copy_(leaf)

    def load(self) -> Tree:
        """The tree, with tensors that stay what they are when the row is used again."""
        leaves = self._leaves
        if self._row is not None:
            row = self._row.clone()
            leaves = [leaf.within(row) if isinstance(leaf, _Place) else leaf for leaf in leaves]
        return tree_unflatten(self._spec, leaves)

    def __del__(self) -> None:
        if self._row is not None:
            self._shelf.give_back(self._row)


def _is_small(leaf: Any) -> bool:
    """Whether a leaf is worth a place in a row, and as good as new when it comes out of it."""
    return (
        type(leaf) is Tensor
        and not is_functorch_wrapped_tensor(leaf)
        and leaf.device.type == "cpu"
        and leaf.layout is torch.strided
        and 0 < leaf.nbytes < SMALL
        and leaf.is_contiguous()
        and not leaf.requires_grad
        and not leaf.is_conj()
        and not leaf.is_neg()
    )
