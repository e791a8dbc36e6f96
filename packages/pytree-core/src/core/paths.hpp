// Where things are in a tree, as data and as text.
#pragma once

#include "node.hpp"

namespace pytree {

/// The entry that leads from a node to its j-th child: a key, an index or a name.
nb::object entry(const Node &node, std::size_t j);
/// The entries of all children, a list.
nb::object entries(const Node &node);
/// Adds the path to each leaf to an empty vector: tuples of entries.
void leaf_paths(NodeView nodes, RefVector<128> &found);
/// Spells the path to the node at `index`: "['a'][0].weight", or "the root".
nb::object spell_path(NodeView nodes, std::size_t index);
/// Spells the structure: "{'a': *, 'b': [*, None]}".
nb::object spell(NodeView nodes);

}  // namespace pytree
