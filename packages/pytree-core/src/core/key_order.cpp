#include "key_order.hpp"

#include <algorithm>
#include <functional>
#include <numeric>
#include <vector>

namespace pytree {
namespace {

// Up to here insertion needs fewer steps than `std::sort`.
constexpr std::size_t kInsertionSortMax = 24;

/// A key with its beginning as two numbers that compare as it does, unless they are equal.
struct Item {
    std::uint64_t first, second;
    PyObject *key;
    std::uint32_t place;
};
using Items = SmallVector<Item, kInsertionSortMax>;

/// The first eight bytes as a number, the first byte highest; zeros after the end.
std::uint64_t big_endian(const unsigned char *text, std::size_t size) {
    if (size >= 8) {
        // Compilers know this as one load.
        return static_cast<std::uint64_t>(text[0]) << 56 |
               static_cast<std::uint64_t>(text[1]) << 48 |
               static_cast<std::uint64_t>(text[2]) << 40 |
               static_cast<std::uint64_t>(text[3]) << 32 |
               static_cast<std::uint64_t>(text[4]) << 24 |
               static_cast<std::uint64_t>(text[5]) << 16 |
               static_cast<std::uint64_t>(text[6]) << 8 | static_cast<std::uint64_t>(text[7]);
    }
    std::uint64_t value = 0;
    for (std::size_t i = 0; i < size; ++i) {
        value |= static_cast<std::uint64_t>(text[i]) << (56 - 8 * i);
    }
    return value;
}

bool ascii_less(const Item &a, const Item &b) {
    if (a.first != b.first) return a.first < b.first;
    if (a.second != b.second) return a.second < b.second;
    Py_ssize_t m = PyUnicode_GET_LENGTH(a.key), n = PyUnicode_GET_LENGTH(b.key);
    int sign = std::memcmp(PyUnicode_DATA(a.key), PyUnicode_DATA(b.key),
                           static_cast<std::size_t>(std::min(m, n)));
    return sign != 0 ? sign < 0 : m < n;
}

bool text_less(const Item &a, const Item &b) { return PyUnicode_Compare(a.key, b.key) < 0; }

bool number_less(const Item &a, const Item &b) { return a.first < b.first; }

template <typename Less>
void sort(Item *items, std::size_t size, std::uint32_t *order, Less less) {
    if (size <= kInsertionSortMax) {
        for (std::size_t i = 1; i < size; ++i) {
            if (!less(items[i], items[i - 1])) continue;
            Item moving = items[i];
            std::size_t j = i;
            for (; j > 0 && less(moving, items[j - 1]); --j) items[j] = items[j - 1];
            items[j] = moving;
        }
    } else if (!std::is_sorted(items, items + size, less)) {
        std::sort(items, items + size, less);
    }
    for (std::size_t j = 0; j < size; ++j) order[j] = items[j].place;
}

void add_ascii(PyObject *key, std::uint32_t place, Items &items) {
    auto *text = static_cast<const unsigned char *>(PyUnicode_DATA(key));
    auto size = static_cast<std::size_t>(PyUnicode_GET_LENGTH(key));
    items.push({big_endian(text, size), size > 8 ? big_endian(text + 8, size - 8) : 0, key, place});
}

bool order_strings(PyObject *const *keys, std::size_t size, std::uint32_t *order) {
    Items items;
    items.reserve(size);
    bool ascii = true;
    for (std::size_t i = 0; ascii && i < size; ++i) {
        if (!PyUnicode_CheckExact(keys[i])) return false;
        ascii = PyUnicode_IS_COMPACT_ASCII(keys[i]);
        if (ascii) add_ascii(keys[i], static_cast<std::uint32_t>(i), items);
    }
    if (ascii) {
        sort(items.data(), size, order, ascii_less);
        return true;
    }
    items.truncate(0);
    for (std::size_t i = 0; i < size; ++i) {
        if (!PyUnicode_CheckExact(keys[i])) return false;
        items.push({0, 0, keys[i], static_cast<std::uint32_t>(i)});
    }
    sort(items.data(), size, order, text_less);
    return true;
}

bool order_numbers(PyObject *const *keys, std::size_t size, std::uint32_t *order) {
    Items items;
    items.reserve(size);
    for (std::size_t i = 0; i < size; ++i) {
        int overflow = 1;
        long long value = 0;
        if (PyLong_CheckExact(keys[i])) value = PyLong_AsLongLongAndOverflow(keys[i], &overflow);
        if (overflow != 0) return false;
        auto shifted = static_cast<std::uint64_t>(value) ^ std::uint64_t{1} << 63;
        items.push({shifted, 0, keys[i], static_cast<std::uint32_t>(i)});
    }
    sort(items.data(), size, order, number_less);
    return true;
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

/// The keys sorted, by type first if need be; null if they cannot be sorted.
nb::object sorted_keys(PyObject *const *keys, std::size_t size) {
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

std::vector<std::uint32_t> by_address(PyObject *const *objects, std::size_t size) {
    std::vector<std::uint32_t> places(size);
    std::iota(places.begin(), places.end(), 0u);
    std::less<PyObject *> less;
    std::sort(places.begin(), places.end(),
              [&](auto a, auto b) { return less(objects[a], objects[b]); });
    return places;
}

/// Finds the sorted keys among those in the order of insertion: by identity, since to compare
/// them again would run their code. The result is a permutation in any case.
void find_order(const nb::object &sorted, PyObject *const *keys, std::uint32_t *order,
                std::size_t size) {
    std::vector<std::uint32_t> from = by_address(keys, size);
    std::vector<std::uint32_t> to = by_address(PySequence_Fast_ITEMS(sorted.ptr()), size);
    for (std::size_t i = 0; i < size; ++i) order[to[i]] = from[i];
}

}  // namespace

bool order_plain_keys(PyObject *const *keys, std::size_t size, std::uint32_t *order) {
    if (size <= 1) {
        if (size == 1) order[0] = 0;
        return true;
    }
    return PyUnicode_CheckExact(keys[0]) ? order_strings(keys, size, order)
                                         : order_numbers(keys, size, order);
}

void order_keys(PyObject *const *keys, std::size_t size, std::uint32_t *order) {
    if (order_plain_keys(keys, size, order)) return;
    std::iota(order, order + size, 0u);
    nb::object in_order = sorted_keys(keys, size);
    if (in_order.is_valid()) find_order(in_order, keys, order, size);
}

}  // namespace pytree
