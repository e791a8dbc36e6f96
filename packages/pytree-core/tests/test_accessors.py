import copy
import pickle

import pytest
import pytree_core as pt
from hypothesis import given
from pytree_backend import needs_native
from pytree_strategies import EVERY_KIND, Box, Layer, Point, nested, trees


@pytest.mark.parametrize("kind", sorted(set(EVERY_KIND) - {"box"}))
def test_an_accessor_leads_to_its_leaf(kind):
    tree = [EVERY_KIND[kind]]
    accessors = pt.tree_accessors(tree)

    assert [accessor(tree) for accessor in accessors] == pt.tree_leaves(tree)
    assert [eval(accessor.codify("tree"), {"tree": tree}) for accessor in accessors] == [
        *pt.tree_leaves(tree)
    ]


@given(trees)
def test_accessors_are_paths_with_types(tree):
    for options in ({}, {"none_is_leaf": True}, {"is_leaf": lambda x: isinstance(x, list)}):
        accessors = pt.tree_accessors(tree, **options)
        assert [a.path for a in accessors] == pt.tree_paths(tree, **options)
        assert accessors == pt.tree_structure(tree, **options).accessors()


def test_accessors_are_spelled_as_errors_spell_places():
    tree = {"a": [Point(1, Layer(2, {"k": 3}))]}
    wrong = {"a": [Point(1, Layer(2, {"k": []}))]}
    with pytest.raises(ValueError, match="expected") as raised:
        pt.tree_map(max, wrong, tree)
    place = str(raised.value).split(":")[0].removeprefix("at ")

    assert place == pt.keystr(pt.tree_accessors(tree)[-1]) == "['a'][0].y.bias['k']"


def test_steps_compare_by_kind_and_entry():
    assert pt.Item("a") == pt.Item("a") != pt.Attribute("a")
    assert hash(pt.Item("a")) == hash(pt.Item("a"))
    assert pt.Attribute("not a name").codify("x") == "getattr(x, 'not a name')"
    assert pt.Attribute("class").codify("x") == "getattr(x, 'class')"


def test_accessors_are_tuples_of_steps():
    accessor = pt.tree_accessors({"a": [1, (2,)]})[1]

    assert accessor[0] == pt.Item("a")
    assert accessor[:1] + accessor[1:] == accessor
    assert isinstance(accessor[:1] + accessor[1:], pt.Accessor)
    assert repr(accessor[1:]) == "Accessor(*[1][0])"
    assert pt.Accessor()(7) == 7


def test_paths_without_types_can_be_written_too():
    assert pt.keystr(("a", 1)) == "['a'][1]"
    assert pt.keystr(()) == ""
    assert pt.keystr(("a", 1), simple=True, separator=".") == "a.1"


@needs_native("reaches this depth")
def test_deep_structures_have_accessors():
    (accessor,) = pt.tree_accessors(nested(1000))
    assert accessor.path == (0,) * 1000


def test_a_type_without_names_is_indexed():
    assert pt.tree_accessors(Box([1, 2])) == [(pt.Item(0),), (pt.Item(1),)]


def test_steps_are_immutable_and_can_be_copied():
    step = pt.Item(("a", 1))
    with pytest.raises(AttributeError):
        step.entry = 2
    for copied in (copy.deepcopy(step), pickle.loads(pickle.dumps(step))):
        assert copied == step
        assert repr(copied) == "Item(('a', 1))"


@given(trees)
def test_functions_with_accessors_see_the_leaves_they_lead_to(tree):
    ways, leaves, spec = pt.tree_flatten_with_accessor(tree)
    seen = []
    mapped = pt.tree_map_with_accessor(lambda *row: seen.append(row) or row[1], tree, tree)

    assert (ways, leaves, spec) == (pt.tree_accessors(tree), *pt.tree_flatten(tree))
    assert seen == list(zip(ways, leaves, leaves, strict=True))
    assert pt.tree_structure(mapped) == spec


def test_a_map_with_accessors_refuses_another_structure():
    with pytest.raises(ValueError, match="at the root: expected a list of 1, got a list of 2"):
        pt.tree_map_with_accessor(lambda *_: None, [1], [1, 2])
