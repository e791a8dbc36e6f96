"""The structure of a tree, in Python."""

from __future__ import annotations

import operator
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, SupportsIndex

from pytree_core._reference.kinds import (
    FIXED_ARITY,
    MAPPINGS,
    TUPLE,
    Kind,
    class_of,
    is_mapping_class,
    items_of,
)
from pytree_core._reference.messages import MismatchError, count, describe, with_article
from pytree_core._step import step
from pytree_core._tables import Registration, parts


@dataclass(frozen=True, repr=False)
class TreeSpec:
    """The structure of a tree: everything but its leaves."""

    kind: Kind
    type: type | None = None
    metadata: Any = None  # of a registered type; the factory or maxlen of a collection
    keys: tuple[Any, ...] = ()
    nested: tuple[TreeSpec, ...] = ()
    registration: Registration | None = None
    names: tuple[Any, ...] = field(default=(), compare=False)  # one a child
    insertion: tuple[Any, ...] = field(default=(), compare=False)

    @property
    def num_leaves(self) -> int:
        return sum(c.num_leaves for c in self.nested) if self.kind is not Kind.LEAF else 1

    @property
    def num_nodes(self) -> int:
        return 1 + sum(c.num_nodes for c in self.nested)

    @property
    def num_children(self) -> int:
        return len(self.nested)

    @property
    def entries(self) -> list[Any]:
        return list(self.names)

    def children(self) -> list[TreeSpec]:
        return list(self.nested)

    def child(self, index: SupportsIndex) -> TreeSpec:
        i = operator.index(index)
        if not -self.num_children <= i < self.num_children:
            raise IndexError(f"there are {self.num_children} children, and no child {i}")
        return self.nested[i]

    def is_leaf(self) -> bool:
        return self.kind is Kind.LEAF

    def paths(self) -> list[tuple[Any, ...]]:
        if self.kind is Kind.LEAF:
            return [()]
        below = zip(self.names, self.nested, strict=True)
        return [(entry, *path) for entry, child in below for path in child.paths()]

    def accessors(self) -> Any:
        from pytree_core._accessors import accessors

        return accessors(self)  # type: ignore[arg-type]

    def unflatten(self, leaves: Iterable[Any]) -> Any:
        leaves = list(leaves)
        if len(leaves) != self.num_leaves:
            raise ValueError(f"expected {self.num_leaves} leaves, got {len(leaves)}")
        return self._unflatten(iter(leaves))

    def _unflatten(self, leaves: Iterator[Any]) -> Any:
        if self.kind is Kind.LEAF:
            return next(leaves)
        return self._rebuild(tuple(child._unflatten(leaves) for child in self.nested))

    def _rebuild(self, children: tuple[Any, ...]) -> Any:
        cls: Any = self.type
        match self.kind:
            case Kind.NONE:
                return None
            case Kind.DEQUE:
                return deque(children, self.metadata)
            case Kind.NAMED_TUPLE:
                return TUPLE.__new__(cls, children)  # its own may take something else
            case Kind.CUSTOM if self.registration:
                return self.registration.unflatten_func(self.metadata, children)
            case kind if kind in MAPPINGS:
                by_key = dict(zip(self.names, children, strict=True))
                items = {key: by_key[key] for key in self.insertion}
                return defaultdict(self.metadata, items) if cls is defaultdict else cls(items)
            case _:
                return cls(children)

    def flatten_up_to(self, tree: Any) -> list[Any]:
        subtrees: list[Any] = []
        errors = self.match(tree, subtrees)
        if errors:
            raise ValueError(errors[0])
        return subtrees

    def match(self, tree: Any, subtrees: list[Any]) -> list[str]:
        """Collect what a tree has at the leaves; list where it differs above them."""
        errors: list[str] = []
        self._up_to(tree, "", subtrees, errors)
        return errors

    def _up_to(self, tree: Any, path: str, subtrees: list[Any], errors: list[str]) -> None:
        if self.kind is Kind.LEAF:
            subtrees.append(tree)
            return
        try:
            children = self._children_of(tree)
        except MismatchError as mismatch:
            errors.append(f"at {path or 'the root'}: {mismatch}")
            return
        for entry, child, subtree in zip(self.names, self.nested, children, strict=True):
            child._up_to(subtree, path + step(self.type, entry), subtrees, errors)

    def _children_of(self, tree: Any) -> Iterable[Any]:
        expected = "None" if self.kind is Kind.NONE else count(self.type, self.num_children)
        if self.kind in MAPPINGS and is_mapping_class(class_of(tree)):
            items = items_of(tree)
            missing = [key for key in self.names if key not in items]
            unexpected = [key for key in items if key not in set(self.names)]
            if missing or unexpected:
                changes = [f"without {missing!r}"] * bool(missing)
                changes += [f"with {unexpected!r} besides"] * bool(unexpected)
                raise MismatchError(
                    f"expected the keys {list(self.names)!r}, "
                    f"got {with_article(class_of(tree))} {' and '.join(changes)}"
                )
            return [items[key] for key in self.names]
        if type(tree) is not self.type:
            raise MismatchError(f"expected {expected}, got {describe(tree)}")
        if self.kind is Kind.NONE:
            return ()
        if self.registration is None:
            if len(tree) != self.num_children:
                raise MismatchError(f"expected {expected}, got {describe(tree)}")
            return tree
        children, metadata, _ = parts(self.registration, tree)
        if len(children) != self.num_children:
            raise MismatchError(f"expected {expected}, got {count(self.type, len(children))}")
        if [metadata] != [self.metadata]:
            raise MismatchError(f"expected the metadata {self.metadata!r}, got {metadata!r}")
        return children

    def compose(self, inner: TreeSpec) -> TreeSpec:
        return self.graft([inner] * self.num_leaves)

    def graft(self, treespecs: Iterable[TreeSpec]) -> TreeSpec:
        inner = list(treespecs)
        if len(inner) != self.num_leaves:
            raise ValueError(f"expected {self.num_leaves} structures, one a leaf, got {len(inner)}")
        for treespec in inner:
            check_treespec(treespec)
        return self._graft(iter(inner))

    def _graft(self, inner: Iterator[TreeSpec]) -> TreeSpec:
        if self.kind is Kind.LEAF:
            return next(inner)
        return replace(self, nested=tuple(child._graft(inner) for child in self.nested))

    def one_level(self) -> TreeSpec:
        return replace(self, nested=(LEAF,) * self.num_children)

    def levels(self) -> list[TreeSpec]:
        below = [level for child in self.nested for level in child.levels()]
        return [*below, self.one_level()]

    def walk(self, leaves: Iterable[Any], f_node: Any = None, f_leaf: Any = None) -> Any:
        from pytree_core._walk import walk

        return walk(self, leaves, f_node, f_leaf)  # type: ignore[arg-type]

    def transform(self, f_node: Any = None, f_leaf: Any = None) -> TreeSpec:
        from pytree_core._walk import transform

        return transform(self, f_node, f_leaf)  # type: ignore[arg-type]

    def is_prefix(self, other: TreeSpec) -> bool:
        check_treespec(other)
        if self.kind is Kind.LEAF:
            return True
        if self.num_children != other.num_children:
            return False
        if self.kind in MAPPINGS and other.kind in MAPPINGS:
            by_key = dict(zip(other.names, other.nested, strict=True))
            return by_key.keys() == set(self.names) and all(
                child.is_prefix(by_key[key])
                for key, child in zip(self.names, self.nested, strict=True)
            )
        same = self.kind is Kind.DEQUE or self.metadata == other.metadata
        return (
            (self.kind, self.type, self.registration)
            == (other.kind, other.type, other.registration)
            and same
            and all(a.is_prefix(b) for a, b in zip(self.nested, other.nested, strict=True))
        )

    def is_suffix(self, other: TreeSpec) -> bool:
        check_treespec(other)
        return other.is_prefix(self)

    def __le__(self, other: Any) -> bool:
        return self.is_prefix(other) if isinstance(other, TreeSpec) else NotImplemented

    def __lt__(self, other: Any) -> bool:
        return self <= other and not other <= self

    def to_json(self) -> str:
        from pytree_core._json import to_json

        return to_json(self)  # type: ignore[arg-type]

    @staticmethod
    def from_json(text: str) -> TreeSpec:
        from pytree_core._json import from_json

        return from_json(text)  # type: ignore[return-value]

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        from pytree_core._core import treespec_from_state
        from pytree_core._reference.state import state_of

        return treespec_from_state, (state_of(self),)

    def __repr__(self) -> str:
        return f"TreeSpec({self._show()})"

    def _show(self) -> str:
        shown = [child._show() for child in self.nested]
        listed = ", ".join(shown)
        name = getattr(self.type, "__qualname__", "")
        match self.kind:
            case Kind.LEAF:
                return "*"
            case Kind.NONE:
                return "None"
            case Kind.TUPLE:
                return f"({listed},)" if len(shown) == 1 else f"({listed})"
            case Kind.LIST:
                return f"[{listed}]"
            case Kind.DEQUE if self.metadata is not None:
                return f"deque([{listed}], maxlen={self.metadata})"
            case Kind.DEQUE:
                return f"deque([{listed}])"
            case Kind.CUSTOM:
                metadata = "" if self.metadata is None else f"[{self.metadata!r}]"
                return f"{name}{metadata}({listed})"
            case kind if kind in FIXED_ARITY:
                pairs = zip(self.names, shown, strict=True)
                return f"{name}({', '.join(f'{e}={s}' for e, s in pairs)})"
            case _:
                pass
        pairs = zip(self.names, shown, strict=True)
        items = "{" + ", ".join(f"{key!r}: {s}" for key, s in pairs) + "}"
        if self.kind is Kind.DEFAULT_DICT:
            return f"defaultdict({self.metadata!r}, {items})"
        return items if self.kind is Kind.DICT else f"{name}({items})"


LEAF = TreeSpec(Kind.LEAF)


def mismatches(treespec: TreeSpec, tree: Any) -> list[str]:
    """List all places where a tree does not have the structure, from left to right."""
    return treespec.match(tree, [])


def check_treespec(treespec: object) -> None:
    """Refuse whatever is no structure."""
    if not isinstance(treespec, TreeSpec):
        raise TypeError(f"expected a TreeSpec, got {treespec!r}")
