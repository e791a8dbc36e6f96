#include "treespec.hpp"

#include <structmember.h>

#include <algorithm>
#include <vector>

namespace pytree {
namespace {

PyTypeObject *treespec_type = nullptr;

TreeSpec *as_treespec(PyObject *self) { return reinterpret_cast<TreeSpec *>(self); }

NodeView nodes_of(PyObject *self) { return as_treespec(self)->view(); }

nb::object allocate(std::size_t size) {
    nb::object made = owned(reinterpret_cast<PyObject *>(
        PyObject_GC_NewVar(TreeSpec, treespec_type, static_cast<Py_ssize_t>(size))));
    as_treespec(made.ptr())->weakrefs = nullptr;
    as_treespec(made.ptr())->hash = -1;
    return made;
}

// The life of an object. Like a tuple it needs no tp_clear: it never changes, so that a cycle
// through it has a mutable member elsewhere.

void dealloc(PyObject *self) {
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    Py_TRASHCAN_BEGIN(self, dealloc);
    if (as_treespec(self)->weakrefs != nullptr) PyObject_ClearWeakRefs(self);
    NodeView nodes = nodes_of(self);
    for (std::size_t i = 0; i < nodes.size; ++i) Py_XDECREF(nodes[i].data);
    type->tp_free(self);
    Py_DECREF(type);
    Py_TRASHCAN_END;
}

int traverse(PyObject *self, visitproc visit, void *arg) {
    Py_VISIT(Py_TYPE(self));
    NodeView nodes = nodes_of(self);
    for (std::size_t i = 0; i < nodes.size; ++i) Py_VISIT(nodes[i].data);
    return 0;
}

nb::object make_new_treespec(NodeBuffer &nodes) {
    NodeView view = nodes.view();
    nb::object made = allocate(view.size);
    std::memcpy(as_treespec(made.ptr())->nodes, view.nodes, view.size * sizeof(Node));
    nodes.release();
    PyObject_GC_Track(made.ptr());
    return made;
}

PyObject *the_leaf = nullptr;

}  // namespace

void check_depth(NodeView nodes) {
    std::vector<unsigned> heights;  // of the subtrees that have no parent yet
    for (std::size_t i = 0; i < nodes.size; ++i) {
        unsigned height = 0;
        for (std::size_t j = 0; j < nodes[i].arity; ++j) {
            height = std::max(height, heights.back() + 1);
            heights.pop_back();
        }
        if (height > kMaxDepth) {
            raise(PyExc_RecursionError, "the structure is nested more than %u deep", kMaxDepth);
        }
        heights.push_back(height);
    }
}

nb::object make_treespec(NodeBuffer &nodes) {
    NodeView view = nodes.view();
    if (view.size == 1 && view.root().kind == Kind::Leaf) return leaf_treespec();
    return make_new_treespec(nodes);
}

nb::object leaf_treespec() { return nb::borrow(the_leaf); }

nb::object copy_treespec(NodeView nodes) {
    NodeBuffer copy;
    for (std::size_t i = 0; i < nodes.size; ++i) copy.push(nodes[i]);
    return make_treespec(copy);
}

NodeView view_of(PyObject *treespec) {
    if (Py_TYPE(treespec) != treespec_type) {
        raise(PyExc_TypeError, "expected a TreeSpec, got %R", treespec);
    }
    return nodes_of(treespec);
}

nb::object graft(NodeView outer, const std::vector<NodeView> &inner) {
    // How many leaves and nodes come before each structure.
    std::vector<std::uint64_t> leaves{0}, nodes{0};
    for (NodeView structure : inner) {
        leaves.push_back(leaves.back() + structure.root().num_leaves);
        nodes.push_back(nodes.back() + structure.size);
    }
    check_size(outer.size - inner.size() + nodes.back());  // before any memory is taken
    NodeBuffer made;
    std::size_t seen = 0;  // leaves of `outer`
    for (std::size_t i = 0; i < outer.size; ++i) {
        const Node &node = outer[i];
        if (node.kind == Kind::Leaf) {
            NodeView structure = inner[seen++];
            for (std::size_t j = 0; j < structure.size; ++j) made.push(structure[j]);
        } else {
            std::size_t first = seen - node.num_leaves;
            made.push(node.kind, node.arity, leaves[seen] - leaves[first],
                      node.num_nodes - node.num_leaves + nodes[seen] - nodes[first],
                      nb::borrow(node.data));
        }
    }
    check_depth(made.view());
    return make_treespec(made);
}

nb::object one_level(NodeView nodes) {
    const Node &root = nodes.root();
    if (root.kind == Kind::Leaf) return leaf_treespec();
    NodeBuffer made;
    made.push_leaves(root.arity);
    made.push(root.kind, root.arity, root.arity, root.arity + std::size_t{1},
              nb::borrow(root.data));
    return make_treespec(made);
}

PyTypeObject *make_treespec_type(PyType_Slot *protocols) {
    if (treespec_type != nullptr) return treespec_type;  // the module is imported again
    std::vector<PyType_Slot> slots = {
        {Py_tp_dealloc, reinterpret_cast<void *>(dealloc)},
        {Py_tp_traverse, reinterpret_cast<void *>(traverse)},
    };
    static PyMemberDef members[] = {
        {"__weaklistoffset__", T_PYSSIZET, offsetof(TreeSpec, weakrefs), READONLY, nullptr},
        {nullptr, 0, 0, 0, nullptr},
    };
    slots.push_back({Py_tp_members, members});
    for (; protocols->slot != 0; ++protocols) slots.push_back(*protocols);
    slots.push_back({0, nullptr});
    PyType_Spec spec = {
        "pytree_core.TreeSpec",
        offsetof(TreeSpec, nodes),
        sizeof(Node),
        Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION |
            Py_TPFLAGS_IMMUTABLETYPE,
        slots.data(),
    };
    treespec_type = reinterpret_cast<PyTypeObject *>(owned(PyType_FromSpec(&spec)).release().ptr());
    NodeBuffer leaf;
    leaf.push_leaf();
    the_leaf = make_new_treespec(leaf).release().ptr();
    return treespec_type;
}

}  // namespace pytree
