"""How much memory a graph keeps alive."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import cache
from typing import Any

import torch
from torch import Tensor


def graph_bytes(results: Iterable[Tensor], given: Iterable[Tensor]) -> int:
    """The bytes of some results, and of all that is saved to differentiate them.

    What nodes of other libraries keep in attributes of their own is counted too, but not what
    they hide deeper.

    Args:
        results: Tensors that are part of the graph.
        given: Tensors whose memory does not count, as it is there without the graph; nor does
            what led to them.
    """
    listed, known, sizes = list(results), list(given), {}
    for tensor in [*listed, *_saved(listed, {tensor.grad_fn for tensor in known})]:
        sizes |= _pieces(tensor)
    for tensor in known:
        for key in _pieces(tensor):
            sizes.pop(key, None)
    return sum(sizes.values())


def _pieces(tensor: Tensor) -> dict[int, int]:
    """The pieces of memory that a tensor lies in, and their bytes."""
    if tensor.layout is torch.sparse_coo:
        return _pieces(tensor._indices()) | _pieces(tensor._values())
    if tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        return _pieces(tensor.crow_indices()) | _pieces(tensor.values())
    try:
        storage = tensor.untyped_storage()
        return {storage._cdata: storage.nbytes()}
    except RuntimeError:  # of a kind that hides where it lies
        return {id(tensor): tensor.numel() * tensor.element_size()}


def _saved(results: Iterable[Tensor], seen: set[Any]) -> Iterator[Tensor]:
    """The tensors that the nodes of a graph keep, up to some of them."""
    pending: list[Any] = [tensor.grad_fn for tensor in results]
    while pending:
        node = pending.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        pending.extend([function for function, _ in node.next_functions])
        for name in _names(type(node)):
            with suppress(RuntimeError):  # of a graph that is gone, which may be no longer needed
                yield from _tensors(getattr(node, name))
        for value in getattr(node, "__dict__", {}).values():
            yield from _tensors(value)


@cache
def _names(kind: type) -> tuple[str, ...]:
    """The attributes that hold what nodes of a kind save."""
    return tuple(n for n in dir(kind) if n.startswith("_saved_") or n == "saved_tensors")


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        yield from (item for item in value if isinstance(item, Tensor))
