"""A release writes a version and a title, or nothing."""

import re
import shutil
import sys
from datetime import date
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
import release  # noqa: E402


@pytest.fixture
def package(tmp_path):
    folder = tmp_path / "diffopt-viz"
    folder.mkdir()
    shutil.copy(ROOT / "packages" / "diffopt-viz" / "pyproject.toml", folder)
    (folder / "CHANGELOG.md").write_text("# Changelog\n\n## Unreleased\n\n- Boxes.\n", "utf-8")
    return folder


def test_a_release_has_its_version_and_its_changes_have_its_title(package):
    release.release(package, "1.2.0", date(2026, 12, 1))

    assert release.version_of(package) == "1.2.0"
    told = (package / "CHANGELOG.md").read_text("utf-8")
    assert told == "# Changelog\n\n## Unreleased\n\n## 1.2.0, 2026-12-01\n\n- Boxes.\n"
    assert release.changes(package) == ""


@pytest.mark.parametrize(
    ("version", "told"), [("0.0.1", "0.1.0, which is later than 0.0.1"), ("1.0", "three numbers")]
)
def test_a_version_that_cannot_be_is_refused_and_nothing_written(package, version, told):
    before = (package / "pyproject.toml").read_text("utf-8")
    with pytest.raises(release.ReleaseError, match=told):
        release.release(package, version, date(2026, 12, 1))
    assert (package / "pyproject.toml").read_text("utf-8") == before


def test_nothing_new_is_no_release(package):
    release.release(package, "1.2.0", date(2026, 12, 1))
    with pytest.raises(release.ReleaseError, match="Nothing stands under 'Unreleased'"):
        release.release(package, "1.3.0", date(2026, 12, 2))


@pytest.mark.parametrize(
    "workflow", sorted(ROOT.glob(".github/workflows/*.yml")), ids=lambda p: p.stem
)
def test_workflows_call_nox_and_nothing_else(workflow):
    commands = re.findall(r"- run: (.*)", workflow.read_text("utf-8"))

    assert {*commands} >= {"python -m pip install nox"}
    assert all(re.match(r"python -m (pip install nox$|nox -s )", command) for command in commands)


def test_the_citation_and_the_security_policy_say_what_they_must():
    citation = (ROOT / "CITATION.cff").read_text("utf-8")
    policy = (ROOT / "SECURITY.md").read_text("utf-8")

    for key in ("cff-version", "title", "message", "authors", "license", "version"):
        assert re.search(rf"^{key}:", citation, re.MULTILINE), key
    for subject in ("torch.distributed.rpc", "pickle", "TreeSpec.from_json", "last minor version"):
        assert subject in policy
