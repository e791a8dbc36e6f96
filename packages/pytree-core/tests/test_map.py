import pytest
import pytree_core as pt
from hypothesis import given
from pytree_core import _reference as reference
from pytree_strategies import Box, Config, Point, insertion_order, trees


@given(trees)
def test_the_identity_gives_the_tree_back(tree):
    assert insertion_order(pt.tree_map(lambda x: x, tree)) == insertion_order(tree)


@given(trees)
def test_mapping_pairs_agrees_with_the_reference(tree):
    other = pt.tree_map(lambda x: [x], tree)

    assert insertion_order(pt.tree_map(lambda *xs: xs, tree, other, tree)) == insertion_order(
        reference.tree_map(lambda *xs: xs, tree, other, tree)
    )


@given(trees, trees)
def test_trees_that_differ_give_the_error_of_the_reference(tree, other):
    def outcome(tree_map):
        try:
            return insertion_order(tree_map(lambda *xs: xs, tree, other))
        except ValueError as error:
            return str(error)

    assert outcome(pt.tree_map) == outcome(reference.tree_map)


@given(trees, trees)
def test_all_differences_are_those_of_the_reference(tree, other):
    from pytree_core import _core

    assert _core.mismatches(pt.tree_structure(tree), other) == reference.mismatches(
        reference.tree_structure(tree), other
    )


def test_the_rest_may_be_deeper():
    assert pt.tree_map(lambda x, y: (x, y), [1, 2], [[3], {"a": 4}]) == [(1, [3]), (2, {"a": 4})]


def test_kinds_of_dict_are_matched_by_key():
    assert pt.tree_map(lambda x, y: x + y, {"a": 1, "b": 2}, Config(b=20, a=10)) == {
        "a": 11,
        "b": 22,
    }


def test_is_leaf_sees_the_first_tree_only():
    seen = []

    def is_leaf(tree):
        seen.append(tree)
        return isinstance(tree, tuple)

    pt.tree_map(lambda x, y: 0, [(1, 2)], ["other"], is_leaf=is_leaf)

    assert seen == [[(1, 2)], (1, 2)]


@pytest.mark.parametrize(
    ("tree", "other", "text"),
    [
        (
            {"layer1": [Point(1, (1, 2, 3))]},
            {"layer1": [Point(1, [1, 2])]},
            "at ['layer1'][0].y: expected a tuple of 3, got a list of 2",
        ),
        ([1, 2], [1, 2, 3], "at the root: expected a list of 2, got a list of 3"),
        ([None], [7], "at [0]: expected None, got an int"),
        ([[]], [None], "at [0]: expected a list of 0, got None"),
        ({"a": 1}, {}, "at the root: expected the keys ['a'], got a dict without ['a']"),
        (
            {"a": 1},
            Config(b=1),
            "at the root: expected the keys ['a'], got a Config without ['a'] and "
            "with ['b'] besides",
        ),
        ([Box([1])], [Box([1, 2])], "at [0]: expected a Box of 1, got a Box of 2"),
        (Box([1], "x"), Box([1], "y"), "at the root: expected the metadata 'x', got 'y'"),
        ([[1], [2]], [3, 4], "at [0]: expected a list of 1, got an int"),
        ((Box([(1,)]),), (Box([2]),), "at [0][0]: expected a tuple of 1, got an int"),
    ],
)
def test_a_difference_is_told_with_its_path(tree, other, text):
    for tree_map in (pt.tree_map, reference.tree_map):
        with pytest.raises(ValueError) as error:  # noqa: PT011
            tree_map(lambda x, y: 0, tree, other)
        assert str(error.value) == text


def test_tree_map_inplace_returns_the_tree_itself():
    tree, seen = {"b": 1, "a": [2]}, []

    assert pt.tree_map_(lambda x, y: seen.append((x, y)), tree, tree) is tree
    assert seen == [(2, 2), (1, 1)]


def test_an_error_of_the_function_passes_through():
    with pytest.raises(ZeroDivisionError):
        pt.tree_map(lambda x: 1 / x, [1, 0])
