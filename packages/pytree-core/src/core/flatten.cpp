#include "flatten.hpp"

namespace pytree {
namespace {

/// Collects keys and values in the order that an OrderedDict iterates in, which need not be
/// that of the dict below it.
nb::object collect_ordered(PyObject *dict, RefVector<32> &values) {
    nb::object keys = owned(PySequence_List(dict));
    auto size = static_cast<std::size_t>(PyList_GET_SIZE(keys.ptr()));
    KeyLayoutBuilder layout(size);
    for (std::size_t i = 0; i < size; ++i) {
        PyObject *key = PyList_GET_ITEM(keys.ptr(), static_cast<Py_ssize_t>(i));
        PyObject *value = PyDict_GetItemWithError(dict, key);
        if (value == nullptr) {
            if (!PyErr_Occurred()) PyErr_SetObject(PyExc_KeyError, key);
            rethrow();
        }
        values.push(nb::borrow(value));
        layout.push(key);
    }
    return layout.finish(false);
}

/// Collects keys and values in one pass, in which no code of the user can run.
nb::object collect(PyObject *dict, RefVector<32> &values) {
    KeyLayoutBuilder layout(static_cast<std::size_t>(PyDict_GET_SIZE(dict)));
    PyObject *key, *value;
    for (Py_ssize_t i = 0; PyDict_Next(dict, &i, &key, &value);) {
        values.push(nb::borrow(value));
        layout.push(key);
    }
    return layout.finish(true);
}

}  // namespace

bool is_declared_leaf(PyObject *is_leaf, PyObject *tree) {
    if (is_leaf == nullptr) return false;
    nb::object verdict = owned(PyObject_CallOneArg(is_leaf, tree));
    if (verdict.ptr() == Py_True) return true;
    if (verdict.ptr() == Py_False || verdict.is_none()) return false;
    raise(PyExc_TypeError, "`is_leaf` must return a bool, got %R", verdict.ptr());
}

template <bool kNodes>
void Flattener::add_leaf(nb::object tree) {
    leaves_.push(std::move(tree));
    if constexpr (kNodes) nodes_.push_leaf();
}

template <bool kNodes>
void Flattener::visit(nb::object tree, unsigned depth) {
    if (depth > kMaxDepth) {
        raise(PyExc_RecursionError, "the tree is nested more than %u deep, or contains itself",
              kMaxDepth);
    }
    if (is_declared_leaf(is_leaf_, tree.ptr())) return add_leaf<kNodes>(std::move(tree));
    Class cls = classifier_.classify(tree.ptr());
    if (cls.kind == Kind::Leaf) return add_leaf<kNodes>(std::move(tree));

    std::size_t leaves_before = leaves_.size(), nodes_before = nodes_.size(), arity = 0;
    nb::object data = visit_children<kNodes>(tree, cls, depth + 1, arity);
    if constexpr (kNodes) {
        nodes_.push(cls.kind, arity, leaves_.size() - leaves_before,
                    nodes_.size() - nodes_before + 1, std::move(data));
    }
}

/// Visits the children and returns the data of the node.
template <bool kNodes>
nb::object Flattener::visit_children(const nb::object &tree, const Class &cls, unsigned depth,
                                     std::size_t &arity) {
    switch (cls.kind) {
        case Kind::Leaf:
        case Kind::None:
            return {};
        case Kind::Tuple:
            arity = visit_tuple<kNodes>(tree.ptr(), depth);
            return {};
        case Kind::NamedTuple:
        case Kind::StructSequence:
            arity = visit_tuple<kNodes>(tree.ptr(), depth);
            return nb::borrow(reinterpret_cast<PyObject *>(cls.type));
        case Kind::List:
            // The size is read at each step: a callback may have changed the list.
            for (; static_cast<Py_ssize_t>(arity) < PyList_GET_SIZE(tree.ptr()); ++arity) {
                visit<kNodes>(
                    nb::borrow(PyList_GET_ITEM(tree.ptr(), static_cast<Py_ssize_t>(arity))), depth);
            }
            return {};
        case Kind::Deque: {
            nb::object children = owned(PySequence_Tuple(tree.ptr()));
            arity = visit_tuple<kNodes>(children.ptr(), depth);
            return owned(PyObject_GetAttrString(tree.ptr(), "maxlen"));
        }
        case Kind::Custom:
            return visit_custom<kNodes>(tree, cls.registration, depth, arity);
        default: {
            // Read before the children: their callbacks may change it.
            nb::object extra;
            if (cls.kind == Kind::DefaultDict) {
                extra = owned(PyObject_GetAttrString(tree.ptr(), "default_factory"));
            } else if (cls.kind == Kind::DictSubclass) {
                extra = nb::borrow(reinterpret_cast<PyObject *>(cls.type));
            }
            nb::object layout = visit_dict<kNodes>(tree, cls.kind, depth);
            arity = reinterpret_cast<KeyLayout *>(layout.ptr())->size();
            if (!extra.is_valid()) return layout;
            return owned(PyTuple_Pack(2, extra.ptr(), layout.ptr()));
        }
    }
}

template <bool kNodes>
std::size_t Flattener::visit_tuple(PyObject *tuple, unsigned depth) {
    Py_ssize_t size = PyTuple_GET_SIZE(tuple);
    for (Py_ssize_t i = 0; i < size; ++i) {
        visit<kNodes>(nb::borrow(PyTuple_GET_ITEM(tuple, i)), depth);
    }
    return static_cast<std::size_t>(size);
}

template <bool kNodes>
nb::object Flattener::visit_dict(const nb::object &tree, Kind kind, unsigned depth) {
    std::size_t base = values_.size();
    nb::object data = kind == Kind::OrderedDict ? collect_ordered(tree.ptr(), values_)
                                                : collect(tree.ptr(), values_);
    auto *layout = reinterpret_cast<KeyLayout *>(data.ptr());
    std::size_t size = layout->size();
    for (std::size_t j = 0; j < size; ++j) {
        visit<kNodes>(values_.take(base + layout->order()[j]), depth);
    }
    values_.drop(base);
    return data;
}

template <bool kNodes>
nb::object Flattener::visit_custom(const nb::object &tree, PyObject *registration, unsigned depth,
                                   std::size_t &arity) {
    Parts parts = take_apart({registration}, tree.ptr());
    arity = visit_tuple<kNodes>(parts.children.ptr(), depth);
    if constexpr (!kNodes) return {};
    return owned(PyTuple_Pack(3, registration, parts.metadata.ptr(), parts.entries.ptr()));
}

template void Flattener::visit<true>(nb::object, unsigned);
template void Flattener::visit<false>(nb::object, unsigned);

}  // namespace pytree
