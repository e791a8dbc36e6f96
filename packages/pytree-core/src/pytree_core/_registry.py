"""The types that users declared to be nodes."""

import functools
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable
from typing import Any, TypeVar, overload

from pytree_core._core import publish
from pytree_core._tables import FlattenFunc, Registration, UnflattenFunc, check_namespace, tables

T = TypeVar("T", bound=type)

_BUILT_IN = frozenset({dict, OrderedDict, defaultdict, list, tuple, deque, type(None)})


def register_pytree_node(
    cls: T,
    flatten_func: FlattenFunc,
    unflatten_func: UnflattenFunc,
    *,
    namespace: str,
) -> T:
    """Declare that objects of exactly the type `cls` are nodes of a tree.

    Args:
        cls: The type. Its subclasses are not included.
        flatten_func: Takes an object apart into ``(children, metadata)`` or
            ``(children, metadata, entries)``: an iterable of subtrees, anything that
            compares with ``==`` and (to hash a structure) hashes, and one name a child
            for paths and errors, by default 0, 1, 2 … It is called once a node.
        unflatten_func: Rebuilds an object as ``unflatten_func(metadata, children)``,
            from a tuple of children.
        namespace: Where the type is a node: only in calls with this `namespace`, or
            everywhere if it is ``""``.

    Returns:
        `cls`.

    Raises:
        TypeError: If `cls` is no type, or a function cannot be called.
        ValueError: If `cls` is registered already or is a built-in node.

    Example:
        >>> import pytree_core as pt
        >>> class Pair:
        ...     def __init__(self, a, b):
        ...         self.a, self.b = a, b
        >>> _ = pt.register_pytree_node(
        ...     Pair, lambda p: ((p.a, p.b), None), lambda _, ab: Pair(*ab), namespace="doc"
        ... )
        >>> pt.tree_leaves({"x": Pair(1, [2])}, namespace="doc")
        [1, 2]
        >>> pt.unregister_pytree_node(Pair, namespace="doc")
    """
    add(Registration(cls, flatten_func, unflatten_func, namespace))
    return cls


def add(registration: Registration) -> None:
    """Check a registration and publish it."""
    cls, flatten_func, unflatten_func, namespace, _ = registration
    if not _is_type(cls):
        raise TypeError(f"`cls` must be a type, got {cls!r}.")
    if not callable(flatten_func) or not callable(unflatten_func):
        raise TypeError("`flatten_func` and `unflatten_func` must be callable.")
    check_namespace(namespace)
    if cls in _BUILT_IN:
        raise ValueError(f"{cls.__qualname__} is a node already, and stays the one it is.")
    table = tables.get(namespace, {})
    if cls in table:
        raise ValueError(
            f"{cls.__qualname__} is registered already in the namespace {namespace!r}. "
            "Call `unregister_pytree_node` first, or choose another namespace."
        )
    _replace(namespace, {**table, cls: registration})


@overload
def register_pytree_node_class(cls: T, *, namespace: str = "") -> T: ...
@overload
def register_pytree_node_class(cls: None = None, *, namespace: str = "") -> Callable[[T], T]: ...
def register_pytree_node_class(cls: Any = None, *, namespace: str = "") -> Any:
    """Register a class by its own methods ``tree_flatten`` and ``tree_unflatten``.

    Args:
        cls: The class, with a method ``tree_flatten(self) -> (children, metadata[,
            entries])`` and a class method ``tree_unflatten(cls, metadata, children)``.
        namespace: As in `register_pytree_node`.

    Returns:
        `cls`, or a decorator if it is not given.

    Raises:
        TypeError: If a method is missing.

    Example:
        >>> import pytree_core as pt
        >>> @pt.register_pytree_node_class(namespace="doc")
        ... class Box:
        ...     def __init__(self, content):
        ...         self.content = content
        ...
        ...     def tree_flatten(self):
        ...         return (self.content,), None, ("content",)
        ...
        ...     @classmethod
        ...     def tree_unflatten(cls, metadata, children):
        ...         return cls(*children)
        >>> pt.tree_map(lambda x: x + 1, Box([1, 2]), namespace="doc").content
        [2, 3]
        >>> pt.unregister_pytree_node(Box, namespace="doc")
    """
    if cls is None:
        return functools.partial(register_pytree_node_class, namespace=namespace)
    if not hasattr(cls, "tree_flatten") or not hasattr(cls, "tree_unflatten"):
        raise TypeError(f"{cls!r} must have the methods `tree_flatten` and `tree_unflatten`.")
    return register_pytree_node(
        cls,
        cls.tree_flatten,
        cls.tree_unflatten,
        namespace=namespace,
    )


def register_static(cls: T, *, namespace: str = "") -> T:
    """Declare that objects of exactly the type `cls` are part of the structure.

    Such an object is a node without children: maps keep it as it is, and structures are
    equal only if it is.

    Args:
        cls: The type, whose objects compare by value and hash.
        namespace: As in `register_pytree_node`.

    Returns:
        `cls`, so that this can be a decorator.

    Raises:
        TypeError: If `cls` is no type, or its objects do not hash.
        ValueError: If `cls` is registered already or is a built-in node.

    Example:
        >>> import enum
        >>> import pytree_core as pt
        >>> class Mode(enum.Enum):
        ...     TRAIN = 1
        >>> _ = pt.register_static(Mode, namespace="doc-static")
        >>> pt.tree_map(lambda x: -x, [Mode.TRAIN, 1], namespace="doc-static")
        [<Mode.TRAIN: 1>, -1]
    """
    if getattr(cls, "__hash__", None) is None:
        raise TypeError(f"Objects of {cls!r} must hash to be part of a structure.")
    return register_pytree_node(cls, _keep, _kept, namespace=namespace)


def _keep(static: Any) -> tuple[Any, ...]:
    return (), static


def _kept(static: Any, _: Any) -> Any:
    return static


def unregister_pytree_node(cls: type, *, namespace: str) -> None:
    """Make `cls` a leaf again. Structures that hold it keep working.

    Args:
        cls: The registered type.
        namespace: The one that it was registered in.

    Raises:
        ValueError: If `cls` is not registered there.

    Example:
        >>> import pytree_core as pt
        >>> class Box: ...
        >>> _ = pt.register_pytree_node(
        ...     Box, lambda b: ((), None), lambda _, children: Box(), namespace="doc"
        ... )
        >>> pt.tree_structure(Box(), namespace="doc").num_leaves
        0
        >>> pt.unregister_pytree_node(Box, namespace="doc")
        >>> pt.tree_structure(Box(), namespace="doc").num_leaves
        1
    """
    check_namespace(namespace)
    table = dict(tables.get(namespace, {}))
    if table.pop(cls, None) is None:
        raise ValueError(f"{cls!r} is not registered in the namespace {namespace!r}.")
    _replace(namespace, table)


def _is_type(cls: object) -> bool:
    return isinstance(cls, type)


def _replace(namespace: str, table: dict[type, Registration]) -> None:
    publish(namespace, table)
    tables[namespace] = table
