// Structures against trees and against each other.
#pragma once

#include <string>
#include <vector>

#include "node.hpp"

namespace pytree {

/// Adds the subtrees that `tree` has at the leaves of `nodes`, each one owned.
///
/// Returns one text for each place where the tree differs, from left to right; the subtrees
/// are complete only if there is none.
std::vector<nb::object> flatten_up_to(NodeView nodes, PyObject *tree, RefVector<128> &subtrees);

/// Like `flatten_up_to`, but throws a ValueError for the leftmost difference.
void flatten_exactly(NodeView nodes, PyObject *tree, RefVector<128> &subtrees);

/// Whether both structures are equal.
bool equal(NodeView a, NodeView b);
/// Whether `b` equals `a` but for subtrees in place of leaves.
bool is_prefix(NodeView a, NodeView b);
/// A hash that equal structures share; throws if metadata cannot be hashed.
Py_hash_t hash(NodeView nodes);

}  // namespace pytree
