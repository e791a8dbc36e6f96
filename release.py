"""Give a package a new version: `nox -s release -- diffopt-explicit 0.2.0`; alone, list them.

The version goes into its pyproject.toml, the changes under "Unreleased" in its CHANGELOG.md get the
version and the date for a title, and what to do next is printed; nothing is committed or uploaded.
"""

from __future__ import annotations

import argparse
import re
from datetime import date
from pathlib import Path

ROOT = Path(__file__).parent
VERSION = re.compile(r'^version = "(.+)"$', re.MULTILINE)
UNRELEASED = "## Unreleased\n"


class ReleaseError(SystemExit):
    """Why a package cannot be released as it is."""


def version_of(package: Path) -> str:
    """The present version of the package in a folder."""
    found = VERSION.search((package / "pyproject.toml").read_text("utf-8"))
    assert found is not None, package
    return found[1]


def parsed(version: str) -> tuple[int, ...]:
    """The numbers of a version, which are three."""
    if not re.fullmatch(r"\d+\.\d+\.\d+", version):
        raise ReleaseError(f"A version is three numbers, such as 0.2.0; got {version!r}.")
    return tuple(int(part) for part in version.split("."))


def changes(package: Path) -> str:
    """What is written under "Unreleased" in a package's changelog."""
    text = (package / "CHANGELOG.md").read_text("utf-8")
    return text.partition(UNRELEASED)[2].partition("\n## ")[0].strip()


def release(package: Path, version: str, day: date) -> None:
    """Write a version and a date into the package in a folder; nothing changes if that fails."""
    before = version_of(package)
    if parsed(version) < parsed(before):
        raise ReleaseError(f"{package.name} is at {before}, which is later than {version}.")
    if not changes(package):
        raise ReleaseError(f"Nothing stands under 'Unreleased' in {package.name}'s CHANGELOG.md.")
    project, changelog = package / "pyproject.toml", package / "CHANGELOG.md"
    told = changelog.read_text("utf-8")
    numbered = VERSION.sub(f'version = "{version}"', project.read_text("utf-8"), count=1)
    project.write_text(numbered, "utf-8")
    title = f"{UNRELEASED}\n## {version}, {day.isoformat()}\n"
    changelog.write_text(told.replace(UNRELEASED, title, 1), "utf-8")


def main() -> None:
    """Release a package, or list them all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("package", nargs="?", help="such as diffopt-explicit")
    parser.add_argument("version", nargs="?", help="such as 0.2.0")
    chosen = parser.parse_args()
    packages = {path.parent.name: path.parent for path in ROOT.glob("packages/*/pyproject.toml")}
    if chosen.version is None:
        for name, folder in sorted(packages.items()):
            waiting = len(re.findall("^- ", changes(folder), re.MULTILINE))
            print(f"{name:20} {version_of(folder):8} {waiting} changes since")
        return
    if chosen.package not in packages:
        raise ReleaseError(f"{chosen.package} is none of {', '.join(sorted(packages))}.")
    release(packages[chosen.package], chosen.version, date.today())
    tag = f"{chosen.package}-v{chosen.version}"
    print(f"Next: nox -s wheels -- {chosen.package}")
    print(f"      git commit -am 'Release {tag}' && git tag {tag} && git push --follow-tags")
    print("The tag makes the workflow `wheels` build and test the wheels of all platforms.")


if __name__ == "__main__":
    main()
