#pragma once

#include <cmath>
#include <cstdint>

#include "../element.hpp"

namespace diffopt {
namespace {  // see NOTE [unnamed namespaces in the kernel headers]

/// Adam and, as variant 1, AMSGrad.
///
/// Source: Kingma & Ba, "Adam: a method for stochastic optimization", ICLR 2015, alg. 1; Reddi et
/// al., "On the convergence of Adam and beyond", ICLR 2018, alg. 2, bias corrected as in torch.
template <typename T, int variant>
struct Adam {
    static constexpr const char *name = "adam";
    static constexpr int variants = 2;
    static constexpr bool amsgrad = variant == 1;
    static constexpr int states = 2 + amsgrad, hypers = 5;

    T beta1, beta2, eps, eps_root;
    T beta1_rest, beta2_rest;  // 1 - beta, rounded once
    T m_scale, v_scale;        // 1 / (1 - beta^t): what corrects the moments' bias
    T step_size;               // lr * m_scale, rounded once
    T m_slope, v_slope;        // d log(scale) / d beta

    DIFFOPT_RULE Adam(const double *hyper, std::int64_t step)
        : beta1(T(hyper[1])),
          beta2(T(hyper[2])),
          eps(T(hyper[3])),
          eps_root(T(hyper[4])),
          beta1_rest(T(1 - hyper[1])),
          beta2_rest(T(1 - hyper[2])) {
        const auto t = static_cast<double>(step);
        const double m_correction = 1 - std::pow(hyper[1], t);
        const double v_correction = 1 - std::pow(hyper[2], t);
        m_scale = T(1 / m_correction);
        step_size = T(hyper[0] / m_correction);
        v_scale = T(1 / v_correction);
        m_slope = T(t * std::pow(hyper[1], t - 1) / m_correction);
        v_slope = T(t * std::pow(hyper[2], t - 1) / v_correction);
    }

    DIFFOPT_RULE T forward(T g, T *s) const {
        s[0] = beta1 * s[0] + beta1_rest * g;
        s[1] = beta2 * s[1] + beta2_rest * (g * g);
        T v = s[1];
        if constexpr (amsgrad) v = s[2] = s[2] > v || s[2] != s[2] ? s[2] : v;
        return -step_size * s[0] / (std::sqrt(v * v_scale + eps_root) + eps);
    }

    DIFFOPT_RULE T vjp(T g, const T *s, T du, T *ds, T *dh) const {
        const T m = beta1 * s[0] + beta1_rest * g;
        const T v_new = beta2 * s[1] + beta2_rest * (g * g);
        T v = v_new;
        if constexpr (amsgrad) v = s[2] > v || s[2] != s[2] ? s[2] : v;
        const T radicand = v * v_scale + eps_root;
        const T root = std::sqrt(radicand);
        const T inverse = T(1) / (root + eps);  // NOTE [one division]

        const T per_m = -step_size * inverse;  // d update / d m
        const T u = per_m * m;
        dh[3] = -du * (u * inverse);
        // At 0 the derivative of the root is taken as 0: NOTE [root of zero] in _composed.py.
        dh[4] = radicand == T(0) ? T(0) : dh[3] / (T(2) * root);
        const T d_m = ds[0] + du * per_m;
        T d_v = dh[4] * v_scale;
        if constexpr (amsgrad) {  // the greater one gets all, equal ones a half each
            const T d_max = ds[2] + d_v;
            const T share = s[2] > v_new ? T(1) : s[2] == v_new ? T(0.5) : T(0);
            ds[2] = share * d_max;
            d_v = (T(1) - share) * d_max;
        }
        d_v += ds[1];
        ds[0] = beta1 * d_m;
        ds[1] = beta2 * d_v;
        dh[0] = -du * (m_scale * m * inverse);
        dh[1] = d_m * (s[0] - g) + du * u * m_slope;
        dh[2] = d_v * (s[1] - g * g) + dh[4] * v * v_scale * v_slope;
        return beta1_rest * d_m + T(2) * beta2_rest * (g * d_v);
    }
};

}  // namespace
}  // namespace diffopt
