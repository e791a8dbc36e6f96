"""Going through the graph that autograd has recorded, without recursion."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor

Function: TypeAlias = Any  # torch.autograd.graph.Node, as its subclasses really are
Slot: TypeAlias = tuple[Function, int]  # an operation and which of its outputs
CHUNK = 5_000  # nodes; a recursion this deep is harmless


def slot_of(tensor: Tensor) -> Slot:
    """The operation that a tensor comes from, or the accumulation of a leaf's gradient."""
    # A leaf's accumulation is found by using it, which modes and transforms around would see.
    with torch.inference_mode(False), torch._C._DisableFuncTorch():
        edge = torch.autograd.graph.get_gradient_edge(tensor)
    return edge.node, edge.output_nr


def walk(
    roots: Iterable[Function], known: Mapping[Function, list[Function]] | None = None
) -> dict[Function, list[Function]]:
    """All operations behind `roots`, each with those it takes its inputs from.

    Of operations that are `known` these are told, because torch may not tell them any more.
    """
    known = known or {}
    inputs: dict[Function, list[Function]] = {}
    pending = list(roots)
    while pending:
        function = pending.pop()
        if function not in inputs:
            inputs[function] = known[function] if function in known else sources_of(function)
            pending.extend(reversed(inputs[function]))
    return inputs


def sources_of(function: Function) -> list[Function]:
    """The operations that one takes its inputs from."""
    return [source for source, _ in function.next_functions if source is not None]


def users(inputs: dict[Function, list[Function]]) -> dict[Function, list[Function]]:
    """The same graph the other way round: where each operation's results are used."""
    used: dict[Function, list[Function]] = {function: [] for function in inputs}
    for function, sources in inputs.items():
        for source in dict.fromkeys(sources):
            used[source].append(function)
    return used


def hold(functions: list[Function]) -> None:
    """See to it that a deep graph that was looked at can be freed.

    torch 2.13 keeps a Python object for each node that has been looked at, and freeing a chain
    of 50,000 of them recurses until the stack overflows. So some nodes hold, in a list, those
    that follow: when such a node goes, the list lets go of them one by one, from its end.
    """
    if len(functions) < CHUNK:
        return
    numbered = [f for f in functions if not hasattr(f, "variable")]
    numbered.sort(key=lambda function: function._sequence_nr(), reverse=True)
    for start in range(0, len(numbered), CHUNK):
        first, *following = numbered[start : start + CHUNK]
        first.metadata["freed in this order, from the end"] = following[::-1]


def reach(starts: Iterable[Any], steps: dict[Any, list[Any]]) -> dict[Any, Any]:
    """What can be reached, breadth first, each with whence it was first reached."""
    before: dict[Any, Any] = dict.fromkeys(starts)
    queue = list(before)
    for place in queue:  # grows while it is gone through
        for following in steps.get(place, ()):
            if following not in before:
                before[following] = place
                queue.append(following)
    return before
