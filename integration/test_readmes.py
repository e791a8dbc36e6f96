"""What the READMEs show works when it is pasted."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
READMES = sorted([ROOT / "README.md", *ROOT.glob("packages/*/README.md")])


@pytest.mark.parametrize("readme", READMES, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_examples_run_as_they_stand(readme, tmp_path):
    blocks = re.findall(r"```python\n(.*?)```", readme.read_text(), re.DOTALL)

    assert blocks, "a README has an example"

    script = tmp_path / "example.py"
    script.write_text("\n".join(blocks))
    strict = ["-W", "error", "-W", "ignore:`torch.jit.script:DeprecationWarning"]  # torch's own
    command = [sys.executable, *strict, str(script)]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)

    assert result.returncode == 0, result.stderr
