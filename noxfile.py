"""Every task of the repository: `nox -l` lists them, `nox -s NAME` sets one up and runs it."""

from __future__ import annotations

import hashlib
import shutil
import sys
from pathlib import Path

import nox

ROOT = Path(__file__).parent.resolve()
CONSTRAINTS = ROOT / "constraints.txt"
PACKAGES = sorted(path.parent.name for path in ROOT.glob("packages/*/pyproject.toml"))
NATIVE = ["pytree-core", "diffopt-kernels"]
# pytree-core alone is tested on each of them that is found; torch is there for the main one.
PYTHONS = ["3.10", "3.11", "3.12", "3.13"]
TORCHES = ["2.9.1", "2.14.1"]  # beside that of constraints.txt
MAIN_PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
NOT_SOURCES = {"build", "dist", "tests", "__pycache__"}

nox.options.sessions = ["tests", "lint"]


def import_name(package: str) -> str:
    """The name under which a distribution is imported."""
    return package.replace("-", "_")


def siblings(package: str) -> list[str]:
    """The packages of this repository that `package` needs, itself included."""
    project = nox.project.load_toml(ROOT / "packages" / package / "pyproject.toml")["project"]
    needed = [name for name in PACKAGES if any(d.startswith(name) for d in project["dependencies"])]
    return [*needed, package]


def wheel(session: nox.Session, package: str) -> Path:
    """The package's wheel for the session's Python, built only where its sources have changed."""
    source = ROOT / "packages" / package
    digest = hashlib.sha256(f"{session.python or sys.version}".encode())
    for path in sorted(source.rglob("*")):
        if path.is_file() and not NOT_SOURCES.intersection(path.relative_to(source).parts):
            digest.update(str(path.relative_to(source)).encode() + b"\0" + path.read_bytes())
    folder = ROOT / ".cache" / "wheels" / f"{package}-{digest.hexdigest()[:16]}"
    if not list(folder.glob("*.whl")):
        pip_wheel = ("python", "-m", "pip", "wheel", "-q", "--no-deps")
        session.run_install(*pip_wheel, "-w", str(folder), str(source))
    return next(folder.glob("*.whl"), source)  # no wheel: installing is skipped (`nox -R`)


def install(
    session: nox.Session, *packages: str, extras: str = "", also: tuple[str, ...] = ()
) -> None:
    """Install wheels of `packages` with what they declare, in the versions of constraints.txt."""
    wheels = [f"{wheel(session, package)}{extras}" for package in packages]
    session.install("-c", str(CONSTRAINTS), *wheels, *also)


def run_tests(session: nox.Session, *packages: str, also: tuple[str, ...] = ()) -> None:
    """Run the tests and the docstrings' examples of `packages`, as they are installed."""
    tests = [f"packages/{package}/tests" for package in packages]
    modules = [import_name(package) for package in packages]
    everything = [*tests, *also, "--doctest-modules", "--pyargs", *modules]
    session.run("python", "-m", "pytest", *(session.posargs or everything))


@nox.session
def demo(session: nox.Session) -> None:
    """The main job: few-shot learning of handwritten digits by MAML, with pictures in results/."""
    packages = ("pytree-core", "diffopt-kernels", "diffopt-explicit", "diffopt-viz")
    install(session, *packages, also=("-r", "examples/requirements.txt"))
    session.run("python", "examples/maml_digits.py", *session.posargs)


@nox.session
def tests(session: nox.Session) -> None:
    """All tests of all packages, and those that need several packages together."""
    integrations = f"{wheel(session, 'pytree-core')}[integrations]"
    also = (integrations, "-r", "examples/requirements.txt")
    install(session, *PACKAGES, extras="[test]", also=also)
    outcomes = f"--junitxml={ROOT / '.cache' / 'tests.xml'}"  # for the feature matrix
    run_tests(session, *PACKAGES, also=("integration", outcomes))
    run_tests_without_native_core(session)


@nox.session(name="tests-torch")
@nox.parametrize("version", TORCHES)
def tests_torch(session: nox.Session, version: str) -> None:
    """All tests of all packages with the oldest torch that they take, and with the newest."""
    integrations = f"{wheel(session, 'pytree-core')}[integrations]"
    install(session, *PACKAGES, extras="[test]", also=(integrations,))
    session.install(f"torch=={version}")
    run_tests(session, *PACKAGES)


def add_package_tests(package: str) -> None:
    """Give `package` a session of its own: nothing is installed but what it declares."""

    @nox.session(name=f"tests-{package}")
    def package_tests(session: nox.Session) -> None:
        *needed, _ = siblings(package)
        install(session, *needed, also=(f"{wheel(session, package)}[test]",))
        run_tests(session, package)

    package_tests.__doc__ = f"The tests of {package} alone, with only what it declares installed."


for name in PACKAGES:
    if name != "pytree-core":
        add_package_tests(name)


def run_tests_without_native_core(session: nox.Session) -> None:
    """Run pytree-core's tests once more, on the core in Python."""
    tests = ROOT / "packages" / "pytree-core" / "tests"
    plugin = ("-p", "pytree_backend", "-r", "fE")
    environment = {"PYTHONPATH": str(tests)}
    session.run("python", "-m", "pytest", "-q", *plugin, str(tests), env=environment)


@nox.session(name="tests-pytree-core", python=PYTHONS)
def tests_pytree_core(session: nox.Session) -> None:
    """The tests of pytree-core alone, on every Python that is found; with torch on the main one."""
    main = session.python == MAIN_PYTHON
    install(session, "pytree-core", extras="[test,integrations]" if main else "[test]")
    run_tests(session, "pytree-core", also=() if main else ("--doctest-ignore-import-errors",))
    run_tests_without_native_core(session)


@nox.session
def lint(session: nox.Session) -> None:
    """Style, spelling and types: ruff, clang-format, codespell, pyright."""
    tools = ("ruff", "clang-format", "codespell", "pyright")
    integrations = f"{wheel(session, 'pytree-core')}[integrations]"  # whose types are checked too
    also = (*tools, "nox", integrations, "-r", "examples/requirements.txt")
    install(session, *PACKAGES, also=also)
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")
    sources = [p for name in NATIVE for p in (ROOT / "packages" / name).glob("src/**/*")]
    native = [str(p) for p in sources if p.suffix in {".cpp", ".hpp", ".cu", ".cuh"}]
    session.run("clang-format", "--dry-run", "--Werror", *native)
    session.run("codespell")
    session.run("pyright", "--pythonpath", str(Path(session.bin) / "python"))


@nox.session(venv_backend="none")
def release(session: nox.Session) -> None:
    """Give a package a new version and its changelog a title; without arguments, list them."""
    session.run(sys.executable, "release.py", *session.posargs, external=True)


@nox.session
def docs(session: nox.Session) -> None:
    """The site, built into site/; a warning, such as a broken link, is an error."""
    install(session, *PACKAGES, also=("-r", "docs/requirements.txt"))
    session.run("python", "-m", "sphinx", "-q", "-W", "--keep-going", "docs", "site")
    session.log(f"Open {ROOT / 'site' / 'index.html'} in a browser.")


def commit_time(session: nox.Session) -> dict[str, str]:
    """The environment in which archives of one commit have the same dates whenever built."""
    told = session.run("git", "log", "-1", "--format=%ct", external=True, silent=True)
    return {"SOURCE_DATE_EPOCH": str(told or "").strip()}


def build(session: nox.Session, package: str, folder: Path, dated: dict[str, str]) -> None:
    """Make the sdist of a package, and from that its wheel."""
    command = ("python", "-m", "build", "--outdir", str(folder), f"packages/{package}")
    session.run(*command, env=dated)


@nox.session
def wheels(session: nox.Session) -> None:
    """Build all sdists and wheels (or those named, and what they need), and test each alone."""
    session.install("-c", str(CONSTRAINTS), "build", "twine", "virtualenv")
    dist = ROOT / "dist"
    shutil.rmtree(dist, ignore_errors=True)
    named, dated = session.posargs or PACKAGES, commit_time(session)
    for package in sorted({needed for name in named for needed in siblings(name)}):
        build(session, package, dist, dated)
    session.run("twine", "check", "--strict", *[str(path) for path in dist.iterdir()])
    for package in named:
        home = Path(session.create_tmp()).resolve() / package
        shutil.rmtree(home, ignore_errors=True)
        shutil.copytree(ROOT / "packages" / package / "tests", home / "tests")
        for settings in ("pyproject.toml", "conftest.py"):
            shutil.copy(ROOT / settings, home)
        session.run("python", "-m", "virtualenv", "-q", str(home / "env"))
        python = str(home / "env" / ("Scripts" if sys.platform == "win32" else "bin") / "python")
        built = next(dist.glob(f"{import_name(package)}-*.whl"))
        pip = (python, "-m", "pip", "install", "-q", "--find-links", str(dist))
        session.run(*pip, "-c", str(CONSTRAINTS), f"{built}[test]", external=True)
        with session.chdir(home):
            session.run(python, "-m", "pytest", "-q", "tests", external=True)


@nox.session
def reproducible(session: nox.Session) -> None:
    """Build all sdists and wheels (or those named) twice; their bytes must be the same."""
    session.install("-c", str(CONSTRAINTS), "build")
    dated = commit_time(session)
    for package in session.posargs or PACKAGES:
        digests: list[dict[str, str]] = []
        for turn in ("first", "second"):
            folder = Path(session.create_tmp()).resolve() / turn
            shutil.rmtree(folder, ignore_errors=True)
            build(session, package, folder, dated)
            files = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
            digests.append({name: hashlib.sha256(data).hexdigest() for name, data in files.items()})
        if digests[0] != digests[1]:
            session.error(f"{package} is not the same twice: {digests}")
        for name, digest in digests[0].items():
            session.log(f"{digest}  {name}")


@nox.session(name="platform-wheels")
def platform_wheels(session: nox.Session) -> None:
    """Wheels of the native packages for this platform and each Python, into wheelhouse/."""
    session.install("-c", str(CONSTRAINTS), "cibuildwheel")
    dated = {**commit_time(session), "CIBW_ENVIRONMENT_PASS_LINUX": "SOURCE_DATE_EPOCH"}
    for package in session.posargs or NATIVE:
        session.run("cibuildwheel", "--output-dir", "wheelhouse", f"packages/{package}", env=dated)


@nox.session
def sanitize(session: nox.Session) -> None:
    """The native packages' tests under gcc's address and undefined-behaviour sanitizers."""
    install(session, *NATIVE, extras="[test]")
    rebuild = ("--force-reinstall", "--no-deps", "--no-cache-dir", "-C", "build-dir=build/sanitize")
    # The CUDA loops too, which the processor can run as well as a GPU.
    options = {"pytree-core": ["PYTREE_SANITIZE=ON"]}
    options["diffopt-kernels"] = ["DIFFOPT_SANITIZE=ON", "DIFFOPT_CUDA=EMULATED"]
    for package, defined in options.items():
        settings = [word for setting in defined for word in ("-C", f"cmake.define.{setting}")]
        session.install(*rebuild, *settings, f"packages/{package}")
    runtimes = [
        session.run("gcc", f"-print-file-name={name}", external=True, silent=True)
        # The second, because the first must find the C++ exceptions that it watches.
        for name in ("libasan.so", "libstdc++.so")
    ]
    environment = {
        "LD_PRELOAD": " ".join(str(path).strip() for path in runtimes),
        "ASAN_OPTIONS": "detect_leaks=0",  # the interpreter's own, of which there are many
        "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
        "PYTHONMALLOC": "malloc",  # so that each object is an allocation that can be watched
    }
    for package in NATIVE:
        tests = f"packages/{package}/tests"
        session.run("python", "-m", "pytest", "-q", tests, *session.posargs, env=environment)


@nox.session
def bench(session: nox.Session) -> None:
    """Every benchmark beside its peers, and the page of them; `-- --quick` for a smoke run."""
    install(session, *PACKAGES, also=("-r", "benchmarks/requirements.txt"))
    # TorchOpt asks for an old torch, Betty for an old Python, but both run on the present ones.
    session.install("--no-deps", "torchopt")
    session.install("--no-deps", "--ignore-requires-python", "betty-ml==0.2.1")
    # The figures of a quick run mean nothing, and must not take the place of those that do.
    quick = "--quick" in session.posargs
    home = Path(session.create_tmp()).resolve() if quick else ROOT / "benchmarks"
    for path in sorted((ROOT / "benchmarks").glob("bench_*.py")):
        results = home / "results" / f"{path.stem.removeprefix('bench_')}.json"
        session.run("python", str(path), "--json", str(results), *session.posargs)
    audit = ("benchmarks/audit_derivatives.py", "--results", str(home / "results"))
    session.run("python", *audit)
    page = home / "page" if quick else ROOT / "results" / "benchmarks"
    session.run("python", "docs/benchmark_report.py", str(home / "results"), str(page))
    if not quick:
        session.run("python", "docs/figures.py")
        audit = ("benchmarks/audit_compiled.py", "--json", "benchmarks/results/compiled.json")
        session.run("python", *audit)
    session.log(f"The page: {page / 'benchmarks.md'}")
