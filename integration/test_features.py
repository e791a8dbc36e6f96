"""The feature matrix names tests that there are."""

import ast
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "docs"))
matrix = pytest.importorskip("feature_matrix", reason="tomllib came with Python 3.11")
ROWS = [row for section in matrix.load()["sections"] for row in section["rows"]]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["feature"])
def test_a_feature_is_proved_by_tests_that_there_are(row):
    assert row["tests"] or row["note"], "without a test, it is said why"
    assert len(row["peers"].split()) == len(matrix.load()["peers"])
    for test in row["tests"]:
        tree = ast.parse(matrix.test_file(test).read_text("utf-8"))
        names = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        assert matrix.test_name(test) in names, test


def test_the_page_tells_what_a_run_said(tmp_path):
    results = tmp_path / "tests.xml"
    results.write_text(
        '<testsuites><testsuite><testcase classname="packages.x.tests.test_sgd" name="test_a[1]"/>'
        '<testcase classname="packages.x.tests.test_sgd" name="test_a[2]"><failure/></testcase>'
        "</testsuite></testsuites>"
    )
    outcomes = matrix.read_outcomes(results)
    row = {"feature": "SGD", "peers": "Y P - n", "tests": ["explicit/test_sgd::a"]}
    assert matrix.row_of(row, outcomes) == (
        "| SGD | [explicit, sgd: a](#explicit-test_sgd-a): 1 passed, 1 failed | ● | ◐ |  | n/a |"
    )
    assert "not run" in matrix.row_of(row, {})


def test_each_proof_that_the_page_links_to_is_shown(tmp_path):
    matrix.write(tmp_path)
    page = (tmp_path / "features.md").read_text("utf-8")
    proofs = "\n".join(path.read_text("utf-8") for path in (tmp_path / "proofs").iterdir())
    linked = set(re.findall(r"\]\(#([\w-]+)\)", page))

    assert linked == {matrix.anchor(test) for row in ROWS for test in row["tests"]}
    assert linked == set(re.findall(r"^\(([\w-]+)\)=$", proofs, re.MULTILINE))
    assert set(re.findall(r"^(?:async )?def (\w+)\(", proofs, re.MULTILINE)) >= {
        matrix.test_name(test) for row in ROWS for test in row["tests"]
    }
