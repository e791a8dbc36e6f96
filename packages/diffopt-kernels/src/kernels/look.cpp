// Looks at Python's tensors through their attributes, and so at nothing of torch's ABI.

#include "look.hpp"

#include <cstdint>
#include <vector>

namespace py = pybind11;

namespace diffopt {
namespace {

struct Names {
    py::str dtype{"dtype"}, shape{"shape"};
    py::str data_ptr{"data_ptr"}, numel{"numel"}, is_neg{"is_neg"}, is_contiguous{"is_contiguous"};
};

const Names &names() {
    static const auto *found = new Names;  // never destroyed: at exit the interpreter is gone
    return *found;
}

/// Not an error of the caller's: these are no plain tensors.
struct NotPlain {};

py::object steal(PyObject *object) {
    if (!object) throw py::error_already_set();
    return py::reinterpret_steal<py::object>(object);
}

py::object get(PyObject *object, const py::str &name) {
    return steal(PyObject_GetAttr(object, name.ptr()));
}

py::object call(PyObject *object, const py::str &name) {
    return steal(PyObject_VectorcallMethod(name.ptr(), &object, 1, nullptr));
}

bool is_true(const py::object &object) { return object.ptr() == Py_True; }

bool is_one_of(PyObject *type, const py::tuple &types) {
    for (const auto &candidate : types)
        if (candidate.ptr() == type) return true;
    return false;
}

class Looker {
   public:
    Looker(const py::tuple &types, const py::str &device) : types_(types), device_(device) {}

    void add(PyObject *tensor, std::size_t row, bool first_column) {
        const auto &name = names();
        if (!is_one_of(reinterpret_cast<PyObject *>(Py_TYPE(tensor)), types_) ||
            !is_true(get(tensor, device_)) || is_true(call(tensor, name.is_neg)))
            throw NotPlain();
        auto dtype = get(tensor, name.dtype), shape = get(tensor, name.shape);
        if (!dtype_) dtype_ = dtype;
        if (!dtype.is(dtype_)) throw NotPlain();
        if (first_column) {
            auto size = call(tensor, name.numel);
            is_empty_.push_back(PyLong_AsLongLong(size.ptr()) == 0);
            sizes.append(std::move(size));
            shapes_.push_back(std::move(shape));
        } else if (PyObject_RichCompareBool(shape.ptr(), shapes_[row].ptr(), Py_EQ) != 1) {
            throw NotPlain();
        }
        contiguous = contiguous && is_true(call(tensor, name.is_contiguous));
        auto address = call(tensor, name.data_ptr);
        if (!is_empty_[row] && PyLong_AsUnsignedLongLong(address.ptr()) == 0) throw NotPlain();
        addresses.append(std::move(address));
    }

    py::list sizes, addresses;
    bool contiguous = true;

   private:
    const py::tuple &types_;
    const py::str &device_;
    py::object dtype_;
    std::vector<py::object> shapes_;
    std::vector<bool> is_empty_;
};

}  // namespace

py::object look(const py::tuple &columns, const py::tuple &types, const py::str &device) {
    Looker looker(types, device);
    try {
        Py_ssize_t rows = -1;
        for (const auto &column : columns) {
            if (!PyList_Check(column.ptr()) && !PyTuple_Check(column.ptr())) return py::none();
            const bool first = rows < 0;
            const Py_ssize_t count = PySequence_Fast_GET_SIZE(column.ptr());
            if (first) rows = count;
            if (count != rows) return py::none();
            for (Py_ssize_t i = 0; i < count; ++i)
                looker.add(PySequence_Fast_GET_ITEM(column.ptr(), i), i, first);
        }
    } catch (const NotPlain &) {
        return py::none();
    } catch (const py::error_already_set &) {  // of a wrapper that has no memory, say
        return py::none();
    }
    return py::make_tuple(looker.sizes, looker.contiguous, looker.addresses);
}

}  // namespace diffopt
