// Arguments of functions that Python calls by METH_FASTCALL | METH_KEYWORDS.
#pragma once

#include "flatten.hpp"

namespace pytree {

/// What a call passes, as the interpreter hands it over.
struct Arguments {
    const char *function;  // its name, for errors
    PyObject *const *values;
    Py_ssize_t positional;
    PyObject *names;  // of the values behind the positional ones; null if there are none

    /// Throws TypeError unless there are at least `least` positional values, at most `most`.
    void check_count(Py_ssize_t least, Py_ssize_t most) const;
    /// Reads the keywords is_leaf, none_is_leaf and namespace, and `is_leaf` by position too, if
    /// `position` is that of a positional value.
    Options options(Py_ssize_t position) const;
};

}  // namespace pytree
