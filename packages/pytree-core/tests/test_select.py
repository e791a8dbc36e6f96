import pytest
import pytree_core as pt
from hypothesis import given
from pytree_strategies import trees


@given(trees)
def test_partitions_have_the_structure_of_the_tree_and_share_no_leaf(tree):
    hole = object()
    yes, no = pt.tree_partition(lambda x: isinstance(x, int), tree, hole)

    assert pt.tree_structure(yes) == pt.tree_structure(no) == pt.tree_structure(tree)
    merged = pt.tree_map(lambda x, y: y if x is hole else x, yes, no)
    assert pt.tree_leaves(merged) == pt.tree_leaves(tree)
    assert pt.tree_leaves(yes).count(hole) + pt.tree_leaves(no).count(hole) == len(
        pt.tree_leaves(tree)
    )


@given(trees)
def test_combine_undoes_partition(tree):
    yes, no = pt.tree_partition(lambda x: isinstance(x, int), tree)

    for merged in (pt.tree_combine(yes, no), pt.tree_combine(no, yes, yes)):
        assert pt.tree_flatten(merged) == pt.tree_flatten(tree)


@given(trees)
def test_a_filter_is_the_first_half_of_a_partition(tree):
    is_int = lambda x: isinstance(x, int)
    for fillvalue in (None, "hole"):
        half, _ = pt.tree_partition(is_int, tree, fillvalue)
        kept = pt.tree_filter(is_int, tree, fillvalue)
        assert pt.tree_flatten(kept) == pt.tree_flatten(half)


def test_gaps_are_known_by_identity_and_may_stay():
    assert pt.tree_combine([0, None, None], [5, 6, None]) == [0, 6, None]
    assert pt.tree_combine([0, 1], [5, 6], fillvalue=0) == [5, 1]
    with pytest.raises(ValueError, match="at the root: expected a list of 2"):
        pt.tree_combine([0, 1], [5])


@given(trees)
def test_maps_over_some_leaves_leave_the_others(tree):
    twice = pt.tree_map(lambda x: [x] if isinstance(x, (bool, str)) else x, tree)
    for which in ((bool, str), lambda x: isinstance(x, (bool, str))):
        assert pt.tree_leaves(pt.tree_map_only(which, lambda x: [x], tree)) == pt.tree_leaves(twice)


def test_predicates_on_some_leaves_do_not_see_the_others():
    tree = {"a": 1, "b": ["text", 2.5, None]}

    assert pt.tree_all_only((int, float), lambda x: x > 0, tree)
    assert not pt.tree_all_only(str, str.isupper, tree)
    assert pt.tree_any_only(float, lambda x: x > 2, tree)
    assert not pt.tree_any_only(int, lambda x: x > 2, tree)
    assert pt.tree_all_only(set, None, tree)
    assert not pt.tree_any_only(set, None, tree)
    assert pt.tree_any_only(type(None), lambda x: True, tree, none_is_leaf=True)
    with pytest.raises(TypeError, match="by types or a predicate, not by 3"):
        pt.tree_map_only(3, abs, tree)


@given(trees)
def test_select_takes_each_leaf_from_one_of_two_trees(tree):
    other = pt.tree_map(lambda x: ("other",), tree, is_leaf=lambda _: False)
    mask = pt.tree_map(lambda x: isinstance(x, int), tree)
    expected = pt.tree_map(lambda x, y: x if isinstance(x, int) else y, tree, other)

    assert pt.tree_leaves(pt.tree_select(mask, tree, other)) == pt.tree_leaves(expected)
    assert pt.tree_flatten(pt.tree_select(True, tree, other)) == pt.tree_flatten(tree)
    assert pt.tree_leaves(pt.tree_select(False, tree, other)) == pt.tree_leaves(other)


def test_a_mask_must_be_a_prefix():
    with pytest.raises(ValueError, match=r"at \['a'\]: expected a list of 1"):
        pt.tree_select({"a": [True]}, {"a": 1}, {"a": 2})
    with pytest.raises(ValueError, match="expected a list of 2"):
        pt.tree_select(True, [1, 2], [1])


def test_nones_are_replaced_by_leaves_and_nothing_else_is():
    assert pt.tree_replace_nones(0, {"a": None, "b": [1, (None,)]}) == {"a": 0, "b": [1, (0,)]}
    assert pt.tree_replace_nones("x", None) == "x"
    assert pt.tree_replace_nones(0, [(None,)], lambda t: isinstance(t, tuple)) == [(None,)]
