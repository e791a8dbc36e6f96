// What Python sees of a TreeSpec.
#include <algorithm>

#include "compare.hpp"
#include "kinds.hpp"
#include "paths.hpp"
#include "treespec.hpp"
#include "unflatten.hpp"

namespace pytree {
namespace methods {
namespace {

NodeView nodes_of(PyObject *self) { return reinterpret_cast<TreeSpec *>(self)->view(); }

PyObject *repr(PyObject *self) {
    int entered = Py_ReprEnter(self);
    if (entered != 0) return entered < 0 ? nullptr : PyUnicode_FromString("TreeSpec(...)");
    PyObject *text = guarded(
        [&] { return owned(PyUnicode_FromFormat("TreeSpec(%U)", spell(nodes_of(self)).ptr())); });
    Py_ReprLeave(self);
    return text;
}

/// Compares by equality, or in the order of prefixes.
bool compare(NodeView a, NodeView b, int operation) {
    switch (operation) {
        case Py_EQ:
            return equal(a, b);
        case Py_NE:
            return !equal(a, b);
        case Py_LE:
            return pytree::is_prefix(a, b);
        case Py_LT:
            return pytree::is_prefix(a, b) && !pytree::is_prefix(b, a);
        case Py_GE:
            return compare(b, a, Py_LE);
        default:
            return compare(b, a, Py_LT);
    }
}

PyObject *richcompare(PyObject *self, PyObject *other, int operation) {
    if (Py_TYPE(other) != Py_TYPE(self)) Py_RETURN_NOTIMPLEMENTED;
    return guarded([&] { return nb::bool_(compare(nodes_of(self), nodes_of(other), operation)); });
}

Py_hash_t hash(PyObject *self) {
    auto *spec = reinterpret_cast<TreeSpec *>(self);
    if (spec->hash != -1) return spec->hash;
    if (Py_EnterRecursiveCall(" while hashing a TreeSpec")) return -1;
    PyObject *done = guarded([&] {
        spec->hash = pytree::hash(spec->view());
        return nb::none();
    });
    Py_LeaveRecursiveCall();
    Py_XDECREF(done);
    return done == nullptr ? -1 : spec->hash;
}

PyObject *num_leaves(PyObject *self, void *) {
    return PyLong_FromSize_t(nodes_of(self).root().num_leaves);
}

PyObject *num_nodes(PyObject *self, void *) { return PyLong_FromSize_t(nodes_of(self).size); }

PyObject *num_children(PyObject *self, void *) {
    return PyLong_FromSize_t(nodes_of(self).root().arity);
}

PyObject *type(PyObject *self, void *) {
    auto *found = reinterpret_cast<PyObject *>(type_of(nodes_of(self).root()));
    return Py_NewRef(found ? found : Py_None);
}

PyObject *entries(PyObject *self, void *) {
    return guarded([&] { return pytree::entries(nodes_of(self).root()); });
}

nb::object child_at(NodeView nodes, std::size_t index) {
    std::size_t root = nodes.size - 2;
    for (std::size_t j = nodes.root().arity - 1; j > index; --j) root -= nodes[root].num_nodes;
    return copy_treespec(nodes.subtree(root));
}

PyObject *children(PyObject *self, PyObject *) {
    return guarded([&] {
        NodeView nodes = nodes_of(self);
        RefVector<32> found;
        std::size_t child = nodes.size - 2;
        for (std::size_t j = nodes.root().arity; j-- > 0; child -= nodes[child].num_nodes) {
            found.push(copy_treespec(nodes.subtree(child)));
        }
        std::reverse(found.data(), found.data() + found.size());
        return take_list(found);
    });
}

PyObject *child(PyObject *self, PyObject *index) {
    return guarded([&] {
        NodeView nodes = nodes_of(self);
        auto arity = static_cast<Py_ssize_t>(nodes.root().arity);
        Py_ssize_t i = PyNumber_AsSsize_t(index, PyExc_IndexError);
        if (i == -1 && PyErr_Occurred()) rethrow();
        if (i < -arity || i >= arity) {
            raise(PyExc_IndexError, "there are %zd children, and no child %R", arity, index);
        }
        return child_at(nodes, static_cast<std::size_t>(i < 0 ? i + arity : i));
    });
}

PyObject *paths(PyObject *self, PyObject *) {
    return guarded([&] {
        RefVector<128> found;
        leaf_paths(nodes_of(self), found);
        return take_list(found);
    });
}

PyObject *accessors(PyObject *self, PyObject *) {
    return guarded([&] {
        return nb::module_::import_("pytree_core._accessors").attr("accessors")(nb::handle(self));
    });
}

PyObject *unflatten(PyObject *self, PyObject *iterable) {
    return guarded([&] {
        NodeView nodes = nodes_of(self);
        return pytree::unflatten(nodes, GivenLeaves(iterable, nodes.root().num_leaves));
    });
}

PyObject *flatten_up_to(PyObject *self, PyObject *tree) {
    return guarded([&] {
        RefVector<128> subtrees;
        flatten_exactly(nodes_of(self), tree, subtrees);
        return take_list(subtrees);
    });
}

PyObject *compose(PyObject *self, PyObject *inner) {
    return guarded([&] {
        NodeView nodes = nodes_of(self), repeated = view_of(inner);
        std::uint64_t leaves = nodes.root().num_leaves;
        check_size(nodes.size - leaves + leaves * repeated.size);  // before any memory is taken
        return pytree::graft(nodes, std::vector<NodeView>(leaves, repeated));
    });
}

PyObject *graft(PyObject *self, PyObject *iterable) {
    return guarded([&] {
        NodeView nodes = nodes_of(self);
        nb::object treespecs = owned(PySequence_Tuple(iterable));
        auto size = static_cast<std::size_t>(PyTuple_GET_SIZE(treespecs.ptr()));
        if (size != nodes.root().num_leaves) {
            raise(PyExc_ValueError, "expected %zu structures, one a leaf, got %zu",
                  std::size_t{nodes.root().num_leaves}, size);
        }
        std::vector<NodeView> inner;
        for (nb::handle treespec : treespecs) inner.push_back(view_of(treespec.ptr()));
        return pytree::graft(nodes, inner);
    });
}

PyObject *one_level(PyObject *self, PyObject *) {
    return guarded([&] { return pytree::one_level(nodes_of(self)); });
}

PyObject *levels(PyObject *self, PyObject *) {
    return guarded([&] {
        NodeView nodes = nodes_of(self);
        nb::object list = owned(PyList_New(0));
        for (std::size_t i = 0; i < nodes.size; ++i) {
            nb::object level = pytree::one_level({nodes.nodes + i, 1});
            checked(PyList_Append(list.ptr(), level.ptr()));
        }
        return list;
    });
}

/// Calls a function of `pytree_core._walk` with the structure before the other arguments.
PyObject *call_walk(const char *name, PyObject *self, PyObject *arguments, PyObject *keywords) {
    return guarded([&] {
        nb::object function = nb::module_::import_("pytree_core._walk").attr(name);
        nb::object first = owned(PyTuple_Pack(1, self));
        nb::object all = owned(PySequence_Concat(first.ptr(), arguments));
        return owned(PyObject_Call(function.ptr(), all.ptr(), keywords));
    });
}

PyObject *walk(PyObject *self, PyObject *arguments, PyObject *keywords) {
    return call_walk("walk", self, arguments, keywords);
}

PyObject *transform(PyObject *self, PyObject *arguments, PyObject *keywords) {
    return call_walk("transform", self, arguments, keywords);
}

PyObject *is_prefix(PyObject *self, PyObject *other) {
    return guarded([&] { return nb::bool_(pytree::is_prefix(nodes_of(self), view_of(other))); });
}

PyObject *is_suffix(PyObject *self, PyObject *other) {
    return guarded([&] { return nb::bool_(pytree::is_prefix(view_of(other), nodes_of(self))); });
}

PyObject *is_leaf(PyObject *self, PyObject *) {
    return PyBool_FromLong(nodes_of(self).root().kind == Kind::Leaf);
}

PyObject *reduce(PyObject *self, PyObject *) {
    return guarded([&] {
        nb::object load = nb::module_::import_("pytree_core._core").attr("treespec_from_state");
        return nb::make_tuple(load, nb::make_tuple(state_of(nodes_of(self))));
    });
}

PyObject *to_json(PyObject *self, PyObject *) {
    return guarded([&] {
        return nb::module_::import_("pytree_core._json").attr("to_json")(nb::handle(self));
    });
}

PyObject *from_json(PyObject *, PyObject *text) {
    return guarded([&] {
        return nb::module_::import_("pytree_core._json").attr("from_json")(nb::handle(text));
    });
}

PyObject *load(PyObject *, PyObject *state) {
    return guarded([&] { return from_state(nb::borrow(state)); });
}

PyGetSetDef properties[] = {
    {"num_leaves", num_leaves, nullptr, "How many leaves the tree has.", nullptr},
    {"num_nodes", num_nodes, nullptr, "How many nodes the tree has, leaves included.", nullptr},
    {"num_children", num_children, nullptr, "How many children the root has.", nullptr},
    {"type", type, nullptr, "The type of the root; None for a leaf.", nullptr},
    {"entries", entries, nullptr, "The key, index or name of each child, a list.", nullptr},
    {nullptr, nullptr, nullptr, nullptr, nullptr},
};

PyMethodDef table[] = {
    {"children", children, METH_NOARGS,
     "children($self, /)\n--\n\nList the structures of the children of the root."},
    {"child", child, METH_O,
     "child($self, index, /)\n--\n\nReturn the structure of one child of the root.\n\n"
     "Raises:\n    IndexError: If there is no such child."},
    {"paths", paths, METH_NOARGS,
     "paths($self, /)\n--\n\nList the path to each leaf: tuples of entries."},
    {"accessors", accessors, METH_NOARGS,
     "accessors($self, /)\n--\n\nList the way to each leaf: paths that can be called with a "
     "tree, and printed as code."},
    {"unflatten", unflatten, METH_O,
     "unflatten($self, leaves, /)\n--\n\nBuild a tree of this structure from an iterable of "
     "leaves.\n\nRaises:\n    ValueError: If there are more or fewer than `num_leaves`."},
    {"flatten_up_to", flatten_up_to, METH_O,
     "flatten_up_to($self, tree, /)\n--\n\nList the subtrees that `tree` has at the leaves of "
     "this structure.\n\nA dict may be of another kind of dict, with its keys in any order.\n\n"
     "Raises:\n    ValueError: If `tree` differs above them; says where, and what is there."},
    {"compose", compose, METH_O,
     "compose($self, inner, /)\n--\n\nReturn this structure with `inner` at each leaf.\n\n"
     "Raises:\n    RecursionError: If the result is nested more than 1000 deep."},
    {"graft", graft, METH_O,
     "graft($self, treespecs, /)\n--\n\nReturn this structure with one of an iterable of "
     "structures at each leaf.\n\nRaises:\n    ValueError: If there are more or fewer than "
     "`num_leaves`.\n    RecursionError: If the result is nested more than 1000 deep."},
    {"one_level", one_level, METH_NOARGS,
     "one_level($self, /)\n--\n\nReturn the root alone, with leaves for children."},
    {"levels", levels, METH_NOARGS,
     "levels($self, /)\n--\n\nList the `one_level` of each node, children before parents."},
    {"walk", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(walk)),
     METH_VARARGS | METH_KEYWORDS,
     "walk($self, /, leaves, f_node=None, f_leaf=None)\n--\n\nFold a tree from its leaves to "
     "its root.\n\nCalls ``f_leaf(leaf)`` on each of an iterable of leaves, and "
     "``f_node(level, children)``\non each node after its children, with its `one_level` and "
     "the tuple of what the calls\nfor its children returned. Without `f_leaf` leaves stay; "
     "without `f_node` nodes are built.\nReturns what was returned for the root.\n\nRaises:\n"
     "    ValueError: If there are more or fewer leaves than `num_leaves`.\n\nExample:\n"
     "    >>> import pytree_core as pt\n"
     "    >>> leaves, spec = pt.tree_flatten({'a': [1, 2], 'b': (3,)})\n"
     "    >>> spec.walk(leaves, lambda level, children: sum(children))\n    6\n"},
    {"transform", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(transform)),
     METH_VARARGS | METH_KEYWORDS,
     "transform($self, /, f_node=None, f_leaf=None)\n--\n\nReplace nodes by nodes of as many "
     "children, and leaves by structures.\n\nCalls ``f_leaf(leaf)`` on each leaf, a structure, "
     "and ``f_node(level)`` on the `one_level`\nof each node, children first; both return "
     "structures.\n\nRaises:\n    TypeError: If something else is returned.\n"
     "    ValueError: If a level is replaced by one with another number of leaves.\n\n"
     "Example:\n    >>> import pytree_core as pt\n"
     "    >>> spec = pt.tree_structure([1, (2, 3)])\n"
     "    >>> spec.transform(lambda level: pt.tree_structure([0] * level.num_leaves))\n"
     "    TreeSpec([*, [*, *]])\n"},
    {"is_prefix", is_prefix, METH_O,
     "is_prefix($self, other, /)\n--\n\nTell whether `other` only adds subtrees at leaves; "
     "also written ``self <= other``."},
    {"is_suffix", is_suffix, METH_O,
     "is_suffix($self, other, /)\n--\n\nTell whether `other` is a prefix of this structure."},
    {"is_leaf", is_leaf, METH_NOARGS, "is_leaf($self, /)\n--\n\nTell whether this is a leaf."},
    {"to_json", to_json, METH_NOARGS,
     "to_json($self, /)\n--\n\nWrite the structure as JSON.\n\nRaises:\n    ValueError: If a "
     "key, a default factory or metadata has no safe form in JSON."},
    {"from_json", from_json, METH_O | METH_STATIC,
     "from_json(text, /)\n--\n\nRead a structure that `to_json` wrote, running and importing "
     "nothing.\n\nRaises:\n    ValueError: If the text is no structure, or names a type that is "
     "not known in this process."},
    {"__reduce__", reduce, METH_NOARGS, "__reduce__($self, /)\n--\n\nHelp pickle and copy."},
    {nullptr, nullptr, 0, nullptr},
};

// Not bound by nanobind, whose functions pickle does not know.
PyMethodDef functions[] = {
    {"treespec_from_state", load, METH_O,
     "treespec_from_state(state, /)\n--\n\nRebuild a TreeSpec from what pickle saved, trusting "
     "none of it."},
    {nullptr, nullptr, 0, nullptr},
};

char doc[] =
    "The structure of a tree: everything but its leaves.\n\n"
    "Immutable; compares and hashes by value; can be pickled. ``a <= b`` says that `a` is a\n"
    "prefix of `b`. Made by `tree_flatten` and `tree_structure`.\n\n"
    "Example:\n"
    "    >>> import pytree_core as pt\n"
    "    >>> spec = pt.tree_structure({'b': [1, None], 'a': 2})\n"
    "    >>> spec\n"
    "    TreeSpec({'a': *, 'b': [*, None]})\n"
    "    >>> spec.unflatten('xy')\n"
    "    {'b': ['y', None], 'a': 'x'}\n";

PyType_Slot protocols[] = {
    {Py_tp_doc, doc},
    {Py_tp_repr, reinterpret_cast<void *>(repr)},
    {Py_tp_hash, reinterpret_cast<void *>(hash)},
    {Py_tp_richcompare, reinterpret_cast<void *>(richcompare)},
    {Py_tp_getset, properties},
    {Py_tp_methods, table},
    {0, nullptr},
};

}  // namespace
}  // namespace methods

void add_treespec_type(nb::module_ &module) {
    auto *type = reinterpret_cast<PyObject *>(make_treespec_type(methods::protocols));
    module.attr("TreeSpec") = nb::handle(type);
    checked(PyModule_AddFunctions(module.ptr(), methods::functions));
}

}  // namespace pytree
