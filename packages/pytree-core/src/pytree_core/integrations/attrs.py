"""Classes of attrs that are nodes: `define`, `frozen`, `field` and `register_node`."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar, overload

import attrs

from pytree_core._fields import PYTREE_NODE, dataclass_transform, register_fields

T = TypeVar("T", bound=type)


def field(*, pytree_node: bool = True, **options: Any) -> Any:
    """Describe a field of an attrs class that is a node.

    Args:
        pytree_node: Whether the field is a subtree. If not it is part of the structure:
            it is compared with ``==``, and must hash for the structure to hash.
        options: As of `attrs.field`.

    Example:
        >>> from pytree_core.integrations.attrs import define, field
        >>> @define(namespace="doc-attrs-field")
        ... class Layer:
        ...     weight: float
        ...     name: str = field(default="", pytree_node=False)
        >>> import pytree_core as pt
        >>> pt.tree_leaves(Layer(1.5, "first"), namespace="doc-attrs-field")
        [1.5]
    """
    metadata: dict[Any, Any] = {**(options.pop("metadata", None) or {}), PYTREE_NODE: pytree_node}
    return attrs.field(metadata=metadata, **options)


@overload
def define(cls: T, /, *, namespace: str = "", **options: Any) -> T: ...
@overload
def define(cls: None = None, /, *, namespace: str = "", **options: Any) -> Callable[[T], T]: ...
@dataclass_transform(field_specifiers=(field,))
def define(cls: Any = None, /, *, namespace: str = "", **options: Any) -> Any:
    """Make a class an attrs class, and its objects nodes.

    A node is rebuilt field by field, without calling ``__init__``, validators or converters:
    they could not know what to do with leaves that are not what they check for.

    Args:
        cls: The class.
        namespace: As in `pytree_core.register_pytree_node`.
        options: As of `attrs.define`; ``frozen=True`` makes objects immutable.

    Returns:
        The attrs class, or a decorator if `cls` is not given.

    Example:
        >>> import pytree_core as pt
        >>> from pytree_core.integrations.attrs import define
        >>> @define(frozen=True, namespace="doc-attrs")
        ... class Point:
        ...     x: float
        ...     y: float
        >>> pt.tree_map(lambda v: -v, Point(1.0, 2.0), namespace="doc-attrs")
        Point(x=-1.0, y=-2.0)
    """
    if cls is None:
        return functools.partial(define, namespace=namespace, **options)
    return register_node(attrs.define(**options)(cls), namespace=namespace)


def register_node(cls: T, *, namespace: str = "") -> T:
    """Make the objects of an existing attrs class nodes.

    Args:
        cls: The attrs class. Its fields say by `field` whether they are subtrees.
        namespace: As in `pytree_core.register_pytree_node`.

    Returns:
        `cls`.

    Raises:
        TypeError: If `cls` is not an attrs class.
        ValueError: If `cls` is registered already.

    Example:
        >>> import attrs
        >>> import pytree_core as pt
        >>> from pytree_core.integrations.attrs import register_node
        >>> @attrs.define
        ... class Point:
        ...     x: float
        ...     y: float
        >>> _ = register_node(Point, namespace="doc-attrs-register")
        >>> pt.tree_paths(Point(1.0, 2.0), namespace="doc-attrs-register")
        [('x',), ('y',)]
    """
    node_type: Any = cls  # `attrs.has` would narrow it to less than `T`
    if not isinstance(node_type, type) or not attrs.has(node_type):
        raise TypeError(f"`cls` must be an attrs class, got {cls!r}.")
    fields = attrs.fields(node_type)
    children = tuple(f.name for f in fields if f.metadata.get(PYTREE_NODE, True))
    static = tuple(f.name for f in fields if f.name not in children)
    register_fields(cls, children, static, namespace)
    return cls
