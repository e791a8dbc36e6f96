"""A gradient graph as plain data."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import graphviz


class Kind(Enum):
    """What a node stands for."""

    OPERATION = "operation"
    """Something that autograd differentiates."""
    PARAMETER = "parameter"
    """A leaf that requires grad: gradients accumulate here."""
    TENSOR = "tensor"
    """A tensor that was given a name, between the operations around it."""
    OUTPUT = "output"
    """One of the tensors whose graph this is."""
    SAVED = "saved"
    """A tensor kept by an operation for its backward pass."""


@dataclass(frozen=True)
class Node:
    """A node of the gradient graph.

    Attributes:
        id: Position in `Graph.nodes`, the same in each run of the same program.
        kind: What it stands for.
        label: Name of the operation, parameter or tensor.
        shape: Shape of the tensor, if it stands for one.
        attributes: What the operation saved besides tensors, by name, as text.
    """

    id: int
    kind: Kind
    label: str
    shape: tuple[int, ...] | None = None
    attributes: dict[str, str] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """The label, with the shape below it and the attributes below that."""
        shape = [] if self.shape is None else [str(self.shape)]
        return "\n".join([self.label, *shape, *(f"{k}: {v}" for k, v in self.attributes.items())])


@dataclass(frozen=True)
class Graph:
    """The graph of operations that leads from parameters to outputs.

    Attributes:
        nodes: In the order in which they were met, going back from the outputs.
        edges: Pairs of node ids, in the direction in which values flow.
    """

    nodes: tuple[Node, ...]
    edges: tuple[tuple[int, int], ...]

    def to_dot(self) -> graphviz.Digraph:
        """The graph for Graphviz: ``.source`` is the text; rendering needs the `dot` binary."""
        from diffopt_viz._dot import to_dot

        return to_dot(self)

    def to_svg(self) -> str:
        """The graph as an SVG picture, laid out here: no other program is needed."""
        from diffopt_viz._svg import to_svg

        return to_svg(self)

    def _repr_svg_(self) -> str:
        return self.to_svg()

    def __repr__(self) -> str:
        kinds = Counter(node.kind.value for node in self.nodes)
        counts = ", ".join(f"{count} {kind}s" for kind, count in kinds.items())
        return f"Graph({counts}, {len(self.edges)} edges)"
