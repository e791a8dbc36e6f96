"""What the READMEs and the pages of docs/ show works when it is pasted."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
READMES = [ROOT / "README.md", *ROOT.glob("packages/*/README.md")]
PAGES = sorted([*READMES, *ROOT.glob("docs/**/*.md")])


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_examples_run_as_they_stand(page, tmp_path):
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)

    assert blocks or page not in READMES, "a README has an example"

    script = tmp_path / "example.py"
    script.write_text("\n".join(blocks))
    strict = ["-W", "error", "-W", "ignore:`torch.jit.script:DeprecationWarning"]  # torch's own
    command = [sys.executable, *strict, str(script)]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)

    assert result.returncode == 0, result.stderr
