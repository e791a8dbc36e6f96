// From nodes and leaves to a tree.
#pragma once

#include "node.hpp"

namespace pytree {

/// Builds the tree. Takes the leaves, of which there must be as many as the root says.
nb::object unflatten(NodeView nodes, RefVector<128> &leaves);

/// Reads `expected` leaves from an iterable.
void read_leaves(PyObject *iterable, std::size_t expected, RefVector<128> &leaves);

}  // namespace pytree
