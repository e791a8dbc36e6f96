#pragma once

#include <cstdint>

#include "../element.hpp"

namespace diffopt {
namespace {  // see NOTE [unnamed namespaces in the kernel headers]

/// Lion. The derivative of the sign is 0.
///
/// Source: Chen et al., "Symbolic discovery of optimization algorithms", NeurIPS 2023, alg. 2.
template <typename T, int variant>
struct Lion {
    static constexpr const char *name = "lion";
    static constexpr int variants = 1;
    static constexpr int states = 1, hypers = 3;

    T lr, beta1, beta2, beta1_rest, beta2_rest;

    DIFFOPT_RULE Lion(const double *hyper, std::int64_t)
        : lr(T(hyper[0])),
          beta1(T(hyper[1])),
          beta2(T(hyper[2])),
          beta1_rest(T(1 - hyper[1])),
          beta2_rest(T(1 - hyper[2])) {}

    DIFFOPT_RULE T sign(T g, T m) const {
        const T direction = beta1 * m + beta1_rest * g;
        return direction > T(0) ? T(1) : direction < T(0) ? T(-1) : T(0);
    }

    DIFFOPT_RULE T forward(T g, T *s) const {
        const T u = -lr * sign(g, s[0]);
        s[0] = beta2 * s[0] + beta2_rest * g;
        return u;
    }

    DIFFOPT_RULE T vjp(T g, const T *s, T du, T *ds, T *dh) const {
        const T d_m = ds[0];
        dh[0] = -du * sign(g, s[0]);
        dh[1] = T(0);
        dh[2] = d_m * (s[0] - g);
        ds[0] = beta2 * d_m;
        return beta2_rest * d_m;
    }
};

}  // namespace
}  // namespace diffopt
