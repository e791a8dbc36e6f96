"""Instructions a tree operation takes, counted by callgrind: the same in every run.

Each operation on a ResNet18's tree runs in a process of its own, beside one that only prepares
it; what the first counts more is the operation. Needs valgrind, and minutes: everything runs
some fifty times slower.

    python benchmarks/count_instructions.py [--json FILE]
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from bench_pytree import libraries, operations, resnet
from harness import arguments, report

REPEATS = 300
COUNTED = ("leaves", "flatten", "unflatten", "map", "spec ==")
LIBRARIES = ("pytree_core", "optree", "jax", "dm-tree", "torch")


def run(library: str, operation: str, repeats: int) -> None:
    """Prepare an operation, run it twice to fill all caches, and then so many times."""
    timed = operations(libraries(library)[library], resnet((2, 2, 2, 2), bottleneck=False))
    call = timed[operation] if operation in timed else sys.exit(f"no {operation}")
    for _ in range(2 + repeats):
        call()


def count(library: str, operation: str) -> float | None:
    """The instructions of one call, or None if the library does not have the operation."""
    totals: list[int] = []
    for repeats in (0, REPEATS):
        with tempfile.TemporaryDirectory() as folder:
            command = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={folder}/out"]
            command += [sys.executable, __file__, "--run", library, operation, str(repeats)]
            seed = {**os.environ, "PYTHONHASHSEED": "0"}
            done = subprocess.run(command, capture_output=True, text=True, check=False, env=seed)
            if f"no {operation}" in done.stderr:
                return None
            done.check_returncode()
            found = re.search(r"^totals: (\d+)", Path(folder, "out").read_text(), re.MULTILINE)
            totals.append(int(found[1]) if found else 0)
    return (totals[1] - totals[0]) / REPEATS


def main() -> None:
    """Count, and print the instructions of a call, and how many times more each peer's takes."""
    if sys.argv[1:2] == ["--run"]:
        run(sys.argv[2], sys.argv[3], int(sys.argv[4]))
        return
    options = arguments(__doc__ or "")
    counts: dict[str, dict[str, float]] = {}
    for operation in COUNTED:
        found = {library: count(library, operation) for library in LIBRARIES}
        counts[operation] = {name: n for name, n in found.items() if n is not None}
        ours = counts[operation]["pytree_core"]
        peers = (f"{n} {c / ours:.1f}x" for n, c in counts[operation].items() if n != "pytree_core")
        print(f"{operation:12}{ours:10,.0f} instructions | {', '.join(peers)}", flush=True)
    report(counts, ["pytree-core", "optree", "jax", "dm-tree", "torch"], options.json)


if __name__ == "__main__":
    main()
