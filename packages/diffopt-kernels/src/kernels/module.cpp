// Bindings, and nothing else. Python has checked what it passes: see _fused.py.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>
#include <string>

#include "cpu.hpp"

namespace py = pybind11;

namespace {

using diffopt::AdamCall;
using diffopt::AdamTensor;
using Integers = std::vector<std::int64_t>;
using Addresses = std::vector<std::uintptr_t>;

/// One column of addresses for each array of `AdamTensor`, one row for each tensor.
class Columns {
   public:
    Columns(const Addresses &addresses, std::size_t rows, std::size_t columns)
        : addresses_(addresses), rows_(rows) {
        if (addresses.size() != rows * columns)
            throw std::invalid_argument("addresses: wrong count");
    }

    void *operator()(std::size_t column, std::size_t row) const {
        return reinterpret_cast<void *>(addresses_[column * rows_ + row]);
    }

   private:
    const Addresses &addresses_;
    std::size_t rows_;
};

AdamCall make_call(int dtype, int decay, bool maximize, const diffopt::HyperSums &hyper) {
    if (dtype < 0 || dtype > 3) throw std::invalid_argument("dtype: unknown code");
    if (decay < 0 || decay > 2) throw std::invalid_argument("decay: unknown code");
    return {static_cast<diffopt::Dtype>(dtype),
            static_cast<diffopt::Decay>(decay),
            maximize,
            false,
            false,
            {hyper[0], hyper[1], hyper[2], hyper[3], hyper[4], hyper[5]}};
}

std::vector<AdamTensor> make_tensors(const Integers &sizes, const Integers &steps) {
    if (steps.size() != sizes.size()) throw std::invalid_argument("steps: wrong count");
    std::vector<AdamTensor> tensors(sizes.size());
    for (std::size_t i = 0; i < sizes.size(); ++i) {
        tensors[i].size = sizes[i];
        tensors[i].step = steps[i];
    }
    return tensors;
}

void adam_forward(int dtype, int decay, bool maximize, bool in_place,
                  const diffopt::HyperSums &hyper, const Integers &sizes, const Integers &steps,
                  const Addresses &addresses, int threads) {
    auto call = make_call(dtype, decay, maximize, hyper);
    call.in_place = in_place;
    auto tensors = make_tensors(sizes, steps);
    const Columns column(addresses, sizes.size(), 7);
    for (std::size_t i = 0; i < tensors.size(); ++i) {
        auto &t = tensors[i];
        t.g = column(0, i), t.m = column(1, i), t.v = column(2, i), t.p = column(3, i);
        t.out_u = column(4, i), t.out_m = column(5, i), t.out_v = column(6, i);
    }
    const py::gil_scoped_release unlocked;
    diffopt::adam_forward(call, tensors, threads);
}

diffopt::HyperSums adam_vjp(int dtype, int decay, bool maximize, bool want_hyper,
                            const diffopt::HyperSums &hyper, const Integers &sizes,
                            const Integers &steps, const Addresses &addresses, int threads) {
    auto call = make_call(dtype, decay, maximize, hyper);
    call.want_hyper = want_hyper;
    auto tensors = make_tensors(sizes, steps);
    const Columns column(addresses, sizes.size(), 11);
    for (std::size_t i = 0; i < tensors.size(); ++i) {
        auto &t = tensors[i];
        t.g = column(0, i), t.m = column(1, i), t.v = column(2, i), t.p = column(3, i);
        t.du = column(4, i), t.dm = column(5, i), t.dv = column(6, i);
        t.out_dg = column(7, i), t.out_dm = column(8, i), t.out_dv = column(9, i);
        t.out_dp = column(10, i);
    }
    const py::gil_scoped_release unlocked;
    return diffopt::adam_vjp(call, tensors, threads);
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
    module.def("adam_forward", &adam_forward);
    module.def("adam_vjp", &adam_vjp);
    module.attr("version") = DIFFOPT_VERSION;
    module.attr("compiler") = compiler();
    module.attr("simd") = diffopt::simd_name();
    module.attr("openmp") = diffopt::has_openmp();
}
