"""Random trees of every kind of node. A new kind joins them."""

import os
import time
from collections import OrderedDict, defaultdict, deque, namedtuple
from typing import Any

import pytree_core as pt
from hypothesis import strategies as st

Point = namedtuple("Point", ["x", "y"])
Empty = namedtuple("Empty", [])


class Config(dict):
    """A subclass of dict that can be rebuilt."""


class Box:
    """A registered type with metadata."""

    def __init__(self, children: Any, label: Any = None):
        self.children, self.label = tuple(children), label

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Box) and self.children == other.children and self.label == other.label
        )

    def __hash__(self) -> int:
        return hash(self.label)

    def __repr__(self) -> str:
        return f"Box({self.children!r}, {self.label!r})"


pt.register_pytree_node(
    Box, lambda box: (box.children, box.label), lambda label, c: Box(c, label), namespace=""
)


@pt.dataclasses.dataclass
class Layer:
    """A dataclass with a static field."""

    weight: Any
    bias: Any
    name: str = pt.dataclasses.field(default="", pytree_node=False)


leaves = st.one_of(st.integers(-3, 3), st.text("abc", max_size=2), st.booleans(), st.none())
string_keys = st.text("abé", max_size=3)
mixed_keys = st.one_of(
    string_keys,
    st.integers(-2, 2),
    st.none(),
    st.tuples(st.integers(0, 1), string_keys),
    st.complex_numbers(max_magnitude=2, allow_nan=False),
)


def dicts(children: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[Any, Any]]:
    return st.one_of(
        st.dictionaries(string_keys, children, max_size=4),
        st.dictionaries(mixed_keys, children, max_size=4),
    )


def defaultdicts(children: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    factories = st.sampled_from([None, int, list])
    return st.builds(defaultdict, factories, dicts(children))


def deques(children: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    maxlens = st.sampled_from([None, 4, 7])
    return st.builds(deque, st.lists(children, max_size=4), maxlens)


def times(children: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.builds(time.struct_time, st.lists(children, min_size=9, max_size=9))


def nodes(children: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Every kind of node above the given children."""
    few = st.lists(children, max_size=4)
    return st.one_of(
        few,
        few.map(tuple),
        dicts(children),
        dicts(children).map(Config),
        dicts(children).map(OrderedDict),
        defaultdicts(children),
        deques(children),
        st.builds(Point, children, children),
        st.just(Empty()),
        times(st.integers(0, 9)),
        st.builds(Box, few, st.sampled_from([None, "label", (1, 2)])),
        st.builds(Layer, children, children, st.sampled_from(["", "first"])),
        st.builds(pt.Partial, st.sampled_from([max, min]), children, key=children),
    )


trees = st.recursive(leaves, nodes, max_leaves=12)


def insertion_order(tree: Any) -> Any:
    """All that `==` does not see of a tree: the order of keys, factories, lengths, types."""
    if isinstance(tree, dict):
        inside = [(key, insertion_order(value)) for key, value in tree.items()]
        return type(tree), getattr(tree, "default_factory", None), inside
    if isinstance(tree, deque):
        return deque, tree.maxlen, list(map(insertion_order, tree))
    if isinstance(tree, (list, tuple)):
        return type(tree), list(map(insertion_order, tree))
    if isinstance(tree, Box):
        return Box, tree.label, list(map(insertion_order, tree.children))
    if isinstance(tree, Layer):
        return Layer, tree.name, insertion_order(tree.weight), insertion_order(tree.bias)
    if isinstance(tree, pt.Partial):
        return tree.func, insertion_order(tree.args), insertion_order(tree.keywords)
    return tree


def nested(depth: int, leaf: Any = 0) -> Any:
    """A list in a list in a list."""
    for _ in range(depth):
        leaf = [leaf]
    return leaf


EVERY_KIND = {
    "dict": {"b": 1, "a": 2},
    "config": Config(b=1, a=[2]),
    "ordered": OrderedDict(z=1, a=2),
    "default": defaultdict(list, {"b": 1, "a": (2,)}),
    "list": [1, [], [2]],
    "tuple": (1, (), (2,)),
    "deque": deque([1, 2], 3),
    "point": Point(1, [2]),
    "time": time.gmtime(0),
    "stat": os.stat_result(range(10)),
    "none": None,
    "box": Box([1, (2,)], "label"),
    "layer": Layer(1, [2], "first"),
    "partial": pt.Partial(max, 1, key=2),
    "mixed": {1: "a", "1": "b", (): "c", None: "d"},
}
