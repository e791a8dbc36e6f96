#include "key_layout.hpp"

#include <algorithm>
#include <numeric>

#include "key_order.hpp"

namespace pytree {
namespace {

// Of strings and ints alone, which cannot be part of a cycle: unknown to the garbage collector.
PyTypeObject *plain_type = nullptr;
PyTypeObject *layout_type = nullptr;

KeyLayout *self_of(PyObject *self) { return reinterpret_cast<KeyLayout *>(self); }

void release(PyObject *self, PyTypeObject *type) {
    KeyLayout *layout = self_of(self);
    Py_XDECREF(layout->model);
    for (std::size_t i = 0; i < layout->size(); ++i) Py_XDECREF(layout->keys()[i]);
    type->tp_free(self);
    Py_DECREF(type);
}

void dealloc_plain(PyObject *self) { release(self, Py_TYPE(self)); }

void dealloc(PyObject *self) {
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    Py_TRASHCAN_BEGIN(self, dealloc);
    release(self, type);
    Py_TRASHCAN_END;
}

// Like a tuple a layout needs no tp_clear: a cycle through it has a mutable member elsewhere.
int traverse(PyObject *self, visitproc visit, void *arg) {
    Py_VISIT(Py_TYPE(self));
    KeyLayout *layout = self_of(self);
    Py_VISIT(layout->model);
    for (std::size_t i = 0; i < layout->size(); ++i) Py_VISIT(layout->keys()[i]);
    return 0;
}

bool is_plain_key(PyObject *key) { return PyUnicode_CheckExact(key) || PyLong_CheckExact(key); }

nb::object hold_plain_keys(PyObject *const *keys, std::size_t size) {
    nb::object made = owned(reinterpret_cast<PyObject *>(
        PyObject_NewVar(KeyLayout, plain_type, static_cast<Py_ssize_t>(size))));
    as_layout(made)->model = nullptr;
    for (std::size_t i = 0; i < size; ++i) as_layout(made)->keys()[i] = Py_NewRef(keys[i]);
    return made;
}

nb::object hold_keys(PyObject *const *keys, std::size_t size) {
    // Owned at once: to make an object may run the garbage collector, and so any code.
    RefVector<32> held;
    push_items(keys, size, held);
    nb::object made = owned(reinterpret_cast<PyObject *>(
        PyObject_GC_NewVar(KeyLayout, layout_type, static_cast<Py_ssize_t>(size))));
    as_layout(made)->model = nullptr;
    std::copy_n(held.data(), size, as_layout(made)->keys());
    held.truncate(0);
    return made;
}

}  // namespace

nb::object make_layout(PyObject *const *keys, std::size_t size, bool sorted) {
    if (size > UINT32_MAX) {
        raise(PyExc_OverflowError, "a dict in a tree may have at most %u keys", UINT32_MAX);
    }
    nb::object made = std::all_of(keys, keys + size, is_plain_key) ? hold_plain_keys(keys, size)
                                                                   : hold_keys(keys, size);
    KeyLayout *layout = as_layout(made);
    std::uint32_t *order = layout->order(), *rank = layout->rank();
    if (sorted) {
        order_keys(layout->keys(), size, order);
    } else {
        std::iota(order, order + size, 0u);
    }
    for (std::size_t j = 0; j < size; ++j) rank[order[j]] = static_cast<std::uint32_t>(j);
    if (!layout->is_plain()) PyObject_GC_Track(layout);
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

bool KeyLayout::is_plain() const { return Py_TYPE(this) == plain_type; }

nb::object KeyLayout::new_dict() {
    if (model == nullptr) {
        nb::object made = owned(PyDict_New());
        for (std::size_t i = 0; i < size(); ++i) {
            checked(PyDict_SetItem(made.ptr(), keys()[i], Py_None));
        }
        model = made.release().ptr();
    }
    return owned(PyDict_Copy(model));
}

bool KeyLayout::equal(KeyLayout *a, KeyLayout *b) {
    if (a == b) return true;
    if (a->size() != b->size()) return false;
    // Most often the keys are the same objects in the same places.
    bool same = std::equal(a->keys(), a->keys() + a->size(), b->keys()) &&
                std::equal(a->order(), a->order() + a->size(), b->order());
    if (same) return true;
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
    static PyType_Slot plain_slots[] = {
        {Py_tp_dealloc, reinterpret_cast<void *>(dealloc_plain)},
        {0, nullptr},
    };
    auto make = [](unsigned gc, PyType_Slot *slots) {
        PyType_Spec spec = {
            "pytree_core._native.KeyLayout",
            sizeof(KeyLayout),
            sizeof(PyObject *) + 2 * sizeof(std::uint32_t),
            static_cast<unsigned>(Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION |
                                  Py_TPFLAGS_IMMUTABLETYPE) |
                gc,
            slots,
        };
        return reinterpret_cast<PyTypeObject *>(owned(PyType_FromSpec(&spec)).release().ptr());
    };
    layout_type = make(Py_TPFLAGS_HAVE_GC, slots);
    plain_type = make(0, plain_slots);
}

}  // namespace pytree
