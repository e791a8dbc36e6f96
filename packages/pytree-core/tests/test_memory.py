"""References are neither lost nor kept, and a lack of memory is an error like others."""

import contextlib
import gc
import sys

import pytest
import pytree_core as pt
from pytree_backend import needs_native
from pytree_core import _core
from pytree_strategies import EVERY_KIND, Point


@needs_native("promises this")
@pytest.mark.parametrize("kind", EVERY_KIND)
def test_no_reference_is_lost_or_kept(kind, collected):
    leaf = object()
    tree = EVERY_KIND[kind]
    spec = pt.tree_structure(tree)
    shared = [spec.unflatten([leaf] * spec.num_leaves)]

    def everything():
        leaves, spec = pt.tree_flatten(shared)
        pt.tree_unflatten(spec, leaves)
        pt.tree_leaves(shared)
        pt.tree_map(lambda x, y: x, shared, shared)
        spec.flatten_up_to(shared)
        spec.compose(spec), spec.children(), spec.paths(), repr(spec), hash(spec), spec.entries
        assert spec == pt.tree_structure(shared)
        assert spec.is_prefix(spec)
        _core.treespec_from_state(spec.__reduce__()[1][0])
        _core.mismatches(spec, [0])
        with pytest.raises(ValueError, match="expected"):
            pt.tree_map(lambda x, y: 0, [shared], [0])

    watched = [leaf, type(tree), shared, pt.TreeSpec]
    watched += list(tree) if isinstance(tree, dict) else []
    for _ in range(3):
        everything()
    gc.collect()
    before = [sys.getrefcount(thing) for thing in watched]
    for _ in range(50):
        everything()
    gc.collect()
    after = [sys.getrefcount(thing) for thing in watched]

    assert all(abs(a - b) < 25 for a, b in zip(after, before, strict=True)), (before, after)


@needs_native("promises this")
def test_failed_calls_keep_no_reference(collected):
    leaf = object()
    before = sys.getrefcount(leaf)
    for _ in range(50):
        with pytest.raises(ValueError, match="expected 2 leaves"):
            pt.tree_structure([1, 2]).unflatten([leaf])
        with pytest.raises(ZeroDivisionError):
            pt.tree_map(lambda x: 1 / (x is not leaf), [[leaf, {"a": leaf}], leaf])
        with pytest.raises(ValueError, match="at "):
            pt.tree_map(lambda x, y: x, [leaf, [Point(leaf, (leaf,))]], [leaf, [Point(leaf, leaf)]])
        with pytest.raises(TypeError, match="bool"):
            pt.tree_flatten([leaf, {"b": leaf, "a": (leaf,)}], lambda t: 3 if t is leaf else False)

    assert sys.getrefcount(leaf) == before


# Not a dataclass: CPython 3.13.0 crashes by itself if a generator expression gets no memory.
@needs_native("promises this")
@pytest.mark.parametrize("kind", sorted(set(EVERY_KIND) - {"layer"}))
def test_a_lack_of_memory_is_a_memory_error_wherever_it_strikes(kind):
    memory = pytest.importorskip("_testcapi")
    tree = [EVERY_KIND[kind], {"a": EVERY_KIND[kind]}]
    spec = pt.tree_structure(tree)
    state, leaves = spec.__reduce__()[1][0], pt.tree_leaves(tree)
    for work in (
        lambda: pt.tree_flatten(tree),
        lambda: pt.tree_map(max, tree, tree),
        lambda: spec.unflatten(leaves),
        lambda: spec.paths(),
        lambda: repr(spec),
        lambda: spec.compose(spec),
        lambda: spec.children(),
        lambda: spec == pt.tree_structure(tree),
        lambda: spec.is_prefix(spec),
        lambda: spec.__reduce__(),
        lambda: _core.treespec_from_state(state),
        lambda: _core.mismatches(spec, [3, {}]),
    ):
        for allocation in range(1, 40):
            with contextlib.suppress(MemoryError):
                try:
                    memory.set_nomemory(allocation, allocation + 1)
                    work()
                finally:
                    memory.remove_mem_hooks()
    assert spec == pt.tree_structure(tree)
    assert pt.tree_leaves(spec.unflatten(leaves)) == leaves
