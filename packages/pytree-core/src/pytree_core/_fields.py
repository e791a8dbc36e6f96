"""Classes whose fields are subtrees, or part of the structure."""

from typing import TYPE_CHECKING, Any

from pytree_core._registry import add
from pytree_core._tables import Registration

if TYPE_CHECKING:
    from typing_extensions import dataclass_transform as dataclass_transform
else:

    def dataclass_transform(**_):
        """Tell type checkers that a decorator makes dataclasses, which only they need to know."""
        return lambda decorator: decorator


PYTREE_NODE = "pytree_node"  # where the metadata of a field says which


def register_fields(
    cls: Any, children: tuple[str, ...], static: tuple[str, ...], namespace: str
) -> None:
    """Make the objects of a class nodes that are rebuilt field by field."""

    def flatten(node: Any) -> tuple[Any, ...]:
        return (
            tuple(getattr(node, name) for name in children),
            tuple(getattr(node, name) for name in static),
            children,
        )

    def unflatten(metadata: tuple[Any, ...], subtrees: tuple[Any, ...]) -> Any:
        node: Any = object.__new__(cls)
        for name, value in zip(children + static, (*subtrees, *metadata), strict=True):
            object.__setattr__(node, name, value)
        return node

    # The native core reads and sets the fields by itself, and does what these functions say.
    add(Registration(cls, flatten, unflatten, namespace, (children, static)))
