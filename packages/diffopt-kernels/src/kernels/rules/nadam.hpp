#pragma once

#include <cmath>
#include <cstdint>

#include "../element.hpp"

namespace diffopt {
namespace {  // see NOTE [unnamed namespaces in the kernel headers]

/// NAdam. How much of its look ahead is gradient and how much momentum, the schedule of the
/// momentum and the correction of its bias, are numbers of the step: NOTE [shares] in _nadam.py.
///
/// Source: Dozat, "Incorporating Nesterov momentum into Adam", ICLR workshop 2016, alg. 8.
template <typename T, int variant>
struct Nadam {
    static constexpr const char *name = "nadam";
    static constexpr int variants = 1;
    static constexpr int states = 2, hypers = 6;

    T lr, beta1, beta2, eps, g_share, m_share;
    T beta1_rest, beta2_rest;
    T v_scale, v_slope;  // as Adam's

    DIFFOPT_RULE Nadam(const double *hyper, std::int64_t step)
        : lr(T(hyper[0])),
          beta1(T(hyper[1])),
          beta2(T(hyper[2])),
          eps(T(hyper[3])),
          g_share(T(hyper[4])),
          m_share(T(hyper[5])),
          beta1_rest(T(1 - hyper[1])),
          beta2_rest(T(1 - hyper[2])) {
        const auto t = static_cast<double>(step);
        const double v_correction = 1 - std::pow(hyper[2], t);
        v_scale = T(1 / v_correction);
        v_slope = T(t * std::pow(hyper[2], t - 1) / v_correction);
    }

    DIFFOPT_RULE T forward(T g, T *s) const {
        s[0] = beta1 * s[0] + beta1_rest * g;
        s[1] = beta2 * s[1] + beta2_rest * (g * g);
        return -lr * (g_share * g + m_share * s[0]) / (std::sqrt(s[1] * v_scale) + eps);
    }

    DIFFOPT_RULE T vjp(T g, const T *s, T du, T *ds, T *dh) const {
        const T m = beta1 * s[0] + beta1_rest * g;
        const T v = beta2 * s[1] + beta2_rest * (g * g);
        const T radicand = v * v_scale;
        const T root = std::sqrt(radicand);
        const T inverse = T(1) / (root + eps);  // NOTE [one division]
        const T step = (g_share * g + m_share * m) * inverse;

        const T d_step = -lr * du;
        const T d_direction = d_step * inverse;
        dh[0] = -du * step;
        dh[3] = -d_direction * step;
        dh[4] = d_direction * g;
        dh[5] = d_direction * m;
        // At 0 the derivative of the root is taken as 0: NOTE [root of zero] in _composed.py.
        const T d_radicand = radicand == T(0) ? T(0) : dh[3] / (T(2) * root);
        const T d_m = ds[0] + d_direction * m_share;
        const T d_v = ds[1] + d_radicand * v_scale;
        dh[1] = d_m * (s[0] - g);
        dh[2] = d_v * (s[1] - g * g) + d_radicand * radicand * v_slope;
        ds[0] = beta1 * d_m;
        ds[1] = beta2 * d_v;
        return d_direction * g_share + beta1_rest * d_m + T(2) * beta2_rest * (g * d_v);
    }
};

}  // namespace
}  // namespace diffopt
