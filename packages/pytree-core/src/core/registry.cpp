#include "registry.hpp"

#include <algorithm>
#include <string>
#include <unordered_map>

namespace pytree {
namespace {

/// Never destroyed: at exit the interpreter is gone before static objects are.
std::unordered_map<std::string, TableRef> &tables() {
    static auto *all = new std::unordered_map<std::string, TableRef>;
    return *all;
}

std::string text(PyObject *name) {
    Py_ssize_t size = 0;
    const char *data = PyUnicode_AsUTF8AndSize(name, &size);
    if (data == nullptr) rethrow();
    return {data, static_cast<std::size_t>(size)};
}

bool is_tuple(PyObject *object, Py_ssize_t size) {
    return PyTuple_Check(object) && PyTuple_GET_SIZE(object) == size;
}

bool are_names(PyObject *names) {
    if (!PyTuple_CheckExact(names)) return false;
    PyObject **first = PySequence_Fast_ITEMS(names), **last = first + PyTuple_GET_SIZE(names);
    return std::all_of(first, last, [](PyObject *name) { return PyUnicode_CheckExact(name); });
}

void check_registration(PyObject *type, PyObject *registration) {
    auto item = [&](Py_ssize_t i) { return PyTuple_GET_ITEM(registration, i); };
    bool valid = PyType_Check(type) && is_tuple(registration, Registration::kSize) &&
                 item(0) == type && PyUnicode_Check(item(3));
    valid = valid && (item(4) == Py_None ||
                      (is_tuple(item(4), 2) && are_names(PyTuple_GET_ITEM(item(4), 0)) &&
                       are_names(PyTuple_GET_ITEM(item(4), 1))));
    if (!valid) raise(PyExc_TypeError, "expected registrations by type");
}

}  // namespace

Table *global_table = nullptr;

TableRef table_named(PyObject *name) {
    auto found = tables().find(text(name));
    return found == tables().end() ? TableRef() : found->second;
}

PyObject *find_registration(PyObject *name, PyTypeObject *type) {
    TableRef table = table_named(name);
    const Table::Entry *entry = table.find(type);
    return entry == nullptr ? nullptr : entry->registration.ptr();
}

Table::Table(nb::dict registrations) : mask_(3) {
    while (mask_ < 2 * registrations.size()) mask_ = 2 * mask_ + 1;
    entries_.resize(mask_ + 1);
    for (auto [cls, registration] : registrations) {
        check_registration(cls.ptr(), registration.ptr());
        auto *type = reinterpret_cast<PyTypeObject *>(cls.ptr());
        std::size_t i = place(type);
        while (entries_[i].type != nullptr) i = (i + 1) & mask_;
        entries_[i] = {type, nb::borrow(registration), {}};
        Registration found{registration.ptr()};
        if (found.subtrees() != nullptr && PyTuple_GET_SIZE(found.statics()) == 0) {
            entries_[i].plain_data =
                owned(PyTuple_Pack(3, found.tuple, nb::tuple().ptr(), found.subtrees()));
        }
    }
}

void publish(nb::str name, nb::dict registrations) {
    TableRef table(new Table(registrations));
    if (nb::len(name) == 0) global_table = table.get();
    tables()[text(name.ptr())] = std::move(table);  // which keeps it alive
}

}  // namespace pytree
