#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "rules.hpp"

namespace diffopt {

/// Element types, by the code that Python passes.
enum class Dtype : int { float64, float32, bfloat16, float16 };

/// Where weight decay enters: nowhere, into the gradient, or into the update.
enum class Decay : int { none, coupled, decoupled };

/// Addresses of one tensor's arrays: `size` elements each, dense, in one common order.
/// Inputs that are null count as zeros; outputs that are null are not wanted.
struct Tensor {
    std::int64_t size, step;
    const void *g, *p;
    const void *states[max_states];
    const void *d_update, *d_states[max_states];  // cotangents: vjp only
    void *out_update, *out_g, *out_p;             // forward; vjp, vjp
    void *out_states[max_states];                 // new states; vjp: their cotangents
};

/// A rule's numbers, then weight decay. What a rule lacks is 0.
using Hyper = std::array<double, max_hypers + 1>;

/// What a rule expects, for Python.
struct RuleInfo {
    const char *name;
    int hypers;
    std::vector<int> states;  // of each variant
};

/// What holds for a whole list of tensors.
struct Call {
    int rule, variant;
    Dtype dtype;
    Decay decay;
    bool maximize;
    bool in_place;    // forward: `out_update` receives the new parameter instead of the update
    bool want_hyper;  // vjp: the sums over hyperparameters are wanted
    Hyper hyper;
};

/// Computes elements [begin, end) of one tensor.
using Forward = void (*)(const Call &, const Tensor &, std::int64_t begin, std::int64_t end);
using Vjp = void (*)(const Call &, const Tensor &, std::int64_t begin, std::int64_t end, Hyper &);

/// The loops as compiled for one instruction set.
struct Simd {
    const char *name;
    Forward (*forward)(Dtype);
    Vjp (*vjp)(Dtype);
};

/// One step of a whole list of tensors.
void forward(const Call &call, const std::vector<Tensor> &tensors, int threads);

/// Its vector-Jacobian product. The sums do not depend on the number of threads.
Hyper vjp(const Call &call, const std::vector<Tensor> &tensors, int threads);

/// By the codes that Python passes.
const std::vector<RuleInfo> &rules();

/// Name of the instruction set in use; `choose_simd` reads DIFFOPT_SIMD and throws where that names
/// one that this build or machine lacks.
const char *simd_name();
void choose_simd();

bool has_openmp();

}  // namespace diffopt
