"""The same trees in OpTree and JAX, where their semantics agree with ours."""

from collections import OrderedDict, namedtuple

import pytest
import pytree_core as pt
from hypothesis import given
from hypothesis import strategies as st

Point = namedtuple("Point", ["x", "y"])
keys = st.text("abé", max_size=3)
leaves = st.one_of(st.integers(-3, 3), st.none())


def nodes(children):
    few = st.lists(children, max_size=4)
    dicts = st.dictionaries(keys, children, max_size=4)
    points = st.builds(Point, children, children)
    return st.one_of(few, few.map(tuple), dicts, dicts.map(OrderedDict), points)


trees = st.recursive(leaves, nodes, max_leaves=12)


@pytest.fixture(params=["optree", "jax.tree_util"], scope="module")
def peer(request):
    return pytest.importorskip(request.param)


@given(tree=trees, other=trees)
def test_peers_find_the_same_leaves_and_equal_structures(peer, tree, other):
    ours, spec = pt.tree_flatten(tree)
    theirs, their_spec = peer.tree_flatten(tree)

    assert ours == theirs
    assert spec.unflatten(ours) == peer.tree_unflatten(their_spec, theirs)
    assert (spec.num_leaves, spec.num_nodes) == (their_spec.num_leaves, their_spec.num_nodes)
    assert (spec == pt.tree_structure(other)) == (their_spec == peer.tree_structure(other))


@given(tree=trees)
def test_peers_map_alike(peer, tree):
    pairs = lambda *xs: xs

    assert pt.tree_map(pairs, tree, tree) == peer.tree_map(pairs, tree, tree)


@given(tree=trees)
def test_peers_stop_at_the_same_leaves(peer, tree):
    is_leaf = lambda x: isinstance(x, list)

    assert pt.tree_leaves(tree, is_leaf) == peer.tree_leaves(tree, is_leaf=is_leaf)


@given(tree=trees, other=trees)
def test_optree_has_the_same_paths_prefixes_and_compositions(tree, other):
    optree = pytest.importorskip("optree")
    ours, theirs = pt.tree_structure(tree), optree.tree_structure(tree)
    inner, their_inner = pt.tree_structure(other), optree.tree_structure(other)

    # A named tuple goes by indices there, by names here.
    without_names = [tuple({"x": 0, "y": 1}.get(e, e) for e in path) for path in ours.paths()]
    assert without_names == list(map(tuple, theirs.paths()))
    assert ours.is_prefix(inner) == theirs.is_prefix(their_inner)
    assert pt.tree_paths(ours.compose(inner).unflatten(range(ours.compose(inner).num_leaves))) == (
        ours.compose(inner).paths()
    )
    assert ours.compose(inner).num_nodes == theirs.compose(their_inner).num_nodes
