#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "cuda_rows.cuh"

namespace diffopt::cuda {
namespace {  // see NOTE [unnamed namespaces in the kernel headers]

/// Elements that one access moves.
template <typename S, int n>
struct Pack {
    static_assert(sizeof(S) * n == sizeof(uint4), "16 bytes are the most");
    S at[n];
};

template <typename S, int n>
__device__ void load(const void *array, std::int64_t i, Wide<S> (&to)[n]) {
    if (!array) {
        for (int j = 0; j < n; ++j) to[j] = Wide<S>(0);
        return;
    }
    const auto *address = static_cast<const S *>(array) + i;
    if constexpr (n == 1) {
        to[0] = widen(*address);
    } else {
        const auto pack = bit_cast<Pack<S, n>>(*reinterpret_cast<const uint4 *>(address));
#pragma unroll
        for (int j = 0; j < n; ++j) to[j] = widen(pack.at[j]);
    }
}

template <typename S, int n>
__device__ void store(void *array, std::int64_t i, const Wide<S> (&from)[n]) {
    if (!array) return;
    auto *address = static_cast<S *>(array) + i;
    if constexpr (n == 1) {
        *address = narrow<S>(from[0]);
    } else {
        Pack<S, n> pack;
#pragma unroll
        for (int j = 0; j < n; ++j) pack.at[j] = narrow<S>(from[j]);
        // Not by an assignment, which the compiler takes apart into narrower ones.
        __stwb(reinterpret_cast<uint4 *>(address), bit_cast<uint4>(pack));
    }
}

/// Computes n elements, from the i-th on.
template <int n, typename S, typename Rule, typename T>
__device__ void forward_elements(const Tensor &t, const Prepared<Rule, T> &prepared,
                                 std::int64_t i) {
    const auto &around = prepared.around;
    T g[n], p[n], s[max_states][n];
    load<S>(t.g, i, g);
    load<S>(t.p, i, p);
#pragma unroll
    for (int k = 0; k < Rule::states; ++k) load<S>(t.states[k], i, s[k]);
#pragma unroll
    for (int j = 0; j < n; ++j) {
        T state[max_states] = {};
        for (int k = 0; k < Rule::states; ++k) state[k] = s[k][j];
        const T d = around.coupled ? around.decayed(g[j], p[j]) : around.sign * g[j];
        T u = prepared.rule.forward(d, state);
        if (around.decoupled) u = around.shrunk(u, p[j]);
        g[j] = around.moved(u, p[j]);
        for (int k = 0; k < Rule::states; ++k) s[k][j] = state[k];
    }
    store<S>(t.out_update, i, g);
#pragma unroll
    for (int k = 0; k < Rule::states; ++k) store<S>(t.out_states[k], i, s[k]);
}

/// The same for the vector-Jacobian product; adds to the sums over hyperparameters if they are
/// wanted.
template <int n, bool wanted, typename S, typename Rule, typename T>
__device__ void vjp_elements(const Tensor &t, const Prepared<Rule, T> &prepared, double *sums,
                             std::int64_t i) {
    const auto &around = prepared.around;
    T g[n], p[n], du[n], s[max_states][n], ds[max_states][n];
    load<S>(t.g, i, g);
    load<S>(t.p, i, p);
    load<S>(t.d_update, i, du);
#pragma unroll
    for (int k = 0; k < Rule::states; ++k) {
        load<S>(t.states[k], i, s[k]);
        load<S>(t.d_states[k], i, ds[k]);
    }
#pragma unroll
    for (int j = 0; j < n; ++j) {
        T state[max_states] = {}, d_state[max_states] = {}, dh[max_hypers] = {};
        for (int k = 0; k < Rule::states; ++k) state[k] = s[k][j], d_state[k] = ds[k][j];
        const T descent = around.coupled ? around.decayed(g[j], p[j]) : around.sign * g[j];
        const T d_descent = prepared.rule.vjp(descent, state, du[j], d_state, dh);
        if constexpr (wanted) {
            for (int h = 0; h < Rule::hypers; ++h) sums[h] += static_cast<double>(dh[h]);
            if (around.coupled) {
                sums[Rule::hypers] += static_cast<double>(around.per_coupled(p[j], d_descent));
            } else if (around.decoupled) {
                sums[0] += static_cast<double>(around.per_lr(p[j], du[j]));
                sums[Rule::hypers] += static_cast<double>(around.per_decoupled(p[j], du[j]));
            }
        }
        const T d_p = around.coupled     ? around.d_decayed(d_descent)
                      : around.decoupled ? around.d_shrunk(du[j])
                                         : T(0);
        p[j] = around.d_parameter(d_p, du[j]);
        g[j] = around.sign * d_descent;
        for (int k = 0; k < Rule::states; ++k) ds[k][j] = d_state[k];
    }
    store<S>(t.out_g, i, g);
    store<S>(t.out_p, i, p);
#pragma unroll
    for (int k = 0; k < Rule::states; ++k) store<S>(t.out_states[k], i, ds[k]);
}

/// Calls `many` with places of whole packs, 16 bytes each, of this block's chunk, and `one` with
/// those of the elements that are left.
template <typename S, typename Rule, typename T, typename Many, typename One>
__device__ void for_each_element(const Row<Rule, T> &row, std::int64_t chunk, Many many, One one) {
    constexpr int n = 16 / sizeof(S);
    const std::int64_t begin = (chunk - row.first_chunk) * chunk_size;
    const std::int64_t size =
        row.tensor.size - begin < chunk_size ? row.tensor.size - begin : chunk_size;
    const int packed = row.aligned ? static_cast<int>(size) / n * n : 0;
    for (int i = static_cast<int>(threadIdx.x) * n; i < packed;
         i += static_cast<int>(blockDim.x) * n)
        many(begin + i);
    for (int i = packed + static_cast<int>(threadIdx.x); i < size;
         i += static_cast<int>(blockDim.x))
        one(begin + i);
}

}  // namespace
}  // namespace diffopt::cuda
