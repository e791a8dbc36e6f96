"""Structures as data for pickle and JSON, as the native core has them, and back."""

import sys
from typing import Any

from pytree_core._reference.kinds import (
    EXACT,
    Kind,
    class_of,
    is_mapping_class,
    is_namedtuple_class,
    is_struct_sequence_class,
    is_tuple_class,
    sorted_keys,
    struct_sequence_entries,
)
from pytree_core._reference.treespec import LEAF, TreeSpec
from pytree_core._tables import tables

_VERSION = 1
_TYPES = {kind: cls for cls, kind in EXACT.items()}


def state_of(treespec: TreeSpec) -> tuple[int, tuple[Any, ...]]:
    """Write a structure as ``(version, ((kind, arity, data), ...))``, children first."""
    nodes = [(t.kind.value, t.num_children, _data_of(t)) for t in treespec.levels()]
    return _VERSION, tuple(nodes)


def treespec_from_state(state: Any, /) -> TreeSpec:
    """Rebuild a TreeSpec from what pickle saved, trusting none of it."""
    _require(_is_tuple_of(state, 2), "it is not (version, nodes)")
    version, nodes = state
    _require(type(version) is int and version == _VERSION, "its version is unknown")
    _require(class_of(nodes) is tuple, "its nodes are not a tuple")
    roots: list[TreeSpec] = []
    for node in nodes:
        _require(_is_tuple_of(node, 3), "a node is not (kind, arity, data)")
        name, arity, data = node
        _require(type(name) is str, "a kind is not a string")
        _require(name in Kind._value2member_map_, "a kind is unknown")
        _require(type(arity) is int, "an arity is no int")
        _require(0 <= arity <= len(roots), "a node has more children than there are")
        base = len(roots) - arity
        roots[base:] = [_read(Kind(name), data, tuple(roots[base:]))]
    _require(len(roots) == 1, "its nodes are not one tree")
    return roots[0]


treespec_from_state.__module__ = "pytree_core._core"  # as a pickle names it


def _data_of(treespec: TreeSpec) -> Any:
    match treespec.kind:
        case Kind.DICT | Kind.ORDERED_DICT:
            return treespec.insertion
        case Kind.DICT_SUBCLASS:
            return treespec.type, treespec.insertion
        case Kind.DEFAULT_DICT:
            return treespec.metadata, treespec.insertion
        case Kind.DEQUE:
            return treespec.metadata
        case Kind.NAMED_TUPLE | Kind.STRUCT_SEQUENCE:
            return treespec.type
        case Kind.CUSTOM if treespec.registration:
            namespace, cls = treespec.registration.namespace, treespec.registration.cls
            return namespace, cls, treespec.metadata, treespec.names
        case _:
            return None


def _read(kind: Kind, data: Any, nested: tuple[TreeSpec, ...]) -> TreeSpec:
    """Check the data of a node, and put the node above its children."""
    arity = len(nested)
    indices = tuple(range(arity))
    match kind:
        case Kind.LEAF | Kind.NONE:
            _require(arity == 0, "a leaf has children")
            return LEAF if kind is Kind.LEAF else TreeSpec(kind, type(None))
        case Kind.TUPLE | Kind.LIST:
            return TreeSpec(kind, _TYPES[kind], nested=nested, names=indices)
        case Kind.DEQUE:
            _require(data is None or type(data) is int, "the maxlen of a deque is no int")
            fits = data is None or arity <= data <= sys.maxsize
            _require(fits, "a deque is longer than its maxlen")
            return TreeSpec(kind, _TYPES[kind], data, nested=nested, names=indices)
        case Kind.NAMED_TUPLE:
            _require(_is_type(data), "a type is missing")
            tuples = is_tuple_class(data) and not is_struct_sequence_class(data)
            _require(tuples and is_namedtuple_class(data), "a type is no namedtuple")
            names = data._fields
            _require(len(names) == arity, "a namedtuple has another number of fields")
            return TreeSpec(kind, data, nested=nested, names=names)
        case Kind.STRUCT_SEQUENCE:
            _require(_is_type(data), "a type is missing")
            names = struct_sequence_entries(data) if is_struct_sequence_class(data) else ()
            _require(len(names) == arity > 0, "a type is no struct sequence of this size")
            return TreeSpec(kind, data, nested=nested, names=names)
        case Kind.CUSTOM:
            return _read_custom(data, nested)
        case _:
            return _read_mapping(kind, data, nested)


def _read_mapping(kind: Kind, data: Any, nested: tuple[TreeSpec, ...]) -> TreeSpec:
    cls, factory = _TYPES.get(kind), None
    if kind in (Kind.DICT_SUBCLASS, Kind.DEFAULT_DICT):
        _require(_is_tuple_of(data, 2), "the keys of a dict are missing")
        first, data = data
        if kind is Kind.DICT_SUBCLASS:
            _require(_is_type(first), "a type is missing")
            rebuilt = is_mapping_class(first) and first not in EXACT
            _require(rebuilt, "a dict cannot be rebuilt")
            cls = first
        else:
            _require(first is None or callable(first), "a dict cannot be rebuilt")
            factory = first
    _require(_is_tuple_of(data, len(nested)), "a dict has too many or few keys")
    try:
        unique = len(set(data)) == len(data)
    except TypeError:
        raise _corrupted("a key cannot be hashed") from None
    _require(unique, "a dict has a key twice")
    keys = data if kind is Kind.ORDERED_DICT else sorted_keys(data)
    return TreeSpec(kind, cls, factory, keys, nested, names=keys, insertion=data)


def _read_custom(data: Any, nested: tuple[TreeSpec, ...]) -> TreeSpec:
    complete = _is_tuple_of(data, 4) and isinstance(data[0], str)
    _require(complete, "a registered type is incomplete")
    namespace, cls, metadata, names = data
    _require(_is_type(cls), "a type is missing")
    registration = tables.get(namespace, {}).get(cls)
    if registration is None:
        raise ValueError(
            f"register {cls!r} in the namespace {namespace!r} before loading a TreeSpec with it"
        )
    names = tuple(range(len(nested))) if names is None else names
    _require(_is_tuple_of(names, len(nested)), "there are too many or few entries")
    return TreeSpec(Kind.CUSTOM, cls, metadata, (), nested, registration, names)


def _is_tuple_of(value: Any, size: int) -> bool:
    return class_of(value) is tuple and len(value) == size


def _is_type(value: object) -> bool:
    return isinstance(value, type)


def _require(condition: bool, what: str) -> None:
    if not condition:
        raise _corrupted(what)


def _corrupted(what: str) -> ValueError:
    return ValueError(f"this is not the state of a TreeSpec: {what}")
