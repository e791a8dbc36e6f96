"""Which kind of node an object is, and in which order the children of a dict stand."""

from collections import OrderedDict, defaultdict, deque
from collections.abc import Iterable
from enum import Enum
from types import MemberDescriptorType
from typing import Any

from pytree_core._tables import lookup


class Kind(Enum):
    """The kinds of nodes, by their names in a saved structure."""

    LEAF = "leaf"
    NONE = "none"
    TUPLE = "tuple"
    LIST = "list"
    DICT = "dict"
    DICT_SUBCLASS = "dict_subclass"
    ORDERED_DICT = "ordereddict"
    DEFAULT_DICT = "defaultdict"
    DEQUE = "deque"
    NAMED_TUPLE = "namedtuple"
    STRUCT_SEQUENCE = "structsequence"
    CUSTOM = "custom"


EXACT: dict[type[Any], Kind] = {
    type(None): Kind.NONE,
    tuple: Kind.TUPLE,
    list: Kind.LIST,
    dict: Kind.DICT,
    OrderedDict: Kind.ORDERED_DICT,
    defaultdict: Kind.DEFAULT_DICT,
    deque: Kind.DEQUE,
}
MAPPINGS = {Kind.DICT, Kind.DICT_SUBCLASS, Kind.ORDERED_DICT, Kind.DEFAULT_DICT}
FIXED_ARITY = {Kind.NAMED_TUPLE, Kind.STRUCT_SEQUENCE}


_DICT: Any = dict
TUPLE: Any = tuple


def class_of(tree: object) -> Any:
    """Get the type of an object, of which nothing is known."""
    return type(tree)


def items_of(tree: dict[Any, Any]) -> dict[Any, Any]:
    """Read a dict, past the methods of its class."""
    return dict(_DICT.items(tree))


def kind_of(tree: Any, none_is_leaf: bool = False, namespace: str = "") -> Kind:
    """Tell what kind of node an object is, by its type.

    A subclass of `dict` is a node if its constructor is the one of `dict`, so that it can
    be rebuilt. Other subclasses of containers are leaves (`torch.Size` is a tuple).
    """
    cls = class_of(tree)
    if cls in EXACT:
        return Kind.LEAF if tree is None and none_is_leaf else EXACT[cls]
    if lookup(cls, namespace):
        return Kind.CUSTOM
    if is_tuple_class(cls):
        if is_struct_sequence_class(cls):
            return Kind.STRUCT_SEQUENCE
        if is_namedtuple_class(cls) and len(tree) == len(cls._fields):
            return Kind.NAMED_TUPLE
    elif is_mapping_class(cls):
        return Kind.DICT_SUBCLASS
    return Kind.LEAF


def is_tuple_class(cls: Any) -> bool:
    """Tell whether a class is a subclass of tuple."""
    return issubclass(cls, tuple)


def is_mapping_class(cls: Any) -> bool:
    """Tell whether a class is a kind of dict, or keeps the constructor of `dict`."""
    return cls in (OrderedDict, defaultdict) or (
        issubclass(cls, _DICT) and cls.__init__ is _DICT.__init__ and cls.__new__ is _DICT.__new__
    )


def is_namedtuple_class(cls: type) -> bool:
    """Tell whether a subclass of tuple was made by `collections.namedtuple`."""
    fields: Any = getattr(cls, "_fields", None)
    return (
        class_of(fields) is tuple
        and all(type(name) is str for name in fields)
        and callable(getattr(cls, "_make", None))
    )


def is_struct_sequence_class(cls: Any) -> bool:
    """Tell whether a subclass of tuple is a struct sequence that can be made anew."""
    counts = ("n_fields", "n_sequence_fields", "n_unnamed_fields")
    return (
        cls.__base__ is TUPLE
        and not cls.__flags__ & 1 << 10  # Py_TPFLAGS_BASETYPE
        and all(type(cls.__dict__.get(name)) is int for name in counts)
        and cls.__new__ is not TUPLE.__new__
    )


def struct_sequence_entries(cls: Any) -> tuple[Any, ...]:
    """Name the visible fields in order; one without a name goes by its index."""
    probe = cls(range(cls.n_fields))
    attributes: dict[str, Any] = dict(cls.__dict__)
    members = [k for k, v in attributes.items() if isinstance(v, MemberDescriptorType)]
    names: dict[Any, Any] = {getattr(probe, name): name for name in members}
    return tuple(names.get(i, i) for i in range(cls.n_sequence_fields))


def sorted_keys(keys: Iterable[Any]) -> tuple[Any, ...]:
    """Sort keys, if need be by type first, or else leave them in their order."""
    keys = tuple(keys)
    try:
        return tuple(sorted(keys))
    except TypeError:
        pass
    try:
        return tuple(
            key
            for _, key in sorted((f"{type(k).__module__}.{type(k).__qualname__}", k) for k in keys)
        )
    except TypeError:
        return keys
