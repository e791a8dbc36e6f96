#include "compare.hpp"

#include <algorithm>

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

/// Pushes the children of a mapping, in the order of the leaves, if it has the same keys.
bool push_values(KeyLayout *layout, PyObject *tree, RefVector<64> &pending) {
    std::size_t before = pending.size(), size = layout->size();
    bool same = static_cast<std::size_t>(PyDict_GET_SIZE(tree)) == size;
    for (std::size_t j = 0; same && j < size; ++j) {
        PyObject *value = PyDict_GetItemWithError(tree, layout->key(j));
        if (value == nullptr && PyErr_Occurred()) rethrow();
        same = value != nullptr;
        if (same) pending.push(nb::borrow(value));
    }
    if (!same) pending.drop(before);
    return same;
}

void push_all(const nb::object &tuple, RefVector<64> &pending) {
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(tuple.ptr()); ++i) {
        pending.push(nb::borrow(PyTuple_GET_ITEM(tuple.ptr(), i)));
    }
}

/// Pushes the children of `tree`, or returns how it differs from the node.
nb::object push_children(const Node &node, PyObject *tree, RefVector<64> &pending) {
    if (is_mapping(node.kind) && is_mapping_type(Py_TYPE(tree))) {
        KeyLayout *layout = layout_of(node);
        if (push_values(layout, tree, pending)) return {};
        return different_keys(layout, tree);
    }
    if (Py_TYPE(tree) != type_of(node)) return expected_but_got(node, describe(tree));
    if (node.kind == Kind::None) return {};

    nb::object children;
    if (node.kind == Kind::Custom) {
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
    push_all(children, pending);
    return {};
}

/// Whether two nodes of one kind carry the same data.
bool same_data(const Node &a, const Node &b) {
    if (a.data == b.data) return true;
    auto item = [](const Node &node, Py_ssize_t i) { return PyTuple_GET_ITEM(node.data, i); };
    switch (a.kind) {
        case Kind::Dict:
        case Kind::OrderedDict:
            return KeyLayout::equal(layout_of(a), layout_of(b));
        case Kind::DictSubclass:
            return item(a, 0) == item(b, 0) && KeyLayout::equal(layout_of(a), layout_of(b));
        case Kind::DefaultDict:
            return python_equal(item(a, 0), item(b, 0)) &&
                   KeyLayout::equal(layout_of(a), layout_of(b));
        case Kind::Deque:
            return python_equal(a.data, b.data);
        case Kind::Custom:
            return python_equal(item(a, 0), item(b, 0)) && python_equal(item(a, 1), item(b, 1));
        default:
            return false;
    }
}

/// For each child of a mapping, from left to right, which child of the other has its key.
std::vector<std::size_t> match_keys(KeyLayout *layout, KeyLayout *other) {
    std::vector<std::size_t> places;
    nb::object index = owned(PyDict_New());
    for (std::size_t j = 0; j < other->size(); ++j) {
        checked(PyDict_SetItem(index.ptr(), other->key(j), owned(PyLong_FromSize_t(j)).ptr()));
    }
    for (std::size_t j = 0; j < layout->size(); ++j) {
        PyObject *place = PyDict_GetItemWithError(index.ptr(), layout->key(j));
        if (place == nullptr && PyErr_Occurred()) rethrow();
        if (place == nullptr) return {};
        places.push_back(PyLong_AsSize_t(place));
    }
    return places;
}

/// The roots of the children of a node, from left to right.
std::vector<std::size_t> child_roots(NodeView nodes, std::size_t index) {
    std::vector<std::size_t> roots(nodes[index].arity);
    for (std::size_t j = roots.size(), child = index - 1; j-- > 0;) {
        roots[j] = child;
        child -= nodes[child].num_nodes;
    }
    return roots;
}

void mix(std::size_t &seed, std::size_t value) {
    seed ^= value + 0x9e3779b97f4a7c15ull + (seed << 6) + (seed >> 2);
}

void mix_hash_of(std::size_t &seed, PyObject *object) {
    Py_hash_t value = PyObject_Hash(object);
    if (value == -1) rethrow();
    mix(seed, static_cast<std::size_t>(value));
}

void mix_data(std::size_t &seed, const Node &node) {
    if (node.data == nullptr) return;
    if (is_mapping(node.kind)) {
        KeyLayout *layout = layout_of(node);
        for (std::size_t j = 0; j < layout->size(); ++j) mix_hash_of(seed, layout->key(j));
    } else if (node.kind == Kind::Custom) {
        PyObject *type = PyTuple_GET_ITEM(PyTuple_GET_ITEM(node.data, 0), 0);
        mix(seed, reinterpret_cast<std::size_t>(type));
        mix_hash_of(seed, PyTuple_GET_ITEM(node.data, 1));
    } else {
        mix_hash_of(seed, node.data);
    }
}

}  // namespace

std::vector<nb::object> flatten_up_to(NodeView nodes, PyObject *tree, RefVector<128> &subtrees) {
    std::vector<nb::object> differences;
    RefVector<64> pending;
    pending.push(nb::borrow(tree));
    // From the last node, the root, to the first: right to left.
    for (std::size_t i = nodes.size; i-- > 0;) {
        const Node &node = nodes[i];
        nb::object subtree = pending.pop();
        if (node.kind == Kind::Leaf) {
            subtrees.push(std::move(subtree));
            continue;
        }
        nb::object difference = push_children(node, subtree.ptr(), pending);
        if (difference.is_valid()) {
            differences.push_back(text("at %U: %U", spell_path(nodes, i), difference));
            i -= node.num_nodes - 1;
        }
    }
    std::reverse(subtrees.data(), subtrees.data() + subtrees.size());
    std::reverse(differences.begin(), differences.end());
    return differences;
}

void flatten_exactly(NodeView nodes, PyObject *tree, RefVector<128> &subtrees) {
    std::vector<nb::object> differences = flatten_up_to(nodes, tree, subtrees);
    if (differences.empty()) return;
    PyErr_SetObject(PyExc_ValueError, differences.front().ptr());
    rethrow();
}

bool equal(NodeView a, NodeView b) {
    if (a.nodes == b.nodes) return true;
    if (a.size != b.size || a.root().num_leaves != b.root().num_leaves) return false;
    // Most often the data is the same too, because layouts of keys are shared.
    if (std::memcmp(a.nodes, b.nodes, a.size * sizeof(Node)) == 0) return true;
    for (std::size_t i = 0; i < a.size; ++i) {
        if (a[i].kind != b[i].kind || a[i].arity != b[i].arity) return false;
    }
    for (std::size_t i = 0; i < a.size; ++i) {
        if (!same_data(a[i], b[i])) return false;
    }
    return true;
}

bool is_prefix(NodeView a, NodeView b) {
    std::vector<std::pair<std::size_t, std::size_t>> pending{{a.size - 1, b.size - 1}};
    while (!pending.empty()) {
        auto [i, j] = pending.back();
        pending.pop_back();
        const Node &x = a[i], &y = b[j];
        if (x.kind == Kind::Leaf) continue;
        if (x.arity != y.arity) return false;
        std::vector<std::size_t> ours = child_roots(a, i), theirs = child_roots(b, j);
        bool mappings = is_mapping(x.kind) && is_mapping(y.kind);
        if (!mappings && (x.kind != y.kind || (x.kind != Kind::Deque && !same_data(x, y)))) {
            return false;
        }
        if (mappings) {
            std::vector<std::size_t> places = match_keys(layout_of(x), layout_of(y));
            if (places.size() != ours.size()) return false;
            std::vector<std::size_t> matched;
            for (std::size_t place : places) matched.push_back(theirs[place]);
            theirs = std::move(matched);
        }
        for (std::size_t k = 0; k < ours.size(); ++k) pending.emplace_back(ours[k], theirs[k]);
    }
    return true;
}

Py_hash_t hash(NodeView nodes) {
    std::size_t seed = nodes.size;
    for (std::size_t i = 0; i < nodes.size; ++i) {
        mix(seed, static_cast<std::size_t>(nodes[i].kind) + kKinds * nodes[i].arity);
        mix_data(seed, nodes[i]);
    }
    auto value = static_cast<Py_hash_t>(seed);
    return value == -1 ? -2 : value;
}

}  // namespace pytree
