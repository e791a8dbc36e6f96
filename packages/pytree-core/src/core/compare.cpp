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
