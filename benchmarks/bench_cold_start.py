"""How long a new user waits: to import each wheel, and to the first meta-gradient.

The claim: no wheel takes more than 50 ms to import once torch is there. Each figure is the
median over fresh processes; that of an import is what comes on top of `import torch` (of nothing,
for pytree-core). `diffopt_explicit`, `diffopt_implicit`, `diffopt_zeroorder` and `diffopt_dist`
import their parts when these are first used: that time is in the first meta-gradient, of a learning
rate through three Adam steps, from the start of the process, with that of torch. But for a quick
run all wheels are built from this checkout too, which takes minutes where there is a CUDA compiler,
and installed into a fresh environment, with torch and what else they need.

    nox -s bench, or python benchmarks/bench_cold_start.py [--quick] [--json FILE]
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
import venv
from importlib.util import find_spec
from pathlib import Path

from harness import arguments, report

ROOT = Path(__file__).parents[1]
OURS = [
    "pytree_core",
    "diffopt_kernels",
    "diffopt_explicit",
    "diffopt_implicit",
    "diffopt_zeroorder",
    "diffopt_dist",
    "diffopt_viz",
]
PEERS = {"optree": "optree", "torchopt": "torchopt", "higher": "higher", "betty.engine": "betty-ml"}
WITHOUT_TORCH = {"pytree_core", "optree"}

IMPORT = """
import time
{before}
start = time.perf_counter()
import {module}
print(time.perf_counter() - start)
"""
OURS_FIRST = """
import torch
from diffopt_explicit import adam, unroll
lr = torch.tensor(0.1, requires_grad=True)
loss = lambda w: (w - 1).square().sum()
loss(unroll(loss, adam(lr), torch.zeros(4), steps=3).params).backward()
assert lr.grad is not None
"""
HIGHER_FIRST = """
import higher, torch
module = torch.nn.Linear(4, 1)
lr = torch.tensor(0.1, requires_grad=True)
opt = torch.optim.Adam(module.parameters(), lr=0.1)
with higher.innerloop_ctx(module, opt, override={"lr": [lr]}) as (fmodel, diffopt):
    for _ in range(3):
        diffopt.step(fmodel(torch.ones(2, 4)).square().sum())
    fmodel(torch.ones(2, 4)).square().sum().backward()
assert lr.grad is not None
"""
TORCHOPT_FIRST = """
import torch, torchopt
module = torch.nn.Linear(4, 1)
module.lr = torch.nn.Parameter(torch.tensor(0.1))
opt = torchopt.MetaAdam(module, lr=module.lr)
for _ in range(3):
    opt.step(module(torch.ones(2, 4)).square().sum())
module(torch.ones(2, 4)).square().sum().backward()
"""


def printed(script: str) -> float:
    """The number that a script prints in a fresh process."""
    command = [sys.executable, "-W", "ignore", "-c", script]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def waited(script: str) -> float:
    """How long a script takes in a fresh process."""
    start = time.perf_counter()
    command = [sys.executable, "-W", "ignore", "-c", script]
    subprocess.run(command, capture_output=True, check=True)
    return time.perf_counter() - start


def imports(rounds: int) -> dict[str, float]:
    """Milliseconds to import each module that is installed."""
    found = {}
    for module in [*OURS, *(peer for peer in PEERS if find_spec(peer.partition(".")[0]))]:
        before = "" if module in WITHOUT_TORCH else "import torch"
        script = IMPORT.format(before=before, module=module)
        found[module] = 1e3 * statistics.median(printed(script) for _ in range(rounds))
    return found


def first_gradients(rounds: int) -> dict[str, float]:
    """Milliseconds to the first meta-gradient."""
    scripts = {"import torch alone": "import torch", "diffopt_explicit": OURS_FIRST}
    scripts |= {"higher": HIGHER_FIRST} if find_spec("higher") else {}
    scripts |= {"torchopt": TORCHOPT_FIRST} if find_spec("torchopt") else {}
    return {
        name: 1e3 * statistics.median(waited(script) for _ in range(rounds))
        for name, script in scripts.items()
    }


def installed() -> dict[str, float]:
    """Milliseconds to build all wheels, to install them into a new environment, and to begin."""
    with tempfile.TemporaryDirectory() as folder:
        home, wheels = str(Path(folder) / "home"), str(Path(folder) / "wheels")
        sources = [str(path.parent) for path in sorted(ROOT.glob("packages/*/pyproject.toml"))]
        quiet = ["-q", "-c", str(ROOT / "constraints.txt")]
        pip = ["-m", "pip"]
        start = time.perf_counter()
        build = [sys.executable, *pip, "wheel", *quiet, "--no-deps", "-w", wheels, *sources]
        subprocess.run(build, check=True)
        built = time.perf_counter()
        venv.create(home, with_pip=True)
        python = str(Path(home) / ("Scripts" if sys.platform == "win32" else "bin") / "python")
        files = [str(path) for path in Path(wheels).iterdir()]
        subprocess.run([python, *pip, "install", *quiet, *files], check=True)
        done = time.perf_counter()
        subprocess.run([python, "-c", OURS_FIRST], check=True)
        end = time.perf_counter()
    return {
        "all wheels built": 1e3 * (built - start),
        "environment and installation": 1e3 * (done - built),
        "first meta-gradient": 1e3 * (end - done),
    }


def main() -> None:
    """Measure and print."""
    options = arguments(__doc__ or "")
    rounds = 1 if options.quick else 11
    results = {"import": imports(rounds), "first meta-gradient": first_gradients(rounds)}
    if not options.quick:
        results["from nothing"] = installed()
    for title, times in results.items():
        print(f"\n{title}, milliseconds")
        for name, value in times.items():
            print(f"  {name:28} {value:8.1f}")
    packages = [*(name.replace("_", "-") for name in OURS), "torch", *PEERS.values()]
    report(results, packages, options.json, "milliseconds")


if __name__ == "__main__":
    main()
