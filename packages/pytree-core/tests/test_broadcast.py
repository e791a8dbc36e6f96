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
