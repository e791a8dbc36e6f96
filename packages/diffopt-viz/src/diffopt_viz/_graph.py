"""A gradient graph as plain data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
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
    GROUP = "group"
    """Operations drawn as one."""


@dataclass(frozen=True)
class Node:
    """A node of the gradient graph.

    Attributes:
        id: Position in `Graph.nodes`, the same in each run of the same program.
        kind: What it stands for.
        label: Name of the operation, parameter, tensor or group.
        shape: Shape of the tensor, if it stands for one; of an operation, that of its first
            result.
        dtype: Its type, without ``torch.``.
        device: Where it lies.
        saved_bytes: Memory of the tensors saved for backward, each counted where it is first
            met; 0 if it was not looked at.
        group: The groups around it, outermost first.
        order: Place in the order of execution, of operations.
        gradient: Norm of the gradient of a parameter; ``None`` if there is none, or if none
            was measured (`Graph.measured`).
        count: How many operations a group stands for.
        attributes: What the operation saved besides tensors, by name, as text.
    """

    id: int
    kind: Kind
    label: str
    shape: tuple[int, ...] | None = None
    dtype: str = ""
    device: str = ""
    saved_bytes: int = 0
    group: tuple[str, ...] = ()
    order: int | None = None
    gradient: float | None = None
    count: int = 1
    attributes: dict[str, str] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """The label, with the shape below it and the attributes below that."""
        shown = self.kind is not Kind.OPERATION and self.shape is not None
        shape = [str(self.shape)] if shown else []
        plural = "s" if self.count > 1 else ""
        count = [f"{self.count} operation{plural}"] if self.kind is Kind.GROUP else []
        return "\n".join(
            [self.label, *shape, *count, *(f"{k}: {v}" for k, v in self.attributes.items())]
        )

    @property
    def details(self) -> str:
        """All that is known of it, for a tooltip."""
        memory = f"{self.saved_bytes} bytes saved for backward" if self.saved_bytes else ""
        kind = " ".join(map(str, filter(None, [self.dtype, self.shape, self.device])))
        norm = "" if self.gradient is None else f"gradient norm {self.gradient:.3g}"
        lines = [f"{self.kind.value}: {self.text}", kind, memory, norm, " / ".join(self.group)]
        return "\n".join(filter(None, lines))


@dataclass(frozen=True)
class Graph:
    """The graph of operations that leads from parameters to outputs.

    Attributes:
        nodes: In the order in which they were met, going back from the outputs.
        edges: Pairs of node ids, in the direction in which values flow.
        norms: Norms of the gradients along the edges, if they were measured; ``None`` where
            no gradient passes.
    """

    nodes: tuple[Node, ...]
    edges: tuple[tuple[int, int], ...]
    norms: tuple[float | None, ...] = ()

    @property
    def measured(self) -> bool:
        """Whether gradients were measured."""
        return bool(self.norms)

    def collapsed(self, expand: Collection[str] = (), *, fold: bool = True) -> Graph:
        """The graph with each group drawn as one node.

        Args:
            expand: Names of groups to draw in full: their operations, or the groups in them.
            fold: Whether to draw long runs of like groups, such as the middle of a thousand
                steps, as one.

        Returns:
            A smaller graph, in which saved memory is added up and of parallel gradients the
            largest norm is shown.

        Raises:
            ValueError: If a name in `expand` is no group's.
        """
        from diffopt_viz._collapse import collapse

        return collapse(self, expand, fold)

    def ways(self, param: str, output: str | None = None) -> Graph:
        """The part of the graph on paths from a named tensor to an output.

        Args:
            param: A name given to a tensor.
            output: A name of an output; all of them by default.

        Raises:
            ValueError: If there is no such name, or no path.
        """
        from diffopt_viz._collapse import ways

        return ways(self, param, output)

    def to_dot(self) -> graphviz.Digraph:
        """The graph for Graphviz: ``.source`` is the text; rendering needs the `dot` binary."""
        from diffopt_viz._dot import to_dot

        return to_dot(self)

    def to_svg(self) -> str:
        """The graph as an SVG picture, laid out here: no other program is needed."""
        from diffopt_viz._svg import to_svg

        return to_svg(self)

    def to_mermaid(self) -> str:
        """The graph as Mermaid text, which GitHub and many wikis draw."""
        from diffopt_viz._text import to_mermaid

        return to_mermaid(self)

    def to_json(self) -> str:
        """The graph as JSON: ``nodes``, ``edges`` and ``norms`` as their attributes here."""
        from diffopt_viz._text import to_json

        return to_json(self)

    def to_html(self) -> str:
        """The graph as a page of its own: zoom, search, groups to open, paths to highlight.

        The page holds all it needs and asks nothing from the network.
        """
        from diffopt_viz._html import to_html

        return to_html(self)

    def _repr_svg_(self) -> str:
        return self.to_svg()

    def __repr__(self) -> str:
        kinds = Counter(node.kind.value for node in self.nodes)
        counts = ", ".join(f"{count} {kind}s" for kind, count in kinds.items())
        return f"Graph({counts}, {len(self.edges)} edges)"
