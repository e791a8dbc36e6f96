"""The tree table of the TorchOpt paper, with today's versions and ours.

Its Table 2 gives flattening, unflattening and mapping of the parameters of ResNets as times of
JAX, torch and dm-tree over OpTree's (for ResNet18, flatten: 2.80, 27.3 and 1.49). Here are the
same ratios now, and those of each peer over pytree-core. CPU time of the thread, the least of
interleaved rounds.

    nox -s bench, or python benchmarks/bench_pytree_paper.py [--quick] [--json FILE]
"""

from __future__ import annotations

from bench_pytree import check, libraries, operations, resnet
from harness import CPU, arguments, fastest, report

NETWORKS = {
    "ResNet18": ((2, 2, 2, 2), False),
    "ResNet50": ((3, 4, 6, 3), True),
    "ResNet101": ((3, 4, 23, 3), True),
    "ResNet152": ((3, 8, 36, 3), True),
}


def main() -> None:
    """Measure and print."""
    options = arguments(__doc__ or "")
    rounds, seconds = (3, 0.0005) if options.quick else (25, 0.01)
    found = libraries()
    results: dict[str, dict[str, dict[str, float]]] = {}
    for network, (blocks, bottleneck) in NETWORKS.items():
        tree = resnet(blocks, bottleneck)
        check(found, tree)
        timed = {name: operations(library, tree) for name, library in found.items()}
        for operation in ("flatten", "unflatten", "map"):
            contenders = {name: t[operation] for name, t in timed.items() if operation in t}
            if operation == "flatten" and "dm-tree" in timed:
                contenders["dm-tree"] = timed["dm-tree"]["leaves"]  # it has no structure
            times = fastest(contenders, rounds=rounds, seconds=seconds, clock=CPU)
            results.setdefault(network, {})[operation] = times
            print(f"\n{network}, {operation}: pytree-core {times['pytree_core']:.2f} us")
            for base in ("optree", "pytree_core"):
                if base in times:
                    ratios = (f"{n} {t / times[base]:.2f}" for n, t in times.items() if n != base)
                    print(f"  over {base:12}{', '.join(ratios)}")
    report(results, ["pytree-core", "optree", "jax", "dm-tree", "torch"], options.json)


if __name__ == "__main__":
    main()
