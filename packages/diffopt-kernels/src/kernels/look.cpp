// Looks at Python's tensors through DLPack or their attributes, and so at nothing of torch's ABI.

#include "look.hpp"

#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "call.hpp"

namespace py = pybind11;

namespace diffopt {
namespace {

/// Not an error of the caller's: these are no plain tensors.
struct NotPlain {};

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

/// What one tensor is.
struct View {
    std::uintptr_t address;
    int device;
    Dtype dtype;
    std::vector<std::int64_t> shape;
    bool contiguous;

    std::int64_t size() const {
        std::int64_t product = 1;
        for (const auto extent : shape) product *= extent;
        return product;
    }

    template <typename Strides>
    void set_contiguous(const Strides &strides) {
        contiguous = true;
        std::int64_t expected = 1;
        for (std::size_t k = shape.size(); k-- > 0;) {
            contiguous = contiguous && (shape[k] == 1 || strides[k] == expected);
            expected *= shape[k];
        }
        contiguous = contiguous || expected == 0;
    }
};

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
    view.contiguous = true;
    if (found.strides) view.set_contiguous(found.strides);
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
    std::vector<std::int64_t> strides;
    for (const auto &stride : py::tuple(call(tensor, name.stride)))
        strides.push_back(stride.cast<std::int64_t>());
    view.set_contiguous(strides);
    view.address = call(tensor, name.data_ptr).cast<std::uintptr_t>();
}

/// The columns so far: their first one says what all must be.
class Columns {
   public:
    void add(View &view, std::size_t row, bool is_first_column) {
        if (is_first_column && row == 0) found.device = view.device, found.dtype = view.dtype;
        require(view.device == found.device && view.dtype == found.dtype);
        const auto size = view.size();
        require(size == 0 || view.address != 0);
        found.contiguous = found.contiguous && view.contiguous;
        found.addresses.push_back(view.address);
        if (is_first_column) {
            found.sizes.push_back(size);
            shapes_.push_back(std::move(view.shape));
        } else {
            require(view.shape == shapes_[row]);
        }
    }

    void add_absent() {
        found.complete = false;
        found.addresses.push_back(0);
    }

    Found found;

   private:
    std::vector<std::vector<std::int64_t>> shapes_;
};

bool is_one_of(PyObject *type, const py::tuple &types) {
    for (const auto &candidate : types)
        if (candidate.ptr() == type) return true;
    return false;
}

}  // namespace

Looker::Looker(py::tuple types, py::tuple dtypes, const py::object &exchange)
    : types_(std::move(types)), dtypes_(std::move(dtypes)) {
    if (exchange.is_none()) return;
    const auto *given = static_cast<const dlpack::Exchange *>(
        PyCapsule_GetPointer(exchange.ptr(), "dlpack_exchange_api"));
    if (!given) throw py::error_already_set();
    while (given && given->major > 1) given = given->older;
    if (given && given->major == 1 && given->describe) exchange_ = given;
}

std::optional<Found> Looker::operator()(const py::tuple &columns, std::size_t complete) const {
    Columns all;
    View view;
    try {
        Py_ssize_t rows = -1;
        std::size_t place = 0;
        for (const auto &column : columns) {
            require(PyList_Check(column.ptr()) || PyTuple_Check(column.ptr()));
            const bool is_first = rows < 0, may_lack = place++ >= complete;
            if (is_first) rows = PySequence_Fast_GET_SIZE(column.ptr());
            require(rows > 0 && PySequence_Fast_GET_SIZE(column.ptr()) == rows);
            for (Py_ssize_t i = 0; i < rows; ++i) {
                PyObject *tensor = PySequence_Fast_GET_ITEM(column.ptr(), i);
                if (may_lack && tensor == Py_None) {
                    all.add_absent();
                    continue;
                }
                require(is_one_of(reinterpret_cast<PyObject *>(Py_TYPE(tensor)), types_));
                require(!is_true(call(tensor, names().is_neg)));
                if (exchange_)
                    read(tensor, *exchange_, view);
                else
                    read(tensor, dtypes_, view);
                all.add(view, i, is_first);
            }
        }
    } catch (const NotPlain &) {
        return std::nullopt;
    } catch (const py::error_already_set &) {  // of a wrapper that has no memory, say
        return std::nullopt;
    }
    return std::move(all.found);
}

}  // namespace diffopt
