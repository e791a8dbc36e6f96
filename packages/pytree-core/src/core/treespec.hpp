// The Python type TreeSpec.
#pragma once

#include <vector>

#include "node.hpp"

namespace pytree {

/// An immutable structure, with its nodes inside the one allocation.
struct TreeSpec {
    PyObject_VAR_HEAD;
    PyObject *weakrefs;
    Py_hash_t hash;  // -1 until it is asked for
    Node nodes[1];

    NodeView view() const { return {nodes, static_cast<std::size_t>(Py_SIZE(this))}; }
};

/// Makes a TreeSpec of nodes in the making, which it takes.
nb::object make_treespec(NodeBuffer &nodes);
/// The TreeSpec of a leaf, which is one and the same.
nb::object leaf_treespec();
/// Makes a TreeSpec of a part of another.
nb::object copy_treespec(NodeView nodes);
/// The structure in an argument; throws TypeError if it is something else.
NodeView view_of(PyObject *treespec);

/// Throws RecursionError if leaves are nested too deep.
void check_depth(NodeView nodes);

/// `outer` with one of the structures in place of each leaf, of which there are as many.
nb::object graft(NodeView outer, const std::vector<NodeView> &inner);
/// The last node alone, with leaves for children.
nb::object one_level(NodeView nodes);

/// Creates the type, with what Python may do with it.
PyTypeObject *make_treespec_type(PyType_Slot *protocols);
/// Creates the type with all its methods and adds it to the module.
void add_treespec_type(nb::module_ &module);

/// A structure as data for pickle: ``(version, ((kind, arity, data), ...))``.
nb::object state_of(NodeView nodes);
/// A structure from such data; throws ValueError for whatever is not one.
nb::object from_state(nb::object state);

}  // namespace pytree
