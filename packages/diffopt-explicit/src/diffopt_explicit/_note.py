"""Notes on autograd's nodes, by which a picture of the graph can group them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from diffopt_explicit._trees import tree_leaves

# NOTE [the note on a node]
# Under this key of a node's `metadata` stands a dictionary: "name", "inside" (that of the group
# around it, or None), and "first" and "last", the range of autograd's sequence numbers of what
# was recorded in the group. diffopt-viz reads it, and leaves such notes for its own groups.
KEY = "diffopt group"


class Notes:
    """Names what autograd has recorded since this was made, or since the last note.

    The groups are called "inner step 0", "inner step 1" and so on.
    """

    def __init__(self, count: int = 0) -> None:
        self._count, self._first = count, next_number()

    def step(self, tree: Any) -> None:
        """A step has ended with these tensors."""
        leave_note(f"inner step {self._count}", self._first, tree)
        self._count, self._first = self._count + 1, next_number()


def leave_note(name: str, first: int, tree: Any) -> None:
    """Name what was recorded from a sequence number until now, and ended with these tensors."""
    if torch.compiler.is_compiling():
        return
    note = {"name": name, "inside": None, "first": first, "last": next_number()}
    before = None
    for leaf in tree_leaves(tree):
        node = leaf.grad_fn if isinstance(leaf, Tensor) else None
        if node is None or node is before:  # a fused step is one node for all that it returns
            continue
        before = node
        if node._sequence_nr() >= first:
            metadata: Any = node.metadata  # a property, whatever its stub says
            metadata[KEY] = _nested(metadata.get(KEY), note)


def _nested(found: dict[str, Any] | None, note: dict[str, Any]) -> dict[str, Any]:
    """The innermost of a new group and of what was noted for a node before it."""
    if found is note:
        return note
    if found is None or _open(found):
        note["inside"] = note["inside"] or found
        return note
    inner = found
    while (around := inner["inside"]) is not None and around is not note and not _open(around):
        inner = around
    if around is not note:
        note["inside"], inner["inside"] = note["inside"] or around, note
    return found


def _open(note: dict[str, Any]) -> bool:
    """Whether a group has not ended, so that it is around what ends now."""
    return note["last"] <= note["first"]


def next_number() -> int:
    """The sequence number of the thread's next operation."""
    if torch.compiler.is_compiling():
        return 0
    return torch._C._autograd._get_sequence_nr()  # pyright: ignore[reportAttributeAccessIssue]
