#pragma once

#include <cstdint>
#include <vector>

#include "call.hpp"

namespace diffopt {

/// Computes elements [begin, end) of one tensor; a vector-Jacobian product also adds to the sums
/// over the hyperparameters, unless they are null.
using Forward = void (*)(const Call &, const Tensor &, std::int64_t begin, std::int64_t end);
using Vjp = void (*)(const Call &, const Tensor &, std::int64_t begin, std::int64_t end,
                     double *sums);

/// The loops as compiled for one instruction set.
struct Simd {
    const char *name;
    Forward (*forward)(Dtype);
    Vjp (*vjp)(Dtype);
};

/// One step of a whole list of tensors.
void forward(const Call &call, const std::vector<Tensor> &tensors, int threads);

/// Its vector-Jacobian product. Unless `sums` is null, each of its rows, one a hyperparameter with
/// weight decay as the last, gets a sum for each tensor, whatever the number of threads.
void vjp(const Call &call, const std::vector<Tensor> &tensors, double *sums, int threads);

/// Name of the instruction set in use; `choose_simd` reads DIFFOPT_SIMD and throws where that names
/// one that this build or machine lacks.
const char *simd_name();
void choose_simd();

bool has_openmp();

}  // namespace diffopt
