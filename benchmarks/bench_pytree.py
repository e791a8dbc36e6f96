"""Trees: pytree-core beside OpTree, JAX, dm-tree and torch, in one process.

The claim: several times faster than every peer. Each operation does the same for all: flatten
gives leaves and a reusable structure (dm-tree gives leaves only), map calls a Python function
once a leaf. Time is CPU time of the thread, the least of interleaved rounds; only ratios mean
anything. "fresh keys" flattens 400 trees whose key strings no one has seen before.

    nox -s bench, or python benchmarks/bench_pytree.py [--quick] [--json FILE]
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
from collections import OrderedDict, namedtuple
from collections.abc import Callable
from typing import Any

import pytree_core
from harness import CPU, Contenders, arguments, fastest, report, row

Library = dict[str, Callable[..., Any]]
Point = namedtuple("Point", ["x", "y"])


@dataclasses.dataclass
class Pair:
    """A dataclass, which each library knows by its fastest means."""

    x: Any
    y: Any


def register_pair() -> None:
    """Make `Pair` a node of every library that has such nodes."""
    pytree_core.dataclasses.register_node(Pair)
    with contextlib.suppress(ImportError):
        import jax  # pyright: ignore[reportMissingImports]

        jax.tree_util.register_dataclass(Pair, ["x", "y"], [])
    with contextlib.suppress(ImportError):
        optree: Any = importlib.import_module("optree")
        everywhere = vars(optree.registry)["__GLOBAL_NAMESPACE"]
        take, make = lambda p: ((p.x, p.y), None, ("x", "y")), lambda _, c: Pair(*c)
        optree.register_pytree_node(Pair, take, make, namespace=everywhere)
    with contextlib.suppress(ImportError):
        import torch.utils._pytree as torch_trees

        torch_trees.register_pytree_node(Pair, lambda p: ([p.x, p.y], None), lambda c, _: Pair(*c))


def libraries(only: str | None = None) -> dict[str, Library]:
    """The operations of each library that is installed (or of one), under the same names."""
    found: dict[str, Library] = {"pytree_core": dict(vars(pytree_core))}

    def add(name: str, module: str, wrap: Callable[[Any], Library]) -> None:
        if only not in (None, name):
            return
        try:
            found[name] = wrap(importlib.import_module(module))
        except ImportError as error:
            print(f"{name}: {error}")

    names = ("tree_flatten", "tree_leaves", "tree_unflatten", "tree_map")
    paths = (*names, "tree_flatten_with_path", "tree_map_with_path")
    add("optree", "optree", lambda m: {name: getattr(m, name) for name in paths})
    add("jax", "jax.tree_util", lambda m: {name: getattr(m, name) for name in paths})
    torch_order = lambda m: lambda spec, leaves: m.tree_unflatten(leaves, spec)
    add(
        "torch",
        "torch.utils._pytree",
        lambda m: {
            **{name: getattr(m, name) for name in names},
            "tree_unflatten": torch_order(m),
        },
    )
    add("dm-tree", "tree", lambda m: {"tree_leaves": m.flatten, "tree_map": m.map_structure})
    return found


def resnet(blocks: tuple[int, ...], bottleneck: bool) -> dict[str, Any]:
    """A nested dict shaped like a ResNet's state: 122 leaves for ResNet18, 932 for ResNet152."""
    leaf = iter(range(10**6))
    norm = lambda: {
        key: next(leaf)
        for key in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    }
    convolution = lambda: {"weight": next(leaf)}
    tree: dict[str, Any] = {"conv1": convolution(), "bn1": norm()}
    for stage, count in enumerate(blocks, start=1):
        layer = tree[f"layer{stage}"] = {}
        for index in range(count):
            block = layer[str(index)] = {}
            for part in range(1, 4 if bottleneck else 3):
                block[f"conv{part}"], block[f"bn{part}"] = convolution(), norm()
            if index == 0 and (bottleneck or stage > 1):
                block["downsample"] = {"0": convolution(), "1": norm()}
    tree["fc"] = {"weight": next(leaf), "bias": next(leaf)}
    return tree


def state_dict(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """The leaves of nested dicts in one, by dotted path."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        nested = isinstance(value, dict)
        flat.update(state_dict(value, f"{prefix}{key}.") if nested else {prefix + key: value})
    return flat


def trees(quick: bool) -> dict[str, Any]:
    """The trees to measure on, small to large."""
    groups = 100 if quick else 1000
    return {
        "a leaf": 1,
        "tuple of 2": (1, 2),
        "dict of 3": {"b": 1, "a": 2, "c": 3},
        "5 dicts, 10 leaves": {f"layer{i}": {"weight": i, "bias": -i} for i in range(5)},
        "list of 122": list(range(122)),
        "ResNet18, 122 leaves": resnet((2, 2, 2, 2), bottleneck=False),
        "ResNet152, 932 leaves": resnet((3, 8, 36, 3), bottleneck=True),
        "932 keys in one dict": state_dict(resnet((3, 8, 36, 3), bottleneck=True)),
        "1000 tuples of 2": [(1, 2)] * 1000,
        "20 named tuples": [Point({"b": 1, "a": 2}, 3) for _ in range(20)],
        "20 OrderedDicts": [OrderedDict(b=1, a=2) for _ in range(20)],
        "20 dataclasses": [Pair(1, 2) for _ in range(20)],
        f"{groups * 100} leaves": [
            [{"a": 1, "b": 2, "c": 3, "d": 4} for _ in range(25)] for _ in range(groups)
        ],
    }


def operations(library: Library, tree: Any) -> Contenders:
    """What to time with one library on one tree, by name."""
    leaves, map_tree = library["tree_leaves"], library["tree_map"]
    timed: Contenders = {
        "leaves": lambda: leaves(tree),
        "map": lambda: map_tree(lambda x: x, tree),
        "map, 2 trees": lambda: map_tree(lambda x, y: x, tree, tree),
        "map, 3 trees": lambda: map_tree(lambda x, y, z: x, tree, tree, tree),
    }
    if "tree_flatten" in library:
        flatten, unflatten = library["tree_flatten"], library["tree_unflatten"]
        values, spec = flatten(tree)
        _, other = flatten(tree)
        timed["flatten"] = lambda: flatten(tree)
        timed["flatten, is_leaf"] = lambda: flatten(tree, is_leaf=lambda x: False)
        timed["unflatten"] = lambda: unflatten(spec, values)
        if hasattr(spec, "flatten_up_to"):
            timed["flatten_up_to"] = lambda: spec.flatten_up_to(tree)
        timed["spec =="] = lambda: spec == other
        timed["hash(spec)"] = lambda: hash(spec)
    if "tree_flatten_with_path" in library:
        with_path, map_with_path = library["tree_flatten_with_path"], library["tree_map_with_path"]
        timed["flatten with path"] = lambda: with_path(tree)
        timed["map with path"] = lambda: map_with_path(lambda path, x: x, tree)
    return timed


def fresh_keys() -> list[Any]:
    """Four hundred trees of ResNet18's shape with keys of their own."""

    def renamed(tree: Any, mark: str) -> Any:
        if not isinstance(tree, dict):
            return tree
        return {f"{key}{mark}": renamed(value, mark) for key, value in tree.items()}

    tree = resnet((2, 2, 2, 2), bottleneck=False)
    return [renamed(tree, f"_{index}") for index in range(400)]


def check(found: dict[str, Library], tree: Any) -> None:
    """Refuse to time libraries that disagree."""
    expected = sorted(map(str, pytree_core.tree_leaves(tree)))
    for name, library in found.items():
        if sorted(map(str, library["tree_leaves"](tree))) != expected:
            raise AssertionError(f"{name} finds other leaves")
        if library["tree_map"](lambda x: x, tree) != tree:
            raise AssertionError(f"{name} maps to another tree")


def main() -> None:
    """Measure and print."""
    options = arguments(__doc__ or "")
    rounds, seconds = (3, 0.0005) if options.quick else (25, 0.01)
    found = libraries()
    register_pair()
    results: dict[str, dict[str, dict[str, float]]] = {}
    for title, tree in trees(options.quick).items():
        able = {
            name: library
            for name, library in found.items()
            if name != "dm-tree" or "dataclass" not in title  # which are leaves to it
        }
        check(able, tree)
        timed = {name: operations(library, tree) for name, library in able.items()}
        print(f"\n{title}")
        for operation in timed["pytree_core"]:
            contenders = {name: t[operation] for name, t in timed.items() if operation in t}
            times = fastest(contenders, rounds=rounds, seconds=seconds, clock=CPU)
            results.setdefault(title, {})[operation] = times
            print(f"  {operation:17}{row(times, 'pytree_core')}")
    title = "ResNet18, fresh keys"
    print(f"\n{title} (400 trees)")
    fresh = fresh_keys()
    for operation in ("leaves", "flatten"):
        contenders = {
            name: lambda call=library[f"tree_{operation}"]: [call(tree) for tree in fresh]
            for name, library in found.items()
            if f"tree_{operation}" in library
        }
        times = fastest(contenders, rounds=rounds, seconds=seconds, clock=CPU)
        results.setdefault(title, {})[operation] = times
        print(f"  {operation:17}{row(times, 'pytree_core')}")
    report(results, ["pytree-core", "optree", "jax", "dm-tree", "torch"], options.json)


if __name__ == "__main__":
    main()
