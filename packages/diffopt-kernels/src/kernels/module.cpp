// Bindings, and nothing else. Python has checked what it passes: see _native.pyi and _fused.py.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>

#include "cpu.hpp"
#include "look.hpp"
#ifdef DIFFOPT_CUDA
#include "cuda.hpp"
#endif

namespace py = pybind11;

namespace {

using diffopt::Call;
using diffopt::Found;
using diffopt::Tensor;
using Numbers = std::vector<double>;

void expect(bool right, const char *what) {
    if (!right) throw std::invalid_argument(what);
}

/// A list or tuple of numbers. (pybind11's own way takes as long as a small step.)
template <typename T, typename Convert>
std::vector<T> read(const py::object &numbers, Convert convert) {
    const auto list = py::reinterpret_steal<py::object>(
        PySequence_Fast(numbers.ptr(), "a list or tuple of numbers is expected"));
    if (!list) throw py::error_already_set();
    std::vector<T> found(static_cast<std::size_t>(PySequence_Fast_GET_SIZE(list.ptr())));
    for (std::size_t i = 0; i < found.size(); ++i)
        found[i] = static_cast<T>(convert(PySequence_Fast_GET_ITEM(list.ptr(), i)));
    if (PyErr_Occurred()) throw py::error_already_set();
    return found;
}

/// Whether all are floats of at least 0 and less than their bounds.
bool are_plain(const py::tuple &numbers, const py::tuple &bounds) {
    expect(numbers.size() == bounds.size(), "bounds: wrong count");
    for (std::size_t i = 0; i < numbers.size(); ++i) {
        PyObject *number = PyTuple_GET_ITEM(numbers.ptr(), i);
        if (!PyFloat_CheckExact(number)) return false;
        const double value = PyFloat_AS_DOUBLE(number);
        if (!(0 <= value && value < PyFloat_AsDouble(PyTuple_GET_ITEM(bounds.ptr(), i))))
            return false;
    }
    return true;
}

/// What a step is told, but for its outputs.
struct Request {
    Call call;
    std::vector<Tensor> tensors;
    std::size_t states;
    Numbers hyper;

    Request(int rule, int variant, int decay, bool maximize, const py::object &numbers,
            const py::object &steps, const Found &found)
        : tensors(found.sizes.size()), hyper(read<double>(numbers, PyFloat_AsDouble)) {
        const auto &rules = diffopt::rules();
        expect(0 <= rule && rule < static_cast<int>(rules.size()), "rule: unknown code");
        const auto &info = rules[rule];
        expect(0 <= variant && variant < static_cast<int>(info.states.size()),
               "variant: unknown code");
        expect(0 <= decay && decay <= 2, "decay: unknown code");
        const std::size_t width = info.hypers + 1, rows = tensors.size();
        const auto each = read<std::int64_t>(steps, PyLong_AsLongLong);
        expect(hyper.size() == width || hyper.size() == width * rows, "hyper: wrong count");
        expect(each.size() == rows, "steps: wrong count");
        states = info.states[variant];
        call = {rule,     variant, found.dtype, static_cast<diffopt::Decay>(decay),
                maximize, false,   false};
        const std::size_t stride = hyper.size() == width ? 0 : width;
        for (std::size_t i = 0; i < rows; ++i) {
            tensors[i].size = found.sizes[i], tensors[i].step = each[i];
            tensors[i].hyper = hyper.data() + i * stride;
        }
    }
    Request(const Request &) = delete;  // the tensors point into it
};

/// Reads addresses: one column for each array, one row for each tensor.
class Columns {
   public:
    Columns(const std::vector<std::uintptr_t> &addresses, std::size_t rows, const char *name)
        : next_(addresses.data()), end_(next_ + addresses.size()), rows_(rows), name_(name) {}

    /// Gives the next column to a member of each tensor.
    template <typename Member>
    void give(std::vector<Tensor> &tensors, Member member) {
        expect(static_cast<std::size_t>(end_ - next_) >= rows_, name_);
        for (std::size_t i = 0; i < rows_; ++i)
            member(tensors[i]) = reinterpret_cast<void *>(next_[i]);
        next_ += rows_;
    }

    void finish() const { expect(next_ == end_, name_); }

   private:
    const std::uintptr_t *next_, *end_;
    std::size_t rows_;
    const char *name_;
};

/// The inputs of the step itself. Parameters that are not used may follow.
Columns place_inputs(Request &request, const Found &found) {
    auto &tensors = request.tensors;
    Columns columns(found.addresses, tensors.size(), "found: wrong count");
    columns.give(tensors, [](Tensor &t) -> auto & { return t.g; });
    for (std::size_t k = 0; k < request.states; ++k)
        columns.give(tensors, [k](Tensor &t) -> auto & { return t.states[k]; });
    if (request.call.decay != diffopt::Decay::none || request.call.in_place)
        columns.give(tensors, [](Tensor &t) -> auto & { return t.p; });
    return columns;
}

void place_forward(Request &request, const Found &found, const py::object &outputs) {
    auto &tensors = request.tensors;
    expect(found.complete, "found: not complete");
    place_inputs(request, found);
    const auto addresses = read<std::uintptr_t>(outputs, PyLong_AsUnsignedLongLong);
    for (std::size_t i = 0; i < addresses.size(); ++i)
        expect(addresses[i] || tensors[i % tensors.size()].size == 0, "outputs: not complete");
    Columns columns(addresses, tensors.size(), "outputs: wrong count");
    columns.give(tensors, [](Tensor &t) -> auto & { return t.out_update; });
    for (std::size_t k = 0; k < request.states; ++k)
        columns.give(tensors, [k](Tensor &t) -> auto & { return t.out_states[k]; });
    columns.finish();
}

void place_vjp(Request &request, const Found &found, const py::object &outputs) {
    auto &tensors = request.tensors;
    Columns cotangents = place_inputs(request, found);
    cotangents.give(tensors, [](Tensor &t) -> auto & { return t.d_update; });
    for (std::size_t k = 0; k < request.states; ++k)
        cotangents.give(tensors, [k](Tensor &t) -> auto & { return t.d_states[k]; });
    cotangents.finish();
    const auto addresses = read<std::uintptr_t>(outputs, PyLong_AsUnsignedLongLong);
    Columns columns(addresses, tensors.size(), "outputs: wrong count");
    columns.give(tensors, [](Tensor &t) -> auto & { return t.out_g; });
    for (std::size_t k = 0; k < request.states; ++k)
        columns.give(tensors, [k](Tensor &t) -> auto & { return t.out_states[k]; });
    if (request.call.decay != diffopt::Decay::none)
        columns.give(tensors, [](Tensor &t) -> auto & { return t.out_p; });
    columns.finish();
}

/// Leaves out the tensors of which no output has a cotangent.
void leave_out(Request &request) {
    for (auto &t : request.tensors) {
        const void *present = t.d_update;
        for (std::size_t k = 0; k < request.states; ++k)
            present = present ? present : t.d_states[k];
        if (!present) t.size = 0;
    }
}

void forward(int rule, int variant, int decay, bool maximize, const py::object &hyper,
             const py::object &steps, bool in_place, const Found &found, const py::object &outputs,
             int threads) {
    Request request(rule, variant, decay, maximize, hyper, steps, found);
    request.call.in_place = in_place;
    place_forward(request, found, outputs);
    const py::gil_scoped_release unlocked;
    diffopt::forward(request.call, request.tensors, threads);
}

void vjp(int rule, int variant, int decay, bool maximize, const py::object &hyper,
         const py::object &steps, std::uintptr_t sums, const Found &found,
         const py::object &outputs, int threads) {
    Request request(rule, variant, decay, maximize, hyper, steps, found);
    place_vjp(request, found, outputs);
    leave_out(request);
    const py::gil_scoped_release unlocked;
    diffopt::vjp(request.call, request.tensors, reinterpret_cast<double *>(sums), threads);
}

py::dict rules() {
    py::dict found;
    for (const auto &info : diffopt::rules())
        found[py::str(info.name)] = py::make_tuple(found.size(), info.hypers, info.states);
    return found;
}

std::string compiler() {
#if defined(__clang__)
    return "clang " + std::to_string(__clang_major__) + "." + std::to_string(__clang_minor__);
#elif defined(__GNUC__)
    return "gcc " __VERSION__;
#elif defined(_MSC_VER)
    return "msvc " + std::to_string(_MSC_VER);
#else
    return "unknown";
#endif
}

#ifdef DIFFOPT_CUDA
/// A hyperparameter on the device, as Python passes it: its address or 0, dtype and stride.
using Source = std::tuple<std::uintptr_t, int, std::int64_t>;

diffopt::cuda::Queue make_queue(const Request &request, int device, std::uintptr_t stream,
                                std::uintptr_t workspace, const std::vector<Source> &sources) {
    const std::size_t width = diffopt::rules()[request.call.rule].hypers + 1;
    expect(sources.empty() || sources.size() == width, "sources: wrong count");
    diffopt::cuda::Queue queue{device, stream, reinterpret_cast<void *>(workspace), {}};
    for (const auto &[numbers, dtype, stride] : sources) {
        expect(0 <= dtype && dtype <= 3, "sources: unknown dtype");
        queue.sources.push_back(
            {reinterpret_cast<const void *>(numbers), static_cast<diffopt::Dtype>(dtype), stride});
    }
    return queue;
}

void cuda_forward(int rule, int variant, int decay, bool maximize, const py::object &hyper,
                  const py::object &steps, bool in_place, const Found &found,
                  const py::object &outputs, int device, std::uintptr_t stream,
                  std::uintptr_t workspace, const std::vector<Source> &sources) {
    Request request(rule, variant, decay, maximize, hyper, steps, found);
    request.call.in_place = in_place;
    place_forward(request, found, outputs);
    const auto queue = make_queue(request, device, stream, workspace, sources);
    const py::gil_scoped_release unlocked;
    diffopt::cuda::forward(request.call, request.tensors, queue);
}

void cuda_vjp(int rule, int variant, int decay, bool maximize, const py::object &hyper,
              const py::object &steps, std::uintptr_t sums, const Found &found,
              const py::object &outputs, int device, std::uintptr_t stream,
              std::uintptr_t workspace, const std::vector<Source> &sources) {
    Request request(rule, variant, decay, maximize, hyper, steps, found);
    place_vjp(request, found, outputs);
    leave_out(request);
    const auto queue = make_queue(request, device, stream, workspace, sources);
    const py::gil_scoped_release unlocked;
    diffopt::cuda::vjp(request.call, request.tensors, reinterpret_cast<double *>(sums), queue);
}
#endif

}  // namespace

PYBIND11_MODULE(_native, module) {
    diffopt::choose_simd();
    py::class_<Found>(module, "Found")
        .def_readonly("sizes", &Found::sizes)
        .def_readonly("addresses", &Found::addresses)
        .def_readonly("contiguous", &Found::contiguous)
        .def_readonly("complete", &Found::complete)
        .def_readonly("gpu", &Found::device)
        .def_property_readonly("dtype", [](const Found &f) { return static_cast<int>(f.dtype); });
    py::class_<diffopt::Looker>(module, "Looker")
        .def(py::init<py::tuple, py::tuple, py::object>())
        .def("__call__", &diffopt::Looker::operator());
    module.def("are_plain", &are_plain);
    module.def("forward", &forward);
    module.def("vjp", &vjp);
    module.attr("rules") = rules();
    module.attr("version") = DIFFOPT_VERSION;
    module.attr("compiler") = compiler();
    module.attr("simd") = diffopt::simd_name();
    module.attr("openmp") = diffopt::has_openmp();
#ifdef DIFFOPT_CUDA
    module.def("cuda_forward", &cuda_forward);
    module.def("cuda_vjp", &cuda_vjp);
    module.def("cuda_workspace_size", &diffopt::cuda::workspace_size);
    module.def("cuda_obstacle", &diffopt::cuda::obstacle);
    module.attr("cuda_architectures") = diffopt::cuda::architectures();
#else
    module.attr("cuda_architectures") = "";
#endif
}
