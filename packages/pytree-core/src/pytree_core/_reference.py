"""What the C++ core does, said plainly in Python: its specification and test oracle."""

from __future__ import annotations

from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from enum import Enum, auto
from types import MemberDescriptorType
from typing import Any

from pytree_core._registry import Registration, lookup, parts
from pytree_core._step import step

IsLeaf = Callable[[Any], "bool | None"]


class Kind(Enum):
    """The kinds of nodes."""

    LEAF = auto()
    NONE = auto()
    TUPLE = auto()
    LIST = auto()
    DICT = auto()
    DICT_SUBCLASS = auto()
    ORDERED_DICT = auto()
    DEFAULT_DICT = auto()
    DEQUE = auto()
    NAMED_TUPLE = auto()
    STRUCT_SEQUENCE = auto()
    CUSTOM = auto()


_EXACT = {
    type(None): Kind.NONE,
    tuple: Kind.TUPLE,
    list: Kind.LIST,
    dict: Kind.DICT,
    OrderedDict: Kind.ORDERED_DICT,
    defaultdict: Kind.DEFAULT_DICT,
    deque: Kind.DEQUE,
}
_MAPPINGS = {Kind.DICT, Kind.DICT_SUBCLASS, Kind.ORDERED_DICT, Kind.DEFAULT_DICT}
_FIXED_ARITY = {Kind.NAMED_TUPLE, Kind.STRUCT_SEQUENCE}


def kind_of(tree: Any, none_is_leaf: bool = False, namespace: str = "") -> Kind:
    """Tell what kind of node an object is, by its type.

    A subclass of `dict` is a node if its constructor is the one of `dict`, so that it can
    be rebuilt. Other subclasses of containers are leaves (`torch.Size` is a tuple).
    """
    cls = type(tree)
    if cls in _EXACT:
        return Kind.LEAF if tree is None and none_is_leaf else _EXACT[cls]
    if lookup(cls, namespace):
        return Kind.CUSTOM
    if issubclass(cls, tuple):
        if is_struct_sequence_class(cls):
            return Kind.STRUCT_SEQUENCE
        if is_namedtuple_class(cls) and len(tree) == len(cls._fields):  # type: ignore[attr-defined]
            return Kind.NAMED_TUPLE
    elif is_mapping_class(cls):
        return Kind.DICT_SUBCLASS
    return Kind.LEAF


def is_mapping_class(cls: type) -> bool:
    """Tell whether a class is a kind of dict, or keeps the constructor of `dict`."""
    return cls in (OrderedDict, defaultdict) or (
        issubclass(cls, dict) and cls.__init__ is dict.__init__ and cls.__new__ is dict.__new__
    )


def is_namedtuple_class(cls: type) -> bool:
    """Tell whether a subclass of tuple was made by `collections.namedtuple`."""
    fields = getattr(cls, "_fields", None)
    return (
        type(fields) is tuple
        and all(type(name) is str for name in fields)
        and callable(getattr(cls, "_make", None))
    )


def is_struct_sequence_class(cls: type) -> bool:
    """Tell whether a subclass of tuple is a struct sequence that can be made anew."""
    counts = ("n_fields", "n_sequence_fields", "n_unnamed_fields")
    return (
        cls.__base__ is tuple
        and not cls.__flags__ & 1 << 10  # Py_TPFLAGS_BASETYPE
        and all(type(vars(cls).get(name)) is int for name in counts)
        and cls.__new__ is not tuple.__new__
    )


def struct_sequence_entries(cls: Any) -> tuple[Any, ...]:
    """Name the visible fields in order; one without a name goes by its index."""
    probe = cls(range(cls.n_fields))
    members = (k for k, v in vars(cls).items() if isinstance(v, MemberDescriptorType))
    names = {getattr(probe, name): name for name in members}
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


@dataclass(frozen=True, repr=False)
class TreeSpec:
    """The structure of a tree: everything but its leaves."""

    kind: Kind
    type: type | None = None
    metadata: Any = None  # of a registered type; the factory or maxlen of a collection
    keys: tuple[Any, ...] = ()
    nested: tuple[TreeSpec, ...] = ()
    registration: Registration | None = None
    entries: tuple[Any, ...] = field(default=(), compare=False)
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

    def children(self) -> list[TreeSpec]:
        return list(self.nested)

    def child(self, index: int) -> TreeSpec:
        return self.nested[index]

    def is_leaf(self) -> bool:
        return self.kind is Kind.LEAF

    def paths(self) -> list[tuple[Any, ...]]:
        if self.kind is Kind.LEAF:
            return [()]
        below = zip(self.entries, self.nested, strict=True)
        return [(entry, *path) for entry, child in below for path in child.paths()]

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
                return tuple.__new__(cls, children)
            case Kind.CUSTOM if self.registration:
                return self.registration.unflatten_func(self.metadata, children)
            case kind if kind in _MAPPINGS:
                by_key = dict(zip(self.entries, children, strict=True))
                items = {key: by_key[key] for key in self.insertion}
                return defaultdict(self.metadata, items) if cls is defaultdict else cls(items)
        return cls(children)

    def flatten_up_to(self, tree: Any) -> list[Any]:
        subtrees: list[Any] = []
        errors: list[str] = []
        self._up_to(tree, "", subtrees, errors)
        if errors:
            raise ValueError(errors[0])
        return subtrees

    def _up_to(self, tree: Any, path: str, subtrees: list[Any], errors: list[str]) -> None:
        if self.kind is Kind.LEAF:
            subtrees.append(tree)
            return
        try:
            children = self._children_of(tree)
        except MismatchError as mismatch:
            errors.append(f"at {path or 'the root'}: {mismatch}")
            return
        for entry, child, subtree in zip(self.entries, self.nested, children, strict=True):
            child._up_to(subtree, path + step(self.type, entry), subtrees, errors)

    def _children_of(self, tree: Any) -> Iterable[Any]:
        expected = "None" if self.kind is Kind.NONE else count(self.type, self.num_children)
        if self.kind in _MAPPINGS and is_mapping_class(type(tree)):
            items = dict(dict.items(tree))
            missing = [key for key in self.entries if key not in items]
            unexpected = [key for key in items if key not in set(self.entries)]
            if missing or unexpected:
                changes = [f"without {missing!r}"] * bool(missing)
                changes += [f"with {unexpected!r} besides"] * bool(unexpected)
                raise MismatchError(
                    f"expected the keys {list(self.entries)!r}, "
                    f"got {with_article(type(tree))} {' and '.join(changes)}"
                )
            return [items[key] for key in self.entries]
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
        if self.kind is Kind.LEAF:
            return inner
        return replace(self, nested=tuple(child.compose(inner) for child in self.nested))

    def is_prefix(self, other: TreeSpec) -> bool:
        if self.kind is Kind.LEAF:
            return True
        if self.num_children != other.num_children:
            return False
        if self.kind in _MAPPINGS and other.kind in _MAPPINGS:
            by_key = dict(zip(other.entries, other.nested, strict=True))
            return by_key.keys() == set(self.entries) and all(
                child.is_prefix(by_key[key])
                for key, child in zip(self.entries, self.nested, strict=True)
            )
        same = self.kind is Kind.DEQUE or self.metadata == other.metadata
        return (
            (self.kind, self.type, self.registration)
            == (other.kind, other.type, other.registration)
            and same
            and all(a.is_prefix(b) for a, b in zip(self.nested, other.nested, strict=True))
        )

    def is_suffix(self, other: TreeSpec) -> bool:
        return other.is_prefix(self)

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
            case kind if kind in _FIXED_ARITY:
                pairs = zip(self.entries, shown, strict=True)
                return f"{name}({', '.join(f'{e}={s}' for e, s in pairs)})"
        pairs = zip(self.entries, shown, strict=True)
        items = "{" + ", ".join(f"{key!r}: {s}" for key, s in pairs) + "}"
        if self.kind is Kind.DEFAULT_DICT:
            return f"defaultdict({self.metadata!r}, {items})"
        return items if self.kind is Kind.DICT else f"{name}({items})"


LEAF = TreeSpec(Kind.LEAF)


def mismatches(treespec: TreeSpec, tree: Any) -> list[str]:
    """List all places where a tree does not have the structure, from left to right."""
    errors: list[str] = []
    treespec._up_to(tree, "", [], errors)
    return errors


class MismatchError(Exception):
    """What was expected and what was found."""


def count(cls: Any, children: int) -> str:
    """Describe a type and a number of children: ``a list of 3``."""
    return f"{with_article(cls)} of {children}"


def describe(tree: Any) -> str:
    """Describe what was found in a tree: ``a list of 3``, ``None``, ``an int``."""
    if tree is None:
        return "None"
    if isinstance(tree, (dict, list, tuple, deque)):
        return count(type(tree), len(tree))
    return with_article(type(tree))


def with_article(cls: Any) -> str:
    name = cls.__qualname__
    return f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"


def tree_flatten(
    tree: Any, /, is_leaf: IsLeaf | None = None, *, none_is_leaf: bool = False, namespace: str = ""
) -> tuple[list[Any], TreeSpec]:
    """See `pytree_core.tree_flatten`."""
    leaves: list[Any] = []

    def flatten(tree: Any) -> TreeSpec:
        if is_leaf is not None:
            verdict = is_leaf(tree)
            if verdict is not None and not isinstance(verdict, bool):
                raise TypeError(f"`is_leaf` must return a bool, got {verdict!r}")
            if verdict:
                leaves.append(tree)
                return LEAF
        kind = kind_of(tree, none_is_leaf, namespace)
        cls: Any = type(tree)
        metadata: Any = None
        children: Iterable[Any] = ()
        registration = None
        entries = keys = insertion = ()
        match kind:
            case Kind.LEAF:
                leaves.append(tree)
                return LEAF
            case Kind.CUSTOM:
                registration = lookup(cls, namespace)
                assert registration
                children, metadata, entries = parts(registration, tree)
            case kind if kind in _MAPPINGS:
                items = dict(tree.items() if kind is Kind.ORDERED_DICT else dict.items(tree))
                insertion = tuple(items)
                keys = insertion if kind is Kind.ORDERED_DICT else sorted_keys(insertion)
                metadata = tree.default_factory if kind is Kind.DEFAULT_DICT else None
                children, entries = [items[key] for key in keys], keys
            case Kind.DEQUE:
                metadata, children = tree.maxlen, list(tree)
            case Kind.TUPLE | Kind.LIST | Kind.NAMED_TUPLE | Kind.STRUCT_SEQUENCE:
                children = tree
        nested = tuple(map(flatten, children))
        if kind is Kind.NAMED_TUPLE:
            entries = cls._fields
        elif kind is Kind.STRUCT_SEQUENCE:
            entries = struct_sequence_entries(cls)
        elif not entries:
            entries = tuple(range(len(nested)))
        return TreeSpec(kind, cls, metadata, keys, nested, registration, entries, insertion)

    return leaves, flatten(tree)


def tree_unflatten(treespec: TreeSpec, leaves: Iterable[Any], /) -> Any:
    """See `pytree_core.tree_unflatten`."""
    return treespec.unflatten(leaves)


def tree_leaves(tree: Any, /, is_leaf: IsLeaf | None = None, **options: Any) -> list[Any]:
    """See `pytree_core.tree_leaves`."""
    return tree_flatten(tree, is_leaf, **options)[0]


def tree_structure(tree: Any, /, is_leaf: IsLeaf | None = None, **options: Any) -> TreeSpec:
    """See `pytree_core.tree_structure`."""
    return tree_flatten(tree, is_leaf, **options)[1]


def tree_is_leaf(
    tree: Any, /, is_leaf: IsLeaf | None = None, *, none_is_leaf: bool = False, namespace: str = ""
) -> bool:
    """See `pytree_core.tree_is_leaf`."""
    kind = kind_of(tree, none_is_leaf, namespace)
    return (is_leaf is not None and bool(is_leaf(tree))) or kind is Kind.LEAF


def tree_map(func: Callable[..., Any], tree: Any, /, *rests: Any, **options: Any) -> Any:
    """See `pytree_core.tree_map`."""
    leaves, treespec = tree_flatten(tree, **options)
    columns = [leaves, *(treespec.flatten_up_to(rest) for rest in rests)]
    return treespec.unflatten([func(*row) for row in zip(*columns, strict=True)])


def tree_flatten_with_path(
    tree: Any, /, is_leaf: IsLeaf | None = None, **options: Any
) -> tuple[list[tuple[Any, ...]], list[Any], TreeSpec]:
    """See `pytree_core.tree_flatten_with_path`."""
    leaves, treespec = tree_flatten(tree, is_leaf, **options)
    return treespec.paths(), leaves, treespec


def tree_map_with_path(func: Callable[..., Any], tree: Any, /, *rests: Any, **options: Any) -> Any:
    """See `pytree_core.tree_map_with_path`."""
    leaves, treespec = tree_flatten(tree, **options)
    columns = [treespec.paths(), leaves, *(treespec.flatten_up_to(rest) for rest in rests)]
    return treespec.unflatten([func(*row) for row in zip(*columns, strict=True)])


def flatten_one_level(
    tree: Any, /, is_leaf: IsLeaf | None = None, **options: Any
) -> tuple[list[Any], TreeSpec]:
    """See `pytree_core._core.flatten_one_level`."""
    below = iter([False])  # the root is asked about first
    return tree_flatten(
        tree, lambda t: next(below, True) or bool(is_leaf and is_leaf(t)), **options
    )
