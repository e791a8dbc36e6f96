"""The order of the keys of a dict, and the memory of it."""

import gc
import random
import sys
from collections import OrderedDict

import pytest
import pytree_core as pt
from hypothesis import given
from hypothesis import strategies as st
from pytree_backend import needs_native
from pytree_core import _reference as reference

long_strings = st.text("ab\0é\U0001f600", max_size=20)
prefixed = st.builds(
    "{}{}".format, st.sampled_from(["", "layer1.0.", "layer1.0.conv1.weight"]), long_strings
)
keys = st.one_of(
    prefixed,
    st.text("ab\0", max_size=20),
    st.integers(),
    st.integers(-(2**63) - 2, 2**63 + 2),
    st.sampled_from([2**63, 2**63 - 1, -(2**63), -(2**63) - 1]),
)


@given(st.one_of(*(st.lists(k, unique=True, max_size=60) for k in (keys, prefixed, st.integers()))))
def test_keys_are_sorted_as_python_sorts_them(keys):
    tree = {key: index for index, key in enumerate(keys)}
    expected = reference.tree_leaves(tree)

    for _ in range(4):  # new, seen once, twice, and known
        assert pt.tree_leaves(tree) == expected
        leaves, treespec = pt.tree_flatten(tree)
        assert leaves == expected
        assert list(treespec.unflatten(leaves).items()) == list(tree.items())


def test_wide_dicts_are_sorted():
    keys = [f"layer{i % 4}.{i}.{name}" for i in range(300) for name in ("weight", "bias")]
    random.Random(0).shuffle(keys)
    for names in (keys, sorted(keys), [f"{key}é" for key in keys], list(map(hash, keys))):
        assert pt.tree_structure(dict.fromkeys(names, 0)).entries == sorted(names)


def test_the_same_keys_in_another_order_are_told_apart():
    a, b, c = "abc"
    trees = [{c: 1, a: 2, b: 3}, {a: 2, b: 3, c: 1}, OrderedDict({c: 1, a: 2, b: 3}), {c: 1, a: 2}]
    for tree in trees * 4:
        leaves, treespec = pt.tree_flatten(tree)
        assert leaves == reference.tree_leaves(tree) == pt.tree_leaves(tree)
        assert list(treespec.unflatten(leaves)) == list(tree)


def test_a_key_that_only_equals_a_known_one_is_its_own():
    pt.clear_cache()
    for _ in range(4):
        pt.tree_structure({1: 0, "b": 0})
        pt.tree_structure({1: 0, 2: 0})
    for tree in ({True: 5, 2: 6}, {1.0: 5, 2: 6}):
        leaves, treespec = pt.tree_flatten(tree)
        assert leaves == [5, 6]
        assert [type(key) for key in treespec.unflatten(leaves)] == list(map(type, tree))


@needs_native("keeps layouts of keys")
def test_keys_that_are_met_once_are_not_kept(collected):
    pt.clear_cache()
    keys = [f"{i} of a kind" for i in range(50)]
    before = [sys.getrefcount(key) for key in keys]
    for key in keys:
        pt.tree_leaves({key: 0})
    del key
    assert [sys.getrefcount(key) for key in keys] == before


@needs_native("keeps layouts of keys")
def test_keys_that_are_met_twice_are_kept_until_the_cache_is_cleared(collected):
    key = "".join(["a ", "key"])
    before = sys.getrefcount(key)
    for _ in range(3):
        pt.tree_leaves({key: 0})
    assert sys.getrefcount(key) == before + 1

    pt.clear_cache()
    assert sys.getrefcount(key) == before


@needs_native("keeps layouts of keys")
def test_the_cache_has_a_bound():
    pt.clear_cache()
    before = sys.getallocatedblocks()
    for i in range(30000):
        tree = {f"key {i}": 0}
        for _ in range(3):
            pt.tree_leaves(tree)
    del tree
    assert sys.getallocatedblocks() - before < 3 * 4096

    wide = [dict.fromkeys(range(k, k + 100_000)) for k in range(0, 400_000, 100_000)]
    for tree in wide * 3:
        for _ in range(2):
            pt.tree_leaves(tree)
    del wide, tree
    gc.collect()
    assert sys.getallocatedblocks() - before < 2**18 + 3 * 4096
    pt.clear_cache()


def test_the_cache_may_be_cleared_while_a_tree_is_flattened():
    tree = {"b": {"d": 1, "c": 2}, "a": {"d": 3, "c": 4}}

    def is_leaf(_):
        pt.clear_cache()
        return False

    for _ in range(4):
        assert pt.tree_leaves(tree, is_leaf) == pt.tree_flatten(tree, is_leaf)[0] == [4, 3, 2, 1]
        assert pt.tree_leaves(tree) == [4, 3, 2, 1]


@needs_native("keeps layouts of keys")
@pytest.mark.parametrize("key", [object(), None, (1, "a"), 1.5, True, type("S", (str,), {})("s")])
def test_keys_of_other_types_are_not_kept(key, collected):
    before = sys.getrefcount(key)
    for _ in range(5):
        pt.tree_leaves({key: 0}), pt.tree_structure({key: 0})
    assert sys.getrefcount(key) == before
