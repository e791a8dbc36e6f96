// Bindings, and nothing else. Python has checked what it passes: see _fused.py.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>
#include <string>

#include "cpu.hpp"

namespace py = pybind11;

namespace {

using diffopt::Call;
using diffopt::Hyper;
using Integers = std::vector<std::int64_t>;
using Addresses = std::vector<std::uintptr_t>;

/// What both functions are told alike, as Python passes it.
struct Request {
    Call call;
    std::vector<diffopt::Tensor> tensors;
    int states;

    Request(int rule, int variant, int dtype, int decay, bool maximize,
            const std::vector<double> &hyper, const Integers &sizes, const Integers &steps)
        : tensors(sizes.size()) {
        const auto &rules = diffopt::rules();
        if (rule < 0 || rule >= static_cast<int>(rules.size()))
            throw std::invalid_argument("rule: unknown code");
        const auto &info = rules[rule];
        if (variant < 0 || variant >= static_cast<int>(info.states.size()))
            throw std::invalid_argument("variant: unknown code");
        if (dtype < 0 || dtype > 3) throw std::invalid_argument("dtype: unknown code");
        if (decay < 0 || decay > 2) throw std::invalid_argument("decay: unknown code");
        if (hyper.size() != info.hypers + std::size_t{1})
            throw std::invalid_argument("hyper: wrong count");
        if (steps.size() != sizes.size()) throw std::invalid_argument("steps: wrong count");
        states = info.states[variant];
        call = {rule,
                variant,
                static_cast<diffopt::Dtype>(dtype),
                static_cast<diffopt::Decay>(decay),
                maximize,
                false,
                false,
                {}};
        for (int k = 0; k < info.hypers; ++k) call.hyper[k] = hyper[k];
        call.hyper.back() = hyper.back();
        for (std::size_t i = 0; i < sizes.size(); ++i)
            tensors[i].size = sizes[i], tensors[i].step = steps[i];
    }
};

/// Reads the addresses: one column for each array, one row for each tensor.
class Columns {
   public:
    Columns(const Addresses &addresses, std::size_t rows, std::size_t columns)
        : next_(addresses.data()), rows_(rows) {
        if (addresses.size() != rows * columns)
            throw std::invalid_argument("addresses: wrong count");
    }

    /// Gives the next column to a member of each tensor.
    template <typename Member>
    void give(std::vector<diffopt::Tensor> &tensors, Member member) {
        for (std::size_t i = 0; i < rows_; ++i)
            member(tensors[i]) = reinterpret_cast<void *>(next_[i]);
        next_ += rows_;
    }

   private:
    const std::uintptr_t *next_;
    std::size_t rows_;
};

void forward(int rule, int variant, int dtype, int decay, bool maximize, bool in_place,
             const std::vector<double> &hyper, const Integers &sizes, const Integers &steps,
             const Addresses &addresses, int threads) {
    Request request(rule, variant, dtype, decay, maximize, hyper, sizes, steps);
    auto &[call, tensors, states] = request;
    call.in_place = in_place;
    const bool has_p = call.decay != diffopt::Decay::none || in_place;
    Columns columns(addresses, sizes.size(), 2 + 2 * static_cast<std::size_t>(states) + has_p);
    using diffopt::Tensor;
    columns.give(tensors, [](Tensor &t) -> auto & { return t.g; });
    for (int k = 0; k < states; ++k)
        columns.give(tensors, [k](Tensor &t) -> auto & { return t.states[k]; });
    if (has_p) columns.give(tensors, [](Tensor &t) -> auto & { return t.p; });
    columns.give(tensors, [](Tensor &t) -> auto & { return t.out_update; });
    for (int k = 0; k < states; ++k)
        columns.give(tensors, [k](Tensor &t) -> auto & { return t.out_states[k]; });
    const py::gil_scoped_release unlocked;
    diffopt::forward(call, tensors, threads);
}

std::vector<double> vjp(int rule, int variant, int dtype, int decay, bool maximize, bool want_hyper,
                        const std::vector<double> &hyper, const Integers &sizes,
                        const Integers &steps, const Addresses &addresses, int threads) {
    Request request(rule, variant, dtype, decay, maximize, hyper, sizes, steps);
    auto &[call, tensors, states] = request;
    call.want_hyper = want_hyper;
    const bool has_p = call.decay != diffopt::Decay::none;
    Columns columns(addresses, sizes.size(), 3 + 3 * static_cast<std::size_t>(states) + 2 * has_p);
    using diffopt::Tensor;
    columns.give(tensors, [](Tensor &t) -> auto & { return t.g; });
    for (int k = 0; k < states; ++k)
        columns.give(tensors, [k](Tensor &t) -> auto & { return t.states[k]; });
    if (has_p) columns.give(tensors, [](Tensor &t) -> auto & { return t.p; });
    columns.give(tensors, [](Tensor &t) -> auto & { return t.d_update; });
    for (int k = 0; k < states; ++k)
        columns.give(tensors, [k](Tensor &t) -> auto & { return t.d_states[k]; });
    columns.give(tensors, [](Tensor &t) -> auto & { return t.out_g; });
    for (int k = 0; k < states; ++k)
        columns.give(tensors, [k](Tensor &t) -> auto & { return t.out_states[k]; });
    if (has_p) columns.give(tensors, [](Tensor &t) -> auto & { return t.out_p; });
    Hyper sums;
    {
        const py::gil_scoped_release unlocked;
        sums = diffopt::vjp(call, tensors, threads);
    }
    std::vector<double> found(sums.begin(), sums.begin() + static_cast<long>(hyper.size()) - 1);
    found.push_back(sums.back());
    return found;
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

}  // namespace

PYBIND11_MODULE(_cpu, module) {
    diffopt::choose_simd();
    module.def("forward", &forward);
    module.def("vjp", &vjp);
    module.attr("rules") = rules();
    module.attr("version") = DIFFOPT_VERSION;
    module.attr("compiler") = compiler();
    module.attr("simd") = diffopt::simd_name();
    module.attr("openmp") = diffopt::has_openmp();
}
