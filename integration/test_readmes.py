"""What the READMEs and the pages of docs/ show works when it is pasted."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
READMES = [ROOT / "README.md", *ROOT.glob("packages/*/README.md")]
WRITTEN = [page for page in ROOT.glob("docs/**/*.md") if "reference" not in page.parts]
PAGES = sorted([*READMES, *WRITTEN])
# What is not on the site, whose links Sphinx checks.
LINKING = sorted({*READMES, *ROOT.glob("*.md"), *ROOT.glob("packages/*/CHANGELOG.md")})
STRICT = ["-W", "error", "-W", "ignore:`torch.jit.script:DeprecationWarning"]  # torch's own


def run(page, folder):
    """Run all examples of a page, one after the other, as one program."""
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    script = folder / "example.py"
    script.write_text("\n".join(blocks))
    command = [sys.executable, *STRICT, str(script)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )


@pytest.fixture(scope="module")
def results(two_at_a_time, tmp_path_factory):
    """What comes of the pages that were asked for."""
    return two_at_a_time("page", lambda page: run(page, tmp_path_factory.mktemp("page")))


def test_every_readme_has_an_example():
    assert [page for page in READMES if "```python\n" not in page.read_text()] == []


@pytest.mark.parametrize("page", LINKING, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_and_pictures_lead_to_files_that_there_are(page):
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text())
    paths = [link for link in links if not link.startswith("http")]

    assert [path for path in paths if not (page.parent / path).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_examples_run_as_they_stand(page, results):
    result = results[page].result()

    assert result.returncode == 0, result.stderr
