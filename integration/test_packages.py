"""What every package has in common."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = sorted(path.parent for path in ROOT.glob("packages/*/pyproject.toml"))


@pytest.mark.parametrize("package", PACKAGES, ids=lambda path: path.name)
def test_a_package_carries_the_license_into_its_archives(package):
    assert (package / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()


@pytest.mark.parametrize("package", PACKAGES, ids=lambda path: path.name)
def test_a_package_has_what_a_user_looks_for(package):
    module = package / "src" / package.name.replace("-", "_")
    for path in (package / "README.md", package / "CHANGELOG.md", module / "py.typed"):
        assert path.exists()


def declared(package):
    """The modules of what a package needs, itself included, and of its extra for tests."""
    project = (package / "pyproject.toml").read_text()
    lists = re.findall(r"^(?:dependencies|test) = \[(.*)\]$", project, re.MULTILINE)
    names = [package.name, *re.findall(r'"([\w-]+)', ",".join(lists))]
    return {name.replace("-", "_") for name in names}


def imported(path):
    """The modules that a file imports, at its top or within."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield str(node.module).partition(".")[0]


@pytest.mark.parametrize("package", PACKAGES, ids=lambda path: path.name)
def test_the_tests_of_a_package_import_what_it_declares_and_nothing_else(package):
    tests = list(package.glob("tests/**/*.py"))
    known = {*sys.stdlib_module_names, *(path.stem for path in tests), *declared(package)}
    met = {(path.name, name) for path in tests for name in imported(path)}

    # Private ones are the interpreter's, of one version or another.
    assert {(file, name) for file, name in met if name not in known and name[0] != "_"} == set()


@pytest.mark.parametrize("name", ["diffopt_explicit", "diffopt_implicit"])
def test_what_a_large_package_exports_is_imported_when_it_is_asked_for(name):
    script = f"""
import sys, {name} as package
loaded = [module for module in sys.modules if module.startswith("{name}.")]
assert not loaded, loaded
missing = [name for name in dir(package) if getattr(package, name, None) is None]
assert not missing and len(dir(package)) > 100, missing
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=300)
