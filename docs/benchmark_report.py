"""The benchmark page of the site: tables and pictures of what lies in benchmarks/results.

Sphinx calls it; `python docs/benchmark_report.py RESULTS FOLDER` writes the page of other results.
"""

from __future__ import annotations

import ast
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
INTRODUCTION = """---
hide-toc: true
---

# Benchmarks

Ours and the peers in one run, interleaved, as `nox -s bench` measures them; each section names its
script and what it was measured with. In tables of times the number in brackets says how many times
as long as ours, the first but for a floor: below 1 the peer is faster. In pictures a point to the
right of the line is a peer that takes longer.
"""
MOST_COLUMNS = 7
Row = dict[str, float]


def setup(app: Any) -> dict[str, bool]:
    """Write the page before Sphinx looks for it."""
    app.connect("config-inited", lambda app, config: write(Path(app.srcdir) / "reference"))
    return {"parallel_read_safe": True}


def write(folder: Path, results: Path = RESULTS) -> None:
    """Write the page and its pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    parts = [INTRODUCTION]
    for path in sorted(results.glob("*.json")):
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
    for k, (name, curves) in enumerate(families(measured["results"])):
        picture = f"{script.stem}_curves_{k}.svg"
        draw_curves(curves, name, measured["unit"], folder / picture)
        yield f"![{name}]({picture})\n"
    for k, (name, rows) in enumerate(tables(measured["results"])):
        columns = {column for row in rows.values() for column in row}
        times = measured["unit"].startswith("microseconds") and not columns & {"MiB", "s", "GB/s"}
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


def families(results: dict[str, Any]) -> Iterator[tuple[str, dict[str, dict[float, float]]]]:
    """Curves: what stands in rows over numbers, or in tables whose titles count steps."""
    if all(is_row(part) and all(key.isdecimal() for key in part) for part in results.values()):
        curves = {name: {float(k): y for k, y in row.items()} for name, row in results.items()}
        yield "relative error over products with the Hessian", curves
    counted: dict[str, dict[str, dict[float, float]]] = {}
    for title, rows in results.items():
        if match := re.fullmatch(r"(.+), ([\d,]+) steps", title):
            of, steps = match[1], float(match[2].replace(",", ""))
            for name, row in rows.items():
                if isinstance(row, dict) and row.get("MiB", 0) > 0:
                    curve = counted.setdefault(of, {}).setdefault(name, {})
                    curve[steps] = row["MiB"]
    for of, curves in counted.items():
        if max(len(curve) for curve in curves.values()) > 1:
            yield f"{of}: MiB over steps", curves


def is_row(part: Any) -> bool:
    """Whether this is a dictionary of numbers."""
    return isinstance(part, dict) and all(isinstance(x, int | float) for x in part.values())


def table(rows: dict[str, Row], times: bool) -> str:
    """Rows of numbers as a table; times with how many times as long as the first they are.

    Columns that are many beside the rows are written as rows, which a page has room for.
    """
    names = list(dict.fromkeys(name for row in rows.values() for name in row))
    lines = [["", *names]]
    for label, row in rows.items():
        ours = row[own(row)]
        lines.append([label, *(cell(row.get(name), ours if times else None) for name in names)])
    if len(names) > max(MOST_COLUMNS, len(rows)):
        lines = [list(column) for column in zip(*lines, strict=True)]
    lines.insert(1, ["---", *["---:"] * (len(lines[0]) - 1)])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def own(row: Row) -> str:
    """Which of a row is ours: the first, but for what nothing can be faster than."""
    return next((name for name in row if name != "floor"), "floor")


def cell(value: float | None, ours: float | None) -> str:
    """A number, and how many times ours it is."""
    if value is None or isinstance(value, bool):
        return "yes" if value else ""
    ratio = "" if ours is None or value == ours else f" ({value / ours:.2f})"
    return f"{value:,.0f}{ratio}" if abs(value) >= 1000 else f"{value:.4g}{ratio}"


def draw_curves(curves: dict[str, dict[float, float]], name: str, unit: str, path: Path) -> None:
    """Draw curves on logarithmic scales; one that ends early is a method that failed there."""
    plt = pyplot()
    figure, axes = plt.subplots(figsize=(7, 3.6), layout="constrained")
    for k, (label, curve) in enumerate(curves.items()):
        style = "-" if k < 10 else "--"
        axes.plot(curve.keys(), curve.values(), style, marker=".", label=label, color=f"C{k % 10}")
    what, _, over = name.rpartition(" over ")
    axes.set(xscale="log", yscale="log", xlabel=over or name, ylabel=what or unit)
    axes.grid(color="0.9")
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def pyplot() -> Any:
    """Matplotlib, which writes the same file each time."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "diffopt"
    from matplotlib import pyplot as plt

    return plt


def draw(rows: dict[str, Row], path: Path) -> None:
    """Draw how many times as long as ours the others take, a line for each row."""
    plt = pyplot()
    others = [name for row in rows.values() for name in row if name != own(row)]
    peers = list(dict.fromkeys(others))
    figure, axes = plt.subplots(figsize=(7, 1.0 + 0.32 * len(rows)), layout="constrained")
    for k, peer in enumerate(peers):
        present = [(y, row) for y, row in enumerate(rows.values()) if peer in row]
        points = [(row[peer] / row[own(row)], y) for y, row in present if peer != own(row)]
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


if __name__ == "__main__":
    write(folder=Path(sys.argv[2]), results=Path(sys.argv[1]))
