"""From tensors to the graph that autograd has recorded of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor

from diffopt_viz._flow import gradient_norms
from diffopt_viz._graph import Graph, Kind, Node
from diffopt_viz._group import groups_of
from diffopt_viz._names import named_tensors, operation_name
from diffopt_viz._saved import Saved
from diffopt_viz._walk import Function, Slot, hold, slot_of


def build_graph(
    outputs: Any,
    params: Any = None,
    *,
    inputs: Any = None,
    groups: Callable[[Node], Sequence[str]] | None = None,
    gradients: bool = False,
    memory: bool = False,
    attributes: bool = False,
    saved: bool = False,
    max_attr_chars: int = 50,
) -> Graph:
    """Read the gradient graph of tensors, as plain data.

    Args:
        outputs: A tensor, or modules, mappings and sequences of tensors.
        params: Tensors to be named in the graph, in the same forms: modules, dictionaries,
            sequences, optimizers and their states, or pairs of name and tensor. Tensors that
            are not leaves are named as well, such as the weights after an inner step: under
            ``{"step 3": weights}`` they are called ``step 3 / layer1.weight``, and what
            computed them is the group ``step 3``. A tensor with several names has all.
        inputs: Further tensors to be named, such as the data that operations saved.
        groups: Names of the groups around an operation, outermost first, in place of those
            that `group` and `group_modules` noted.
        gradients: Whether to run a backward pass (the graph is kept) and to note the norms of
            the gradients along the edges; of outputs that are no scalars the sum is taken.
        memory: Whether to count the bytes that operations saved for their backward pass.
        attributes: Whether to keep the numbers that operations saved (dimensions, scalars).
        saved: Whether to show the tensors that operations saved for their backward pass.
        max_attr_chars: Longest text of an attribute; what is longer is cut.

    Returns:
        A graph whose order does not change from run to run. It holds no tensor.

    Raises:
        ValueError: If there is no tensor among the outputs, or none requires grad.

    Example:
        >>> import torch
        >>> from diffopt_viz import build_graph
        >>> w = torch.tensor(2.0, requires_grad=True)
        >>> graph = build_graph((w * 3).sin(), {"w": w}, gradients=True)
        >>> [node.label for node in graph.nodes]
        ['output', 'sin', 'mul', 'w']
        >>> round(graph.nodes[3].gradient, 2)  # 3 cos 6
        2.88
    """
    names = [*named_tensors(params), *named_tensors(inputs)]
    reader = _Reader(names, Saved(attributes, memory, saved, max_attr_chars))
    found = list(named_tensors(outputs))
    graph = reader.read(found)
    if gradients:
        graph = reader.with_norms(graph, [tensor for _, tensor in found])
    if groups is not None:
        nodes = (
            replace(n, group=tuple(groups(n))) if n.kind is Kind.OPERATION else n
            for n in graph.nodes
        )
        graph = replace(graph, nodes=tuple(nodes))
    hold(list(reader.ids))
    return graph


class _Reader:
    """One reading of a graph: what has been seen, and what was made of it."""

    def __init__(self, names: list[tuple[str, Tensor]], saved: Saved) -> None:
        self.saved = saved
        self.nodes: list[Node] = []
        self.edges: dict[tuple[int, int], Slot | None] = {}  # with whose result passes
        self.ids: dict[Function, int] = {}
        self.tensors: dict[Slot, int] = {}
        self.names: dict[Slot, list[str]] = {}
        self.named: dict[Slot, Tensor] = {}
        self.plain: dict[int, list[str]] = {}  # names of tensors without a graph, by identity
        for name, tensor in names:
            self.plain.setdefault(id(tensor), []).append(name)
            if tensor.requires_grad:
                slot = slot_of(tensor)
                self.names.setdefault(slot, []).append(name)
                self.named[slot] = tensor

    def read(self, found: list[tuple[str, Tensor]]) -> Graph:
        if not any(tensor.requires_grad for _, tensor in found):
            what = "requires grad" if found else "is a tensor"
            _refuse_transforms(found)
            raise ValueError(
                f"None of the outputs {what}, so there is no gradient graph. Were they computed "
                "under `torch.no_grad()`, or detached? `find_broken` with `watch` tells where."
            )
        pending: list[Function] = []
        for name, tensor in found:
            label = "output" if name == "tensor" else name
            target = self.add(Kind.OUTPUT, label, tensor)
            if tensor.requires_grad:
                self.connect(slot_of(tensor), target, pending)
        # A stack instead of recursion: graphs of unrolled loops are thousands deep.
        while pending:
            function = pending.pop()
            target = self.ids[function]
            inputs: list[Function] = []
            for source, index in function.next_functions:
                if source is not None:
                    self.connect((source, index), target, inputs)
            pending.extend(reversed(inputs))
        self.group()
        return Graph(tuple(self.nodes), tuple(self.edges))

    def add(self, kind: Kind, label: str, like: Any = None, **more: Any) -> int:
        """Add a node for a tensor, or what has shape, type and place like one."""
        if like is not None:
            more["shape"] = tuple(like.shape)
            more["dtype"] = str(like.dtype).removeprefix("torch.")
            more["device"] = str(like.device)
        self.nodes.append(Node(len(self.nodes), kind, label, **more))
        return len(self.nodes) - 1

    def connect(self, slot: Slot, target: int, pending: list[Function]) -> None:
        """Draw the edge from one output of an operation to where it is used."""
        function, _ = slot
        known = function in self.ids
        named = slot in self.names and not hasattr(function, "variable")
        if named and slot not in self.tensors:
            label = ", ".join(self.names[slot])
            self.tensors[slot] = self.add(Kind.TENSOR, label, self.named[slot])
        if not known:
            self.ids[function] = self.add_function(function)
            pending.append(function)
        if named:
            self.edges[self.tensors[slot], target] = slot
            target = self.tensors[slot]
        self.edges[self.ids[function], target] = slot

    def add_function(self, function: Function) -> int:
        variable = getattr(function, "variable", None)
        if isinstance(variable, Tensor):
            names = self.names.get((function, 0), ["parameter"])
            return self.add(Kind.PARAMETER, ", ".join(names), variable)
        result = next(iter(function._input_metadata), None)
        tensors, attributes, size = self.saved.by(function)
        name = operation_name(function)
        more = {"attributes": attributes, "saved_bytes": size}
        node = self.add(Kind.OPERATION, name, result, **more)
        for name, tensor in tensors:
            label = ", ".join(self.plain.get(id(tensor), [name]))
            self.edges[self.add(Kind.SAVED, label, tensor), node] = None
        return node

    def group(self) -> None:
        """Note of each node the groups around it, and its place in the order of execution."""
        named: dict[Function, list[str]] = {}
        for (function, _), names in self.names.items():
            named.setdefault(function, []).extend(names)
        groups = groups_of(self.ids, named)
        order = sorted(groups, key=lambda function: function._sequence_nr())
        for place, function in enumerate(order):
            node = self.ids[function]
            self.nodes[node] = replace(self.nodes[node], group=groups[function], order=place)
        for (function, _), node in self.tensors.items():
            self.nodes[node] = replace(self.nodes[node], group=groups[function])
        for source, target in self.edges:
            if self.nodes[source].kind is Kind.SAVED:
                group = self.nodes[target].group
                self.nodes[source] = replace(self.nodes[source], group=group)

    def with_norms(self, graph: Graph, outputs: list[Tensor]) -> Graph:
        """The graph with the norms of the gradients of a backward pass."""
        passing, whole = gradient_norms(outputs, list(self.ids))
        nodes = list(graph.nodes)
        for function, norm in whole.items():
            nodes[self.ids[function]] = replace(nodes[self.ids[function]], gradient=norm)
        functions = {node: function for function, node in self.ids.items()}
        norms = []
        for (_, target), slot in self.edges.items():
            user = functions.get(target)
            if slot is None or user is None:  # into an output or a named tensor: all of it
                norms.append(None if slot is None else passing.get(slot))
            else:
                norms.append(passing.get((slot, user)))
        return replace(graph, nodes=tuple(nodes), norms=tuple(norms))


def _refuse_transforms(found: list[tuple[str, Tensor]]) -> None:
    if any(is_functorch_wrapped_tensor(tensor) for _, tensor in found):
        raise ValueError(
            "The outputs are inside a torch.func transform, whose graph cannot be read. Read the "
            "graph of its results, or trace it: `build_program_graph(make_fx(function)(*args))`."
        )
