import enum
import os
import sys
import time
from collections import OrderedDict, defaultdict, deque, namedtuple

import pytest
import pytree_core as pt
from hypothesis import given
from hypothesis import strategies as st
from pytree_backend import needs_native
from pytree_core import _reference as reference
from pytree_strategies import (
    EVERY_KIND,
    Box,
    Config,
    Empty,
    Point,
    insertion_order,
    mixed_keys,
    nested,
    trees,
)


@given(trees)
def test_unflatten_gives_the_tree_back_with_types_and_order(tree):
    leaves, treespec = pt.tree_flatten(tree)

    assert insertion_order(pt.tree_unflatten(treespec, leaves)) == insertion_order(tree)


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_each_kind_of_node_comes_back(kind):
    leaves, treespec = pt.tree_flatten(EVERY_KIND[kind])

    assert not treespec.is_leaf()
    assert insertion_order(treespec.unflatten(leaves)) == insertion_order(EVERY_KIND[kind])


@given(trees, st.booleans())
def test_the_core_agrees_with_the_reference(tree, none_is_leaf):
    leaves, treespec = pt.tree_flatten(tree, none_is_leaf=none_is_leaf)
    expected, structure = reference.tree_flatten(tree, none_is_leaf=none_is_leaf)

    assert len(leaves) == len(expected)
    assert all(leaf is other for leaf, other in zip(leaves, expected, strict=True))
    assert repr(treespec) == repr(structure)
    assert treespec.paths() == structure.paths()
    assert treespec.entries == structure.entries
    assert treespec.num_leaves == structure.num_leaves == len(leaves)
    assert treespec.num_nodes == structure.num_nodes
    assert treespec.type == structure.type
    assert pt.tree_leaves(tree, none_is_leaf=none_is_leaf) == expected
    assert pt.tree_structure(tree, none_is_leaf=none_is_leaf) == treespec


@given(trees)
def test_is_leaf_stops_where_the_reference_stops(tree):
    def is_leaf(subtree):
        return isinstance(subtree, (tuple, Config, Box))

    leaves, treespec = pt.tree_flatten(tree, is_leaf)
    expected, structure = reference.tree_flatten(tree, is_leaf)

    assert leaves == expected
    assert repr(treespec) == repr(structure)


@given(st.dictionaries(mixed_keys, st.integers()))
def test_keys_that_do_not_compare_are_sorted_like_in_the_reference(tree):
    assert pt.tree_structure(tree).entries == list(reference.sorted_keys(tree))


@given(st.lists(st.text(), unique=True, max_size=60))
def test_strings_are_sorted_by_code_point(keys):
    assert pt.tree_structure(dict.fromkeys(keys, 0)).entries == sorted(keys)


def test_wide_dicts_come_back_in_their_order():
    tree = {f"key{i * 7919 % 1000}": i for i in range(1000)}
    leaves, treespec = pt.tree_flatten(tree)

    assert leaves == [tree[key] for key in sorted(tree)]
    assert list(treespec.unflatten(leaves).items()) == list(tree.items())


def test_an_ordered_dict_keeps_its_own_order_after_moves():
    tree = OrderedDict(a=1, b=2, c=3)
    tree.move_to_end("a")
    leaves, treespec = pt.tree_flatten(tree)

    assert leaves == [2, 3, 1]
    assert list(treespec.unflatten(leaves)) == ["b", "c", "a"]


def test_keys_of_which_one_is_nan_come_back():
    tree = {float("nan"): 1, 2.0: 2, float("nan"): 3}
    leaves, treespec = pt.tree_flatten(tree)

    assert list(treespec.unflatten(leaves).items()) == list(tree.items())


def test_unsortable_keys_of_one_type_keep_their_order():
    tree = {3j: 1, 1j: 2, 2j: 3}

    assert pt.tree_leaves(tree) == [1, 2, 3]


class AngryKey:
    def __lt__(self, other):
        raise ZeroDivisionError("no order today")


def test_an_error_in_a_comparison_of_keys_is_not_swallowed():
    with pytest.raises(ZeroDivisionError, match="no order today"):
        pt.tree_leaves({AngryKey(): 1, AngryKey(): 2})


def test_none_is_a_node_unless_it_is_declared_a_leaf():
    assert pt.tree_leaves([None, 1]) == [1]
    assert pt.tree_leaves([None, 1], none_is_leaf=True) == [None, 1]
    assert pt.tree_leaves(None) == []
    assert pt.tree_leaves(None, none_is_leaf=True) == [None]


class Counting(dict):
    def __init__(self, start):
        super().__init__(start=start)


class Frozen(dict):
    def __setitem__(self, key, value):
        raise TypeError("frozen")


def test_a_dict_subclass_with_its_own_constructor_is_a_leaf():
    assert pt.tree_is_leaf(Counting(1))
    assert not pt.tree_is_leaf(Config())
    assert pt.tree_map(lambda x: x + 1, Frozen(a=1)) == Frozen(a=2)
    assert type(pt.tree_map(lambda x: x + 1, Frozen(a=1))) is Frozen


@pytest.mark.parametrize("base", [list, tuple, deque, OrderedDict, defaultdict])
def test_other_subclasses_of_containers_are_leaves(base):
    subclass = type("Sub", (base,), {})

    assert pt.tree_is_leaf(subclass())
    assert reference.tree_is_leaf(subclass())


def test_struct_sequences_go_by_names_or_where_there_are_none_by_index():
    assert pt.tree_structure(time.gmtime()).entries[:2] == ["tm_year", "tm_mon"]
    entries = pt.tree_structure(os.stat_result(range(10))).entries
    assert entries[:2] == ["st_mode", "st_ino"]
    assert entries[6:] == ["st_size", 7, 8, 9]


@pytest.mark.parametrize("name", ["flags", "version_info"])
def test_struct_sequences_that_cannot_be_made_are_leaves(name):
    assert pt.tree_is_leaf(getattr(sys, name))


def test_a_namedtuple_may_have_its_own_constructor():
    class Pair(namedtuple("Pair", ["x", "y"])):
        def __new__(cls, both):
            return super().__new__(cls, both, both)

    assert pt.tree_map(lambda x: x + 1, Pair(1)) == (2, 2)
    assert type(pt.tree_map(lambda x: x + 1, Pair(1))) is Pair


def test_a_namedtuple_of_the_wrong_length_is_a_leaf():
    odd = tuple.__new__(Point, (1, 2, 3))

    assert pt.tree_leaves([odd, Empty()]) == [odd]


def test_enumerations_and_strings_are_leaves():
    class Colour(enum.Enum):
        RED = 1

    assert pt.tree_leaves([Colour.RED, "abc", b"abc", {1, 2}]) == [
        Colour.RED,
        "abc",
        b"abc",
        {1, 2},
    ]


@pytest.mark.parametrize("verdict", [1, "yes", [], 0.0])
def test_is_leaf_must_return_a_bool(verdict):
    for flatten in (pt.tree_flatten, pt.tree_leaves, reference.tree_flatten):
        with pytest.raises(TypeError, match="`is_leaf` must return a bool, got"):
            flatten([1], lambda tree: verdict)


def test_is_leaf_may_return_none_for_no():
    assert pt.tree_leaves([1, [2]], lambda tree: None) == [1, 2]


@needs_native("has a depth limit of its own")
def test_depth_1000_is_fine_and_depth_1001_is_not():
    assert pt.tree_leaves(nested(1000)) == [0]
    assert pt.tree_structure(nested(1000)).num_nodes == 1001
    for call in (pt.tree_flatten, pt.tree_leaves, pt.tree_structure):
        with pytest.raises(RecursionError, match="more than 1000 deep"):
            call(nested(1001))


@needs_native("has a depth limit of its own")
def test_a_tree_that_contains_itself_is_refused():
    ring = []
    ring.append({"again": (ring,)})
    with pytest.raises(RecursionError, match="contains itself"):
        pt.tree_flatten(ring)
    with pytest.raises(RecursionError):
        pt.tree_map(abs, ring)


def test_all_leaves_and_tree_iter_see_what_tree_leaves_sees():
    assert list(pt.tree_iter({"b": [1], "a": None}, none_is_leaf=True)) == [None, 1]
    assert pt.all_leaves([1, None], none_is_leaf=True)
    assert not pt.all_leaves([1, None])
    assert pt.all_leaves([[1]], is_leaf=lambda tree: isinstance(tree, list))


@needs_native("reads arguments by itself")
@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: pt.tree_flatten(), r"tree_flatten\(\) needs 1 positional arguments, got 0"),
        (lambda: pt.tree_flatten(1, None, 2), r"takes at most 2 positional arguments, got 3"),
        (lambda: pt.tree_leaves(1, leaf=2), r"unexpected or repeated argument 'leaf'"),
        (lambda: pt.tree_leaves(1, None, is_leaf=2), r"repeated argument 'is_leaf'"),
        (lambda: pt.tree_leaves(1, namespace=None), r"`namespace` must be a string, got None"),
        (lambda: pt.tree_map(abs), r"tree_map\(\) needs 2 positional arguments, got 1"),
        (lambda: pt.tree_unflatten(1, [2]), r"expected a TreeSpec, got 1"),
        (lambda: pt.tree_unflatten(pt.tree_structure(1), 2), r"the leaves must be an iterable"),
        (lambda: pt.tree_unflatten(1, leaves=2), r"needs 2 positional arguments"),
        (lambda: pt.tree_unflatten(1, 2, leaves=2), r"takes no keyword arguments"),
        (lambda: pt.tree_leaves([1], 3), r"'int' object is not callable"),
    ],
)
def test_wrong_arguments_are_named(call, text):
    with pytest.raises(TypeError, match=text):
        call()


def test_the_number_of_leaves_must_be_right():
    treespec = pt.tree_structure([1, 2])
    for leaves in ([], [1], [1, 2, 3], iter([1])):
        with pytest.raises(ValueError, match="expected 2 leaves, got"):
            pt.tree_unflatten(treespec, leaves)


def test_a_namedtuple_class_that_changes_is_seen_anew():
    pair = namedtuple("pair", ["a", "b"])
    tree, fields = pair(1, 2), pair._fields
    for _ in range(3):
        assert pt.tree_leaves(tree) == [1, 2]
    pair._fields = ("a",)
    assert pt.tree_leaves(tree) == [tree]
    pair._fields = fields
    assert pt.tree_leaves(tree) == [1, 2]
    del pair._fields
    assert pt.tree_leaves([tree] * 2) == [tree] * 2


def test_more_types_than_one_call_remembers_are_told_apart():
    classes = [type(f"T{i}", (), {}) for i in range(40)]
    tuples = [namedtuple(f"N{i}", "a") for i in range(40)]
    tree = [[make(), named(make())] for make, named in zip(classes, tuples, strict=True)] * 3

    leaves, treespec = pt.tree_flatten(tree)

    assert leaves == [leaf for plain, named in tree for leaf in (plain, named.a)]
    assert treespec.unflatten(leaves) == tree
