"""What every package has in common."""

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
