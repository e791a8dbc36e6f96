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
using diffopt::Tensor;
using Integers = std::vector<std::int64_t>;
using Numbers = std::vector<double>;
using Addresses = std::vector<std::uintptr_t>;

void expect(bool right, const char *what) {
    if (!right) throw std::invalid_argument(what);
}

/// What a step is told, but for its arrays.
struct Request {
    Call call;
    std::vector<Tensor> tensors;
    std::size_t states;
    Numbers hyper;

    Request(int rule, int variant, int dtype, int decay, bool maximize, Numbers numbers,
            const Integers &sizes, const Integers &steps)
        : tensors(sizes.size()), hyper(std::move(numbers)) {
        const auto &rules = diffopt::rules();
        expect(0 <= rule && rule < static_cast<int>(rules.size()), "rule: unknown code");
        const auto &info = rules[rule];
        expect(0 <= variant && variant < static_cast<int>(info.states.size()),
               "variant: unknown code");
        expect(0 <= dtype && dtype <= 3, "dtype: unknown code");
        expect(0 <= decay && decay <= 2, "decay: unknown code");
        const std::size_t width = info.hypers + 1, rows = sizes.size();
        expect(hyper.size() == width || hyper.size() == width * rows, "hyper: wrong count");
        expect(steps.size() == rows, "steps: wrong count");
        states = info.states[variant];
        call = {rule,
                variant,
                static_cast<diffopt::Dtype>(dtype),
                static_cast<diffopt::Decay>(decay),
                maximize,
                false,
                false};
        const std::size_t stride = hyper.size() == width ? 0 : width;
        for (std::size_t i = 0; i < rows; ++i) {
            tensors[i].size = sizes[i], tensors[i].step = steps[i];
            tensors[i].hyper = hyper.data() + i * stride;
        }
    }
    Request(const Request &) = delete;  // the tensors point into it
};

/// Reads the addresses: one column for each array, one row for each tensor.
class Columns {
   public:
    Columns(const Addresses &addresses, std::size_t rows, std::size_t columns)
        : next_(addresses.data()), rows_(rows) {
        expect(addresses.size() == rows * columns, "addresses: wrong count");
    }

    /// Gives the next column to a member of each tensor.
    template <typename Member>
    void give(std::vector<Tensor> &tensors, Member member) {
        for (std::size_t i = 0; i < rows_; ++i)
            member(tensors[i]) = reinterpret_cast<void *>(next_[i]);
        next_ += rows_;
    }

   private:
    const std::uintptr_t *next_;
    std::size_t rows_;
};

void place_forward(Request &request, const Addresses &addresses) {
    auto &tensors = request.tensors;
    const std::size_t states = request.states;
    const bool has_p = request.call.decay != diffopt::Decay::none || request.call.in_place;
    Columns columns(addresses, tensors.size(), 2 + 2 * states + has_p);
    columns.give(tensors, [](Tensor &t) -> auto & { return t.g; });
    for (std::size_t k = 0; k < states; ++k)
        columns.give(tensors, [k](Tensor &t) -> auto & { return t.states[k]; });
    if (has_p) columns.give(tensors, [](Tensor &t) -> auto & { return t.p; });
    columns.give(tensors, [](Tensor &t) -> auto & { return t.out_update; });
    for (std::size_t k = 0; k < states; ++k)
        columns.give(tensors, [k](Tensor &t) -> auto & { return t.out_states[k]; });
}

void place_vjp(Request &request, const Addresses &addresses) {
    auto &tensors = request.tensors;
    const std::size_t states = request.states;
    const bool has_p = request.call.decay != diffopt::Decay::none;
    Columns columns(addresses, tensors.size(), 3 + 3 * states + 2 * has_p);
    columns.give(tensors, [](Tensor &t) -> auto & { return t.g; });
    for (std::size_t k = 0; k < states; ++k)
        columns.give(tensors, [k](Tensor &t) -> auto & { return t.states[k]; });
    if (has_p) columns.give(tensors, [](Tensor &t) -> auto & { return t.p; });
    columns.give(tensors, [](Tensor &t) -> auto & { return t.d_update; });
    for (std::size_t k = 0; k < states; ++k)
        columns.give(tensors, [k](Tensor &t) -> auto & { return t.d_states[k]; });
    columns.give(tensors, [](Tensor &t) -> auto & { return t.out_g; });
    for (std::size_t k = 0; k < states; ++k)
        columns.give(tensors, [k](Tensor &t) -> auto & { return t.out_states[k]; });
    if (has_p) columns.give(tensors, [](Tensor &t) -> auto & { return t.out_p; });
}

void forward(int rule, int variant, int dtype, int decay, bool maximize, Numbers hyper,
             const Integers &sizes, const Integers &steps, bool in_place,
             const Addresses &addresses, int threads) {
    Request request(rule, variant, dtype, decay, maximize, std::move(hyper), sizes, steps);
    request.call.in_place = in_place;
    place_forward(request, addresses);
    const py::gil_scoped_release unlocked;
    diffopt::forward(request.call, request.tensors, threads);
}

void vjp(int rule, int variant, int dtype, int decay, bool maximize, Numbers hyper,
         const Integers &sizes, const Integers &steps, std::uintptr_t sums,
         const Addresses &addresses, int threads) {
    Request request(rule, variant, dtype, decay, maximize, std::move(hyper), sizes, steps);
    place_vjp(request, addresses);
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

void cuda_forward(int rule, int variant, int dtype, int decay, bool maximize, Numbers hyper,
                  const Integers &sizes, const Integers &steps, bool in_place,
                  const Addresses &addresses, int device, std::uintptr_t stream,
                  std::uintptr_t workspace, const std::vector<Source> &sources) {
    Request request(rule, variant, dtype, decay, maximize, std::move(hyper), sizes, steps);
    request.call.in_place = in_place;
    place_forward(request, addresses);
    const auto queue = make_queue(request, device, stream, workspace, sources);
    const py::gil_scoped_release unlocked;
    diffopt::cuda::forward(request.call, request.tensors, queue);
}

void cuda_vjp(int rule, int variant, int dtype, int decay, bool maximize, Numbers hyper,
              const Integers &sizes, const Integers &steps, std::uintptr_t sums,
              const Addresses &addresses, int device, std::uintptr_t stream,
              std::uintptr_t workspace, const std::vector<Source> &sources) {
    Request request(rule, variant, dtype, decay, maximize, std::move(hyper), sizes, steps);
    place_vjp(request, addresses);
    const auto queue = make_queue(request, device, stream, workspace, sources);
    const py::gil_scoped_release unlocked;
    diffopt::cuda::vjp(request.call, request.tensors, reinterpret_cast<double *>(sums), queue);
}
#endif

}  // namespace

PYBIND11_MODULE(_native, module) {
    diffopt::choose_simd();
    py::class_<diffopt::Looker>(module, "Looker")
        .def(py::init<py::tuple, py::tuple, py::object>())
        .def("__call__", &diffopt::Looker::operator());
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
