import copy
import gc
import inspect
import weakref

import pytest
import pytree_core as pt
from hypothesis import given
from hypothesis import strategies as st
from pytree_backend import needs_native
from pytree_core import _core
from pytree_core import _reference as reference
from pytree_strategies import EVERY_KIND, Box, Config, nested, trees


def both(tree):
    return pt.tree_structure(tree), reference.tree_structure(tree)


@given(trees, trees)
def test_equality_is_that_of_the_reference_and_equal_specs_hash_alike(tree, other):
    spec, structure = both(tree)
    other_spec, other_structure = both(other)

    assert (spec == other_spec) == (structure == other_structure)
    assert (spec != other_spec) == (structure != other_structure)
    if spec == other_spec:
        assert hash(spec) == hash(other_spec)


@given(trees)
def test_the_structure_does_not_depend_on_the_leaves(tree):
    spec = pt.tree_structure(tree)
    other = pt.tree_structure(spec.unflatten(range(spec.num_leaves)))

    assert spec == other
    assert hash(spec) == hash(other)
    assert (spec is other) == spec.is_leaf()


def test_the_order_of_insertion_is_no_part_of_equality():
    spec, other = pt.tree_structure({"a": 1, "b": 2}), pt.tree_structure({"b": 1, "a": 2})

    assert spec == other
    assert hash(spec) == hash(other)


@pytest.mark.parametrize(
    ("tree", "other"),
    [
        ([1], (1,)),
        ({"a": 1}, Config(a=1)),
        ({"a": 1}, {"b": 1}),
        (Box([1], "x"), Box([1], "y")),
        ([], None),
        ([[1], 2], [1, [2]]),
    ],
)
def test_different_structures_are_unequal(tree, other):
    assert pt.tree_structure(tree) != pt.tree_structure(other)


def test_a_spec_equals_no_other_object():
    assert pt.tree_structure(1) != 1
    with pytest.raises(TypeError, match="not supported"):
        pt.tree_structure(1) < 1  # noqa: B015


def test_metadata_that_cannot_be_hashed_makes_the_hash_fail():
    spec = pt.tree_structure(Box([1], ["unhashable"]))

    assert spec == pt.tree_structure(Box([2], ["unhashable"]))
    for _ in range(2):
        with pytest.raises(TypeError, match="unhashable"):
            hash(spec)


@given(trees)
def test_children_are_the_structures_of_the_children(tree):
    spec, structure = both(tree)
    children = spec.children()

    assert list(map(repr, children)) == list(map(repr, structure.children()))
    assert len(children) == spec.num_children
    for i, child in enumerate(children):
        assert spec.child(i) == spec.child(i - len(children)) == child
    assert spec.is_leaf() == structure.is_leaf()


@pytest.mark.parametrize("index", [2, -3, 10**30])
def test_a_child_that_is_not_there_is_an_index_error(index):
    with pytest.raises(IndexError):
        pt.tree_structure([1, 2]).child(index)
    with pytest.raises(TypeError):
        pt.tree_structure([1, 2]).child("a")


@given(trees, trees)
def test_composition_is_nesting(outer, inner):
    spec = pt.tree_structure(outer).compose(pt.tree_structure(inner))

    assert spec == pt.tree_structure(pt.tree_map(lambda _: inner, outer))


@given(trees, trees)
def test_prefixes_are_those_of_the_reference(tree, other):
    spec, structure = both(tree)
    other_spec, other_structure = both(other)

    assert spec.is_prefix(other_spec) == structure.is_prefix(other_structure)
    assert spec.is_suffix(other_spec) == other_spec.is_prefix(spec)


@given(trees, trees)
def test_a_structure_is_a_prefix_of_what_is_composed_with_it(tree, other):
    spec = pt.tree_structure(tree)

    assert spec.is_prefix(spec)
    assert spec.is_prefix(spec.compose(pt.tree_structure(other)))


@given(trees, trees)
def test_a_structure_is_a_prefix_if_trees_can_be_flattened_up_to_it(tree, other):
    spec, other_spec = pt.tree_structure(tree), pt.tree_structure(other)
    try:
        spec.flatten_up_to(other_spec.unflatten([object()] * other_spec.num_leaves))
    except ValueError:
        assert not spec.is_prefix(other_spec)
    else:
        assert spec.is_prefix(other_spec)


def test_prefixes_match_the_children_of_dicts_by_key():
    mapping = pt.tree_structure(EVERY_KIND["ordered"])

    assert mapping.is_prefix(pt.tree_structure({"z": [1, 2], "a": 3}))
    spec = pt.tree_structure({"a": (1,), "z": 2})
    assert not spec.is_prefix(mapping)
    assert spec.is_prefix(pt.tree_structure(type(EVERY_KIND["ordered"])(z=[1], a=(2,))))


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("dict", "{'a': *, 'b': *}"),
        ("config", "Config({'a': [*], 'b': *})"),
        ("ordered", "OrderedDict({'z': *, 'a': *})"),
        ("default", "defaultdict(<class 'list'>, {'a': (*,), 'b': *})"),
        ("list", "[*, [], [*]]"),
        ("tuple", "(*, (), (*,))"),
        ("deque", "deque([*, *], maxlen=3)"),
        ("point", "Point(x=*, y=[*])"),
        ("none", "None"),
        ("box", "Box['label'](*, (*,))"),
        ("layer", "Layer[('first',)](*, [*])"),
        ("partial", "Partial[<built-in function max>]((*,), {'key': *})"),
    ],
)
def test_repr_shows_the_structure(kind, text):
    assert repr(pt.tree_structure(EVERY_KIND[kind])) == f"TreeSpec({text})"


@needs_native("promises this")
def test_a_metadata_that_holds_the_spec_itself_prints():
    label = []
    spec = pt.tree_structure(Box([1], label))
    label.append(spec)

    assert repr(spec) == "TreeSpec(Box[[TreeSpec(...)]](*))"


@needs_native("promises this")
def test_a_spec_cannot_be_made_by_hand():
    with pytest.raises(TypeError, match="cannot create"):
        pt.TreeSpec()
    with pytest.raises(TypeError, match=r"not safe|cannot create"):
        object.__new__(pt.TreeSpec)
    with pytest.raises(TypeError):
        pt.TreeSpec.unflatten(1, [])
    with pytest.raises(TypeError, match="immutable"):
        pt.TreeSpec.colour = "red"
    with pytest.raises(AttributeError):
        pt.tree_structure(1).colour = "red"
    with pytest.raises(TypeError, match="not an acceptable base type"):
        type("Sub", (pt.TreeSpec,), {})


@pytest.mark.parametrize("method", ["compose", "is_prefix", "is_suffix"])
def test_other_objects_are_refused_where_a_spec_is_expected(method):
    with pytest.raises(TypeError, match="expected a TreeSpec, got 1"):
        getattr(pt.tree_structure(1), method)(1)


@needs_native("has a depth limit of its own")
def test_compositions_that_are_too_deep_or_too_large_are_refused():
    half = pt.tree_structure(nested(501))
    with pytest.raises(RecursionError, match="more than 1000 deep"):
        half.compose(half)
    wide = pt.tree_structure([0] * 70_000)
    with pytest.raises(OverflowError, match="at most 4294967295 nodes"):
        wide.compose(wide)
    assert pt.tree_structure(nested(500)).compose(pt.tree_structure(nested(500))).num_nodes == 1001


@needs_native("has a depth limit of its own")
def test_every_operation_works_at_the_greatest_depth():
    spec = pt.tree_structure(nested(1000))

    assert pt.tree_structure(spec.unflatten([0])) == spec
    assert spec.flatten_up_to(nested(1000, "leaf")) == ["leaf"]
    assert spec.paths() == [(0,) * 1000]
    assert repr(spec) == "TreeSpec(" + "[" * 1000 + "*" + "]" * 1000 + ")"
    assert spec.child(0) == pt.tree_structure(nested(999))
    assert spec.is_prefix(spec)
    assert _core.treespec_from_state(spec.__reduce__()[1][0]) == spec
    assert pt.TreeSpec.from_json(spec.to_json()) == spec


def test_cycles_through_specs_are_collected(collected):
    class Label:
        pass

    label = Label()
    first = pt.tree_structure(Box([1], label))
    label.second = pt.tree_structure([{label: Box([2], first)}])
    alive = weakref.ref(first), weakref.ref(label)
    del first, label
    gc.collect()

    assert [reference() for reference in alive] == [None, None]


def test_long_chains_of_specs_are_released_without_recursion():
    spec = pt.tree_structure(1)
    for _ in range(100_000):
        spec = pt.tree_structure(Box([1], spec))
    alive = weakref.ref(spec)
    del spec

    assert alive() is None


def test_hashing_a_long_chain_of_specs_is_a_recursion_error():
    spec = pt.tree_structure(1)
    for _ in range(100_000):
        spec = pt.tree_structure(Box([1], spec))
    with pytest.raises(RecursionError):
        hash(spec)


@given(trees)
def test_copies_are_equal(tree):
    spec = pt.tree_structure(tree)

    assert copy.copy(spec) == spec
    assert copy.deepcopy(spec) == spec


@given(st.lists(st.integers(), max_size=5))
def test_leaves_may_come_from_any_iterable(leaves):
    spec = pt.tree_structure([0] * len(leaves))

    assert spec.unflatten(iter(leaves)) == spec.unflatten(tuple(leaves)) == leaves


@needs_native("documents itself")
def test_signatures_and_documentation_are_there():
    for name in vars(pt.TreeSpec):
        assert getattr(pt.TreeSpec, name).__doc__ or name == "__hash__"
    assert str(inspect.signature(pt.TreeSpec.compose)) == "(self, inner, /)"
