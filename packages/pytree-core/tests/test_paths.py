import pytree_core as pt
from hypothesis import given
from pytree_strategies import trees


@given(trees)
def test_paths_stand_in_the_order_of_the_leaves(tree):
    paths, leaves, treespec = pt.tree_flatten_with_path(tree)

    assert (leaves, treespec) == pt.tree_flatten(tree)
    assert paths == pt.tree_paths(tree) == treespec.paths()
    assert len(set(map(repr, paths))) == len(paths)


@given(trees)
def test_mapping_with_path_passes_each_leaf_its_path(tree):
    mapped = pt.tree_map_with_path(lambda path, x, y: (path, x, y), tree, tree)
    expected = [(path, x, x) for path, x in zip(*pt.tree_flatten_with_path(tree)[:2], strict=True)]

    assert pt.tree_structure(tree).flatten_up_to(mapped) == expected


def test_options_reach_the_paths():
    assert pt.tree_paths([None, (1,)], none_is_leaf=True) == [(0,), (1, 0)]
    assert pt.tree_paths([None, (1,)], lambda tree: isinstance(tree, tuple)) == [(1,)]
