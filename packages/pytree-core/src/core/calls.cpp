#include "calls.hpp"

#include "arguments.hpp"
#include "calls_docs.hpp"
#include "compare.hpp"
#include "layout_cache.hpp"
#include "paths.hpp"
#include "treespec.hpp"
#include "unflatten.hpp"

namespace pytree {
namespace {

using Values = PyObject *const *;

PyObject *tree_flatten(PyObject *, Values values, Py_ssize_t count, PyObject *names) {
    return guarded([&] {
        Arguments arguments{"tree_flatten", values, count, names};
        arguments.check_count(1, 2);
        Flattener flattener(arguments.options(1));
        if (flattener.is_plain_leaf(values[0])) return pair_of(list_of(values, 1), leaf_treespec());
        flattener.run(values[0], true);
        nb::object leaves = take_list(flattener.leaves());
        return pair_of(std::move(leaves), make_treespec(flattener.nodes()));
    });
}

PyObject *tree_leaves(PyObject *, Values values, Py_ssize_t count, PyObject *names) {
    return guarded([&] {
        Arguments arguments{"tree_leaves", values, count, names};
        arguments.check_count(1, 2);
        Flattener flattener(arguments.options(1));
        if (flattener.is_plain_leaf(values[0])) return list_of(values, 1);
        flattener.run(values[0], false);
        return take_list(flattener.leaves());
    });
}

PyObject *tree_structure(PyObject *, Values values, Py_ssize_t count, PyObject *names) {
    return guarded([&] {
        Arguments arguments{"tree_structure", values, count, names};
        arguments.check_count(1, 2);
        Flattener flattener(arguments.options(1));
        flattener.run(values[0], true);
        return make_treespec(flattener.nodes());
    });
}

PyObject *tree_is_leaf(PyObject *, Values values, Py_ssize_t count, PyObject *names) {
    return guarded([&] {
        Arguments arguments{"tree_is_leaf", values, count, names};
        arguments.check_count(1, 2);
        Options options = arguments.options(1);
        if (is_declared_leaf(options.is_leaf, values[0])) return nb::bool_(true);
        Classifier classifier(Snapshot(options.name), options.none_is_leaf);
        return nb::bool_(classifier.classify(values[0]).kind == Kind::Leaf);
    });
}

PyObject *flatten_one_level(PyObject *, Values values, Py_ssize_t count, PyObject *names) {
    return guarded([&] {
        Arguments arguments{"flatten_one_level", values, count, names};
        arguments.check_count(1, 2);
        Options options = arguments.options(1);
        options.one_level = true;
        Flattener flattener(options);
        flattener.run(values[0], true);
        nb::object children = take_list(flattener.leaves());
        return pair_of(std::move(children), make_treespec(flattener.nodes()));
    });
}

PyObject *tree_unflatten(PyObject *, Values values, Py_ssize_t count, PyObject *names) {
    return guarded([&] {
        Arguments arguments{"tree_unflatten", values, count, nullptr};
        arguments.check_count(2, 2);
        if (names != nullptr && PyTuple_GET_SIZE(names) != 0) {
            raise(PyExc_TypeError, "tree_unflatten() takes no keyword arguments");
        }
        NodeView nodes = view_of(values[0]);
        return unflatten(nodes, GivenLeaves(values[1], nodes.root().num_leaves));
    });
}

/// Calls `func` on each leaf and on what the other trees have there.
///
/// The columns hold all leaves, then what the next tree has at them, and so on.
void map_rows(PyObject *func, const RefVector<128> &columns, std::size_t leaves, std::size_t width,
              RefVector<128> &results) {
    SmallVector<PyObject *, 8> row;
    row.reserve(width + 1);
    results.reserve(leaves);
    for (std::size_t i = 0; i < leaves; ++i) {
        PyObject **values = row.data() + 1;  // behind a place that the called function may use
        for (std::size_t k = 0; k < width; ++k) values[k] = columns[k * leaves + i];
        std::size_t size = width | PY_VECTORCALL_ARGUMENTS_OFFSET;
        results.push(owned(PyObject_Vectorcall(func, values, size, nullptr)));
    }
}

PyObject *tree_map(PyObject *, Values values, Py_ssize_t count, PyObject *names) {
    return guarded([&] {
        Arguments arguments{"tree_map", values, count, names};
        arguments.check_count(2, PY_SSIZE_T_MAX);
        Flattener flattener(arguments.options(PY_SSIZE_T_MAX));
        flattener.run(values[1], true);
        NodeView nodes = flattener.nodes().view();
        RefVector<128> &columns = flattener.leaves(), results;
        for (Py_ssize_t k = 2; k < count; ++k) flatten_exactly(nodes, values[k], columns);
        auto width = static_cast<std::size_t>(count - 1);
        map_rows(values[0], columns, nodes.root().num_leaves, width, results);
        return unflatten(nodes, results);
    });
}

PyObject *tree_flatten_with_path(PyObject *, Values values, Py_ssize_t count, PyObject *names) {
    return guarded([&] {
        Arguments arguments{"tree_flatten_with_path", values, count, names};
        arguments.check_count(1, 2);
        Flattener flattener(arguments.options(1));
        flattener.run(values[0], true);
        RefVector<128> found;
        leaf_paths(flattener.nodes().view(), found);
        nb::object paths = take_list(found), leaves = take_list(flattener.leaves());
        nb::object treespec = make_treespec(flattener.nodes());
        return owned(PyTuple_Pack(3, paths.ptr(), leaves.ptr(), treespec.ptr()));
    });
}

PyObject *tree_map_with_path(PyObject *, Values values, Py_ssize_t count, PyObject *names) {
    return guarded([&] {
        Arguments arguments{"tree_map_with_path", values, count, names};
        arguments.check_count(2, PY_SSIZE_T_MAX);
        Flattener flattener(arguments.options(PY_SSIZE_T_MAX));
        flattener.run(values[1], true);
        NodeView nodes = flattener.nodes().view();
        RefVector<128> columns, results;
        leaf_paths(nodes, columns);
        push_items(flattener.leaves().data(), flattener.leaves().size(), columns);
        for (Py_ssize_t k = 2; k < count; ++k) flatten_exactly(nodes, values[k], columns);
        auto width = static_cast<std::size_t>(count);
        map_rows(values[0], columns, nodes.root().num_leaves, width, results);
        return unflatten(nodes, results);
    });
}

PyObject *clear_cache(PyObject *, PyObject *) {
    clear_layouts();
    Py_RETURN_NONE;
}

template <typename Function>
PyMethodDef method(const char *name, Function function, const char *doc) {
    // The detour over a plain function pointer is how CPython itself stores such functions.
    return {name, reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(function)),
            METH_FASTCALL | METH_KEYWORDS, doc};
}

}  // namespace

void add_calls(nb::module_ &module) {
    static PyMethodDef calls[] = {
        method("tree_flatten", tree_flatten, tree_flatten_doc),
        method("tree_leaves", tree_leaves, tree_leaves_doc),
        method("tree_structure", tree_structure, tree_structure_doc),
        method("flatten_one_level", flatten_one_level, flatten_one_level_doc),
        method("tree_is_leaf", tree_is_leaf, tree_is_leaf_doc),
        method("tree_unflatten", tree_unflatten, tree_unflatten_doc),
        method("tree_map", tree_map, tree_map_doc),
        method("tree_flatten_with_path", tree_flatten_with_path, tree_flatten_with_path_doc),
        method("tree_map_with_path", tree_map_with_path, tree_map_with_path_doc),
        {"clear_cache", clear_cache, METH_NOARGS, clear_cache_doc},
        {nullptr, nullptr, 0, nullptr},
    };
    checked(PyModule_AddFunctions(module.ptr(), calls));
}

}  // namespace pytree
