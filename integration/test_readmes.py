"""What the READMEs show works when it is pasted."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXAMPLES = [
    pytest.param(code, id=f"{path.relative_to(ROOT)}-{index}")
    for path in sorted([ROOT / "README.md", *ROOT.glob("packages/*/README.md")])
    for index, code in enumerate(re.findall(r"```python\n(.*?)```", path.read_text(), re.DOTALL))
]


@pytest.mark.parametrize("code", EXAMPLES)
def test_the_example_runs_as_it_stands(code, tmp_path):
    script = tmp_path / "example.py"
    script.write_text(code)
    command = [sys.executable, "-W", "error", str(script)]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)

    assert result.returncode == 0, result.stderr


def test_every_package_has_an_example():
    with_example = {parameter.id.rsplit("-", 1)[0] for parameter in EXAMPLES}
    readmes = [ROOT / "README.md", *ROOT.glob("packages/*/README.md")]

    assert with_example == {str(path.relative_to(ROOT)) for path in readmes}
