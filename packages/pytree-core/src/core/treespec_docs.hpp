// What `help` says of a TreeSpec and its methods.
#pragma once

namespace pytree {
namespace methods {

// The first line of each method's is its signature, as `inspect` reads it.

constexpr char type_doc[] =
    R"doc(The structure of a tree: everything but its leaves.

Immutable; compares and hashes by value; can be pickled. ``a <= b`` says that `a` is a
prefix of `b`. Made by `tree_flatten` and `tree_structure`.

Example:
    >>> import pytree_core as pt
    >>> spec = pt.tree_structure({'b': [1, None], 'a': 2})
    >>> spec
    TreeSpec({'a': *, 'b': [*, None]})
    >>> spec.unflatten('xy')
    {'b': ['y', None], 'a': 'x'}
)doc";

constexpr char children_doc[] =
    R"doc(children($self, /)
--

List the structures of the children of the root.)doc";

constexpr char child_doc[] =
    R"doc(child($self, index, /)
--

Return the structure of one child of the root.

Raises:
    IndexError: If there is no such child.)doc";

constexpr char paths_doc[] =
    R"doc(paths($self, /)
--

List the path to each leaf: tuples of entries.)doc";

constexpr char accessors_doc[] =
    R"doc(accessors($self, /)
--

List the way to each leaf: paths that can be called with a tree, and printed as code.)doc";

constexpr char unflatten_doc[] =
    R"doc(unflatten($self, leaves, /)
--

Build a tree of this structure from an iterable of leaves.

Raises:
    ValueError: If there are more or fewer than `num_leaves`.)doc";

constexpr char flatten_up_to_doc[] =
    R"doc(flatten_up_to($self, tree, /)
--

List the subtrees that `tree` has at the leaves of this structure.

A dict may be of another kind of dict, with its keys in any order.

Raises:
    ValueError: If `tree` differs above them; says where, and what is there.)doc";

constexpr char compose_doc[] =
    R"doc(compose($self, inner, /)
--

Return this structure with `inner` at each leaf.

Raises:
    RecursionError: If the result is nested more than 1000 deep.)doc";

constexpr char graft_doc[] =
    R"doc(graft($self, treespecs, /)
--

Return this structure with one of an iterable of structures at each leaf.

Raises:
    ValueError: If there are more or fewer than `num_leaves`.
    RecursionError: If the result is nested more than 1000 deep.)doc";

constexpr char one_level_doc[] =
    R"doc(one_level($self, /)
--

Return the root alone, with leaves for children.)doc";

constexpr char levels_doc[] =
    R"doc(levels($self, /)
--

List the `one_level` of each node, children before parents.)doc";

constexpr char walk_doc[] =
    R"doc(walk($self, /, leaves, f_node=None, f_leaf=None)
--

Fold a tree from its leaves to its root.

Calls ``f_leaf(leaf)`` on each of an iterable of leaves, and ``f_node(level, children)``
on each node after its children, with its `one_level` and the tuple of what the calls
for its children returned. Without `f_leaf` leaves stay; without `f_node` nodes are built.
Returns what was returned for the root.

Raises:
    ValueError: If there are more or fewer leaves than `num_leaves`.

Example:
    >>> import pytree_core as pt
    >>> leaves, spec = pt.tree_flatten({'a': [1, 2], 'b': (3,)})
    >>> spec.walk(leaves, lambda level, children: sum(children))
    6
)doc";

constexpr char transform_doc[] =
    R"doc(transform($self, /, f_node=None, f_leaf=None)
--

Replace nodes by nodes of as many children, and leaves by structures.

Calls ``f_leaf(leaf)`` on each leaf, a structure, and ``f_node(level)`` on the `one_level`
of each node, children first; both return structures.

Raises:
    TypeError: If something else is returned.
    ValueError: If a level is replaced by one with another number of leaves.

Example:
    >>> import pytree_core as pt
    >>> spec = pt.tree_structure([1, (2, 3)])
    >>> spec.transform(lambda level: pt.tree_structure([0] * level.num_leaves))
    TreeSpec([*, [*, *]])
)doc";

constexpr char is_prefix_doc[] =
    R"doc(is_prefix($self, other, /)
--

Tell whether `other` only adds subtrees at leaves; also written ``self <= other``.)doc";

constexpr char is_suffix_doc[] =
    R"doc(is_suffix($self, other, /)
--

Tell whether `other` is a prefix of this structure.)doc";

constexpr char is_leaf_doc[] =
    R"doc(is_leaf($self, /)
--

Tell whether this is a leaf.)doc";

constexpr char to_json_doc[] =
    R"doc(to_json($self, /)
--

Write the structure as JSON.

Raises:
    ValueError: If a key, a default factory or metadata has no safe form in JSON.)doc";

constexpr char from_json_doc[] =
    R"doc(from_json(text, /)
--

Read a structure that `to_json` wrote, running and importing nothing.

Raises:
    ValueError: If the text is no structure, or names a type that is not known in this process.)doc";

constexpr char reduce_doc[] =
    R"doc(__reduce__($self, /)
--

Help pickle and copy.)doc";

constexpr char treespec_from_state_doc[] =
    R"doc(treespec_from_state(state, /)
--

Rebuild a TreeSpec from what pickle saved, trusting none of it.)doc";

}  // namespace methods
}  // namespace pytree
