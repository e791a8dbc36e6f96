#include "calls.hpp"

#include <vector>

#include "arguments.hpp"
#include "compare.hpp"
#include "layout_cache.hpp"
#include "treespec.hpp"
#include "unflatten.hpp"

namespace pytree {
namespace {

using Values = PyObject *const *;

PyObject *tree_flatten(PyObject *, Values values, Py_ssize_t count, PyObject *names) {
    return guarded([&] {
        Arguments arguments{"tree_flatten", values, count, names};
        arguments.check_count(1, 2);
        Flattener flattener(arguments.options(1));
        flattener.run(values[0], true);
        nb::object leaves = take_list(flattener.leaves());
        nb::object treespec = make_treespec(flattener.nodes());
        return owned(PyTuple_Pack(2, leaves.ptr(), treespec.ptr()));
    });
}

PyObject *tree_leaves(PyObject *, Values values, Py_ssize_t count, PyObject *names) {
    return guarded([&] {
        Arguments arguments{"tree_leaves", values, count, names};
        arguments.check_count(1, 2);
        Flattener flattener(arguments.options(1));
        flattener.run(values[0], false);
        return take_list(flattener.leaves());
    });
}

PyObject *tree_structure(PyObject *, Values values, Py_ssize_t count, PyObject *names) {
    return guarded([&] {
        Arguments arguments{"tree_structure", values, count, names};
        arguments.check_count(1, 2);
        Flattener flattener(arguments.options(1));
        flattener.run(values[0], true);
        return make_treespec(flattener.nodes());
    });
}

PyObject *tree_is_leaf(PyObject *, Values values, Py_ssize_t count, PyObject *names) {
    return guarded([&] {
        Arguments arguments{"tree_is_leaf", values, count, names};
        arguments.check_count(1, 2);
        Options options = arguments.options(1);
        if (is_declared_leaf(options.is_leaf, values[0])) return nb::bool_(true);
        Classifier classifier(Snapshot(options.name), options.none_is_leaf);
        return nb::bool_(classifier.classify(values[0]).kind == Kind::Leaf);
    });
}

PyObject *tree_unflatten(PyObject *, Values values, Py_ssize_t count, PyObject *names) {
    return guarded([&] {
        Arguments arguments{"tree_unflatten", values, count, nullptr};
        arguments.check_count(2, 2);
        if (names != nullptr && PyTuple_GET_SIZE(names) != 0) {
            raise(PyExc_TypeError, "tree_unflatten() takes no keyword arguments");
        }
        NodeView nodes = view_of(values[0]);
        RefVector<128> leaves;
        read_leaves(values[1], nodes.root().num_leaves, leaves);
        return unflatten(nodes, leaves);
    });
}

/// Calls `func` on each leaf and on what the other trees have there.
void map_leaves(PyObject *func, RefVector<128> &leaves, std::vector<RefVector<128>> &columns,
                RefVector<128> &results) {
    SmallVector<PyObject *, 8> row;
    row.push(nullptr);  // a place that the called function may use
    for (std::size_t k = 0; k <= columns.size(); ++k) row.push(nullptr);
    results.reserve(leaves.size());
    for (std::size_t i = 0; i < leaves.size(); ++i) {
        row[1] = leaves[i];
        for (std::size_t k = 0; k < columns.size(); ++k) row[k + 2] = columns[k][i];
        std::size_t size = (columns.size() + 1) | PY_VECTORCALL_ARGUMENTS_OFFSET;
        results.push(owned(PyObject_Vectorcall(func, row.data() + 1, size, nullptr)));
    }
}

PyObject *tree_map(PyObject *, Values values, Py_ssize_t count, PyObject *names) {
    return guarded([&] {
        Arguments arguments{"tree_map", values, count, names};
        arguments.check_count(2, PY_SSIZE_T_MAX);
        Flattener flattener(arguments.options(PY_SSIZE_T_MAX));
        flattener.run(values[1], true);
        NodeView nodes = flattener.nodes().view();
        std::vector<RefVector<128>> columns(static_cast<std::size_t>(count - 2));
        for (std::size_t k = 0; k < columns.size(); ++k) {
            flatten_exactly(nodes, values[k + 2], columns[k]);
        }
        RefVector<128> results;
        map_leaves(values[0], flattener.leaves(), columns, results);
        return unflatten(nodes, results);
    });
}

PyObject *clear_cache(PyObject *, PyObject *) {
    clear_layouts();
    Py_RETURN_NONE;
}

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

template <typename Function>
PyMethodDef method(const char *name, Function function, const char *doc) {
    // The detour over a plain function pointer is how CPython itself stores such functions.
    return {name, reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(function)),
            METH_FASTCALL | METH_KEYWORDS, doc};
}

}  // namespace

void add_calls(nb::module_ &module) {
    static PyMethodDef calls[] = {
        method("tree_flatten", tree_flatten, tree_flatten_doc),
        method("tree_leaves", tree_leaves, tree_leaves_doc),
        method("tree_structure", tree_structure, tree_structure_doc),
        method("tree_is_leaf", tree_is_leaf, tree_is_leaf_doc),
        method("tree_unflatten", tree_unflatten, tree_unflatten_doc),
        method("tree_map", tree_map, tree_map_doc),
        {"clear_cache", clear_cache, METH_NOARGS, clear_cache_doc},
        {nullptr, nullptr, 0, nullptr},
    };
    checked(PyModule_AddFunctions(module.ptr(), calls));
}

}  // namespace pytree
