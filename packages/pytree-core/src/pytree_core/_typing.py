"""A type for annotations."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias, TypeVar, Union

T = TypeVar("T")

# Not by |, of which a string cannot be an operand. Read-only containers, because a
# `dict[str, Tensor]` is no `dict[str, PyTree[Tensor]]`.
PyTree: TypeAlias = Union[T, "Sequence[PyTree[T]]", "Mapping[Any, PyTree[T]]", None]
