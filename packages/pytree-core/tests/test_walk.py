import pytest
import pytree_core as pt
from hypothesis import given
from pytree_core import _reference as reference
from pytree_strategies import EVERY_KIND, insertion_order, trees


@given(trees)
def test_a_walk_that_builds_every_node_rebuilds_the_tree(tree):
    leaves, spec = pt.tree_flatten(tree)
    built = spec.walk(leaves, lambda level, children: level.unflatten(children), lambda leaf: leaf)

    assert insertion_order(built) == insertion_order(spec.walk(leaves)) == insertion_order(tree)


def test_a_walk_goes_from_the_leaves_to_the_root_and_from_left_to_right():
    _, spec = pt.tree_flatten({"b": [1, 2], "a": (3,)})
    seen = []

    def visit(level, children):
        seen.append((level.type, level.entries, children))
        return len(seen)

    assert spec.walk("xyz", visit, str.upper) == 3
    assert seen == [
        (tuple, [0], ("X",)),
        (list, [0, 1], ("Y", "Z")),
        (dict, ["a", "b"], (1, 2)),
    ]


def test_a_walk_needs_one_leaf_for_each():
    spec = pt.tree_structure([1, 2])
    for leaves in ([1], [1, 2, 3]):
        with pytest.raises(ValueError, match=f"expected 2 leaves, got {len(leaves)}"):
            spec.walk(leaves)


@given(trees)
def test_levels_and_grafts_are_those_of_the_reference(tree):
    spec, other = pt.tree_structure(tree), reference.tree_structure(tree)
    inner = [(0, [0]), None, {"k": 1}]
    ours = [pt.tree_structure(inner[i % 3]) for i in range(spec.num_leaves)]
    theirs = [reference.tree_structure(inner[i % 3]) for i in range(spec.num_leaves)]

    assert list(map(repr, spec.levels())) == list(map(repr, other.levels()))
    assert repr(spec.one_level()) == repr(other.one_level())
    assert repr(spec.graft(ours)) == repr(other.graft(theirs))
    assert spec.graft(ours).num_leaves == other.graft(theirs).num_leaves
    assert spec.graft(ours).num_nodes == other.graft(theirs).num_nodes


@given(trees)
def test_a_graft_is_the_structure_of_a_tree_of_trees(tree):
    leaves, spec = pt.tree_flatten(tree)
    below = [[i] * (i % 3) for i in range(len(leaves))]

    grafted = spec.graft(map(pt.tree_structure, below))

    assert grafted == pt.tree_structure(spec.unflatten(below))


def test_a_graft_needs_one_structure_for_each_leaf():
    spec, leaf = pt.tree_structure([1, 2]), pt.treespec_leaf()
    with pytest.raises(ValueError, match="expected 2 structures, one a leaf, got 1"):
        spec.graft([leaf])
    with pytest.raises(TypeError, match="expected a TreeSpec, got 3"):
        spec.graft([leaf, 3])


@given(trees)
def test_a_transform_that_changes_nothing_gives_an_equal_structure(tree):
    spec = pt.tree_structure(tree)

    assert spec.transform() == spec
    assert spec.transform(lambda level: level, lambda leaf: leaf) == spec


def test_nodes_and_leaves_are_transformed():
    spec = pt.tree_structure({"a": [1, 2], "b": 3})
    as_tuples = spec.transform(lambda level: pt.tree_structure((0,) * level.num_children))
    wrapped = spec.transform(None, lambda leaf: pt.treespec_from_collection([leaf]))

    assert as_tuples == pt.tree_structure(((1, 2), 3))
    assert wrapped == spec.compose(pt.tree_structure([0]))


def test_a_transform_must_keep_the_number_of_children():
    spec = pt.tree_structure([1, 2])
    with pytest.raises(ValueError, match=r"must be replaced by a structure of 2 leaves"):
        spec.transform(lambda level: pt.tree_structure([0]))
    with pytest.raises(TypeError, match=r"must be replaced by structures, got 3"):
        spec.transform(None, lambda leaf: 3)


@given(trees, trees)
def test_structures_are_ordered_by_prefix(tree, other):
    a, b = pt.tree_structure(tree), pt.tree_structure(other)

    assert (a <= b) == (b >= a) == a.is_prefix(b)
    assert (a < b) == (b > a) == (a.is_prefix(b) and not b.is_prefix(a))
    assert a <= a
    assert not a < a
    assert pt.treespec_leaf() <= a


@pytest.mark.parametrize("kind", sorted(EVERY_KIND))
def test_a_level_has_a_leaf_for_each_child(kind):
    spec = pt.tree_structure(EVERY_KIND[kind])
    level = spec.one_level()

    assert level.type == spec.type
    assert level.entries == spec.entries
    assert level.children() == [pt.treespec_leaf()] * spec.num_children
    assert level.graft(spec.children()) == spec
