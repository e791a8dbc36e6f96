"""The benchmark page of the site shows what was measured, also where a peer is faster."""

import importlib.util
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
RESULTS = sorted((ROOT / "benchmarks" / "results").glob("*.json"))


@pytest.fixture(scope="module")
def report():
    path = ROOT / "docs" / "benchmark_report.py"
    spec = importlib.util.spec_from_file_location("benchmark_report", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_peer_that_is_faster_stands_below_one(report):
    rows = {"small": {"ours": 2.0, "peer": 1.0}, "large": {"ours": 2.0, "peer": 5.0}}

    assert report.table(rows, times=True).splitlines() == [
        "|  | ours | peer |",
        "| --- | ---: | ---: |",
        "| small | 2 | 1 (0.50) |",
        "| large | 2 | 5 (2.50) |",
    ]


def test_a_floor_is_not_ours(report):
    rows = {"minimum": {"floor": 1.0, "unroll": 2.0, "peer": 4.0}}

    assert report.table(rows, times=True).endswith("| minimum | 1 (0.50) | 2 | 4 (2.00) |")


def test_what_was_stopped_says_so(report):
    rows = {"store": {"stopped at 4 GiB": True}, "replay": {"MiB": 800.0}}

    assert report.table(rows, times=False).splitlines()[2:] == [
        "| store | yes |  |",
        "| replay |  | 800 |",
    ]


def test_one_row_of_many_columns_stands_upright(report):
    rows = {"import": {f"module {k}": 1000.0 * k for k in range(1, 9)}}

    upright = report.table(rows, times=False).splitlines()
    assert upright[:3] == ["|  | import |", "| --- | ---: |", "| module 1 | 1,000 |"]
    assert len(upright) == 2 + 8


def test_curves_are_found_over_numbers_and_over_counted_steps(report):
    error = {"CG": {"1": 0.1, "10": 0.01}}
    memory = {f"net, {k:,} steps": {"ours": {"MiB": k / 10}} for k in (10, 1000)}

    assert [curves for _, curves in report.families(error)] == [{"CG": {1.0: 0.1, 10.0: 0.01}}]
    assert [curves for _, curves in report.families(memory)] == [{"ours": {10.0: 1, 1000.0: 100}}]
    assert not list(report.families({"small": {"ours": 2.0}}))


def test_every_benchmark_with_results_has_a_section_and_its_setting(report, tmp_path):
    report.write(tmp_path)
    page = (tmp_path / "benchmarks.md").read_text()

    for path in RESULTS:
        measured = json.loads(path.read_text())
        if "results" in measured:
            assert f"`python benchmarks/bench_{path.stem}.py`; {measured['unit']}" in page
    for line in page.splitlines():
        if line.startswith("!["):
            assert (tmp_path / line.rpartition("(")[2].rstrip(")")).exists(), line


def test_a_page_of_other_results_shows_them_alone(report, tmp_path):
    measured = next(path for path in RESULTS if path.stem == "viz")
    (tmp_path / measured.name).write_text(measured.read_text())
    report.write(tmp_path / "a" / "page", results=tmp_path)
    page = (tmp_path / "a" / "page" / "benchmarks.md").read_text()

    assert re.findall("`python benchmarks/(.*)`", page) == ["bench_viz.py"]
