#pragma once

#include <cstdint>

#include "cuda.hpp"
#include "cuda_elements.cuh"

namespace diffopt::cuda {
namespace {  // see NOTE [unnamed namespaces in the kernel headers]

template <typename S, typename Rule, typename T = Wide<S>>
__global__ void __launch_bounds__(threads)
    forward_kernel(const __grid_constant__ Rows<Rule, T> rows) {
    const std::int64_t chunk = rows.rows[0].first_chunk + blockIdx.x;
    const auto &row = rows.find(chunk);
    const auto prepared = rows.prepared_for(row);
    for_each_element<S>(
        row, chunk,
        [&](std::int64_t i) { forward_elements<16 / sizeof(S), S>(row.tensor, prepared, i); },
        [&](std::int64_t i) { forward_elements<1, S>(row.tensor, prepared, i); });
}

/// Adds up what the threads of a block hold, always in the same order.
template <int count>
__device__ void sum_over_block(const double (&mine)[count], double *out) {
    __shared__ double all[count][threads];
    const int thread = static_cast<int>(threadIdx.x);
    for (int k = 0; k < count; ++k) all[k][thread] = mine[k];
    for (int half = static_cast<int>(blockDim.x) / 2; half > 0; half /= 2) {
        __syncthreads();
        if (thread < half)
            for (int k = 0; k < count; ++k) all[k][thread] += all[k][thread + half];
    }
    if (thread == 0)
        for (int k = 0; k < count; ++k) out[k] = all[k][0];
}

template <bool wanted, typename S, typename Rule, typename T = Wide<S>>
__global__ void __launch_bounds__(threads) vjp_kernel(const __grid_constant__ Rows<Rule, T> rows) {
    const std::int64_t chunk = rows.rows[0].first_chunk + blockIdx.x;
    const auto &row = rows.find(chunk);
    const auto prepared = rows.prepared_for(row);
    double sums[Rule::hypers + 1] = {};
    for_each_element<S>(
        row, chunk,
        [&](std::int64_t i) {
            vjp_elements<16 / sizeof(S), wanted, S>(row.tensor, prepared, sums, i);
        },
        [&](std::int64_t i) { vjp_elements<1, wanted, S>(row.tensor, prepared, sums, i); });
    if constexpr (wanted) sum_over_block(sums, rows.partial + chunk * (Rule::hypers + 1));
}

/// The chunks of some tensors in a row, for the sums over each.
struct Ranges {
    static constexpr int capacity = 3'900;

    std::int64_t first_tensor, tensors;  // of this launch; of the step
    const double *partial;
    double *sums;
    std::int64_t first_chunk[capacity + 1];  // of each, and where the last ends
};

/// A block sums one hyperparameter of one tensor.
__global__ void __launch_bounds__(threads) sum_kernel(const __grid_constant__ Ranges ranges) {
    const int width = static_cast<int>(gridDim.y), k = static_cast<int>(blockIdx.y);
    double mine[1] = {0};
    const std::int64_t end = ranges.first_chunk[blockIdx.x + 1];
    for (std::int64_t i = ranges.first_chunk[blockIdx.x] + threadIdx.x; i < end; i += blockDim.x)
        mine[0] += ranges.partial[i * width + k];
    sum_over_block(mine, ranges.sums + k * ranges.tensors + ranges.first_tensor + blockIdx.x);
}

/// The hyperparameters of some tensors in a row, from the host and from the device.
struct Numbers {
    static constexpr int capacity = 400, width = max_hypers + 1;

    Call call;
    std::int64_t first_tensor;
    int count;
    unsigned char *prepared;
    Source sources[width];
    std::int64_t steps[capacity];
    double hyper[capacity][width];
};

__device__ double read(const Source &source, std::int64_t i) {
    i *= source.stride;
    switch (source.dtype) {
        case Dtype::float64:
            return static_cast<const double *>(source.numbers)[i];
        case Dtype::float32:
            return static_cast<const float *>(source.numbers)[i];
        case Dtype::bfloat16:
            return widen(static_cast<const BFloat16 *>(source.numbers)[i]);
        default:
            return widen(static_cast<const Half *>(source.numbers)[i]);
    }
}

/// One block makes the rule ready for each tensor.
template <typename Rule, typename T>
__global__ void __launch_bounds__(threads) prepare_kernel(const __grid_constant__ Numbers numbers) {
    for (int i = static_cast<int>(threadIdx.x); i < numbers.count;
         i += static_cast<int>(blockDim.x)) {
        const std::int64_t tensor = numbers.first_tensor + i;
        double hyper[Rule::hypers + 1];
        for (int k = 0; k <= Rule::hypers; ++k)
            hyper[k] =
                numbers.sources[k].numbers ? read(numbers.sources[k], tensor) : numbers.hyper[i][k];
        *reinterpret_cast<Prepared<Rule, T> *>(numbers.prepared + tensor * prepared_size) = {
            Rule(hyper, numbers.steps[i]),
            Surroundings<T>(numbers.call, hyper[0], hyper[Rule::hypers])};
    }
}

}  // namespace
}  // namespace diffopt::cuda
