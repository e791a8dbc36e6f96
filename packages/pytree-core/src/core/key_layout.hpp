// The keys of a dict and the order of its leaves.
#pragma once

#include "node.hpp"

namespace pytree {

/// The keys of one dict: an immutable Python object that nodes share.
///
/// Keys stand in the order of insertion; children in that of the leaves, which is sorted but
/// for an OrderedDict.
struct KeyLayout {
    PyObject_VAR_HEAD;
    PyObject *model;  // a dict of these keys to be copied, made when it is first asked for

    std::size_t size() const { return static_cast<std::size_t>(Py_SIZE(this)); }
    PyObject **keys() { return reinterpret_cast<PyObject **>(this + 1); }
    /// Where in the order of insertion the j-th child stands.
    std::uint32_t *order() { return reinterpret_cast<std::uint32_t *>(keys() + size()); }
    /// Which child belongs to the i-th inserted key: the inverse of `order`.
    std::uint32_t *rank() { return order() + size(); }
    /// The key of the j-th child, borrowed.
    PyObject *key(std::size_t j) { return keys()[order()[j]]; }

    /// The keys in the order of the children.
    nb::object leaf_keys();
    /// The keys in the order of insertion.
    nb::object inserted_keys();
    /// Whether all keys are strings or ints, whose comparison runs no code of the user.
    bool is_plain() const;
    /// A new dict with these keys, which are plain, in this order; all values are None.
    nb::object new_dict();
    /// Whether both have equal keys for equal children.
    static bool equal(KeyLayout *a, KeyLayout *b);
};

inline KeyLayout *as_layout(const nb::object &layout) {
    return reinterpret_cast<KeyLayout *>(layout.ptr());
}

/// Makes the layout of different keys in the order of insertion. The children are sorted by
/// key, or stand as the keys do (`sorted` false).
nb::object make_layout(PyObject *const *keys, std::size_t size, bool sorted);

/// The layout of a mapping node.
inline KeyLayout *layout_of(const Node &node) {
    bool alone = node.kind == Kind::Dict || node.kind == Kind::OrderedDict;
    return reinterpret_cast<KeyLayout *>(alone ? node.data : PyTuple_GET_ITEM(node.data, 1));
}

void add_key_layout_type();

}  // namespace pytree
