"""Paths that can be called, to get what they lead to, and printed as code."""

import keyword
from collections.abc import Callable, Iterable, Iterator
from typing import Any, SupportsIndex, cast, overload

from pytree_core._core import TreeSpec, tree_flatten, tree_structure


class _Step:
    """One step of a path: immutable, and equal to steps of its kind with an equal entry."""

    # Not a dataclass: to import `dataclasses` takes longer than this whole package.
    __slots__ = ("_entry",)
    __match_args__ = ("entry",)

    def __init__(self, entry: Any) -> None:
        self._entry = entry

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.entry == other.entry  # type: ignore[attr-defined]

    def __hash__(self) -> int:
        return hash((type(self), self.entry))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.entry!r})"

    @property
    def entry(self) -> Any:
        """The key, index or name."""
        return self._entry


class Item(_Step):
    """A step to what is at a key or an index.

    Args:
        entry: The key or index.

    Example:
        >>> import pytree_core as pt
        >>> step = pt.Item("a")
        >>> step({"a": 1}), step.codify("tree")
        (1, "tree['a']")
    """

    __slots__ = ()

    def __call__(self, tree: Any, /) -> Any:
        """Take the step from a tree."""
        return tree[self.entry]

    def codify(self, root: str, /) -> str:
        """Write the step as code, from an expression for the tree."""
        return f"{root}[{self.entry!r}]"


class Attribute(_Step):
    """A step to a field.

    Args:
        entry: The name of the field.

    Example:
        >>> import pytree_core as pt
        >>> step = pt.Attribute("imag")
        >>> step(1 + 2j), step.codify("z")
        (2.0, 'z.imag')
    """

    __slots__ = ()

    def __call__(self, tree: Any, /) -> Any:
        """Take the step from a tree."""
        return getattr(tree, self.entry)

    def codify(self, root: str, /) -> str:
        """Write the step as code, from an expression for the tree."""
        if self.entry.isidentifier() and not keyword.iskeyword(self.entry):
            return f"{root}.{self.entry}"
        return f"getattr({root}, {self.entry!r})"


Step = Item | Attribute


class Accessor(tuple[Step, ...]):
    """The way from a tree to one of its subtrees: a tuple of steps that can be called.

    Example:
        >>> import pytree_core as pt
        >>> accessor = pt.Accessor([pt.Item("a"), pt.Attribute("real")])
        >>> accessor({"a": 3 + 4j}), accessor.path, accessor.codify("tree")
        (3.0, ('a', 'real'), "tree['a'].real")
    """

    __slots__ = ()

    @property
    def path(self) -> tuple[Any, ...]:
        """The entries alone, as `tree_paths` gives them."""
        return tuple(step.entry for step in self)

    def __call__(self, tree: Any, /) -> Any:
        """Take all steps from a tree."""
        for step in self:
            tree = step(tree)
        return tree

    def codify(self, root: str = "*", /) -> str:
        """Write the way as code, from an expression for the tree."""
        for step in self:
            root = step.codify(root)
        return root

    def __add__(self, other: Any, /) -> "Accessor":
        """Go on with the steps of another."""
        return Accessor((*self, *other))

    @overload
    def __getitem__(self, index: SupportsIndex, /) -> Step: ...
    @overload
    def __getitem__(self, index: slice, /) -> "Accessor": ...
    def __getitem__(self, index: Any, /) -> Any:
        """Get one step, or an accessor of several."""
        if isinstance(index, slice):
            return Accessor(super().__getitem__(cast("slice", index)))
        return cast("Step", super().__getitem__(index))

    def __repr__(self) -> str:
        """Show the way as code."""
        return f"Accessor({self.codify()})"


def tree_accessors(
    tree: Any,
    /,
    is_leaf: Callable[[Any], bool | None] | None = None,
    *,
    none_is_leaf: bool = False,
    namespace: str = "",
) -> list[Accessor]:
    """List the way to each leaf.

    Args:
        tree: Any tree.
        is_leaf: Called on each subtree; True makes it a leaf.
        none_is_leaf: Count None as a leaf, not as a node without children.
        namespace: Which registered types are nodes, besides the global ones.

    Returns:
        One accessor a leaf, in the order of `tree_leaves`. That of a registered type works
        if the entries that its flatten function gives are names of attributes or keys.

    Example:
        >>> import pytree_core as pt
        >>> tree = {"b": [1, 2], "a": 3}
        >>> accessors = pt.tree_accessors(tree)
        >>> accessors[1], accessors[1](tree)
        (Accessor(*['b'][0]), 1)
    """
    treespec = tree_structure(tree, is_leaf, none_is_leaf=none_is_leaf, namespace=namespace)
    return accessors(treespec)


def tree_flatten_with_accessor(
    tree: Any,
    /,
    is_leaf: Callable[[Any], bool | None] | None = None,
    *,
    none_is_leaf: bool = False,
    namespace: str = "",
) -> tuple[list[Accessor], list[Any], TreeSpec]:
    """Take a tree apart, with the way to each leaf.

    Args:
        tree: Any tree.
        is_leaf: Called on each subtree; True makes it a leaf.
        none_is_leaf: Count None as a leaf, not as a node without children.
        namespace: Which registered types are nodes, besides the global ones.

    Returns:
        The accessors, as `tree_accessors` lists them, the leaves and the structure.

    Example:
        >>> import pytree_core as pt
        >>> pt.tree_flatten_with_accessor({"a": [7]})
        ([Accessor(*['a'][0])], [7], TreeSpec({'a': [*]}))
    """
    leaves, treespec = tree_flatten(tree, is_leaf, none_is_leaf=none_is_leaf, namespace=namespace)
    return accessors(treespec), leaves, treespec


def tree_map_with_accessor(
    func: Callable[..., Any],
    tree: Any,
    /,
    *rests: Any,
    is_leaf: Callable[[Any], bool | None] | None = None,
    none_is_leaf: bool = False,
    namespace: str = "",
) -> Any:
    """Map a function over the leaves and the ways to them.

    Args:
        func: Called with an accessor, its leaf, and what each of `rests` has there.
        tree: Any tree.
        rests: Trees that have `tree` as a prefix.
        is_leaf: Called on each subtree of `tree`; True makes it a leaf.
        none_is_leaf: Count None as a leaf, not as a node without children.
        namespace: Which registered types are nodes, besides the global ones.

    Returns:
        A tree like `tree` of the results.

    Raises:
        ValueError: If a tree of `rests` differs from `tree` above its leaves.

    Example:
        >>> import pytree_core as pt
        >>> pt.tree_map_with_accessor(lambda way, x: f"{way.codify('p')} = {x}", {"w": [1, 2]})
        {'w': ["p['w'][0] = 1", "p['w'][1] = 2"]}
    """
    leaves, treespec = tree_flatten(tree, is_leaf, none_is_leaf=none_is_leaf, namespace=namespace)
    columns = [accessors(treespec), leaves, *(treespec.flatten_up_to(rest) for rest in rests)]
    return treespec.unflatten(map(func, *columns))


def accessors(treespec: TreeSpec) -> list[Accessor]:
    """List the way to each leaf of a structure; see `TreeSpec.accessors`."""
    return list(_walk(treespec))


def keystr(path: Iterable[Any], /, *, simple: bool = False, separator: str = "") -> str:
    """Write an accessor, or a path without types, as text.

    Args:
        path: An accessor, or a path as `tree_paths` gives it, whose entries count as keys.
        simple: Write the entries alone, without brackets, dots and quotes.
        separator: Stands between entries.

    Example:
        >>> import pytree_core as pt
        >>> accessor = pt.tree_accessors({"a": [1, 2]})[1]
        >>> pt.keystr(accessor), pt.keystr(accessor, simple=True, separator="/")
        ("['a'][1]", 'a/1')
    """
    steps = [part if isinstance(part, (Item, Attribute)) else Item(part) for part in path]
    if simple:
        return separator.join(str(step.entry) for step in steps)
    return separator.join(
        f".{step.entry}" if isinstance(step, Attribute) else step.codify("") for step in steps
    )


def _walk(treespec: TreeSpec) -> Iterator[Accessor]:
    # Not by recursion: a structure may be deeper than the stack of Python.
    pending: list[tuple[TreeSpec, tuple[Step, ...]]] = [(treespec, ())]
    while pending:
        spec, above = pending.pop()
        cls = spec.type
        if cls is None:
            yield Accessor(above)
            continue
        steps = [_step(cls, entry) for entry in spec.entries]
        below = [(child, (*above, s)) for child, s in zip(spec.children(), steps, strict=True)]
        pending.extend(reversed(below))


def _step(cls: type, entry: Any) -> Step:
    named = isinstance(entry, str) and not issubclass(cls, dict)
    return Attribute(entry) if named else Item(entry)
