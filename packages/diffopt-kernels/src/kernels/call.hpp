#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "rules.hpp"

namespace diffopt {

/// Element types, by the code that Python passes.
enum class Dtype : int { float64, float32, bfloat16, float16 };

/// Bytes of an element.
DIFFOPT_RULE std::size_t element_bytes(Dtype dtype) {
    constexpr std::size_t bytes[] = {8, 4, 2, 2};
    return bytes[static_cast<int>(dtype)];
}

/// Where weight decay enters: nowhere, into the gradient, or into the update.
enum class Decay : int { none, coupled, decoupled };

/// Addresses of one tensor's arrays: `size` elements each, dense, in one common order.
/// Inputs that are null count as zeros; outputs that are null are not wanted.
struct Tensor {
    std::int64_t size, step;
    const double *hyper;  // the rule's numbers, then weight decay; on the host
    const void *g, *p;
    const void *states[max_states];
    const void *d_update, *d_states[max_states];  // cotangents: vjp only
    void *out_update, *out_g, *out_p;             // forward; vjp, vjp
    void *out_states[max_states];                 // new states; vjp: their cotangents
};

/// What holds for a whole list of tensors.
struct Call {
    int rule, variant;
    Dtype dtype;
    Decay decay;
    bool maximize;
    bool applied;   // `out_update` receives the new parameter instead of the update
    bool in_place;  // forward: what is written is where it was read
    bool streams;   // what is written goes around the caches
};

/// What a rule expects, for Python.
struct RuleInfo {
    const char *name;
    int hypers;
    std::vector<int> states;  // of each variant
};

/// By the codes that Python passes.
const std::vector<RuleInfo> &rules();

}  // namespace diffopt
