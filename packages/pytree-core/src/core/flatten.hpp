// From a tree to its leaves and nodes.
#pragma once

#include "key_layout.hpp"
#include "kinds.hpp"

namespace pytree {

/// What the keyword arguments of a call say.
struct Options {
    PyObject *is_leaf = nullptr;  // borrowed from the caller
    bool none_is_leaf = false;
    PyObject *name = nullptr;  // the namespace; null for the global one
    bool one_level = false;    // whether all children of the root are leaves
};

/// Calls a predicate, if there is one, which must return a bool or None.
bool is_declared_leaf(PyObject *is_leaf, PyObject *tree);

/// Takes one tree apart. Owns what it has collected.
class Flattener {
   public:
    explicit Flattener(const Options &options)
        : is_leaf_(options.is_leaf),
          one_level_(options.one_level),
          classifier_(Snapshot(options.name), options.none_is_leaf) {}

    /// Collects the leaves of `tree`, and its nodes if `with_nodes`.
    void run(PyObject *tree, bool with_nodes);

    /// Whether a tree is one leaf, as far as that can be told without a predicate.
    bool is_plain_leaf(PyObject *tree) {
        return is_leaf_ == nullptr && classifier_.classify(tree).kind == Kind::Leaf;
    }

    RefVector<128> &leaves() { return leaves_; }
    NodeBuffer &nodes() { return nodes_; }

   private:
    // Each function is compiled with and without nodes, with and without a predicate to ask.
    template <bool kNodes, bool kAsk>
    void visit(nb::object tree, unsigned depth);
    template <bool kNodes>
    void add_leaf(nb::object tree);
    template <bool kNodes, bool kAsk>
    nb::object visit_children(const nb::object &tree, const Class &cls, unsigned depth,
                              std::size_t &arity);
    template <bool kNodes, bool kAsk>
    std::size_t visit_sequence(PyObject *sequence, unsigned depth);
    template <bool kNodes>
    std::size_t add_leading_leaves(PyObject *const *items, std::size_t count);
    template <bool kNodes, bool kAsk>
    nb::object visit_mapping(const nb::object &tree, const Class &cls, unsigned depth,
                             std::size_t &arity);
    template <bool kNodes, bool kAsk>
    nb::object visit_dict(PyObject *tree, Kind kind, unsigned depth, std::size_t &arity);
    template <bool kNodes, bool kAsk>
    void visit_values(std::size_t base, const std::uint32_t *order, unsigned depth);
    template <bool kNodes, bool kAsk>
    nb::object visit_custom(PyObject *tree, const Table::Entry &entry, unsigned depth,
                            std::size_t &arity);

    bool is_declared(PyObject *tree, unsigned depth) const {
        return (one_level_ && depth != 0) || is_declared_leaf(is_leaf_, tree);
    }

    PyObject *is_leaf_;
    bool one_level_;
    Classifier classifier_;
    RefVector<128> leaves_;
    NodeBuffer nodes_;
    RefVector<64> values_;              // of the dicts that are being visited
    SmallVector<PyObject *, 64> keys_;  // of the one that is being read, borrowed
};

}  // namespace pytree
