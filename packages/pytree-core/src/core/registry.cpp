#include "registry.hpp"

#include <string>

namespace pytree {
namespace {

/// Never destroyed: at exit the interpreter is gone before static objects are.
std::unordered_map<std::string, TableRef> &tables() {
    static auto *all = new std::unordered_map<std::string, TableRef>;
    return *all;
}

TableRef &global_table() {
    static TableRef &table = tables()[""];
    return table;
}

std::string text(PyObject *name) {
    Py_ssize_t size = 0;
    const char *data = PyUnicode_AsUTF8AndSize(name, &size);
    if (data == nullptr) rethrow();
    return {data, static_cast<std::size_t>(size)};
}

TableRef table_of(PyObject *name) {
    auto found = tables().find(text(name));
    return found == tables().end() ? TableRef() : found->second;
}

}  // namespace

Snapshot::Snapshot(PyObject *name) : global_(global_table()) {
    if (name != nullptr) own_ = table_of(name);
}

PyObject *find_registration(PyObject *name, PyTypeObject *type) {
    return table_of(name).find(type);
}

void publish(nb::str name, nb::dict registrations) {
    auto *fresh = new Table;
    TableRef table(fresh);
    for (auto [type, registration] : registrations) {
        bool valid = PyType_Check(type.ptr()) && PyTuple_Check(registration.ptr()) &&
                     PyTuple_GET_SIZE(registration.ptr()) == 4 &&
                     PyTuple_GET_ITEM(registration.ptr(), 0) == type.ptr() &&
                     PyUnicode_Check(PyTuple_GET_ITEM(registration.ptr(), 3));
        if (!valid) raise(PyExc_TypeError, "expected registrations by type");
        fresh->registrations.emplace(reinterpret_cast<PyTypeObject *>(type.ptr()),
                                     nb::borrow(registration));
    }
    tables()[text(name.ptr())] = std::move(table);
}

Parts take_apart(Registration registration, PyObject *tree) {
    auto *cls = reinterpret_cast<PyObject *>(registration.cls());
    auto name = [&] { return owned(PyObject_GetAttrString(cls, "__qualname__")); };

    nb::object result = owned(PyObject_CallOneArg(registration.flatten_func(), tree));
    Py_ssize_t size = PyTuple_Check(result.ptr()) ? PyTuple_GET_SIZE(result.ptr()) : 0;
    if (size != 2 && size != 3) {
        raise(PyExc_TypeError,
              "The flatten function of %S must return (children, metadata) or "
              "(children, metadata, entries), got %R.",
              name().ptr(), result.ptr());
    }
    Parts parts{owned(PySequence_Tuple(PyTuple_GET_ITEM(result.ptr(), 0))),
                nb::borrow(PyTuple_GET_ITEM(result.ptr(), 1)), nb::none()};
    if (size == 3 && PyTuple_GET_ITEM(result.ptr(), 2) != Py_None) {
        parts.entries = owned(PySequence_Tuple(PyTuple_GET_ITEM(result.ptr(), 2)));
        Py_ssize_t children = PyTuple_GET_SIZE(parts.children.ptr());
        Py_ssize_t entries = PyTuple_GET_SIZE(parts.entries.ptr());
        if (children != entries) {
            raise(PyExc_ValueError,
                  "The flatten function of %S returned %zd children and %zd entries.", name().ptr(),
                  children, entries);
        }
    }
    return parts;
}

}  // namespace pytree
