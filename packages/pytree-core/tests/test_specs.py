import enum

import pytest
import pytree_core as pt
from hypothesis import assume, given
from pytree_core._core import flatten_one_level
from pytree_strategies import EVERY_KIND, nested, trees


@given(trees)
def test_a_structure_is_made_of_those_of_its_children(tree):
    children, level = flatten_one_level(tree)
    assume(not isinstance(tree, pt.Partial))  # which holds arguments and nothing else
    spec = pt.tree_structure(tree)
    if level.is_leaf():
        return
    made = pt.treespec_from_collection(level.unflatten(map(pt.tree_structure, children)))

    assert made == spec
    assert made.num_leaves == spec.num_leaves
    assert list(map(repr, made.children())) == list(map(repr, spec.children()))


@pytest.mark.parametrize("kind", sorted(set(EVERY_KIND) - {"partial"}))
def test_structures_of_every_kind_can_be_made(kind):
    children, level = flatten_one_level(EVERY_KIND[kind])
    made = pt.treespec_from_collection(level.unflatten([pt.treespec_leaf()] * len(children)))

    assert made == level


def test_only_structures_make_structures():
    assert pt.treespec_from_collection(3) == pt.treespec_leaf() == pt.tree_structure(0)
    assert pt.treespec_from_collection(None).num_leaves == 0
    assert pt.treespec_from_collection(None, none_is_leaf=True).is_leaf()
    with pytest.raises(TypeError, match="must be structures, got 3"):
        pt.treespec_from_collection([pt.treespec_leaf(), 3])
    with pytest.raises(RecursionError):
        pt.treespec_from_collection([pt.tree_structure(nested(1000))])


class Mode(enum.Enum):
    TRAIN = 1
    EVAL = 2


def test_static_objects_are_structure():
    pt.register_static(Mode, namespace="static")
    leaves, spec = pt.tree_flatten({"mode": Mode.TRAIN, "x": 1}, namespace="static")

    assert leaves == [1]
    assert spec.unflatten([2]) == {"mode": Mode.TRAIN, "x": 2}
    assert spec != pt.tree_structure({"mode": Mode.EVAL, "x": 1}, namespace="static")
    assert hash(spec) == hash(pt.tree_structure({"mode": Mode.TRAIN, "x": 1}, namespace="static"))
    with pytest.raises(TypeError, match="must hash"):
        pt.register_static(list, namespace="static")
