// A tree against a structure: the subtrees at its leaves, or where they differ.
#include <algorithm>

#include "compare.hpp"
#include "key_layout.hpp"
#include "kinds.hpp"
#include "paths.hpp"

namespace pytree {
namespace {

bool python_equal(PyObject *a, PyObject *b) {
    return checked(PyObject_RichCompareBool(a, b, Py_EQ)) != 0;
}

bool is_mapping_type(PyTypeObject *type) {
    return type == &PyDict_Type || type == &PyODict_Type || type == collections().defaultdict ||
           is_dict_subclass_type(type);
}

nb::object text(const char *format, const nb::object &a, const nb::object &b) {
    return owned(PyUnicode_FromFormat(format, a.ptr(), b.ptr()));
}

nb::object expected_but_got(const Node &node, const nb::object &got) {
    nb::object expected =
        node.kind == Kind::None ? literal("None") : describe(type_of(node), node.arity);
    return text("expected %U, got %U", expected, got);
}

/// The elements of `keys` that are not in `others`, a list.
nb::object difference(const nb::object &keys, const nb::object &others) {
    nb::object set = owned(PySet_New(others.ptr()));
    nb::object list = owned(PyList_New(0));
    for (nb::handle key : keys) {
        if (!checked(PySet_Contains(set.ptr(), key.ptr()))) {
            checked(PyList_Append(list.ptr(), key.ptr()));
        }
    }
    return list;
}

nb::object different_keys(KeyLayout *layout, PyObject *tree) {
    nb::object expected = layout->leaf_keys(), found = owned(PyDict_Keys(tree));
    nb::object missing = difference(expected, found), besides = difference(found, expected);
    nb::object got = describe_type(Py_TYPE(tree));
    bool both = PyList_GET_SIZE(missing.ptr()) != 0 && PyList_GET_SIZE(besides.ptr()) != 0;
    if (PyList_GET_SIZE(missing.ptr()) != 0) got = text("%U without %R", got, missing);
    if (both) got = owned(PyUnicode_FromFormat("%U and", got.ptr()));
    if (PyList_GET_SIZE(besides.ptr()) != 0) got = text("%U with %R besides", got, besides);
    return text("expected the keys %R, got %U", expected, got);
}

using Pending = RefVector<64>;

/// Pushes the values of a dict whose keys are the very objects of the layout in the order of
/// insertion, as they are in trees that were made alike. No code of the user can run meanwhile.
bool push_matching(KeyLayout *layout, PyObject *dict, Pending &pending) {
    std::size_t size = layout->size(), i = 0;
    pending.make_room(size);
    PyObject **end = pending.end();
    PyObject *key, *value;
    for (Py_ssize_t at = 0; i < size && PyDict_Next(dict, &at, &key, &value); ++i) {
        if (key != layout->keys()[i]) return false;
        end[layout->rank()[i]] = value;
    }
    if (i < size) return false;
    std::for_each(end, end + size, [](PyObject *found) { Py_INCREF(found); });
    pending.grow(size);
    return true;
}

/// Pushes the children of a mapping, in the order of the leaves, if it has the same keys.
bool push_values(KeyLayout *layout, PyObject *tree, Pending &pending) {
    std::size_t before = pending.size(), size = layout->size();
    bool same = static_cast<std::size_t>(PyDict_GET_SIZE(tree)) == size;
    if (same && push_matching(layout, tree, pending)) return true;
    for (std::size_t j = 0; same && j < size; ++j) {
        PyObject *value = PyDict_GetItemWithError(tree, layout->key(j));
        if (value == nullptr && PyErr_Occurred()) rethrow();
        same = value != nullptr;
        if (same) pending.push(nb::borrow(value));
    }
    if (!same) pending.drop(before);
    return same;
}

/// Pushes the fields of a dataclass without static ones; false for another type or size.
bool push_fields(const Node &node, PyObject *tree, Pending &pending) {
    Registration registration{PyTuple_GET_ITEM(node.data, 0)};
    PyObject *names = registration.subtrees();
    if (names == nullptr || PyTuple_GET_SIZE(registration.statics()) != 0) return false;
    if (static_cast<std::size_t>(PyTuple_GET_SIZE(names)) != node.arity) return false;
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(names); ++i) {
        pending.push(owned(PyObject_GetAttr(tree, PyTuple_GET_ITEM(names, i))));
    }
    return true;
}

/// Pushes the children of `tree`, or returns how it differs from the node.
nb::object push_children(const Node &node, PyObject *tree, Pending &pending) {
    if (is_mapping(node.kind) && is_mapping_type(Py_TYPE(tree))) {
        KeyLayout *layout = layout_of(node);
        if (push_values(layout, tree, pending)) return {};
        return different_keys(layout, tree);
    }
    if (Py_TYPE(tree) != type_of(node)) return expected_but_got(node, describe(tree));
    if (node.kind == Kind::None) return {};

    if (node.kind == Kind::Tuple || node.kind == Kind::List) {
        if (static_cast<std::size_t>(PySequence_Fast_GET_SIZE(tree)) != node.arity) {
            return expected_but_got(node, describe(tree));
        }
        push_items(PySequence_Fast_ITEMS(tree), node.arity, pending);
        return {};
    }
    nb::object children;
    if (node.kind == Kind::Custom) {
        if (push_fields(node, tree, pending)) return {};
        Parts parts = take_apart({PyTuple_GET_ITEM(node.data, 0)}, tree);
        auto size = static_cast<std::size_t>(PyTuple_GET_SIZE(parts.children.ptr()));
        if (size != node.arity) return expected_but_got(node, describe(Py_TYPE(tree), size));
        nb::object metadata = nb::borrow(PyTuple_GET_ITEM(node.data, 1));
        if (!python_equal(parts.metadata.ptr(), metadata.ptr())) {
            return text("expected the metadata %R, got %R", metadata, parts.metadata);
        }
        children = std::move(parts.children);
    } else {
        children = PyTuple_Check(tree) ? nb::borrow(tree) : owned(PySequence_Tuple(tree));
        auto size = static_cast<std::size_t>(PyTuple_GET_SIZE(children.ptr()));
        if (size != node.arity) return expected_but_got(node, describe(tree));
    }
    push_items(PySequence_Fast_ITEMS(children.ptr()), node.arity, pending);
    return {};
}

}  // namespace

std::vector<nb::object> flatten_up_to(NodeView nodes, PyObject *tree, RefVector<128> &subtrees) {
    std::vector<nb::object> differences;
    std::size_t before = subtrees.size();
    Pending pending;
    pending.push(nb::borrow(tree));
    // From the last node, the root, to the first: right to left.
    for (std::size_t i = nodes.size; i-- > 0;) {
        const Node &node = nodes[i];
        if (node.kind == Kind::Leaf) {
            subtrees.push(pending.pop());
            continue;
        }
        nb::object subtree = pending.pop();
        nb::object difference = push_children(node, subtree.ptr(), pending);
        if (difference.is_valid()) {
            differences.push_back(text("at %U: %U", spell_path(nodes, i), difference));
            i -= node.num_nodes - 1;
        }
    }
    std::reverse(subtrees.data() + before, subtrees.end());
    std::reverse(differences.begin(), differences.end());
    return differences;
}

void flatten_exactly(NodeView nodes, PyObject *tree, RefVector<128> &subtrees) {
    std::vector<nb::object> differences = flatten_up_to(nodes, tree, subtrees);
    if (differences.empty()) return;
    PyErr_SetObject(PyExc_ValueError, differences.front().ptr());
    rethrow();
}

}  // namespace pytree
