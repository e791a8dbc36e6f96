import re
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"


def test_examples_run_as_pasted(capsys):
    for example in re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL):
        exec(compile(example, str(README), "exec"), {"__name__": "__main__"})
    assert capsys.readouterr().out.startswith("(tensor(")
