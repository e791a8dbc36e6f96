#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "rules.hpp"

namespace diffopt {

/// Element types, by the code that Python passes.
enum class Dtype : int { float64, float32, bfloat16, float16 };

/// Addresses of one tensor's arrays: `size` elements each, dense, in one common order.
/// Inputs that are null count as zeros; outputs that are null are not wanted.
struct AdamTensor {
    std::int64_t size, step;
    const void *g, *m, *v, *p;
    const void *du, *dm, *dv;                 // cotangents: vjp only
    void *out_u, *out_m, *out_v;              // forward
    void *out_dg, *out_dm, *out_dv, *out_dp;  // vjp
};

/// What holds for a whole list of tensors.
struct AdamCall {
    Dtype dtype;
    Decay decay;
    bool maximize;
    bool in_place;    // forward: `out_u` receives the new parameter instead of the update
    bool want_hyper;  // vjp: the sums over hyperparameters are wanted
    AdamHyper hyper;
};

using HyperSums = std::array<double, 6>;  // in the order of AdamHyper

/// Computes elements [begin, end) of one tensor.
using AdamForward = void (*)(const AdamCall &, const AdamTensor &, std::int64_t begin,
                             std::int64_t end);
using AdamVjp = void (*)(const AdamCall &, const AdamTensor &, std::int64_t begin, std::int64_t end,
                         HyperSums &);

/// The loops as compiled for one instruction set.
struct Simd {
    const char *name;
    AdamForward (*adam_forward)(const AdamCall &);
    AdamVjp (*adam_vjp)(const AdamCall &);
};

/// One Adam step of a whole list of tensors.
void adam_forward(const AdamCall &call, const std::vector<AdamTensor> &tensors, int threads);

/// Its vector-Jacobian product. The sums do not depend on the number of threads.
HyperSums adam_vjp(const AdamCall &call, const std::vector<AdamTensor> &tensors, int threads);

/// Name of the instruction set in use; `choose_simd` reads DIFFOPT_SIMD and throws where that names
/// one that this build or machine lacks.
const char *simd_name();
void choose_simd();

bool has_openmp();

}  // namespace diffopt
