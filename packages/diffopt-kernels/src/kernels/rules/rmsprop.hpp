#pragma once

#include <cmath>
#include <cstdint>

#include "../element.hpp"

namespace diffopt {
namespace {  // see NOTE [unnamed namespaces in the kernel headers]

/// RMSProp; bit 0 of the variant: centered, bit 1: with momentum.
///
/// Source: Hinton, "Neural networks for machine learning", lecture 6, 2012; Graves, "Generating
/// sequences with recurrent neural networks", 2013, eqs. 38-41 (centered).
template <typename T, int variant>
struct Rmsprop {
    static constexpr const char *name = "rmsprop";
    static constexpr int variants = 4;
    static constexpr bool centered = (variant & 1) != 0, momentous = (variant & 2) != 0;
    static constexpr int states = 1 + centered + momentous, hypers = 4;
    static constexpr int mean = centered ? 1 : 0, buffer = centered ? 2 : momentous;

    T lr, alpha, eps, momentum, alpha_rest;

    DIFFOPT_RULE Rmsprop(const double *hyper, std::int64_t)
        : lr(T(hyper[0])),
          alpha(T(hyper[1])),
          eps(T(hyper[2])),
          momentum(T(hyper[3])),
          alpha_rest(T(1 - hyper[1])) {}

    /// The average of the squares, less the square of the average, which rounding may exceed.
    DIFFOPT_RULE T radicand(T square, T average) const {
        if constexpr (!centered) return square;
        const T variance = square - average * average;
        return variance < T(0) ? T(0) : variance;
    }

    DIFFOPT_RULE T forward(T g, T *s) const {
        s[0] = alpha * s[0] + alpha_rest * (g * g);
        if constexpr (centered) s[mean] += alpha_rest * (g - s[mean]);
        T step = g / (std::sqrt(radicand(s[0], s[mean])) + eps);
        if constexpr (momentous) step = s[buffer] = momentum * s[buffer] + step;
        return -lr * step;
    }

    DIFFOPT_RULE T vjp(T g, const T *s, T du, T *ds, T *dh) const {
        const T square = alpha * s[0] + alpha_rest * (g * g);
        T average = T(0);
        if constexpr (centered) average = s[mean] + alpha_rest * (g - s[mean]);
        const T variance = radicand(square, average);
        const T root = std::sqrt(variance);
        const T inverse = T(1) / (root + eps);  // NOTE [one division]
        const T quotient = g * inverse;

        T d_quotient = -lr * du;
        dh[3] = T(0);
        T step = quotient;
        if constexpr (momentous) {
            step = momentum * s[buffer] + quotient;
            d_quotient += ds[buffer];
            dh[3] = d_quotient * s[buffer];
            ds[buffer] = momentum * d_quotient;
        }
        dh[0] = -du * step;
        dh[2] = -d_quotient * (quotient * inverse);
        // At 0 the derivative of the root is taken as 0: NOTE [root of zero] in _composed.py.
        const T d_variance = variance == T(0) ? T(0) : dh[2] / (T(2) * root);
        const T d_square = ds[0] + d_variance;
        T d_g = d_quotient * inverse + T(2) * alpha_rest * (g * d_square);
        dh[1] = d_square * (s[0] - g * g);
        ds[0] = alpha * d_square;
        if constexpr (centered) {
            const T d_average = ds[mean] - T(2) * average * d_variance;
            d_g += alpha_rest * d_average;
            dh[1] += d_average * (s[mean] - g);
            ds[mean] = alpha * d_average;
        }
        return d_g;
    }
};

}  // namespace
}  // namespace diffopt
