import pytest
import pytree_core as pt
from hypothesis import given
from pytree_strategies import EVERY_KIND, nested, trees


@given(trees)
def test_iteration_sees_what_tree_leaves_sees(tree):
    for options in ({}, {"none_is_leaf": True}, {"is_leaf": lambda x: isinstance(x, tuple)}):
        assert list(pt.tree_iter(tree, **options)) == pt.tree_leaves(tree, **options)


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_one_level_has_a_leaf_for_each_child(kind):
    tree = EVERY_KIND[kind]
    children, level = pt._core.flatten_one_level(tree)

    assert level.num_leaves == level.num_children == len(children) == level.num_nodes - 1
    assert level.entries == pt.tree_structure(tree).entries
    assert pt.tree_flatten(level.unflatten(children)) == pt.tree_flatten(tree)


def test_a_subtree_is_looked_at_only_when_it_is_reached():
    asked = []

    def is_leaf(tree):
        asked.append(tree)
        return False

    tree = [1, [2, [3]], 4]
    leaves = pt.tree_iter(tree, is_leaf)
    assert asked == []
    assert next(leaves) == 1
    assert asked == [tree, 1]
    tree[1][1].append(5)
    assert list(leaves) == [2, 3, 5, 4]
    assert len(asked) == 8


def test_iteration_has_the_depth_limit_of_flattening():
    assert list(pt.tree_iter(nested(1000))) == [0]
    loop = []
    loop.append(loop)
    for tree in (nested(1001), loop):
        with pytest.raises(RecursionError, match="nested more than 1000 deep"):
            list(pt.tree_iter(tree))


def test_an_iterator_cannot_be_advanced_by_its_own_predicate():
    leaves = pt.tree_iter([1, 2], lambda tree: next(leaves))
    with pytest.raises(ValueError, match="already executing"):
        next(leaves)
