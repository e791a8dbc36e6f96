"""The benchmark page of the site: tables and pictures of what lies in benchmarks/results."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
INTRODUCTION = """# Benchmarks

Ours and the peers in one run, interleaved, as `nox -s bench` measures them; each section names its
script and what it was measured with. In tables of times the number in brackets says how many times
as long as ours: below 1 the peer is faster. In pictures a point to the right of the line is a peer
that takes longer.
"""
Row = dict[str, float]


def setup(app: Any) -> dict[str, bool]:
    """Write the page before Sphinx looks for it."""
    app.connect("config-inited", lambda app, config: write(Path(app.srcdir) / "reference"))
    return {"parallel_read_safe": True}


def write(folder: Path) -> None:
    """Write the page and its pictures."""
    folder.mkdir(exist_ok=True)
    parts = [INTRODUCTION]
    for path in sorted((ROOT / "benchmarks" / "results").glob("*.json")):
        script = ROOT / "benchmarks" / f"bench_{path.stem}.py"
        measured = json.loads(path.read_text("utf-8"))
        if script.exists() and "results" in measured:
            parts += section(script, measured, folder)
    (folder / "benchmarks.md").write_text("\n".join(parts) + "\n", "utf-8")


def section(script: Path, measured: dict[str, Any], folder: Path) -> Iterator[str]:
    """What is told of one benchmark."""
    told = ast.get_docstring(ast.parse(script.read_text("utf-8"))) or script.stem
    title, _, rest = told.partition("\n")
    versions = ", ".join(f"{name} {version}" for name, version in measured["versions"].items())
    setting = f"{measured['machine']}, {measured['cores']} cores, {measured['date']}"
    yield f"\n## {title.rstrip('.')}\n\n{rest.partition('    nox -s')[0].strip()}\n"
    yield f"`python benchmarks/{script.name}`; {measured['unit']}; {versions}; {setting}.\n"
    for k, (name, rows) in enumerate(tables(measured["results"])):
        columns = {column for row in rows.values() for column in row}
        times = measured["unit"].startswith("microseconds") and not columns & {"MiB", "s"}
        yield f"**{name}**\n" if name else ""
        yield table(rows, times) + "\n"
        if times and len(rows) > 1:
            picture = f"{script.stem}_{k}.svg"
            draw(rows, folder / picture)
            yield f"![{name or title}: how many times as long as ours]({picture})\n"


def tables(results: dict[str, Any], name: str = "") -> Iterator[tuple[str, dict[str, Row]]]:
    """Take nested results apart into tables, whose rows are dictionaries of numbers."""
    rows = {key: part for key, part in results.items() if is_row(part)}
    if rows:
        yield name, rows
    elif is_row(results):
        yield name, {"": results}
    for key, part in results.items():
        if isinstance(part, dict) and not is_row(part):
            yield from tables(part, f"{name}, {key}" if name else key)


def is_row(part: Any) -> bool:
    """Whether this is a dictionary of numbers."""
    return isinstance(part, dict) and all(isinstance(x, int | float) for x in part.values())


def table(rows: dict[str, Row], times: bool) -> str:
    """Rows of numbers as a table; times with how many times as long as the first they are."""
    names = list(dict.fromkeys(name for row in rows.values() for name in row))
    lines = [f"| | {' | '.join(names)} |", f"|---|{'---:|' * len(names)}"]
    for label, row in rows.items():
        ours = next(iter(row.values()))
        cells = [cell(row.get(name), ours if times else None) for name in names]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(lines)


def cell(value: float | None, ours: float | None) -> str:
    """A number, and how many times ours it is."""
    if value is None:
        return ""
    ratio = "" if ours is None or value == ours else f" ({value / ours:.2f})"
    return f"{value:.4g}{ratio}"


def draw(rows: dict[str, Row], path: Path) -> None:
    """Draw how many times as long as ours the others take, a line for each row."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "diffopt"  # the same file each time
    from matplotlib import pyplot as plt

    peers = list(dict.fromkeys(name for row in rows.values() for name in list(row)[1:]))
    figure, axes = plt.subplots(figsize=(7, 1.0 + 0.32 * len(rows)), layout="constrained")
    for k, peer in enumerate(peers):
        present = [(y, row) for y, row in enumerate(rows.values()) if peer in row]
        points = [(row[peer] / next(iter(row.values())), y) for y, row in present]
        axes.scatter(*zip(*points, strict=True), label=peer, color=f"C{k % 10}", s=26, zorder=3)
    axes.axvline(1, color="0.4", linewidth=1)
    axes.set_xscale("log")
    axes.set_yticks(range(len(rows)), list(rows))
    axes.invert_yaxis()
    axes.grid(axis="x", which="both", color="0.9")
    axes.set_xlabel("time, as a multiple of ours")
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
