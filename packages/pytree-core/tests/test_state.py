"""Saved structures: pickle and JSON, whole and damaged."""

import json
import pickle
import subprocess
import sys

import fuzz_states
import pytest
import pytree_core as pt
from hypothesis import given
from hypothesis import strategies as st
from pytree_backend import needs_native
from pytree_core._core import treespec_from_state
from pytree_strategies import EVERY_KIND, Box, Config, Point, nested, trees


def state_of(spec):
    return spec.__reduce__()[1][0]


@given(trees, st.integers(0, pickle.HIGHEST_PROTOCOL))
def test_pickle_gives_an_equal_structure(tree, protocol):
    spec = pt.tree_structure(tree)
    loaded = pickle.loads(pickle.dumps(spec, protocol))

    assert loaded == spec
    assert hash(loaded) == hash(spec)
    assert repr(loaded) == repr(spec)
    assert loaded.paths() == spec.paths()
    assert (loaded.num_leaves, loaded.num_nodes) == (spec.num_leaves, spec.num_nodes)


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_the_order_of_insertion_survives_pickle(kind):
    leaves, spec = pt.tree_flatten(EVERY_KIND[kind])
    rebuilt = pickle.loads(pickle.dumps(spec)).unflatten(leaves)

    assert repr(rebuilt) == repr(EVERY_KIND[kind])


@pytest.mark.parametrize("kind", sorted(set(EVERY_KIND) - {"partial"}))
def test_json_gives_an_equal_structure(kind):
    leaves, spec = pt.tree_flatten(EVERY_KIND[kind])
    loaded = pt.TreeSpec.from_json(spec.to_json())

    assert loaded == spec
    assert repr(loaded.unflatten(leaves)) == repr(EVERY_KIND[kind])


LEAF = ("leaf", 0, None)
DAMAGED = [
    None,
    (),
    (1,),
    (2, (LEAF,)),
    (True, (LEAF,)),
    ("1", (LEAF,)),
    (1, [LEAF]),
    (1, ()),
    (1, (LEAF, LEAF)),
    (1, (("list", 1, None),)),
    (1, (LEAF, ("list", -1, None))),
    (1, (LEAF, ("list", 2**70, None))),
    (1, (LEAF, ("list", -(2**31), None))),
    (1, (LEAF, ("list", 1.0, None))),
    (1, (LEAF, ("leaf", 1, None))),
    (1, (LEAF, ("none", 1, None))),
    (1, (("tree", 0, None),)),
    (1, ((3, 0, None),)),
    (1, (["leaf", 0, None],)),
    (1, (("leaf", 0),)),
    (1, (LEAF, ("dict", 1, None))),
    (1, (LEAF, ("dict", 1, ()))),
    (1, (LEAF, ("dict", 1, ("a", "b")))),
    (1, (LEAF, ("dict", 1, ([],)))),
    (1, (LEAF, LEAF, ("dict", 2, ("a", "a")))),
    (1, (LEAF, LEAF, ("ordereddict", 2, (1, True)))),
    (1, (LEAF, ("defaultdict", 1, ("a",)))),
    (1, (LEAF, ("defaultdict", 1, (3, ("a",))))),
    (1, (LEAF, ("dict_subclass", 1, (dict, ("a",))))),
    (1, (LEAF, ("dict_subclass", 1, (int, ("a",))))),
    (1, (LEAF, ("dict_subclass", 1, ("Config", ("a",))))),
    (1, (LEAF, ("deque", 1, 0))),
    (1, (LEAF, ("deque", 1, -1))),
    (1, (LEAF, ("deque", 1, "3"))),
    (1, (LEAF, ("deque", 1, 2**70))),
    (1, (LEAF, ("namedtuple", 1, Point))),
    (1, (LEAF, ("namedtuple", 1, tuple))),
    (1, (LEAF, ("namedtuple", 1, None))),
    (1, (LEAF, ("structsequence", 1, type(sys.float_info)))),
    (1, (LEAF, ("structsequence", 1, Point))),
    (1, (LEAF, ("custom", 1, None))),
    (1, (LEAF, ("custom", 1, ("", int, None, None)))),
    (1, (LEAF, ("custom", 1, ("elsewhere", Box, None, None)))),
    (1, (LEAF, ("custom", 1, (0, Box, None, None)))),
    (1, (LEAF, ("custom", 1, ("", Box, None, ())))),
    (1, (LEAF, ("custom", 1, ("", Box, None, ["a"])))),
]


@pytest.mark.parametrize("state", DAMAGED, ids=repr)
def test_a_damaged_state_is_a_value_error(state):
    with pytest.raises(ValueError, match=r"this is not the state of a TreeSpec|register"):
        treespec_from_state(state)


@given(trees, st.data())
def test_a_state_with_any_part_exchanged_is_refused_or_whole(tree, data):
    version, nodes = state_of(pt.tree_structure(tree))
    nodes = [list(node) for node in nodes]
    other = data.draw(st.one_of(st.none(), st.integers(-2, 9), st.just("dict"), st.just(("a",))))
    row = data.draw(st.integers(0, len(nodes) - 1))
    nodes[row][data.draw(st.integers(0, 2))] = other
    try:
        spec = treespec_from_state((version, tuple(map(tuple, nodes))))
    except ValueError:
        return
    assert pt.tree_structure(spec.unflatten(range(spec.num_leaves))).num_leaves == spec.num_leaves


@needs_native("has a depth limit of its own")
def test_a_state_that_is_too_deep_is_refused():
    version, nodes = state_of(pt.tree_structure(nested(1000)))
    with pytest.raises(RecursionError, match="more than 1000 deep"):
        treespec_from_state((version, (*nodes, ("list", 1, None))))


def test_a_type_must_be_registered_before_it_is_loaded():
    class Local:
        pass

    pt.register_pytree_node(Local, lambda _: ((), None), lambda *_: Local(), namespace="state")
    spec = pt.tree_structure(Local(), namespace="state")
    state, text = state_of(spec), spec.to_json()
    pt.unregister_pytree_node(Local, namespace="state")

    with pytest.raises(ValueError, match=r"register .*Local.* in the namespace 'state' before"):
        treespec_from_state(state)
    with pytest.raises(ValueError, match=r"register .*Local.* in the namespace 'state' before"):
        pt.TreeSpec.from_json(text)
    assert isinstance(spec.unflatten([]), Local)


@pytest.mark.parametrize(
    "tree",
    [
        {object(): 1},
        {b"bytes": 1},
        pt.Partial(max, 1),
        Box([1], object()),
    ],
    ids=["object", "bytes", "function", "metadata"],
)
def test_what_has_no_safe_form_in_json_is_refused(tree):
    with pytest.raises(ValueError, match="has no safe form in JSON"):
        pt.tree_structure(tree).to_json()


def test_a_default_factory_that_is_no_builtin_has_no_safe_form_in_json():
    from collections import defaultdict

    with pytest.raises(ValueError, match="has no safe form in JSON"):
        pt.tree_structure(defaultdict(Config)).to_json()


@pytest.mark.parametrize("metadata", [None, True, 1, 1.5, "x", (1, (2,)), [1], {"a": {1: ()}}])
def test_metadata_keeps_its_type_in_json(metadata):
    spec = pt.tree_structure(Box([1], metadata))

    assert pt.TreeSpec.from_json(spec.to_json()).unflatten([0]).label == metadata
    assert type(pt.TreeSpec.from_json(spec.to_json()).unflatten([0]).label) is type(metadata)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        "{}",
        '{"format": "other"}',
        '{"format": "pytree_core.TreeSpec", "version": 2, "nodes": [["leaf", 0, null]]}',
        '{"format": "pytree_core.TreeSpec", "version": 1, "nodes": [["leaf", 0]]}',
        '{"format": "pytree_core.TreeSpec", "version": 1, "nodes": 3}',
        '{"format": "pytree_core.TreeSpec", "version": 1, "nodes": [["dict", 0, {"a": []}]]}',
        '{"format": "pytree_core.TreeSpec", "version": 1, "nodes": [["dict", 0, 3]]}',
        '{"format": "pytree_core.TreeSpec", "version": 1,'
        ' "nodes": [["defaultdict", 0, ["eval", {"tuple": []}]]]}',
        '{"format": "pytree_core.TreeSpec", "version": 1,'
        ' "nodes": [["defaultdict", 0, ["eval", {"tuple": 3}]]]}',
        '{"format": "pytree_core.TreeSpec", "version": 1,'
        ' "nodes": [["namedtuple", 0, ["os", "system"]]]}',
        '{"format": "pytree_core.TreeSpec", "version": 1,'
        ' "nodes": [["namedtuple", 0, ["nowhere", "Point"]]]}',
        '{"format": "pytree_core.TreeSpec", "version": 1, "nodes": [["namedtuple", 0, 3]]}',
        '{"format": "pytree_core.TreeSpec", "version": 1, "nodes": [["custom", 0, null]]}',
        "[" * 100_000,
    ],
)
def test_damaged_json_is_a_value_error(text):
    with pytest.raises(ValueError):  # noqa: PT011
        pt.TreeSpec.from_json(text)


def test_json_is_versioned_data():
    document = json.loads(pt.tree_structure([1, None]).to_json())

    assert document == {
        "format": "pytree_core.TreeSpec",
        "version": 1,
        "nodes": [["leaf", 0, None], ["none", 0, None], ["list", 2, None]],
    }


def test_loading_json_imports_nothing():
    text = pt.tree_structure({"a": Point(1, 2)}).to_json()
    program = (
        "import sys, pytree_core\n"
        "try:\n"
        "    pytree_core.TreeSpec.from_json(sys.argv[1])\n"
        "except ValueError as error:\n"
        "    print('pytree_strategies' in sys.modules, error)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", program, text], capture_output=True, text=True, check=True
    )

    assert result.stdout.startswith("False the type pytree_strategies.Point is not known here")


def test_pickle_works_in_another_process():
    saved = pickle.dumps(pt.tree_structure({"b": [1, None], "a": (2,)}))
    program = "import sys, pickle; print(pickle.loads(bytes.fromhex(sys.argv[1])))"
    result = subprocess.run(
        [sys.executable, "-c", program, saved.hex()], capture_output=True, text=True, check=True
    )

    assert result.stdout.strip() == "TreeSpec({'a': (*,), 'b': [*, None]})"


def test_thousands_of_damaged_structures_raise_what_is_promised_or_load_whole():
    assert fuzz_states.fuzz(inputs=5_000, seed=0) > 0
