"""The feature matrix of the site: what the last run of the tests proved."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import tomllib

ROOT = Path(__file__).parents[1]
FEATURES = ROOT / "docs" / "features.toml"
RESULTS = ROOT / ".cache" / "tests.xml"  # written by `nox -s tests`
SIGNS = {"Y": "●", "P": "◐", "-": "", "n": "n/a"}
INTRODUCTION = """# Feature matrix

Each row that is ours links what it promises to the tests that prove it, with what the last run of
`nox -s tests` before this page was built said of them. ● yes, ◐ partly or with a defect.
"""


def setup(app: Any) -> dict[str, bool]:
    """Write the page before Sphinx looks for it."""
    app.connect("config-inited", lambda app, config: write(Path(app.srcdir) / "reference"))
    return {"parallel_read_safe": True}


def write(folder: Path) -> None:
    """Write the page."""
    folder.mkdir(exist_ok=True)
    outcomes = read_outcomes(RESULTS)
    (folder / "features.md").write_text(page(load(), outcomes), "utf-8")


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


def read_outcomes(path: Path) -> dict[tuple[str, str], list[str]]:
    """What a run said, by file stem and function: "passed", "failed" or "skipped" for each case."""
    outcomes: dict[tuple[str, str], list[str]] = {}
    if not path.exists():
        return outcomes
    for case in ElementTree.parse(path).iter("testcase"):
        stem = case.get("classname", "").rpartition(".")[2]
        name = case.get("name", "").partition("[")[0]
        bad = case.find("failure") is not None or case.find("error") is not None
        outcome = "failed" if bad else "skipped" if case.find("skipped") is not None else "passed"
        outcomes.setdefault((stem, name), []).append(outcome)
    return outcomes


def page(features: dict[str, Any], outcomes: dict[tuple[str, str], list[str]]) -> str:
    """The text of the page."""
    peers = features["peers"]
    lines = [INTRODUCTION]
    for section in features["sections"]:
        lines.append(f"\n## {section['name']}\n")
        lines.append(f"| feature | ours | {' | '.join(peers)} | proved by |")
        lines.append(f"|---|---|---|{'---|' * len(peers)}")
        lines += [row_of(row, outcomes) for row in section["rows"]]
    return "\n".join(lines) + "\n"


def row_of(row: dict[str, Any], outcomes: dict[tuple[str, str], list[str]]) -> str:
    """A row of a table."""
    tests, note = row["tests"], row.get("note", "")
    ours = row["wheel"] if tests else ""
    proofs = [f"`{test}`: {told(test, outcomes)}" for test in tests]
    proof = "<br>".join([*proofs, note] if note else proofs)
    signs = " | ".join(SIGNS[sign] for sign in row["peers"].split())
    return f"| {row['feature']} | {ours} | {signs} | {proof} |"


def told(test: str, outcomes: dict[tuple[str, str], list[str]]) -> str:
    """What the last run said of a test."""
    found = outcomes.get((test_file(test).stem, test_name(test)))
    if not found:
        return "not run"
    counts = {name: found.count(name) for name in ("passed", "failed", "skipped")}
    return ", ".join(f"{count} {name}" for name, count in counts.items() if count)
