"""Forward graphs of programs that torch has traced."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from diffopt_viz._graph import Graph, Kind, Node


def build_program_graph(program: Any) -> Graph:
    """Read the forward graph of a traced program, as plain data.

    Args:
        program: What `torch.export.export` gives, a `torch.fx.GraphModule`, or its ``.graph``.
            The graph of a `torch.func` transform is had by tracing it:
            ``make_fx(torch.func.grad(f))(x)``, with ``make_fx`` from
            ``torch.fx.experimental.proxy_tensor``. `torch.compile` gives one to a backend: a
            function ``(graph_module, inputs)`` that calls this and returns ``graph_module``.

    Returns:
        The graph, whose parameters are the program's inputs and weights, in groups by the
        modules that were called, where the trace knows them.

    Raises:
        TypeError: If `program` is none of these; a function or a module must be traced first.

    Example:
        >>> import torch
        >>> from diffopt_viz import build_program_graph
        >>> from torch.fx.experimental.proxy_tensor import make_fx
        >>> program = make_fx(torch.func.grad(torch.sin))(torch.tensor(1.0))
        >>> "cos" in [node.label for node in build_program_graph(program).nodes]
        True
    """
    if isinstance(program, (fx.GraphModule, torch.export.ExportedProgram)):
        program = program.graph
    if not isinstance(program, fx.Graph):
        raise TypeError(
            f"`program` must be traced, got {type(program).__name__}. Use `torch.export.export` "
            "for a module, `make_fx` for a function, also one made by `torch.func`."
        )
    ids = {node: index for index, node in enumerate(program.nodes)}
    edges = [(ids[source], ids[node]) for node in ids for source in node.all_input_nodes]
    return Graph(tuple(_node(index, node) for node, index in ids.items()), tuple(edges))


def _node(index: int, node: fx.Node) -> Node:
    kinds = {"placeholder": Kind.PARAMETER, "get_attr": Kind.PARAMETER, "output": Kind.OUTPUT}
    kind = kinds.get(node.op, Kind.OPERATION)
    label = _operation(node) if kind is Kind.OPERATION else node.name
    value = node.meta.get("val", node.meta.get("example_value"))
    modules = node.meta.get("nn_module_stack") or {}
    group = [f"{path} {_name(kind)}" for path, kind in modules.values() if path]
    like = {}
    if isinstance(value, torch.Tensor):
        like = {
            "shape": tuple(value.shape),
            "dtype": str(value.dtype).removeprefix("torch."),
            "device": str(value.device),
        }
    inside = tuple(group) if kind is Kind.OPERATION else ()
    return Node(index, kind, label, group=inside, order=index, **like)


def _operation(node: fx.Node) -> str:
    """The operation's name: ``mul`` for ``aten.mul.Tensor``."""
    if isinstance(node.target, str):
        return node.target
    packet = getattr(node.target, "overloadpacket", node.target)
    return str(getattr(packet, "__name__", packet))


def _name(kind: Any) -> str:
    return kind.rpartition(".")[2] if isinstance(kind, str) else kind.__name__
