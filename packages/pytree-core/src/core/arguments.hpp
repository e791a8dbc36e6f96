// Arguments of functions that Python calls by METH_FASTCALL | METH_KEYWORDS.
#pragma once

#include "flatten.hpp"

namespace pytree {

/// What a call passes, as the interpreter hands it over.
class Arguments {
   public:
    /// `names` are those of the values behind the positional ones, or null.
    Arguments(const char *function, PyObject *const *values, Py_ssize_t positional, PyObject *names)
        : function(function), values(values), positional(positional), names(names) {}

    /// Throws TypeError unless there are at least `least` positional values, at most `most`.
    void check_count(Py_ssize_t least, Py_ssize_t most) const {
        if (positional < least || positional > most) refuse_count(least, most);
    }
    /// Reads the keywords is_leaf, none_is_leaf and namespace, and `is_leaf` by position too, if
    /// `position` is that of a positional value.
    Options options(Py_ssize_t position) const {
        bool given = names != nullptr || position < positional;
        return given ? read_options(position) : Options();
    }

   private:
    [[noreturn]] void refuse_count(Py_ssize_t least, Py_ssize_t most) const;
    Options read_options(Py_ssize_t position) const;

    const char *function;  // its name, for errors
    PyObject *const *values;
    Py_ssize_t positional;
    PyObject *names;
};

}  // namespace pytree
