"""Damaged structures: a million of them must give an error or a whole structure.

Takes saved structures of every kind, damages them, and loads them: as the state that pickle
hands over, as bytes of a pickle, and as JSON. What loads must be a structure in which every
operation works; what does not must raise one of the errors that are promised. A crash shows
as the end of the process, with the seed that leads there on the last line.

    python fuzz_states.py [--inputs 1000000] [--seed 0]
"""

import argparse
import faulthandler
import io
import pickle
import random
import time
from collections.abc import Callable
from typing import Any

import pytree_core as pt
from pytree_core._core import treespec_from_state
from pytree_strategies import EVERY_KIND, Box, Config, Layer, Point

SPARE_PARTS = (
    *(None, True, -1, 0, 1, 2, 7, 2**31, 2**32, 2**64, -(2**70), 1.5, "", "a", "leaf", "dict"),
    *("custom", "none", "deque", "namedtuple", b"", (), ("a",), ("a", "a"), ([],), [], {}),
    *(int, dict, tuple, Box, Config, Layer, Point, pt.TreeSpec, time.struct_time, len, ...),
)
BYTES = bytes(range(256))


def specimens() -> list[pt.TreeSpec]:
    """Structures of every kind, alone and inside each other."""
    alone = [pt.tree_structure(tree) for tree in EVERY_KIND.values()]
    return [*alone, pt.tree_structure(list(EVERY_KIND.values())), alone[0].compose(alone[7])]


def damage(value: Any, random: random.Random) -> Any:
    """Exchange, remove, repeat or reorder something in nested tuples."""
    if type(value) is not tuple or not value or random.random() < 0.2:
        return random.choice(SPARE_PARTS)
    i = random.randrange(len(value))
    match random.randrange(8):
        case 0:
            return value[:i] + value[i + 1 :]
        case 1:
            return (*value[:i], value[i], *value[i:])
        case 2:
            j = random.randrange(len(value))
            return (*value[:i], value[j], *value[i + 1 :])
    return (*value[:i], damage(value[i], random), *value[i + 1 :])


def damage_bytes(data: bytes, random: random.Random) -> bytes:
    """Exchange, remove or repeat a few bytes."""
    for _ in range(random.randint(1, 4)):
        i, j = sorted(random.choices(range(len(data) + 1), k=2))
        match random.randrange(4):
            case 0:
                data = data[:i] + data[min(j, i + 8) :]
            case 1:
                data = data[:j] + data[i:]
            case _:
                data = data[:i] + bytes([random.choice(BYTES)]) + data[i + 1 :]
    return data


class Restricted(pickle._Unpickler):  # type: ignore[name-defined]
    """Loads nothing but structures: a damaged pickle may name any function.

    Pickle in Python, because the one in C makes room for as many objects as the bytes say.
    """

    def find_class(self, module: str, name: str) -> Any:
        known = {cls.__qualname__: cls for cls in (Box, Config, Layer, Point, pt.Partial)}
        known |= {"treespec_from_state": treespec_from_state, "struct_time": time.struct_time}
        if name not in known:
            raise pickle.UnpicklingError(f"{module}.{name} is not loaded here")
        return known[name]


def state_case(spec: pt.TreeSpec, random: random.Random) -> Callable[[], Any]:
    state = spec.__reduce__()[1][0]
    for _ in range(random.randint(1, 3)):
        state = damage(state, random)
    return lambda: treespec_from_state(state)


def pickle_case(spec: pt.TreeSpec, random: random.Random) -> Callable[[], Any]:
    data = damage_bytes(pickle.dumps(spec, random.randint(0, 5)), random)
    return lambda: Restricted(io.BytesIO(data)).load()


def json_case(spec: pt.TreeSpec, random: random.Random) -> Callable[[], Any]:
    try:
        saved = spec.to_json()
    except ValueError:  # a function among the metadata has no safe form
        saved = '{"format": "pytree_core.TreeSpec", "version": 1, "nodes": [["leaf", 0, null]]}'
    data = damage_bytes(saved.encode(), random).decode(errors="replace")
    return lambda: pt.TreeSpec.from_json(data)


# What each way of loading promises to raise. Pickle itself raises nearly anything.
CASES: dict[Callable[..., Callable[[], Any]], tuple[type[BaseException], ...]] = {
    state_case: (ValueError,),
    json_case: (ValueError,),
    pickle_case: (Exception,),
}


def check(spec: Any) -> None:
    """Use a structure in every way."""
    if not isinstance(spec, pt.TreeSpec):
        return
    leaves = list(range(spec.num_leaves))
    assert len(spec.levels()) == spec.num_nodes
    assert len(spec.paths()) == len(spec.accessors()) == spec.num_leaves
    assert spec == pt.TreeSpec.graft(spec, [pt.treespec_leaf()] * spec.num_leaves)
    assert spec <= spec.compose(spec)
    assert str(spec).startswith("TreeSpec(")
    state = spec.__reduce__()[1][0]
    assert treespec_from_state(state) == spec
    try:
        tree = spec.unflatten(leaves)
    except Exception:  # metadata that the user's own unflatten function refuses
        return
    del tree


def fuzz(inputs: int, seed: int) -> int:
    """Load so many damaged structures, and return how many of them were whole."""
    specs, whole, source = specimens(), 0, random.Random(seed)
    for _ in range(inputs):
        make = source.choice(list(CASES))
        load = make(source.choice(specs), source)
        try:
            spec = load()
        except CASES[make]:
            continue
        check(spec)
        whole += 1
    return whole


def main() -> None:
    """Fuzz in portions, and say how far it is."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    faulthandler.enable()
    portion, done, whole, start = 10_000, 0, 0, time.monotonic()
    while done < options.inputs:
        seed = options.seed + done // portion
        print(f"\r{done:,} inputs, {whole:,} of them whole; now seed {seed}", end="", flush=True)
        whole += fuzz(min(portion, options.inputs - done), seed)
        done += portion
    print(f"\n{options.inputs:,} inputs in {time.monotonic() - start:.0f} s: no crash")


if __name__ == "__main__":
    main()
