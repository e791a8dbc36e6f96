import pytest
import pytree_core as pt
from hypothesis import given
from pytree_strategies import trees


@given(trees, trees)
def test_transposing_twice_gives_the_tree_back(outer, inner):
    outer, inner = pt.tree_structure(outer), pt.tree_structure(inner)
    both = outer.compose(inner)
    tree = both.unflatten(range(both.num_leaves))
    there = pt.tree_transpose(outer, inner, tree)

    assert pt.tree_structure(there) == inner.compose(outer)
    assert pt.tree_leaves(pt.tree_transpose(inner, outer, there)) == pt.tree_leaves(tree)


def test_another_structure_cannot_be_transposed():
    outer, inner = pt.tree_structure([0, 0]), pt.tree_structure((0, 0))
    with pytest.raises(ValueError, match=r"at \[1\]: expected a tuple of 2, got a tuple of 3"):
        pt.tree_transpose(outer, inner, [(1, 2), (1, 2, 3)])


def test_transpose_map_takes_rests_and_an_inner_structure():
    inner = pt.tree_structure({"sum": 0, "product": 0})
    tree = pt.tree_transpose_map(
        lambda x, y: {"sum": x + y, "product": [x, y]}, (1, 2), (3, 4), inner_treespec=inner
    )

    assert tree == {"sum": (4, 6), "product": ([1, 3], [2, 4])}
    assert pt.tree_transpose_map(abs, [], inner_treespec=inner) == {"sum": [], "product": []}
    with pytest.raises(ValueError, match="no leaves: give `inner_treespec`"):
        pt.tree_transpose_map(abs, [])
