"""The graph as one page that a browser opens by itself."""

from __future__ import annotations

import json
from collections.abc import Hashable, Iterable
from importlib.resources import files
from typing import Any

from diffopt_viz._graph import Graph
from diffopt_viz._palette import FILL, strokes, warning


def to_html(graph: Graph) -> str:
    """Put the data, the style and the script into one page."""
    nodes = graph.nodes
    data = {
        "nodes": {
            "kind": _table(node.kind.value for node in nodes),
            "label": _table(node.label for node in nodes),
            "text": _table(node.text for node in nodes),
            "details": _table(node.details for node in nodes),
            "group": _table(node.group for node in nodes),
            "saved_bytes": _table(node.saved_bytes for node in nodes),
            "order": _table(node.order for node in nodes),
        },
        "edges": graph.edges,
        "strokes": _table(strokes(graph)),
        "fill": {kind.value: fill for kind, fill in FILL.items()},
        "warnings": warning(graph),
    }
    # "</script>" in a name would end the script; JSON may write "<" as an escape.
    text = json.dumps(data).replace("<", "\\u003c")
    folder = files("diffopt_viz")
    style, script = ((folder / name).read_text("utf-8") for name in ("page.css", "page.js"))
    return PAGE.replace("STYLE", style, 1).replace("SCRIPT", script, 1).replace("DATA", text, 1)


def _table(values: Iterable[Hashable]) -> tuple[list[Any], list[int]]:
    """The different values, and for each one its place among them: most are met often."""
    places: dict[Hashable, int] = {}
    where = [places.setdefault(value, len(places)) for value in values]
    return list(places), where


PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<title>Gradient graph</title>
<style>STYLE</style>
<header>
<input id="search" type="search" placeholder="search" aria-label="search">
<select id="ways" aria-label="highlight the paths from"></select>
<button id="expand">open all</button> <button id="collapse">close all</button>
<button id="fit">fit</button> <span id="status"></span>
</header>
<svg id="picture" xmlns="http://www.w3.org/2000/svg" role="img" aria-label="gradient graph"></svg>
<script id="graph" type="application/json">DATA</script>
<script>SCRIPT</script>
</html>
"""
