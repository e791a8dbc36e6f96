// Owning and raising, on both sides of the border to Python.
#pragma once

#include <nanobind/nanobind.h>

#include <cstdint>
#include <exception>
#include <new>
#include <utility>

namespace pytree {

namespace nb = nanobind;

/// Throws what Python has raised.
[[noreturn]] inline void rethrow() { nb::raise_python_error(); }

/// Owns a new reference, or throws what Python raised instead of making one.
inline nb::object owned(PyObject *made) {
    if (made == nullptr) rethrow();
    return nb::steal(made);
}

/// Passes a status of the C API on, or throws what Python raised.
inline int checked(int status) {
    if (status < 0) rethrow();
    return status;
}

/// A Python string.
inline nb::object literal(const char *text) { return owned(PyUnicode_FromString(text)); }

/// A list of these objects.
inline nb::object list_of(PyObject *const *items, std::size_t size) {
    nb::object list = owned(PyList_New(static_cast<Py_ssize_t>(size)));
    for (std::size_t i = 0; i < size; ++i) {
        Py_INCREF(items[i]);
        PyList_SET_ITEM(list.ptr(), static_cast<Py_ssize_t>(i), items[i]);
    }
    return list;
}

/// A tuple of these objects.
inline nb::object tuple_of(PyObject *const *items, std::size_t size) {
    nb::object tuple = owned(PyTuple_New(static_cast<Py_ssize_t>(size)));
    for (std::size_t i = 0; i < size; ++i) {
        Py_INCREF(items[i]);
        PyTuple_SET_ITEM(tuple.ptr(), static_cast<Py_ssize_t>(i), items[i]);
    }
    return tuple;
}

/// A pair of two objects, which it takes.
inline nb::object pair_of(nb::object a, nb::object b) {
    nb::object pair = owned(PyTuple_New(2));
    PyTuple_SET_ITEM(pair.ptr(), 0, a.release().ptr());
    PyTuple_SET_ITEM(pair.ptr(), 1, b.release().ptr());
    return pair;
}

/// Raises a Python exception with a text formatted as by `PyUnicode_FromFormat`.
template <typename... T>
[[noreturn]] void raise(PyObject *type, const char *format, T... values) {
    PyErr_Format(type, format, values...);
    rethrow();
}

/// Runs the body of a function that Python calls: C++ exceptions end here.
template <typename Body>
PyObject *guarded(Body &&body) noexcept {
    try {
        return nb::object(body()).release().ptr();
    } catch (nb::python_error &error) {
        error.restore();
    } catch (const std::bad_alloc &) {
        PyErr_NoMemory();
    } catch (const std::exception &error) {
        // nanobind throws some of its own while the error of Python is still set.
        if (!PyErr_Occurred()) PyErr_SetString(PyExc_RuntimeError, error.what());
    }
    return nullptr;
}

}  // namespace pytree
