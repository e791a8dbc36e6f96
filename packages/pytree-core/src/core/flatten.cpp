#include "flatten.hpp"

#include "key_order.hpp"
#include "layout_cache.hpp"

namespace pytree {
namespace {

nb::object attribute_of(PyObject *object, PyObject *name) {
    return owned(PyObject_GetAttr(object, name));
}

/// A string that lives as long as the process.
PyObject *interned(const char *text) {
    PyObject *made = PyUnicode_InternFromString(text);
    if (made == nullptr) rethrow();
    return made;
}

/// Collects keys and values in the order that an OrderedDict iterates in, which need not be
/// that of the dict below it.
template <std::size_t N, std::size_t M>
void collect_ordered(PyObject *dict, RefVector<N> &keys, RefVector<M> &values) {
    nb::object iterator = owned(PyObject_GetIter(dict));
    while (PyObject *next = Py_TYPE(iterator.ptr())->tp_iternext(iterator.ptr())) {
        nb::object key = nb::steal(next);
        PyObject *value = PyDict_GetItemWithError(dict, next);
        if (value == nullptr) {
            if (!PyErr_Occurred()) PyErr_SetObject(PyExc_KeyError, next);
            rethrow();
        }
        values.push(nb::borrow(value));
        keys.push(std::move(key));
    }
    if (PyErr_Occurred()) rethrow();
}

/// Collects keys, borrowed, and values in one pass, in which no code of the user can run.
template <std::size_t N, std::size_t M>
void collect(PyObject *dict, SmallVector<PyObject *, N> &keys, RefVector<M> &values) {
    auto size = static_cast<std::size_t>(PyDict_GET_SIZE(dict));
    keys.truncate(0);
    keys.make_room(size);
    values.make_room(size);
    PyObject *key, *value;
    for (Py_ssize_t i = 0; PyDict_Next(dict, &i, &key, &value);) {
        Py_INCREF(value);
        *values.end() = value;
        values.grow(1);
        *keys.end() = key;
        keys.grow(1);
    }
}

}  // namespace

bool is_declared_leaf(PyObject *is_leaf, PyObject *tree) {
    if (is_leaf == nullptr) return false;
    nb::object verdict = owned(PyObject_CallOneArg(is_leaf, tree));
    if (verdict.ptr() == Py_True) return true;
    if (verdict.ptr() == Py_False || verdict.is_none()) return false;
    raise(PyExc_TypeError, "`is_leaf` must return a bool, got %R", verdict.ptr());
}

void Flattener::run(PyObject *tree, bool with_nodes) {
    nb::object root = nb::borrow(tree);
    if (is_leaf_ == nullptr && !one_level_) {
        with_nodes ? visit<true, false>(std::move(root), 0)
                   : visit<false, false>(std::move(root), 0);
    } else {
        with_nodes ? visit<true, true>(std::move(root), 0) : visit<false, true>(std::move(root), 0);
    }
}

template <bool kNodes>
void Flattener::add_leaf(nb::object tree) {
    leaves_.push(std::move(tree));
    if constexpr (kNodes) nodes_.push_leaf();
}

template <bool kNodes, bool kAsk>
void Flattener::visit(nb::object tree, unsigned depth) {
    if (depth > kMaxDepth) {
        raise(PyExc_RecursionError, "the tree is nested more than %u deep, or contains itself",
              kMaxDepth);
    }
    if (kAsk && is_declared(tree.ptr(), depth)) return add_leaf<kNodes>(std::move(tree));
    Class cls = classifier_.classify(tree.ptr());
    if (cls.kind == Kind::Leaf) return add_leaf<kNodes>(std::move(tree));

    std::size_t leaves_before = leaves_.size(), nodes_before = nodes_.size(), arity = 0;
    nb::object data = visit_children<kNodes, kAsk>(tree, cls, depth + 1, arity);
    if constexpr (kNodes) {
        nodes_.push(cls.kind, arity, leaves_.size() - leaves_before,
                    nodes_.size() - nodes_before + 1, std::move(data));
    }
}

/// Visits the children and returns the data of the node.
template <bool kNodes, bool kAsk>
nb::object Flattener::visit_children(const nb::object &tree, const Class &cls, unsigned depth,
                                     std::size_t &arity) {
    switch (cls.kind) {
        case Kind::Leaf:
        case Kind::None:
            return {};
        case Kind::Tuple:
        case Kind::List:
            arity = visit_sequence<kNodes, kAsk>(tree.ptr(), depth);
            return {};
        case Kind::NamedTuple:
        case Kind::StructSequence:
            arity = visit_sequence<kNodes, kAsk>(tree.ptr(), depth);
            return nb::borrow(reinterpret_cast<PyObject *>(cls.type));
        case Kind::Deque: {
            static PyObject *const maxlen = interned("maxlen");
            nb::object children = owned(PySequence_Tuple(tree.ptr()));
            arity = visit_sequence<kNodes, kAsk>(children.ptr(), depth);
            return attribute_of(tree.ptr(), maxlen);
        }
        case Kind::Custom:
            return visit_custom<kNodes, kAsk>(tree.ptr(), *cls.custom, depth, arity);
        default:
            return visit_mapping<kNodes, kAsk>(tree, cls, depth, arity);
    }
}

/// Adds the first of some children, as far as they are leaves of one known type.
template <bool kNodes>
std::size_t Flattener::add_leading_leaves(PyObject *const *items, std::size_t count) {
    PyTypeObject *type = classifier_.leaf_type();
    std::size_t found = 0;
    while (found < count && Py_TYPE(items[found]) == type) ++found;
    if (found == 0) return 0;
    if constexpr (kNodes) nodes_.push_leaves(found);
    push_items(items, found, leaves_);
    return found;
}

/// Visits the elements of a list or tuple. What is there is read anew after each callback, which
/// may have changed a list.
template <bool kNodes, bool kAsk>
std::size_t Flattener::visit_sequence(PyObject *sequence, unsigned depth) {
    std::size_t i = 0;
    auto size = [&] { return static_cast<std::size_t>(PySequence_Fast_GET_SIZE(sequence)); };
    while (i < size()) {
        PyObject **items = PySequence_Fast_ITEMS(sequence);
        if (!kAsk && depth <= kMaxDepth) {
            i += add_leading_leaves<kNodes>(items + i, size() - i);
            if (i == size()) break;
        }
        visit<kNodes, kAsk>(nb::borrow(items[i++]), depth);
    }
    return i;
}

template <bool kNodes, bool kAsk>
nb::object Flattener::visit_mapping(const nb::object &tree, const Class &cls, unsigned depth,
                                    std::size_t &arity) {
    if (cls.kind == Kind::Dict || cls.kind == Kind::OrderedDict) {
        return visit_dict<kNodes, kAsk>(tree.ptr(), cls.kind, depth, arity);
    }
    static PyObject *const default_factory = interned("default_factory");
    // Read before the children: their callbacks may change it.
    nb::object extra = cls.kind == Kind::DefaultDict
                           ? attribute_of(tree.ptr(), default_factory)
                           : nb::borrow(reinterpret_cast<PyObject *>(cls.type));
    nb::object layout = visit_dict<kNodes, kAsk>(tree.ptr(), cls.kind, depth, arity);
    if constexpr (!kNodes) return {};
    return owned(PyTuple_Pack(2, extra.ptr(), layout.ptr()));
}

/// Visits the values and returns the layout of the keys, which without nodes may be null.
template <bool kNodes, bool kAsk>
nb::object Flattener::visit_dict(PyObject *tree, Kind kind, unsigned depth, std::size_t &arity) {
    std::size_t base = values_.size();
    RefVector<8> held;
    bool sorted = kind != Kind::OrderedDict;
    if (sorted) {
        collect(tree, keys_, values_);
    } else {
        collect_ordered(tree, held, values_);
    }
    PyObject *const *keys = sorted ? keys_.data() : held.data();
    arity = values_.size() - base;
    KeysInQuestion question(keys, arity, sorted);
    if constexpr (kNodes) {
        nb::object layout = question.layout();
        visit_values<kNodes, kAsk>(base, as_layout(layout)->order(), depth);
        return layout;
    }
    SmallVector<std::uint32_t, 32> order;
    order.reserve(arity);
    nb::object layout = question.order(order.data());
    if (layout.is_valid()) {
        visit_values<kNodes, kAsk>(base, as_layout(layout)->order(), depth);
    } else {
        visit_values<kNodes, kAsk>(base, order.data(), depth);
    }
    return layout;
}

/// Visits the values from `base` on, which it takes, in the given order.
template <bool kNodes, bool kAsk>
void Flattener::visit_values(std::size_t base, const std::uint32_t *order, unsigned depth) {
    std::size_t size = values_.size() - base;
    for (std::size_t j = 0; j < size; ++j) {
        nb::object value = values_.take(base + order[j]);
        if (!kAsk && depth <= kMaxDepth && Py_TYPE(value.ptr()) == classifier_.leaf_type()) {
            add_leaf<kNodes>(std::move(value));
        } else {
            visit<kNodes, kAsk>(std::move(value), depth);
        }
    }
    values_.truncate(base);
}

template <bool kNodes, bool kAsk>
nb::object Flattener::visit_custom(PyObject *tree, const Table::Entry &entry, unsigned depth,
                                   std::size_t &arity) {
    PyObject *registration = entry.registration.ptr();
    Parts parts = take_apart({registration}, tree);
    arity = visit_sequence<kNodes, kAsk>(parts.children.ptr(), depth);
    if constexpr (!kNodes) return {};
    if (entry.plain_data.is_valid()) return entry.plain_data;
    return owned(PyTuple_Pack(3, registration, parts.metadata.ptr(), parts.entries.ptr()));
}

}  // namespace pytree
