// What Python sees of a TreeSpec.
#include <algorithm>

#include "compare.hpp"
#include "kinds.hpp"
#include "paths.hpp"
#include "treespec.hpp"
#include "treespec_docs.hpp"
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
    {"children", children, METH_NOARGS, children_doc},
    {"child", child, METH_O, child_doc},
    {"paths", paths, METH_NOARGS, paths_doc},
    {"accessors", accessors, METH_NOARGS, accessors_doc},
    {"unflatten", unflatten, METH_O, unflatten_doc},
    {"flatten_up_to", flatten_up_to, METH_O, flatten_up_to_doc},
    {"compose", compose, METH_O, compose_doc},
    {"graft", graft, METH_O, graft_doc},
    {"one_level", one_level, METH_NOARGS, one_level_doc},
    {"levels", levels, METH_NOARGS, levels_doc},
    {"walk", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(walk)),
     METH_VARARGS | METH_KEYWORDS, walk_doc},
    {"transform", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(transform)),
     METH_VARARGS | METH_KEYWORDS, transform_doc},
    {"is_prefix", is_prefix, METH_O, is_prefix_doc},
    {"is_suffix", is_suffix, METH_O, is_suffix_doc},
    {"is_leaf", is_leaf, METH_NOARGS, is_leaf_doc},
    {"to_json", to_json, METH_NOARGS, to_json_doc},
    {"from_json", from_json, METH_O | METH_STATIC, from_json_doc},
    {"__reduce__", reduce, METH_NOARGS, reduce_doc},
    {nullptr, nullptr, 0, nullptr},
};

// Not bound by nanobind, whose functions pickle does not know.
PyMethodDef functions[] = {
    {"treespec_from_state", load, METH_O, treespec_from_state_doc},
    {nullptr, nullptr, 0, nullptr},
};

PyType_Slot protocols[] = {
    {Py_tp_doc, const_cast<char *>(type_doc)},
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
