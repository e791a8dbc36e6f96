// Bindings, and nothing else. Python has checked what it passes: see _native.pyi and _fused.py.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "cpu.hpp"
#include "kept.hpp"
#include "look.hpp"
#include "pages.hpp"
#include "passes.hpp"
#include "request.hpp"
#ifdef DIFFOPT_CUDA
#include "cuda.hpp"
#endif

namespace py = pybind11;

namespace {

using diffopt::Found;
using diffopt::Request;

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

Request make_request(int rule, int variant, int decay, bool maximize, bool applied,
                     const py::object &hyper, const py::object &steps, const Found &found) {
    return {rule,
            variant,
            decay,
            maximize,
            applied,
            read<double>(hyper, PyFloat_AsDouble),
            read<std::int64_t>(steps, PyLong_AsLongLong),
            found};
}

std::vector<std::uintptr_t> read_addresses(const py::object &addresses) {
    return read<std::uintptr_t>(addresses, PyLong_AsUnsignedLongLong);
}

/// Has the memory made ready of outputs that Python made.
void make_ready(const Found &found, const std::vector<std::uintptr_t> &outputs) {
    for (std::size_t i = 0; i < outputs.size(); ++i) {
        const auto elements = static_cast<std::size_t>(found.sizes[i % found.sizes.size()]);
        diffopt::make_ready(reinterpret_cast<void *>(outputs[i]),
                            elements * diffopt::element_bytes(found.dtype));
    }
}

void forward(int rule, int variant, int decay, bool maximize, bool applied, const py::object &hyper,
             const py::object &steps, bool in_place, const Found &found, const py::object &outputs,
             int threads) {
    auto request = make_request(rule, variant, decay, maximize, applied, hyper, steps, found);
    request.call.in_place = in_place;
    const auto addresses = read_addresses(outputs);
    request.place_forward(found, addresses);
    const py::gil_scoped_release unlocked;
    if (!in_place) make_ready(found, addresses);
    diffopt::forward(request.call, request.tensors, threads);
}

void vjp(int rule, int variant, int decay, bool maximize, bool applied, const py::object &hyper,
         const py::object &steps, std::uintptr_t sums, const Found &found,
         const py::object &outputs, int threads) {
    auto request = make_request(rule, variant, decay, maximize, applied, hyper, steps, found);
    const auto addresses = read_addresses(outputs);
    request.place_vjp(found, addresses);
    const py::gil_scoped_release unlocked;
    make_ready(found, addresses);
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
    diffopt::expect(sources.empty() || sources.size() == request.width(), "sources: wrong count");
    diffopt::cuda::Queue queue{device, stream, reinterpret_cast<void *>(workspace), {}};
    for (const auto &[numbers, dtype, stride] : sources) {
        diffopt::expect(0 <= dtype && dtype <= 3, "sources: unknown dtype");
        queue.sources.push_back(
            {reinterpret_cast<const void *>(numbers), static_cast<diffopt::Dtype>(dtype), stride});
    }
    return queue;
}

void cuda_forward(int rule, int variant, int decay, bool maximize, bool applied,
                  const py::object &hyper, const py::object &steps, bool in_place,
                  const Found &found, const py::object &outputs, int device, std::uintptr_t stream,
                  std::uintptr_t workspace, const std::vector<Source> &sources) {
    auto request = make_request(rule, variant, decay, maximize, applied, hyper, steps, found);
    request.call.in_place = in_place;
    request.place_forward(found, read_addresses(outputs));
    const auto queue = make_queue(request, device, stream, workspace, sources);
    const py::gil_scoped_release unlocked;
    diffopt::cuda::forward(request.call, request.tensors, queue);
}

void cuda_vjp(int rule, int variant, int decay, bool maximize, bool applied,
              const py::object &hyper, const py::object &steps, std::uintptr_t sums,
              const Found &found, const py::object &outputs, int device, std::uintptr_t stream,
              std::uintptr_t workspace, const std::vector<Source> &sources) {
    auto request = make_request(rule, variant, decay, maximize, applied, hyper, steps, found);
    request.place_vjp(found, read_addresses(outputs));
    const auto queue = make_queue(request, device, stream, workspace, sources);
    const py::gil_scoped_release unlocked;
    diffopt::cuda::vjp(request.call, request.tensors, reinterpret_cast<double *>(sums), queue);
}
#endif

}  // namespace

PYBIND11_MODULE(_native, module) {
    diffopt::choose_simd();
    module.attr("kept_limit") = diffopt::kept_limit();
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
    py::class_<diffopt::Passes>(module, "Passes")
        .def(py::init<diffopt::Looker, py::object>())
        .def_property_readonly("keeps", &diffopt::Passes::keeps)
        .def("forward", &diffopt::Passes::forward)
        .def("vjp", &diffopt::Passes::vjp);
    module.def("forward", &forward);
    module.def("vjp", &vjp);
    module.def("kept_bytes", &diffopt::kept_bytes);
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
