import pickle

import pytest
import pytree_core as pt
from pytree_backend import needs_native
from pytree_core import _reference as reference
from pytree_strategies import Box, Config, Point


class Pair:
    def __init__(self, first, second):
        self.first, self.second = first, second


def flatten_pair(pair):
    return (pair.first, pair.second), None, ("first", "second")


def unflatten_pair(_, children):
    return Pair(*children)


@pytest.fixture
def pair():
    pt.register_pytree_node(Pair, flatten_pair, unflatten_pair, namespace="test")
    yield Pair(1, [2])
    pt.unregister_pytree_node(Pair, namespace="test")


def test_a_type_is_a_node_in_its_namespace_only(pair):
    assert pt.tree_leaves(pair, namespace="test") == [1, 2]
    assert pt.tree_leaves(pair) == [pair]
    assert pt.tree_leaves(pair, namespace="other") == [pair]
    assert pt.tree_is_leaf(pair)
    assert not pt.tree_is_leaf(pair, namespace="test")


def test_the_global_namespace_is_seen_from_all_others():
    assert pt.tree_leaves(Box([1]), namespace="other") == [1]


def test_a_namespace_comes_before_the_global_one(pair):
    pt.register_pytree_node(Pair, lambda _: ((), None), lambda *_: None, namespace="")
    try:
        assert pt.tree_leaves(pair) == []
        assert pt.tree_leaves(pair, namespace="test") == [1, 2]
        assert reference.tree_leaves(pair, namespace="test") == [1, 2]
    finally:
        pt.unregister_pytree_node(Pair, namespace="")


def test_a_subclass_is_not_registered_with_its_base(pair):
    class Sub(Pair):
        pass

    assert pt.tree_is_leaf(Sub(1, 2), namespace="test")


def test_entries_name_the_children_in_paths_and_errors(pair):
    spec = pt.tree_structure(pair, namespace="test")

    assert spec.paths() == [("first",), ("second", 0)]
    with pytest.raises(ValueError, match=r"at \.second: expected a list of 1, got an int"):
        spec.flatten_up_to(Pair(1, 2))


def test_a_registered_dict_is_spelled_like_a_dict():
    class Table(dict):
        pass

    pt.register_pytree_node(
        Table, lambda t: (t.values(), None, t.keys()), lambda *_: None, namespace="test"
    )
    spec = pt.tree_structure(Table(a=[1]), namespace="test")
    with pytest.raises(ValueError, match=r"at \['a'\]: expected a list of 1, got an int"):
        spec.flatten_up_to(Table(a=1))
    assert not spec.is_prefix(pt.tree_structure(Config(a=[1])))
    pt.unregister_pytree_node(Table, namespace="test")


def test_specs_outlive_the_registration():
    pt.register_pytree_node(Pair, flatten_pair, unflatten_pair, namespace="brief")
    spec = pt.tree_structure(Pair(1, 2), namespace="brief")
    pt.unregister_pytree_node(Pair, namespace="brief")

    assert pt.tree_is_leaf(Pair(1, 2), namespace="brief")
    rebuilt = spec.unflatten("xy")
    assert (rebuilt.first, rebuilt.second) == ("x", "y")
    assert spec.flatten_up_to(Pair(3, 4)) == [3, 4]
    assert repr(spec) == "TreeSpec(Pair(*, *))"
    with pytest.raises(ValueError, match=r"register .*Pair.* before loading"):
        pickle.loads(pickle.dumps(spec))


def test_the_same_type_in_two_namespaces_gives_different_specs(pair):
    pt.register_pytree_node(Pair, flatten_pair, unflatten_pair, namespace="other")
    spec = pt.tree_structure(pair, namespace="test")

    assert spec != pt.tree_structure(pair, namespace="other")
    pt.unregister_pytree_node(Pair, namespace="other")


def test_namedtuples_and_dict_subclasses_may_be_registered():
    for cls, tree in ((Point, Point(1, 2)), (Config, Config(a=1))):
        pt.register_pytree_node(cls, lambda _: ((), "all"), lambda *_: None, namespace="own")
        assert pt.tree_leaves(tree, namespace="own") == []
        assert pt.tree_leaves(tree) != []
        pt.unregister_pytree_node(cls, namespace="own")


@pytest.mark.parametrize("cls", [dict, list, tuple, type(None)])
def test_built_in_nodes_stay_what_they_are(cls):
    with pytest.raises(ValueError, match="is a node already"):
        pt.register_pytree_node(cls, flatten_pair, unflatten_pair, namespace="test")


def test_a_type_is_registered_once(pair):
    with pytest.raises(ValueError, match="Pair is registered already in the namespace 'test'"):
        pt.register_pytree_node(Pair, flatten_pair, unflatten_pair, namespace="test")


def test_only_registered_types_are_unregistered():
    for namespace in ("test", "never"):
        with pytest.raises(ValueError, match="int'> is not registered in the namespace"):
            pt.unregister_pytree_node(int, namespace=namespace)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((1, flatten_pair, unflatten_pair), "`cls` must be a type, got 1"),
        ((Pair, 1, unflatten_pair), "must be callable"),
        ((Pair, flatten_pair, None), "must be callable"),
    ],
)
def test_wrong_registrations_are_refused(arguments, text):
    with pytest.raises(TypeError, match=text):
        pt.register_pytree_node(*arguments, namespace="test")
    with pytest.raises(TypeError, match="`namespace` must be a string, got None"):
        pt.register_pytree_node(Pair, flatten_pair, unflatten_pair, namespace=None)


def test_a_class_is_registered_by_its_methods():
    @pt.register_pytree_node_class
    class Wrapped:
        def __init__(self, content):
            self.content = content

        def tree_flatten(self):
            return [self.content], "metadata"

        @classmethod
        def tree_unflatten(cls, metadata, children):
            assert metadata == "metadata"
            return cls(*children)

    assert pt.tree_map(abs, Wrapped([-1])).content == [1]
    pt.unregister_pytree_node(Wrapped, namespace="")

    with pytest.raises(TypeError, match="must have the methods `tree_flatten`"):
        pt.register_pytree_node_class(Pair)


@needs_native("keeps names as C strings")
def test_a_registration_that_fails_leaves_no_trace():
    with pytest.raises(UnicodeEncodeError):
        pt.register_pytree_node(Pair, flatten_pair, unflatten_pair, namespace="\ud800")
    with pytest.raises(ValueError, match="is not registered"):
        pt.unregister_pytree_node(Pair, namespace="\ud800")
