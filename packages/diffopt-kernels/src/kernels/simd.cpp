// The loops. Compiled once for each instruction set, under the name DIFFOPT_SIMD.

#include <algorithm>

#include "cpu.hpp"

#ifndef DIFFOPT_SIMD
#define DIFFOPT_SIMD baseline
#endif
#define DIFFOPT_TEXT_OF(name) #name
#define DIFFOPT_TEXT(name) DIFFOPT_TEXT_OF(name)

namespace diffopt {
namespace {

/// Elements handled between two looks at which arrays are there: small enough for the first cache.
constexpr std::int64_t block_size = 512;

template <typename S>
const S *at(const void *array, std::int64_t begin, const S *otherwise) {
    return array ? static_cast<const S *>(array) + begin : otherwise;
}

template <typename S>
S *at(void *array, std::int64_t begin, S *otherwise) {
    return array ? static_cast<S *>(array) + begin : otherwise;
}

template <typename S, Decay decay, bool in_place>
void forward(const AdamCall &call, const AdamTensor &t, std::int64_t begin, std::int64_t end) {
    using T = Wide<S>;
    const Adam<T, decay> rule(call.hyper, call.maximize, t.step);
    const auto g = static_cast<const S *>(t.g), m = static_cast<const S *>(t.m),
               v = static_cast<const S *>(t.v), p = static_cast<const S *>(t.p);
    const auto out_u = static_cast<S *>(t.out_u), out_m = static_cast<S *>(t.out_m),
               out_v = static_cast<S *>(t.out_v);
    // Outputs are the inputs themselves, or apart from them: never shifted against them.
#pragma omp simd
    for (std::int64_t i = begin; i < end; ++i) {
        T m_i = widen(m[i]), v_i = widen(v[i]), p_i = T(0);
        if constexpr (in_place || decay != Decay::none) p_i = widen(p[i]);
        const T u_i = rule.forward(widen(g[i]), m_i, v_i, p_i);
        out_m[i] = narrow<S>(m_i);
        out_v[i] = narrow<S>(v_i);
        out_u[i] = narrow<S>(in_place ? p_i + u_i : u_i);
    }
}

template <typename S, Decay decay, bool want_hyper>
void vjp(const AdamCall &call, const AdamTensor &t, std::int64_t begin, std::int64_t end,
         HyperSums &sums) {
    using T = Wide<S>;
    const Adam<T, decay> rule(call.hyper, call.maximize, t.step);
    // What is absent is read from `zeros` and written to `waste`, which stay in the first cache:
    // one loop serves every combination.
    const S zeros[block_size] = {};
    S waste[4][block_size];
    double lr = 0, beta1 = 0, beta2 = 0, eps = 0, eps_root = 0, weight_decay = 0;
    for (; begin < end; begin += block_size) {
        const auto size = std::min(block_size, end - begin);
        const S *g = at(t.g, begin, zeros), *m = at(t.m, begin, zeros), *v = at(t.v, begin, zeros),
                *p = at(t.p, begin, zeros);
        const S *du = at(t.du, begin, zeros), *dm = at(t.dm, begin, zeros),
                *dv = at(t.dv, begin, zeros);
        S *out_dg = at(t.out_dg, begin, waste[0]), *out_dm = at(t.out_dm, begin, waste[1]),
          *out_dv = at(t.out_dv, begin, waste[2]), *out_dp = at(t.out_dp, begin, waste[3]);
#pragma omp simd reduction(+ : lr, beta1, beta2, eps, eps_root, weight_decay)
        for (std::int64_t i = 0; i < size; ++i) {
            T p_i = T(0);
            if constexpr (decay != Decay::none) p_i = widen(p[i]);
            const auto d = rule.vjp(widen(g[i]), widen(m[i]), widen(v[i]), p_i, widen(du[i]),
                                    widen(dm[i]), widen(dv[i]));
            out_dg[i] = narrow<S>(d.g);
            out_dm[i] = narrow<S>(d.m);
            out_dv[i] = narrow<S>(d.v);
            if constexpr (decay != Decay::none) out_dp[i] = narrow<S>(d.p);
            if constexpr (want_hyper) {
                lr += static_cast<double>(d.lr);
                beta1 += static_cast<double>(d.beta1);
                beta2 += static_cast<double>(d.beta2);
                eps += static_cast<double>(d.eps);
                eps_root += static_cast<double>(d.eps_root);
                weight_decay += static_cast<double>(d.weight_decay);
            }
        }
    }
    sums = {lr, beta1, beta2, eps, eps_root, weight_decay};
}

template <typename S, Decay decay>
AdamForward forward_with(const AdamCall &call) {
    return call.in_place ? forward<S, decay, true> : forward<S, decay, false>;
}

template <typename S, Decay decay>
AdamVjp vjp_with(const AdamCall &call) {
    return call.want_hyper ? vjp<S, decay, true> : vjp<S, decay, false>;
}

template <typename S>
AdamForward forward_of(const AdamCall &call) {
    switch (call.decay) {
        case Decay::none:
            return forward_with<S, Decay::none>(call);
        case Decay::coupled:
            return forward_with<S, Decay::coupled>(call);
        default:
            return forward_with<S, Decay::decoupled>(call);
    }
}

template <typename S>
AdamVjp vjp_of(const AdamCall &call) {
    switch (call.decay) {
        case Decay::none:
            return vjp_with<S, Decay::none>(call);
        case Decay::coupled:
            return vjp_with<S, Decay::coupled>(call);
        default:
            return vjp_with<S, Decay::decoupled>(call);
    }
}

AdamForward choose_forward(const AdamCall &call) {
    switch (call.dtype) {
        case Dtype::float64:
            return forward_of<double>(call);
        case Dtype::float32:
            return forward_of<float>(call);
        case Dtype::bfloat16:
            return forward_of<BFloat16>(call);
        default:
            return forward_of<Half>(call);
    }
}

AdamVjp choose_vjp(const AdamCall &call) {
    switch (call.dtype) {
        case Dtype::float64:
            return vjp_of<double>(call);
        case Dtype::float32:
            return vjp_of<float>(call);
        case Dtype::bfloat16:
            return vjp_of<BFloat16>(call);
        default:
            return vjp_of<Half>(call);
    }
}

}  // namespace

extern const Simd DIFFOPT_SIMD;
const Simd DIFFOPT_SIMD{DIFFOPT_TEXT(DIFFOPT_SIMD), choose_forward, choose_vjp};

}  // namespace diffopt
