#include "arguments.hpp"

namespace pytree {
namespace {

void set_is_leaf(PyObject *value, Options &options) {
    if (value != Py_None) options.is_leaf = value;
}

void set_namespace(PyObject *value, Options &options) {
    if (!PyUnicode_Check(value)) {
        raise(PyExc_TypeError, "`namespace` must be a string, got %R.", value);
    }
    if (PyUnicode_GetLength(value) != 0) options.name = value;
}

}  // namespace

void Arguments::refuse_count(Py_ssize_t least, Py_ssize_t most) const {
    if (positional < least) {
        raise(PyExc_TypeError, "%s() needs %zd positional arguments, got %zd", function, least,
              positional);
    }
    raise(PyExc_TypeError, "%s() takes at most %zd positional arguments, got %zd", function, most,
          positional);
}

Options Arguments::read_options(Py_ssize_t position) const {
    Options options;
    bool placed = position < positional;
    if (placed) set_is_leaf(values[position], options);
    Py_ssize_t named = names == nullptr ? 0 : PyTuple_GET_SIZE(names);
    for (Py_ssize_t i = 0; i < named; ++i) {
        PyObject *name = PyTuple_GET_ITEM(names, i), *value = values[positional + i];
        auto is = [name](const char *text) {
            return PyUnicode_CompareWithASCIIString(name, text) == 0;
        };
        if (is("is_leaf") && !placed) {
            set_is_leaf(value, options);
        } else if (is("none_is_leaf")) {
            options.none_is_leaf = checked(PyObject_IsTrue(value)) != 0;
        } else if (is("namespace")) {
            set_namespace(value, options);
        } else {
            raise(PyExc_TypeError, "%s() got an unexpected or repeated argument %R", function,
                  name);
        }
    }
    return options;
}

}  // namespace pytree
