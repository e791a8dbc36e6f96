// Looks at Python's tensors through DLPack or their attributes, and so at nothing of torch's ABI.

#include "look.hpp"

#include <algorithm>
#include <cstdint>
#include <optional>
#include <stdexcept>
#include <utility>
#include <vector>

#include "call.hpp"

namespace py = pybind11;

namespace diffopt {
namespace {

/// Not an error of the caller's: these are no plain tensors.
struct NotPlain : std::invalid_argument {
    NotPlain() : std::invalid_argument("no plain tensor") {}
};

void require(bool plain) {
    if (!plain) throw NotPlain();
}

struct Names {
    py::str is_neg{"is_neg"}, is_cpu{"is_cpu"}, is_cuda{"is_cuda"}, get_device{"get_device"};
    py::str dtype{"dtype"}, shape{"shape"}, stride{"stride"}, data_ptr{"data_ptr"};
};

const Names &names() {
    static const auto *found = new Names;  // never destroyed: at exit the interpreter is gone
    return *found;
}

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

template <typename Strides>
bool are_contiguous(const std::vector<std::int64_t> &shape, const Strides &strides) {
    bool contiguous = true;
    std::int64_t expected = 1;
    for (std::size_t k = shape.size(); k-- > 0;) {
        contiguous = contiguous && (shape[k] == 1 || strides[k] == expected);
        expected *= shape[k];
    }
    return contiguous || expected == 0;
}

/// Whether elements fill their memory, each once, in any order of the dimensions.
bool are_dense(const View &view) {
    if (view.contiguous) return true;
    std::vector<std::size_t> order;
    for (std::size_t k = 0; k < view.shape.size(); ++k)
        if (view.shape[k] != 1) order.push_back(k);
    std::sort(order.begin(), order.end(),
              [&](std::size_t a, std::size_t b) { return view.strides[a] < view.strides[b]; });
    std::int64_t expected = 1;
    for (const auto k : order) {
        if (view.strides[k] != expected) return false;
        expected *= view.shape[k];
    }
    return true;
}

Dtype dtype_of(const dlpack::DataType &given) {
    require(given.lanes == 1);
    if (given.code == dlpack::brain_floating && given.bits == 16) return Dtype::bfloat16;
    require(given.code == dlpack::floating);
    if (given.bits == 64) return Dtype::float64;
    if (given.bits == 32) return Dtype::float32;
    require(given.bits == 16);
    return Dtype::float16;
}

void read(PyObject *tensor, const dlpack::Exchange &exchange, View &view) {
    dlpack::Tensor found;
    if (exchange.describe(tensor, &found) != 0) throw py::error_already_set();
    require(found.device.type == dlpack::cpu || found.device.type == dlpack::cuda);
    view.device = found.device.type == dlpack::cpu ? Found::on_cpu : found.device.index;
    view.dtype = dtype_of(found.dtype);
    view.shape.assign(found.shape, found.shape + found.dimensions);
    view.contiguous = !found.strides || are_contiguous(view.shape, found.strides);
    view.strides.clear();
    if (!view.contiguous) view.strides.assign(found.strides, found.strides + found.dimensions);
    view.address = reinterpret_cast<std::uintptr_t>(found.data) + found.byte_offset;
}

void read(PyObject *tensor, const py::tuple &dtypes, View &view) {
    const auto &name = names();
    const bool is_on_cpu = is_true(get(tensor, name.is_cpu));
    require(is_on_cpu || is_true(get(tensor, name.is_cuda)));
    view.device = is_on_cpu ? Found::on_cpu : call(tensor, name.get_device).cast<int>();
    const auto dtype = get(tensor, name.dtype);
    std::size_t code = 0;
    while (code < dtypes.size() && !dtype.is(dtypes[code])) ++code;
    require(code < dtypes.size());
    view.dtype = static_cast<Dtype>(code);
    view.shape.clear();
    for (const auto &extent : py::tuple(get(tensor, name.shape)))
        view.shape.push_back(extent.cast<std::int64_t>());
    view.strides.clear();
    for (const auto &stride : py::tuple(call(tensor, name.stride)))
        view.strides.push_back(stride.cast<std::int64_t>());
    view.contiguous = are_contiguous(view.shape, view.strides);
    if (view.contiguous) view.strides.clear();
    view.address = call(tensor, name.data_ptr).cast<std::uintptr_t>();
}

/// The columns so far: their first one says what all must be.
struct Columns {
    void add(View &view, std::size_t row, bool is_first_column) {
        if (is_first_column && row == 0) found.device = view.device, found.dtype = view.dtype;
        require(view.device == found.device && view.dtype == found.dtype);
        const auto size = view.size();
        require(size == 0 || view.address != 0);
        found.contiguous = found.contiguous && view.contiguous;
        found.addresses.push_back(view.address);
        if (is_first_column) {
            found.sizes.push_back(size);
            found.strides.push_back(view.strides);
            found.shapes.push_back(std::move(view.shape));
        } else {
            require(view.shape == found.shapes[row]);
        }
    }

    /// Refuses one that does not lie in memory like the first of its row, without gaps.
    void require_order(const View &view, std::size_t row, bool is_first_column) const {
        require(is_first_column ? are_dense(view) : view.strides == found.strides[row]);
    }

    void add_absent() {
        found.complete = false;
        found.addresses.push_back(0);
    }

    Found found;
};

bool is_one_of(PyObject *type, const py::tuple &types) {
    for (const auto &candidate : types)
        if (candidate.ptr() == type) return true;
    return false;
}

/// What is looked for, or nothing where it is not plain.
template <typename Look>
auto if_plain(Look look) -> std::optional<decltype(look())> {
    try {
        return look();
    } catch (const NotPlain &) {
        return std::nullopt;
    } catch (const py::error_already_set &) {  // of a wrapper that has no memory, say
        return std::nullopt;
    }
}

}  // namespace

std::int64_t View::size() const {
    std::int64_t product = 1;
    for (const auto extent : shape) product *= extent;
    return product;
}

std::size_t View::bytes() const { return static_cast<std::size_t>(size()) * element_bytes(dtype); }

py::tuple flatten(const py::tuple &columns) {
    const auto null = py::reinterpret_steal<py::tuple>(nullptr);
    Py_ssize_t rows = -1;
    for (const auto &column : columns) {
        if (!PyList_Check(column.ptr()) && !PyTuple_Check(column.ptr())) return null;
        if (rows < 0) rows = PySequence_Fast_GET_SIZE(column.ptr());
        if (PySequence_Fast_GET_SIZE(column.ptr()) != rows) return null;
    }
    py::tuple flat(columns.empty() ? 0 : rows * columns.size());
    Py_ssize_t place = 0;
    for (const auto &column : columns)
        for (Py_ssize_t i = 0; i < rows; ++i)
            PyTuple_SET_ITEM(flat.ptr(), place++,
                             Py_NewRef(PySequence_Fast_GET_ITEM(column.ptr(), i)));
    return flat;
}

std::vector<PyObject *> items(const py::tuple &tuple) {
    std::vector<PyObject *> found(tuple.size());
    for (std::size_t i = 0; i < found.size(); ++i) found[i] = PyTuple_GET_ITEM(tuple.ptr(), i);
    return found;
}

Looker::Looker(py::tuple types, py::tuple dtypes, const py::object &exchange)
    : types_(std::move(types)), dtypes_(std::move(dtypes)) {
    is_neg_ = py::object(types_[0]).attr(names().is_neg);  // once: to find it takes half of a call
    if (exchange.is_none()) return;
    const auto *given = static_cast<const dlpack::Exchange *>(
        PyCapsule_GetPointer(exchange.ptr(), "dlpack_exchange_api"));
    if (!given) throw py::error_already_set();
    while (given && given->major > 1) given = given->older;
    if (given && given->major == 1 && given->describe) exchange_ = given;
}

void Looker::describe(PyObject *tensor, View &view) const {
    require(is_one_of(reinterpret_cast<PyObject *>(Py_TYPE(tensor)), types_));
    if (exchange_)
        read(tensor, *exchange_, view);
    else
        read(tensor, dtypes_, view);
}

void Looker::look_at(PyObject *tensor, View &view) const {
    describe(tensor, view);
    require(!is_true(steal(PyObject_Vectorcall(is_neg_.ptr(), &tensor, 1, nullptr))));
}

std::optional<View> Looker::look_at(PyObject *tensor) const {
    return if_plain([&] {
        View view;
        look_at(tensor, view);
        return view;
    });
}

std::optional<Found> Looker::look(const std::vector<PyObject *> &flat, std::size_t rows,
                                  std::size_t complete, bool anywhere) const {
    return if_plain([&] {
        Columns all;
        View view;
        for (std::size_t i = 0; i < flat.size(); ++i) {
            if (flat[i] == Py_None && i >= complete * rows) {
                all.add_absent();
                continue;
            }
            look_at(flat[i], view);
            if (!anywhere) {
                require(view.device == Found::on_cpu);
                all.require_order(view, i % rows, i < rows);
            }
            all.add(view, i % rows, i < rows);
        }
        return std::move(all.found);
    });
}

std::optional<Found> Looker::operator()(const py::tuple &columns, std::size_t complete) const {
    const auto held = flatten(columns);
    if (!held || held.empty()) return std::nullopt;
    return look(items(held), held.size() / columns.size(), complete, true);
}

std::optional<Found> Looker::look_on_cpu(const std::vector<PyObject *> &flat, std::size_t rows,
                                         std::size_t complete) const {
    return look(flat, rows, complete, false);
}

}  // namespace diffopt
