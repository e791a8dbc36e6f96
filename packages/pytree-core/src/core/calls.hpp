// The functions that are called so often that their arguments are read by hand.
#pragma once

#include <nanobind/nanobind.h>

namespace pytree {

/// Adds tree_flatten, tree_unflatten, tree_leaves, tree_structure, tree_map and tree_is_leaf.
void add_calls(nanobind::module_ &module);

}  // namespace pytree
