"""Colours of the kinds of nodes, the same in every format."""

from diffopt_viz._graph import Kind

FILL = {
    Kind.OPERATION: "#f1f5f9",
    Kind.PARAMETER: "#bfdbfe",
    Kind.TENSOR: "#ddd6fe",
    Kind.OUTPUT: "#bbf7d0",
    Kind.SAVED: "#fed7aa",
}
EDGE = "#64748b"
