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
};

/// Calls a predicate, if there is one, which must return a bool or None.
bool is_declared_leaf(PyObject *is_leaf, PyObject *tree);

/// Takes one tree apart. Owns what it has collected.
class Flattener {
   public:
    explicit Flattener(const Options &options)
        : is_leaf_(options.is_leaf), classifier_(Snapshot(options.name), options.none_is_leaf) {}

    /// Collects the leaves of `tree`, and its nodes if `with_nodes`.
    void run(PyObject *tree, bool with_nodes) {
        with_nodes ? visit<true>(nb::borrow(tree), 0) : visit<false>(nb::borrow(tree), 0);
    }

    RefVector<128> &leaves() { return leaves_; }
    NodeBuffer &nodes() { return nodes_; }

   private:
    template <bool kNodes>
    void visit(nb::object tree, unsigned depth);
    template <bool kNodes>
    void add_leaf(nb::object tree);
    template <bool kNodes>
    nb::object visit_children(const nb::object &tree, const Class &cls, unsigned depth,
                              std::size_t &arity);
    template <bool kNodes>
    nb::object visit_dict(const nb::object &tree, Kind kind, unsigned depth);
    template <bool kNodes>
    nb::object visit_custom(const nb::object &tree, PyObject *registration, unsigned depth,
                            std::size_t &arity);
    template <bool kNodes>
    std::size_t visit_tuple(PyObject *tuple, unsigned depth);

    PyObject *is_leaf_;
    Classifier classifier_;
    RefVector<128> leaves_;
    NodeBuffer nodes_;
    RefVector<32> values_;  // of the dicts that are being visited
};

}  // namespace pytree
