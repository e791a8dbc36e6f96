#include "key_layout.hpp"

#include <algorithm>
#include <functional>
#include <numeric>
#include <vector>

namespace pytree {
namespace {

PyTypeObject *layout_type = nullptr;

// From here on the timsort of list.sort is faster, above all on keys that are sorted already.
constexpr std::size_t kInsertionSortMax = 24;

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

bool string_less(PyObject *a, PyObject *b) {
    if (PyUnicode_IS_COMPACT_ASCII(a) && PyUnicode_IS_COMPACT_ASCII(b)) {
        Py_ssize_t m = PyUnicode_GET_LENGTH(a), n = PyUnicode_GET_LENGTH(b);
        int sign = std::memcmp(PyUnicode_DATA(a), PyUnicode_DATA(b),
                               static_cast<std::size_t>(std::min(m, n)));
        return sign != 0 ? sign < 0 : m < n;
    }
    return PyUnicode_Compare(a, b) < 0;
}

void insertion_sort(PyObject **keys, std::uint32_t *order, std::size_t size) {
    for (std::size_t i = 1; i < size; ++i) {
        std::uint32_t moving = order[i];
        std::size_t j = i;
        for (; j > 0 && string_less(keys[moving], keys[order[j - 1]]); --j) order[j] = order[j - 1];
        order[j] = moving;
    }
}

/// Sorts a list; false, without an exception, if its elements cannot be compared.
bool sort_list(const nb::object &list) {
    if (PyList_Sort(list.ptr()) == 0) return true;
    if (!PyErr_ExceptionMatches(PyExc_TypeError)) rethrow();
    PyErr_Clear();
    return false;
}

nb::object qualified_name(PyObject *key) {
    auto *type = reinterpret_cast<PyObject *>(Py_TYPE(key));
    nb::object module = owned(PyObject_GetAttrString(type, "__module__"));
    nb::object name = owned(PyObject_GetAttrString(type, "__qualname__"));
    return owned(PyUnicode_FromFormat("%S.%S", module.ptr(), name.ptr()));
}

nb::object list_of(PyObject **items, std::size_t size) {
    nb::object list = owned(PyList_New(static_cast<Py_ssize_t>(size)));
    for (std::size_t i = 0; i < size; ++i) {
        Py_INCREF(items[i]);
        PyList_SET_ITEM(list.ptr(), static_cast<Py_ssize_t>(i), items[i]);
    }
    return list;
}

/// The keys sorted, by type first if need be; null if they cannot be sorted.
nb::object sorted_keys(PyObject **keys, std::size_t size) {
    nb::object list = list_of(keys, size);
    if (sort_list(list)) return list;
    nb::object pairs = owned(PyList_New(0));
    for (std::size_t i = 0; i < size; ++i) {
        nb::object pair = owned(PyTuple_Pack(2, qualified_name(keys[i]).ptr(), keys[i]));
        checked(PyList_Append(pairs.ptr(), pair.ptr()));
    }
    if (!sort_list(pairs)) return {};
    list = owned(PyList_New(0));
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(pairs.ptr()); ++i) {
        checked(PyList_Append(list.ptr(), PyTuple_GET_ITEM(PyList_GET_ITEM(pairs.ptr(), i), 1)));
    }
    return list;
}

std::vector<std::uint32_t> by_address(PyObject **objects, std::size_t size) {
    std::vector<std::uint32_t> places(size);
    std::iota(places.begin(), places.end(), 0u);
    std::less<PyObject *> less;
    std::sort(places.begin(), places.end(),
              [&](auto a, auto b) { return less(objects[a], objects[b]); });
    return places;
}

/// Finds the sorted keys among those in the order of insertion: by identity, since to compare
/// them again would run their code. The result is a permutation in any case.
void find_order(const nb::object &sorted, PyObject **keys, std::uint32_t *order, std::size_t size) {
    std::vector<std::uint32_t> from = by_address(keys, size);
    std::vector<std::uint32_t> to = by_address(PySequence_Fast_ITEMS(sorted.ptr()), size);
    for (std::size_t i = 0; i < size; ++i) order[to[i]] = from[i];
}

}  // namespace

KeyLayoutBuilder::KeyLayoutBuilder(std::size_t size) {
    if (size > UINT32_MAX) {
        raise(PyExc_OverflowError, "a dict in a tree may have at most %u keys", UINT32_MAX);
    }
    layout_ = owned(reinterpret_cast<PyObject *>(
        PyObject_GC_NewVar(KeyLayout, layout_type, static_cast<Py_ssize_t>(size))));
    std::fill_n(layout()->keys(), size, nullptr);
}

void KeyLayoutBuilder::push(PyObject *key) {
    Py_INCREF(key);
    layout()->keys()[count_++] = key;
    all_strings_ = all_strings_ && PyUnicode_CheckExact(key);
}

nb::object KeyLayoutBuilder::finish(bool sorted) {
    std::size_t size = layout()->size();
    PyObject **keys = layout()->keys();
    std::uint32_t *order = layout()->order(), *rank = layout()->rank();
    std::iota(order, order + size, 0u);
    if (sorted && all_strings_ && size <= kInsertionSortMax) {
        insertion_sort(keys, order, size);
    } else if (sorted) {
        nb::object in_order = sorted_keys(keys, size);
        if (in_order.is_valid()) find_order(in_order, keys, order, size);
    }
    for (std::size_t j = 0; j < size; ++j) rank[order[j]] = static_cast<std::uint32_t>(j);
    // Strings cannot be part of a cycle, so the collector need not see them.
    if (!all_strings_) PyObject_GC_Track(layout_.ptr());
    return std::move(layout_);
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
        if (!checked(PyObject_RichCompareBool(a->key(j), b->key(j), Py_EQ))) return false;
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
