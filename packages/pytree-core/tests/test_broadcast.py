import pytest
import pytree_core as pt
from hypothesis import given
from pytree_strategies import trees


@given(trees, trees)
def test_a_prefix_is_repeated_for_all_leaves_below(tree, below):
    numbered = pt.tree_structure(tree).unflatten(range(pt.tree_structure(tree).num_leaves))
    full = pt.tree_map(lambda _: below, tree)
    width = pt.tree_structure(below).num_leaves
    expected = [leaf for leaf in pt.tree_leaves(numbered) for _ in range(width)]

    assert pt.broadcast_prefix(numbered, full) == expected
    result = pt.tree_broadcast_prefix(numbered, full)
    assert pt.tree_leaves(result) == expected
    assert pt.tree_structure(result) == pt.tree_structure(full)


@given(trees, trees)
def test_common_broadcasts_have_one_structure_which_both_are_prefixes_of(tree, other):
    try:
        first, second = pt.tree_broadcast_common(tree, other)
    except ValueError:
        assert not pt.tree_structure(tree).is_prefix(pt.tree_structure(other))
        assert not pt.tree_structure(other).is_prefix(pt.tree_structure(tree))
        return
    assert pt.tree_structure(tree).is_prefix(pt.tree_structure(first))
    assert pt.tree_structure(other).is_prefix(pt.tree_structure(second))
    assert pt.tree_structure(first).is_prefix(pt.tree_structure(second))
    assert pt.tree_structure(second).is_prefix(pt.tree_structure(first))


def test_a_common_broadcast_that_is_impossible_is_told_with_its_path():
    with pytest.raises(ValueError, match=r"at \['a'\]\[1\]: expected a list of 1, got a tuple"):
        pt.tree_broadcast_common({"a": (1, [2])}, {"a": ([3], (4, 5))})
    with pytest.raises(ValueError, match="at the root: expected None, got a list of 0"):
        pt.tree_broadcast_common(None, [])


def test_a_tree_in_itself_cannot_be_broadcast():
    ring = []
    ring.append(ring)
    with pytest.raises(RecursionError):
        pt.tree_broadcast_common(ring, ring)


@given(trees, trees)
def test_there_are_prefix_errors_exactly_if_it_is_no_prefix(tree, other):
    errors = pt.prefix_errors(tree, other)
    other_spec = pt.tree_structure(other)
    holes = other_spec.unflatten([0] * other_spec.num_leaves)

    assert bool(pt.prefix_errors(tree, holes)) != pt.tree_structure(tree).is_prefix(other_spec)
    assert all(isinstance(error("tree"), ValueError) for error in errors)


def test_all_prefix_errors_are_listed_from_left_to_right():
    errors = pt.prefix_errors([{"a": 1}, (2,), [3]], [{"b": 1}, (2,), None])

    assert [str(error("in_axes")) for error in errors] == [
        "in_axes at [0]: expected the keys ['a'], got a dict without ['a'] and with ['b'] besides",
        "in_axes at [2]: expected a list of 1, got None",
    ]


@given(trees)
def test_maps_over_prefixes_are_maps_over_broadcast_trees(tree):
    pairs = lambda *row: row
    whole = pt.tree_map(lambda x: [x, (x,)], tree, is_leaf=lambda _: False)
    expected = pt.tree_map(pairs, pt.tree_broadcast_prefix(tree, whole), whole)

    for result in (
        pt.tree_broadcast_map(pairs, tree, whole),
        pt.tree_broadcast_map(lambda x, y: (y, x), whole, tree),
    ):
        assert pt.tree_flatten(result) == pt.tree_flatten(expected)
    assert pt.broadcast_common(tree, whole) == (
        pt.broadcast_prefix(tree, whole),
        pt.tree_leaves(whole),
    )


def test_each_of_several_trees_may_be_the_prefix():
    add = lambda *row: sum(row)
    assert pt.tree_broadcast_map(add, (1, [2, 3]), ([10, 20], 30), 100) == (
        [111, 121],
        [132, 133],
    )
    with pytest.raises(ValueError, match=r"at \[0\]: expected a list of 2, got a tuple of 1"):
        pt.tree_broadcast_map(add, ([1, 2],), ((1,),))


@given(trees, trees)
def test_there_are_equality_errors_exactly_where_leaves_do_not_correspond(tree, other):
    first, second = pt.tree_structure(tree), pt.tree_structure(other)
    errors = pt.equality_errors(tree, other)

    assert (not errors) == (first <= second <= first)
    assert pt.equality_errors(tree, tree) == []


def test_equality_errors_say_where_and_what():
    ours = {"a": [1, {"b": 2}], "c": (3, 4), "d": 5}
    theirs = {"a": [1, 2], "c": (3, 4, 5), "d": [6]}

    assert pt.equality_errors(ours, theirs) == [
        "at ['a'][1]: expected a dict of 1, got an int",
        "at ['c']: expected a tuple of 2, got a tuple of 3",
        "at ['d']: expected a leaf, got TreeSpec([*])",
    ]
    assert pt.equality_errors([(1, 2)], [(1, 2)], lambda x: x == (1, 2)) == []


def test_what_is_declared_a_leaf_on_one_side_only_is_an_equality_error():
    marked, plain = [1], [2]

    assert pt.equality_errors(plain, marked, lambda x: x is marked) == [
        "at the root: expected TreeSpec([*]), got a leaf"
    ]
