// What a structure consists of.
#pragma once

#include <cstddef>
#include <type_traits>

#include "small_vector.hpp"

namespace pytree {

/// Nesting beyond this raises RecursionError, so that no tree can exhaust the C stack.
constexpr unsigned kMaxDepth = 1000;

enum class Kind : std::uint32_t {
    Leaf,
    None,
    Tuple,
    List,
    Dict,
    DictSubclass,
    OrderedDict,
    DefaultDict,
    Deque,
    NamedTuple,
    StructSequence,
    Custom,
};

/// The name of each kind in a saved structure.
constexpr const char *kKindNames[] = {
    "leaf",        "none",        "tuple", "list",       "dict",           "dict_subclass",
    "ordereddict", "defaultdict", "deque", "namedtuple", "structsequence", "custom",
};
constexpr std::size_t kKinds = sizeof(kKindNames) / sizeof(kKindNames[0]);

/// One node. Nodes are stored children first (post-order), so that a subtree is contiguous and
/// ends with its root.
struct Node {
    Kind kind;
    std::uint32_t arity;
    std::uint32_t num_leaves;  // at and below this node
    std::uint32_t num_nodes;
    /// What else the kind needs, an owned reference:
    ///   Dict, OrderedDict: KeyLayout         DictSubclass: (type, KeyLayout)
    ///   DefaultDict: (factory, KeyLayout)    Deque: its maxlen, an int or None
    ///   NamedTuple, StructSequence: type     Custom: (registration, metadata, entries or None)
    PyObject *data;
};
// Without padding, so that nodes may be compared as bytes.
static_assert(std::has_unique_object_representations_v<Node>);

constexpr Node kLeaf{Kind::Leaf, 0, 1, 1, nullptr};

/// The nodes of one structure or subtree, owned by somebody else.
struct NodeView {
    const Node *nodes;
    std::size_t size;

    const Node &root() const { return nodes[size - 1]; }
    const Node &operator[](std::size_t i) const { return nodes[i]; }
    /// The subtree that ends at `index`.
    NodeView subtree(std::size_t index) const {
        std::size_t count = nodes[index].num_nodes;
        return {nodes + (index + 1 - count), count};
    }
};

/// Throws OverflowError unless so many nodes can be counted.
inline void check_size(std::uint64_t num_nodes) {
    if (num_nodes > UINT32_MAX) {
        raise(PyExc_OverflowError, "a tree may have at most %u nodes", UINT32_MAX);
    }
}

/// Nodes in the making, which own their data.
class NodeBuffer {
   public:
    NodeBuffer() = default;
    NodeBuffer(const NodeBuffer &) = delete;
    NodeBuffer &operator=(const NodeBuffer &) = delete;
    ~NodeBuffer() {
        while (nodes_.size() != 0) Py_XDECREF(nodes_.pop().data);
    }

    void push_leaf() { nodes_.push(kLeaf); }
    void push_leaves(std::size_t count) {
        nodes_.make_room(count);
        std::fill_n(nodes_.end(), count, kLeaf);
        nodes_.grow(count);
    }
    /// Adds a node whose children, the last `arity` subtrees, are there already.
    void push(Kind kind, std::size_t arity, std::size_t num_leaves, std::size_t num_nodes,
              nb::object data) {
        check_size(num_nodes);  // and so of the smaller numbers
        nodes_.push({kind, static_cast<std::uint32_t>(arity),
                     static_cast<std::uint32_t>(num_leaves), static_cast<std::uint32_t>(num_nodes),
                     data.ptr()});
        data.release();
    }
    /// Adds a copy of a node.
    void push(const Node &node) {
        nodes_.push(node);
        Py_XINCREF(node.data);
    }

    std::size_t size() const { return nodes_.size(); }
    NodeView view() const { return {nodes_.data(), nodes_.size()}; }
    /// Gives up the nodes, which somebody has copied with their references.
    void release() { nodes_.truncate(0); }

   private:
    SmallVector<Node, 128> nodes_;
};

inline bool is_mapping(Kind kind) {
    return kind == Kind::Dict || kind == Kind::DictSubclass || kind == Kind::OrderedDict ||
           kind == Kind::DefaultDict;
}

}  // namespace pytree
