#include "key_layout.hpp"

#include <algorithm>
#include <numeric>

#include "key_order.hpp"

namespace pytree {
namespace {

PyTypeObject *layout_type = nullptr;

void dealloc(PyObject *self) {
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    Py_TRASHCAN_BEGIN(self, dealloc);
    auto *layout = reinterpret_cast<KeyLayout *>(self);
    for (std::size_t i = 0; i < layout->size(); ++i) Py_XDECREF(layout->keys()[i]);
    type->tp_free(self);
    Py_DECREF(type);
    Py_TRASHCAN_END;
}

// Like a tuple a layout needs no tp_clear: a cycle through it has a mutable member elsewhere.
int traverse(PyObject *self, visitproc visit, void *arg) {
    Py_VISIT(Py_TYPE(self));
    auto *layout = reinterpret_cast<KeyLayout *>(self);
    for (std::size_t i = 0; i < layout->size(); ++i) Py_VISIT(layout->keys()[i]);
    return 0;
}

bool is_plain(PyObject *key) { return PyUnicode_CheckExact(key) || PyLong_CheckExact(key); }

}  // namespace

nb::object make_layout(PyObject *const *keys, std::size_t size, bool sorted) {
    if (size > UINT32_MAX) {
        raise(PyExc_OverflowError, "a dict in a tree may have at most %u keys", UINT32_MAX);
    }
    // Owned at once: to make an object may run the garbage collector, and so any code.
    RefVector<32> held;
    held.reserve(size);
    for (std::size_t i = 0; i < size; ++i) held.push(nb::borrow(keys[i]));
    nb::object made = owned(reinterpret_cast<PyObject *>(
        PyObject_GC_NewVar(KeyLayout, layout_type, static_cast<Py_ssize_t>(size))));
    KeyLayout *layout = as_layout(made);
    std::copy_n(held.data(), size, layout->keys());
    held.truncate(0);

    std::uint32_t *order = layout->order(), *rank = layout->rank();
    if (sorted) {
        order_keys(layout->keys(), size, order);
    } else {
        std::iota(order, order + size, 0u);
    }
    for (std::size_t j = 0; j < size; ++j) rank[order[j]] = static_cast<std::uint32_t>(j);
    // Strings and ints cannot be part of a cycle, so the collector need not see them.
    if (!std::all_of(layout->keys(), layout->keys() + size, is_plain)) PyObject_GC_Track(layout);
    return made;
}

nb::object KeyLayout::leaf_keys() {
    nb::object list = owned(PyList_New(0));
    for (std::size_t j = 0; j < size(); ++j) checked(PyList_Append(list.ptr(), key(j)));
    return list;
}

nb::object KeyLayout::inserted_keys() {
    return owned(PyList_AsTuple(list_of(keys(), size()).ptr()));
}

bool KeyLayout::equal(KeyLayout *a, KeyLayout *b) {
    if (a == b) return true;
    if (a->size() != b->size()) return false;
    for (std::size_t j = 0; j < a->size(); ++j) {
        PyObject *x = a->key(j), *y = b->key(j);
        if (x != y && !checked(PyObject_RichCompareBool(x, y, Py_EQ))) return false;
    }
    return true;
}

void add_key_layout_type() {
    if (layout_type != nullptr) return;  // the module is imported again
    static PyType_Slot slots[] = {
        {Py_tp_dealloc, reinterpret_cast<void *>(dealloc)},
        {Py_tp_traverse, reinterpret_cast<void *>(traverse)},
        {0, nullptr},
    };
    static PyType_Spec spec = {
        "pytree_core._core.KeyLayout",
        sizeof(KeyLayout),
        sizeof(PyObject *) + 2 * sizeof(std::uint32_t),
        Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION |
            Py_TPFLAGS_IMMUTABLETYPE,
        slots,
    };
    layout_type = reinterpret_cast<PyTypeObject *>(owned(PyType_FromSpec(&spec)).release().ptr());
}

}  // namespace pytree
