// Objects of registered types, taken apart and rebuilt.
#include "registry.hpp"
#include "small_vector.hpp"

namespace pytree {
namespace {

nb::object attributes(PyObject *object, PyObject *names) {
    RefVector<16> values;
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(names); ++i) {
        values.push(owned(PyObject_GetAttr(object, PyTuple_GET_ITEM(names, i))));
    }
    return take_tuple(values);
}

void set_attributes(PyObject *object, PyObject *names, PyObject *values) {
    Py_ssize_t size = PyTuple_GET_SIZE(names);
    if (!PyTuple_Check(values) || PyTuple_GET_SIZE(values) != size) {
        raise(PyExc_ValueError, "expected values for the fields %R, got %R", names, values);
    }
    for (Py_ssize_t i = 0; i < size; ++i) {
        // As `object.__setattr__` does, which frozen dataclasses do not see.
        checked(PyObject_GenericSetAttr(object, PyTuple_GET_ITEM(names, i),
                                        PyTuple_GET_ITEM(values, i)));
    }
}

/// An object of a class whose constructor is not called.
nb::object new_object(PyObject *cls) {
    // The function of Python, which refuses classes that a plain object is too small for.
    static PyObject *const make =
        PyObject_GetAttrString(reinterpret_cast<PyObject *>(&PyBaseObject_Type), "__new__");
    return owned(PyObject_CallOneArg(make, cls));
}

}  // namespace

Parts take_apart(Registration registration, PyObject *tree) {
    if (registration.subtrees() != nullptr) {
        nb::object children = attributes(tree, registration.subtrees());
        return {std::move(children), attributes(tree, registration.statics()),
                nb::borrow(registration.subtrees())};
    }
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

nb::object put_together(Registration registration, PyObject *metadata, PyObject *children) {
    if (registration.subtrees() == nullptr) {
        PyObject *arguments[] = {metadata, children};
        return owned(PyObject_Vectorcall(registration.unflatten_func(), arguments, 2, nullptr));
    }
    nb::object made = new_object(PyTuple_GET_ITEM(registration.tuple, 0));
    set_attributes(made.ptr(), registration.subtrees(), children);
    set_attributes(made.ptr(), registration.statics(), metadata);
    return made;
}

}  // namespace pytree
