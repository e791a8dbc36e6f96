"""The feature matrix of the site: what the last run of the tests proved."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import tomllib

ROOT = Path(__file__).parents[1]
FEATURES = ROOT / "docs" / "features.toml"
RESULTS = ROOT / ".cache" / "tests.xml"  # written by `nox -s tests`
Outcomes = dict[tuple[str, str], list[str]]  # of each case, by file stem and function
SIGNS = {"Y": "●", "P": "◐", "-": "", "n": "n/a"}
ORPHAN = "---\norphan: true\n---\n\n"  # a page that no table of contents lists
INTRODUCTION = """---
hide-toc: true
---

# Feature matrix

Each row that is ours links what it promises to the tests that prove it, with what the last run of
`nox -s tests` before this page was built said of them. ● yes, ◐ partly or with a defect.
"""


def setup(app: Any) -> dict[str, bool]:
    """Write the page before Sphinx looks for it."""
    app.connect("config-inited", lambda app, config: write(Path(app.srcdir) / "reference"))
    return {"parallel_read_safe": True}


def write(folder: Path) -> None:
    """Write the page, and those of the tests that it links to."""
    features, outcomes = load(), read_outcomes(RESULTS)
    (folder / "proofs").mkdir(parents=True, exist_ok=True)
    (folder / "features.md").write_text(page(features, outcomes), "utf-8")
    rows = [row for section in features["sections"] for row in section["rows"]]
    tests = sorted({test for row in rows for test in row["tests"]})
    for home in {test.partition("/")[0] for test in tests}:
        proofs = proofs_of(home, [test for test in tests if test.startswith(f"{home}/")], outcomes)
        (folder / "proofs" / f"{home}.md").write_text(proofs, "utf-8")


def load() -> dict[str, Any]:
    """The rows, in sections."""
    return tomllib.loads(FEATURES.read_text("utf-8"))


def test_file(test: str) -> Path:
    """Where a test of a row stands."""
    folder, _, rest = test.partition("/")
    name = rest.partition("::")[0] + ".py"
    if folder == "integration":
        return ROOT / "integration" / name
    package = "pytree-core" if folder == "pytree" else f"diffopt-{folder}"
    return ROOT / "packages" / package / "tests" / name


def test_name(test: str) -> str:
    """The name of the function that a test of a row is."""
    return f"test_{test.partition('::')[2]}"


def source_of(test: str) -> str:
    """The text of a test, with its decorators."""
    text = test_file(test).read_text("utf-8")
    functions = (node for node in ast.parse(text).body if isinstance(node, ast.FunctionDef))
    found = next(node for node in functions if node.name == test_name(test))
    first = min([found.lineno, *(decorator.lineno for decorator in found.decorator_list)])
    return "\n".join(text.splitlines()[first - 1 : found.end_lineno])


def title(test: str) -> str:
    """A test as a sentence, behind the wheel and the file that it belongs to."""
    home, _, rest = test.partition("/test_")
    return f"{home}, {rest.replace('::', ': ').replace('_', ' ')}"


def anchor(test: str) -> str:
    """The name of a test's place among the proofs."""
    return test.replace("/", "-").replace("::", "-")


def read_outcomes(path: Path) -> Outcomes:
    """What a run said of each case: "passed", "failed" or "skipped"."""
    outcomes: Outcomes = {}
    if not path.exists():
        return outcomes
    for case in ElementTree.parse(path).iter("testcase"):
        stem = case.get("classname", "").rpartition(".")[2]
        name = case.get("name", "").partition("[")[0]
        bad = case.find("failure") is not None or case.find("error") is not None
        outcome = "failed" if bad else "skipped" if case.find("skipped") is not None else "passed"
        outcomes.setdefault((stem, name), []).append(outcome)
    return outcomes


def page(features: dict[str, Any], outcomes: Outcomes) -> str:
    """The text of the page."""
    peers = features["peers"]
    lines = [INTRODUCTION]
    for section in features["sections"]:
        lines.append(f"\n## {section['name']}\n")
        lines.append(f"| feature | ours, and what proves it | {' | '.join(peers)} |")
        lines.append(f"|---|---|{':---:|' * len(peers)}")
        lines += [row_of(row, outcomes) for row in section["rows"]]
    return "\n".join(lines) + "\n"


def proofs_of(home: str, tests: list[str], outcomes: Outcomes) -> str:
    """The text of the page that shows the tests of one folder."""
    parts = [f"{ORPHAN}# Proofs: {home}\n\nBack to [the matrix](../features.md).\n"]
    for test in tests:
        place = test_file(test).relative_to(ROOT).as_posix()
        parts.append(f"({anchor(test)})=\n## {test_name(test).replace('_', ' ')}\n")
        parts.append(f"`{place}`: {told(test, outcomes)}\n")
        parts.append(f"```{{code-block}} python\n{source_of(test)}\n```\n")
    return "\n".join(parts)


def row_of(row: dict[str, Any], outcomes: Outcomes) -> str:
    """A row of a table."""
    proofs = [f"[{title(test)}](#{anchor(test)}): {told(test, outcomes)}" for test in row["tests"]]
    ours = "<br>".join([*proofs, row["note"]] if row.get("note") else proofs)
    signs = " | ".join(SIGNS[sign] for sign in row["peers"].split())
    return f"| {row['feature']} | {ours} | {signs} |"


def told(test: str, outcomes: Outcomes) -> str:
    """What the last run said of a test."""
    found = outcomes.get((test_file(test).stem, test_name(test)))
    if not found:
        return "not run"
    counts = {name: found.count(name) for name in ("passed", "failed", "skipped")}
    return ", ".join(f"{count} {name}" for name, count in counts.items() if count)
