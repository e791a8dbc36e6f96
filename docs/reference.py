"""The reference pages: one for each package, with an entry for each of its public names."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

PACKAGES = (
    "pytree_core",
    "diffopt_kernels",
    "diffopt_explicit",
    "diffopt_implicit",
    "diffopt_zeroorder",
    "diffopt_dist",
    "diffopt_viz",
)
OPTIONS = {
    "autoclass": "   :members:\n   :member-order: bysource\n   :class-doc-from: class",
    "autofunction": "",
    "autodata": "",
}


def setup(app: Any) -> dict[str, bool]:
    """Write the pages before Sphinx looks for them."""
    app.connect("config-inited", lambda app, config: write(Path(app.srcdir) / "reference"))
    return {"parallel_read_safe": True}


def write(folder: Path) -> None:
    """Write the pages, and touch none that is as it should be."""
    folder.mkdir(exist_ok=True)
    for package in PACKAGES:
        path, text = folder / f"{package}.rst", page(package)
        if not path.exists() or path.read_text("utf-8") != text:
            path.write_text(text, "utf-8")


def page(package: str) -> str:
    """The text of a package's page."""
    module = importlib.import_module(package)
    parts = [heading(package, "="), inspect.getdoc(module) or ""]
    parts += [entry(package, name, value) for name, value in public(module)]
    for name, inner in inspect.getmembers(module, inspect.ismodule):
        if inner.__name__ == f"{package}.{name}" and not name.startswith("_"):
            parts += [heading(inner.__name__, "-"), inspect.getdoc(inner) or ""]
            parts += [entry(inner.__name__, *pair) for pair in public(inner)]
    return "\n\n".join(parts) + "\n"


def heading(text: str, line: str) -> str:
    """A title of reStructuredText."""
    return f"{text}\n{line * len(text)}"


def entry(module: str, name: str, value: Any) -> str:
    """The directive that documents a name."""
    directive = "autoclass" if inspect.isclass(value) else "autofunction"
    if not callable(value):
        directive = "autodata"
    return f".. {directive}:: {module}.{name}\n{OPTIONS[directive]}"


def public(module: ModuleType) -> Iterator[tuple[str, Any]]:
    """What a module exports: its own names, or those from modules beneath it."""
    package = module.__name__.partition(".")[0]
    for name, value in inspect.getmembers(module):
        home = getattr(value, "__module__", None) or ""
        ours = home.partition(".")[0] == package and not name.startswith("_")
        if ours and module.__name__ in (package, home):
            yield name, value
