// A step of one chunk of one tensor, block by block. Compiled once for each instruction set, under
// the name DIFFOPT_SIMD.

#include <algorithm>
#include <type_traits>

#include "blocks.hpp"
#include "cpu.hpp"
#include "loops.hpp"
#include "surroundings.hpp"

#ifndef DIFFOPT_SIMD
#define DIFFOPT_SIMD baseline
#endif
#define DIFFOPT_TEXT_OF(name) #name
#define DIFFOPT_TEXT(name) DIFFOPT_TEXT_OF(name)

namespace diffopt {
namespace {

/// What the rule gets for its gradient.
template <typename T>
const T *descent(const Surroundings<T> &around, std::int64_t size, const T *g, const T *p,
                 T *buffer) {
    if (around.coupled) {
#pragma omp simd
        for (std::int64_t i = 0; i < size; ++i) buffer[i] = around.decayed(g[i], p[i]);
    } else if (around.maximize) {
#pragma omp simd
        for (std::int64_t i = 0; i < size; ++i) buffer[i] = -g[i];
    } else {
        return g;
    }
    return buffer;
}

/// Adds the shares of weight decay, and that of the learning rate in it.
template <typename T>
void add_sums(const Surroundings<T> &around, std::int64_t size, const T *p, const T *d_descent,
              const T *du, double &of_lr, double &of_decay) {
    double per_lr = 0, per_decay = 0;
    if (around.coupled) {
#pragma omp simd reduction(+ : per_decay)
        for (std::int64_t i = 0; i < size; ++i)
            per_decay += static_cast<double>(around.per_coupled(p[i], d_descent[i]));
    } else {
#pragma omp simd reduction(+ : per_lr, per_decay)
        for (std::int64_t i = 0; i < size; ++i) {
            per_lr += static_cast<double>(around.per_lr(p[i], du[i]));
            per_decay += static_cast<double>(around.per_decoupled(p[i], du[i]));
        }
    }
    of_lr += per_lr;
    of_decay += per_decay;
}

template <typename S>
void forward_chunk(const Call &call, const Tensor &t, std::int64_t begin, std::int64_t end) {
    using T = Wide<S>;
    const auto &kernel = find_kernel<T>(call.rule, call.variant, AllRules{});
    const Surroundings<T> around(call, t.hyper[0], t.hyper[kernel.hypers]);
    Prepared rule;
    kernel.prepare(t.hyper, t.step, rule);
    const bool needs_p = call.applied || call.decay != Decay::none;
    const bool bare = std::is_same_v<S, T> && !needs_p && !call.maximize && !call.streams;
    const std::int64_t stride = bare ? end - begin : call.streams ? streamed_size : block_size;
    T loaded[2 + max_states][block_size], descended[block_size];
    alignas(line) T written[1 + max_states][block_size];
    for (; begin < end; begin += stride) {
        const auto size = std::min(stride, end - begin);
        const T *p = needs_p ? load<S>(t.p, begin, size, loaded[0]) : nullptr;
        const T *g = load<S>(t.g, begin, size, loaded[1]);
        Arrays<T> a;
        a.g = descent(around, size, g, p, descended);
        for (int k = 0; k < kernel.states; ++k) {
            a.states[k] = load<S>(t.states[k], begin, size, loaded[2 + k]);
            a.out_states[k] = target<S>(call, t.out_states[k], begin, written[1 + k]);
        }
        T *update = call.in_place ? written[0] : target<S>(call, t.out_update, begin, written[0]);
        a.out = update;
        kernel.forward(rule, size, a);
        if (around.decoupled) {
#pragma omp simd
            for (std::int64_t i = 0; i < size; ++i) update[i] = around.shrunk(update[i], p[i]);
        }
        if (around.applied) {
#pragma omp simd
            for (std::int64_t i = 0; i < size; ++i) update[i] = around.moved(update[i], p[i]);
        }
        store<S>(call, t.out_update, begin, size, update);
        for (int k = 0; k < kernel.states; ++k)
            store<S>(call, t.out_states[k], begin, size, a.out_states[k]);
    }
    if (call.streams) settle();
}

template <typename S>
void vjp_chunk(const Call &call, const Tensor &t, std::int64_t begin, std::int64_t end,
               double *sums) {
    using T = Wide<S>;
    const auto &kernel = find_kernel<T>(call.rule, call.variant, AllRules{});
    const Surroundings<T> around(call, t.hyper[0], t.hyper[kernel.hypers]);
    Prepared rule;
    kernel.prepare(t.hyper, t.step, rule);
    const bool needs_p = call.decay != Decay::none;
    T loaded[3 + 2 * max_states][block_size], descended[block_size];
    // What is not wanted is written too, and stays in the first cache.
    alignas(line) T written[2 + max_states][block_size];
    // To add up the sums of a block takes long.
    const std::int64_t stride = call.streams && !sums ? streamed_size : block_size;
    for (; begin < end; begin += stride) {
        const auto size = std::min(stride, end - begin);
        const T *p = needs_p ? load<S>(t.p, begin, size, loaded[0]) : nullptr;
        const T *g = load<S>(t.g, begin, size, loaded[1]);
        const T *du = load<S>(t.d_update, begin, size, loaded[2]);
        T *out_g = target<S>(call, t.out_g, begin, written[0]);
        Arrays<T> a;
        a.g = descent(around, size, g, p, descended);
        a.d_update = du;
        a.out = out_g;
        for (int k = 0; k < kernel.states; ++k) {
            a.states[k] = load<S>(t.states[k], begin, size, loaded[3 + k]);
            a.d_states[k] = load<S>(t.d_states[k], begin, size, loaded[3 + max_states + k]);
            a.out_states[k] = target<S>(call, t.out_states[k], begin, written[2 + k]);
        }
        if (sums)
            kernel.vjp_and_sums(rule, size, a, sums);
        else
            kernel.vjp(rule, size, a);

        T *out_p = target<S>(call, t.out_p, begin, written[1]);
        if (around.coupled) {  // `out_g` is still the derivative by the descent
#pragma omp simd
            for (std::int64_t i = 0; i < size; ++i) out_p[i] = around.d_decayed(out_g[i]);
        } else if (around.decoupled) {
#pragma omp simd
            for (std::int64_t i = 0; i < size; ++i) out_p[i] = around.d_shrunk(du[i]);
        } else if (around.applied) {
            std::fill_n(out_p, size, T(0));
        }
        if (around.applied) {
#pragma omp simd
            for (std::int64_t i = 0; i < size; ++i) out_p[i] = around.d_parameter(out_p[i], du[i]);
        }
        if (sums && needs_p) add_sums(around, size, p, out_g, du, sums[0], sums[kernel.hypers]);
        if (around.maximize) {
#pragma omp simd
            for (std::int64_t i = 0; i < size; ++i) out_g[i] = -out_g[i];
        }
        store<S>(call, t.out_g, begin, size, out_g);
        if (needs_p || around.applied) store<S>(call, t.out_p, begin, size, out_p);
        for (int k = 0; k < kernel.states; ++k)
            store<S>(call, t.out_states[k], begin, size, a.out_states[k]);
    }
    if (call.streams) settle();
}

Forward choose_forward(Dtype dtype) {
    switch (dtype) {
        case Dtype::float64:
            return forward_chunk<double>;
        case Dtype::float32:
            return forward_chunk<float>;
        case Dtype::bfloat16:
            return forward_chunk<BFloat16>;
        default:
            return forward_chunk<Half>;
    }
}

Vjp choose_vjp(Dtype dtype) {
    switch (dtype) {
        case Dtype::float64:
            return vjp_chunk<double>;
        case Dtype::float32:
            return vjp_chunk<float>;
        case Dtype::bfloat16:
            return vjp_chunk<BFloat16>;
        default:
            return vjp_chunk<Half>;
    }
}

}  // namespace

extern const Simd DIFFOPT_SIMD;
const Simd DIFFOPT_SIMD{DIFFOPT_TEXT(DIFFOPT_SIMD), choose_forward, choose_vjp};

}  // namespace diffopt
