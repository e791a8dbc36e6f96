// What `help` says of the functions in calls.cpp.
#pragma once

namespace pytree {

// The first line of each is its signature, as `inspect` reads it.

constexpr char tree_flatten_doc[] =
    R"doc(tree_flatten(tree, /, is_leaf=None, *, none_is_leaf=False, namespace='')
--

Take a tree apart into its leaves and its structure.

Args:
    tree: Any tree.
    is_leaf: Called on each subtree; True makes it a leaf.
    none_is_leaf: Count None as a leaf, not as a node without children.
    namespace: Which registered types are nodes, besides the global ones.

Returns:
    ``(leaves, treespec)``; the leaves of a dict in the order of its sorted keys.

Raises:
    RecursionError: If the tree is nested more than 1000 deep, or contains itself.
    TypeError: If `is_leaf` returns anything but a bool or None.

Example:
    >>> import pytree_core as pt
    >>> pt.tree_flatten({'b': [1, 2], 'a': (3, None)})
    ([3, 1, 2], TreeSpec({'a': (*, None), 'b': [*, *]}))
)doc";

constexpr char tree_leaves_doc[] =
    R"doc(tree_leaves(tree, /, is_leaf=None, *, none_is_leaf=False, namespace='')
--

List the leaves of a tree.

Args:
    tree: Any tree.
    is_leaf: Called on each subtree; True makes it a leaf.
    none_is_leaf: Count None as a leaf, not as a node without children.
    namespace: Which registered types are nodes, besides the global ones.

Raises:
    RecursionError: If the tree is nested more than 1000 deep, or contains itself.
    TypeError: If `is_leaf` returns anything but a bool or None.

Example:
    >>> import pytree_core as pt
    >>> pt.tree_leaves({'b': [1, 2], 'a': (3, None)})
    [3, 1, 2]
)doc";

constexpr char tree_structure_doc[] =
    R"doc(tree_structure(tree, /, is_leaf=None, *, none_is_leaf=False, namespace='')
--

Return the structure of a tree.

Args:
    tree: Any tree.
    is_leaf: Called on each subtree; True makes it a leaf.
    none_is_leaf: Count None as a leaf, not as a node without children.
    namespace: Which registered types are nodes, besides the global ones.

Raises:
    RecursionError: If the tree is nested more than 1000 deep, or contains itself.
    TypeError: If `is_leaf` returns anything but a bool or None.

Example:
    >>> import pytree_core as pt
    >>> pt.tree_structure((1, [2]), is_leaf=lambda tree: isinstance(tree, list))
    TreeSpec((*, *))
)doc";

constexpr char flatten_one_level_doc[] =
    R"doc(flatten_one_level(tree, /, is_leaf=None, *, none_is_leaf=False, namespace='')
--

Take the root of a tree apart: its children, and the structure with a leaf for each.
)doc";

constexpr char tree_is_leaf_doc[] =
    R"doc(tree_is_leaf(tree, /, is_leaf=None, *, none_is_leaf=False, namespace='')
--

Tell whether an object is a leaf.

Args:
    tree: Any object.
    is_leaf: Called on the object; True makes it a leaf.
    none_is_leaf: Count None as a leaf, not as a node without children.
    namespace: Which registered types are nodes, besides the global ones.

Example:
    >>> import pytree_core as pt
    >>> pt.tree_is_leaf(1), pt.tree_is_leaf([]), pt.tree_is_leaf(None)
    (True, False, False)
)doc";

constexpr char tree_unflatten_doc[] = R"doc(tree_unflatten(treespec, leaves, /)
--

Build a tree from its structure and its leaves.

Args:
    treespec: The structure.
    leaves: An iterable of `treespec.num_leaves` objects, whatever they are.

Raises:
    ValueError: If there are more or fewer leaves.

Example:
    >>> import pytree_core as pt
    >>> leaves, treespec = pt.tree_flatten({'b': [1, 2], 'a': 3})
    >>> pt.tree_unflatten(treespec, 'xyz')
    {'b': ['y', 'z'], 'a': 'x'}
)doc";

constexpr char tree_map_doc[] =
    R"doc(tree_map(func, tree, /, *rests, is_leaf=None, none_is_leaf=False, namespace='')
--

Map a function over the leaves of a tree.

Args:
    func: Called with a leaf of `tree` and what each of `rests` has there.
    tree: Any tree.
    rests: Trees that have `tree` as a prefix.
    is_leaf: Called on each subtree; True makes it a leaf.
    none_is_leaf: Count None as a leaf, not as a node without children.
    namespace: Which registered types are nodes, besides the global ones.

Returns:
    A tree like `tree` of the results.

Raises:
    RecursionError: If the tree is nested more than 1000 deep, or contains itself.
    ValueError: If a tree of `rests` differs from `tree` above its leaves.

Example:
    >>> import pytree_core as pt
    >>> pt.tree_map(lambda x, y: x + y, {'a': 1, 'b': [2]}, {'a': 10, 'b': [20]})
    {'a': 11, 'b': [22]}
)doc";

constexpr char clear_cache_doc[] = R"doc(clear_cache()
--

Forget the layouts of dicts that were met before.

The core keeps the keys of up to 4096 dicts that it met twice, 262144 keys at most, with the
order of their leaves. They are strings and ints; nothing else is kept alive.

Example:
    >>> import pytree_core as pt
    >>> pt.clear_cache()
)doc";

constexpr char tree_flatten_with_path_doc[] =
    R"doc(tree_flatten_with_path(tree, /, is_leaf=None, *, none_is_leaf=False, namespace='')
--

Take a tree apart into paths, leaves and structure.

Args:
    tree: Any tree.
    is_leaf: Called on each subtree; True makes it a leaf.
    none_is_leaf: Count None as a leaf, not as a node without children.
    namespace: Which registered types are nodes, besides the global ones.

Returns:
    ``(paths, leaves, treespec)``. A path is a tuple of keys, indices and names of fields.

Example:
    >>> import pytree_core as pt
    >>> pt.tree_flatten_with_path({"a": (1, None)})
    ([('a', 0)], [1], TreeSpec({'a': (*, None)}))
)doc";

constexpr char tree_map_with_path_doc[] =
    R"doc(tree_map_with_path(func, tree, /, *rests, is_leaf=None, none_is_leaf=False, namespace='')
--

Map ``func(path, leaf, *others)`` over the leaves of a tree.

Args:
    func: Called with the path of a leaf, the leaf, and what each of `rests` has there.
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
    >>> pt.tree_map_with_path(lambda path, x: (path, x), [5, {"k": 6}])
    [((0,), 5), {'k': ((1, 'k'), 6)}]
)doc";

}  // namespace pytree
