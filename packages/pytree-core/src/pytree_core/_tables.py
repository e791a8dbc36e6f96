"""The registered types, by namespace."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

FlattenFunc = Callable[[Any], tuple[Any, ...]]
UnflattenFunc = Callable[[Any, Any], Any]

tables: dict[str, dict[type, "Registration"]] = {}


class Registration(NamedTuple):
    """How objects of one type are taken apart and rebuilt, in one namespace."""

    cls: type
    flatten_func: FlattenFunc
    unflatten_func: UnflattenFunc
    namespace: str
    fields: tuple[tuple[str, ...], tuple[str, ...]] | None = None  # of a dataclass


def lookup(cls: type, namespace: str) -> Registration | None:
    """Find the registration of `cls` in `namespace`, or else in the global one."""
    own = tables.get(namespace, {}).get(cls) if namespace else None
    return own or tables.get("", {}).get(cls)


def registered_types(namespace: str) -> list[type]:
    """List the types registered in a namespace."""
    return list(tables.get(namespace, {}))


def registered(module: str, qualname: str, namespace: str) -> Registration | None:
    """Find a registration by the name of its type, importing nothing."""
    for cls, registration in tables.get(namespace, {}).items():
        if (cls.__module__, cls.__qualname__) == (module, qualname):
            return registration
    return None


def parts(registration: Registration, tree: Any) -> tuple[tuple[Any, ...], Any, tuple[Any, ...]]:
    """Call the flatten function once and check what it says.

    Returns:
        The children, the metadata and the entries, one a child.
    """
    name = registration.cls.__qualname__
    result: Any = registration.flatten_func(tree)
    if not _is_tuple(result) or len(result) not in (2, 3):
        raise TypeError(
            f"The flatten function of {name} must return (children, metadata) or "
            f"(children, metadata, entries), got {result!r}."
        )
    children = tuple(result[0])
    entries: Iterable[Any] | None = result[2] if len(result) == 3 else None
    entries = tuple(range(len(children)) if entries is None else entries)
    if len(entries) != len(children):
        raise ValueError(
            f"The flatten function of {name} returned {len(children)} children "
            f"and {len(entries)} entries."
        )
    return children, result[1], entries


def check_namespace(namespace: object) -> None:
    """Refuse what is no name of a namespace."""
    if not isinstance(namespace, str):
        raise TypeError(f"`namespace` must be a string, got {namespace!r}.")


def _is_tuple(value: object) -> bool:
    return isinstance(value, tuple)
