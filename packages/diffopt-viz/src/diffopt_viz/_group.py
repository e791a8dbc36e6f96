"""Groups of operations: noted while they run, or told from the names of tensors."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack

from diffopt_viz._walk import Function
from diffopt_viz._watch import tensors_in

# NOTE [the note on a node]
# An operation is put in a group by an entry of its autograd node's `metadata`, under this key:
# a dictionary with "name", "inside" (the dictionary of the group around it, or None), "first"
# and "last", the range of autograd's sequence numbers that the group took; equal while it is
# open. One noted operation is enough for all of them, also for those that double backward makes
# unseen. Plain data, so that any package can leave such notes without importing this one:
# diffopt-explicit does, for its steps and updates.
KEY = "diffopt group"
OPEN = 2**64


class group(TorchFunctionMode):  # noqa: N801 - used as a context, like torch.no_grad
    """Put the operations of a ``with`` block in a group of that name; groups nest.

    A group is one box in a collapsed picture. What backward passes add inside the block
    (``create_graph=True``) belongs to it, on the CPU; on other devices, whose backward passes
    run in threads of their own, that part stays outside.

    Args:
        name: What to call it, as in ``group(f"inner step {k}")``. Groups whose names differ in
            numbers alone are folded where there are many.

    Example:
        >>> import torch
        >>> from diffopt_viz import build_graph, group
        >>> w = torch.tensor(2.0, requires_grad=True)
        >>> with group("inner step 0"):
        ...     v = (w * 3).sin()
        >>> [node.label for node in build_graph(v * w, {"w": w}).collapsed().nodes]
        ['output', 'mul', 'inner step 0', 'w']
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self._note: dict[str, Any] = {"name": name, "inside": None}

    def __enter__(self) -> group:
        around = [mode for mode in _get_current_function_mode_stack() if isinstance(mode, group)]
        self._note["inside"] = around[-1]._note if around else None
        self._note["first"] = self._note["last"] = _next_number()
        return super().__enter__()

    def __exit__(self, *exception: Any) -> None:
        self._note["last"] = _next_number()
        super().__exit__(*exception)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tensors_in(result):
            function = tensor.grad_fn
            if function is not None and function._sequence_nr() >= self._note["first"]:
                metadata: Any = function.metadata  # a property, whatever its stub says
                found = metadata.get(KEY)
                if found is None or found["last"] <= found["first"]:  # that one has not ended
                    metadata[KEY] = self._note
        return result


class group_modules:  # noqa: N801 - used as a context
    """Put each call of a module in a group named by the module's path, inside a ``with`` block.

    Args:
        module: The module whose submodules are named. `torch.func.functional_call` is seen.

    Example:
        >>> import torch
        >>> from diffopt_viz import build_graph, group_modules
        >>> module = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Tanh())
        >>> with group_modules(module):
        ...     loss = module(torch.ones(1, 2)).sum()
        >>> sorted({node.group for node in build_graph(loss, module).nodes})
        [(), ('0 Linear',), ('1 Tanh',)]
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._open: list[group] = []
        self._hooks: list[Any] = []

    def __enter__(self) -> group_modules:
        for path, module in self._module.named_modules():
            if path:
                name = f"{path} {type(module).__name__}"
                self._hooks.append(module.register_forward_pre_hook(self._begin(name)))
                hook = module.register_forward_hook(self._end, always_call=True)
                self._hooks.append(hook)
        return self

    def __exit__(self, *exception: Any) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def _begin(self, name: str) -> Any:
        def begin(module: nn.Module, args: Any) -> None:
            self._open.append(group(name).__enter__())

        return begin

    def _end(self, module: nn.Module, args: Any, output: Any) -> None:
        self._open.pop().__exit__(None, None, None)


def _next_number() -> int:
    """The sequence number of the thread's next operation."""
    return torch._C._autograd._get_sequence_nr()  # pyright: ignore[reportAttributeAccessIssue]


def groups_of(
    functions: Iterable[Function], named: Mapping[Function, list[str]]
) -> dict[Function, tuple[str, ...]]:
    """The groups around each operation, outermost first.

    Args:
        functions: The operations of a graph.
        named: Names of their results. Where nothing was noted, what was computed until the
            tensors called "step 3 / ..." were there is the group "step 3".
    """
    numbers = {f: f._sequence_nr() for f in functions if not hasattr(f, "variable")}
    notes = [note for f in numbers if (note := f.metadata.get(KEY)) is not None]
    if notes:
        starts, groups = _spans(notes)
        inside = {f: bisect_right(starts, number) - 1 for f, number in numbers.items()}
        return {f: groups[k] if k >= 0 else () for f, k in inside.items()}
    ends: dict[str, int] = {}
    for function, names in named.items():
        for name in names:
            step, found, _ = name.rpartition(" / ")
            if found and function in numbers:
                ends[step] = max(ends.get(step, 0), numbers[function])
    steps = sorted(ends, key=lambda step: ends[step])
    limits = [ends[step] for step in steps]
    places = {f: bisect_left(limits, number) for f, number in numbers.items()}
    return {f: (steps[k],) if k < len(steps) else () for f, k in places.items()}


def _spans(notes: list[dict[str, Any]]) -> tuple[list[int], list[tuple[str, ...]]]:
    """The sequence numbers at which groups change, ascending, and the groups from there on."""
    spans: dict[int, tuple[int, int, str, int]] = {}
    for note in notes:
        inner: dict[str, Any] | None = note
        while inner is not None and id(inner) not in spans:
            # a group that is still open has no end
            last = inner["last"] if inner["last"] > inner["first"] else OPEN
            spans[id(inner)] = (inner["first"], last, inner["name"], _depth(inner))
            inner = inner["inside"]
    starts: list[int] = []
    groups: list[tuple[str, ...]] = []
    around: list[tuple[int, tuple[str, ...]]] = [(OPEN, ())]
    order = sorted(spans.values(), key=lambda span: (span[0], -span[1], span[3]))
    for first, last, name, _ in order:
        _close(around, first, starts, groups)
        starts.append(first)
        groups.append((*around[-1][1], name))
        around.append((last, groups[-1]))
    _close(around, OPEN - 1, starts, groups)
    return starts, groups


def _close(
    around: list[tuple[int, tuple[str, ...]]],
    until: int,
    starts: list[int],
    groups: list[tuple[str, ...]],
) -> None:
    """Go back to the outer group where inner ones have ended."""
    while around[-1][0] <= until:
        starts.append(around.pop()[0])
        groups.append(around[-1][1])


def _depth(note: dict[str, Any]) -> int:
    """How many groups are around one: of two that begin and end as one, this is the inner."""
    depth = 0
    while (note := note["inside"]) is not None:
        depth += 1
    return depth
