"""Dataclasses that are nodes: `dataclass`, `field` and `register_node`."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, TypeVar, overload

from pytree_core._fields import PYTREE_NODE, dataclass_transform, register_fields

T = TypeVar("T", bound=type)


def field(*, pytree_node: bool = True, **options: Any) -> Any:
    """Describe a field of a dataclass that is a node.

    Args:
        pytree_node: Whether the field is a subtree. If not it is part of the structure:
            it is compared with ``==``, and must hash for the structure to hash.
        options: As of `dataclasses.field`.

    Example:
        >>> from pytree_core.dataclasses import dataclass, field
        >>> @dataclass(namespace="doc-field")
        ... class Layer:
        ...     weight: float
        ...     name: str = field(default="", pytree_node=False)
        >>> import pytree_core as pt
        >>> pt.tree_leaves(Layer(1.5, "first"), namespace="doc-field")
        [1.5]
    """
    metadata: dict[Any, Any] = {**(options.pop("metadata", None) or {}), PYTREE_NODE: pytree_node}
    return dataclasses.field(metadata=metadata, **options)


@overload
def dataclass(cls: T, /, *, namespace: str = "", **options: Any) -> T: ...
@overload
def dataclass(cls: None = None, /, *, namespace: str = "", **options: Any) -> Callable[[T], T]: ...
@dataclass_transform(field_specifiers=(field,))
def dataclass(cls: Any = None, /, *, namespace: str = "", **options: Any) -> Any:
    """Make a class a dataclass, and its objects nodes.

    A node is rebuilt field by field, without calling ``__init__`` or ``__post_init__``:
    they could not know what to do with leaves that are not what they check for.

    Args:
        cls: The class.
        namespace: As in `pytree_core.register_pytree_node`.
        options: As of `dataclasses.dataclass`.

    Returns:
        The dataclass, or a decorator if `cls` is not given.

    Example:
        >>> import pytree_core as pt
        >>> from pytree_core.dataclasses import dataclass
        >>> @dataclass(frozen=True, namespace="doc-dataclass")
        ... class Point:
        ...     x: float
        ...     y: float
        >>> pt.tree_map(lambda v: -v, Point(1.0, 2.0), namespace="doc-dataclass")
        Point(x=-1.0, y=-2.0)
    """
    if cls is None:
        return functools.partial(dataclass, namespace=namespace, **options)
    return register_node(dataclasses.dataclass(**options)(cls), namespace=namespace)


def register_node(cls: T, *, namespace: str = "") -> T:
    """Make the objects of an existing dataclass nodes.

    Args:
        cls: The dataclass. Its fields say by `field` whether they are subtrees.
        namespace: As in `pytree_core.register_pytree_node`.

    Returns:
        `cls`.

    Raises:
        TypeError: If `cls` is not a dataclass.
        ValueError: If `cls` is registered already.

    Example:
        >>> import dataclasses
        >>> import pytree_core as pt
        >>> @dataclasses.dataclass
        ... class Point:
        ...     x: float
        ...     y: float
        >>> _ = pt.dataclasses.register_node(Point, namespace="doc-register")
        >>> pt.tree_paths(Point(1.0, 2.0), namespace="doc-register")
        [('x',), ('y',)]
    """
    node_type: Any = cls  # `is_dataclass` would narrow it to less than `T`
    if not isinstance(node_type, type) or not dataclasses.is_dataclass(node_type):
        raise TypeError(f"`cls` must be a dataclass, got {cls!r}.")
    fields = dataclasses.fields(node_type)
    children = tuple(f.name for f in fields if f.metadata.get(PYTREE_NODE, True))
    static = tuple(f.name for f in fields if f.name not in children)

    register_fields(node_type, children, static, namespace)
    return cls
