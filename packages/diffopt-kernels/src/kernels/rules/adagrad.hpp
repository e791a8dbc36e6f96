#pragma once

#include <cmath>
#include <cstdint>

#include "../element.hpp"

namespace diffopt {
namespace {  // see NOTE [unnamed namespaces in the kernel headers]

/// AdaGrad.
///
/// Source: Duchi et al., "Adaptive subgradient methods for online learning and stochastic
/// optimization", JMLR 2011, fig. 1, with a decaying step size as torch.optim.Adagrad has it.
template <typename T, int variant>
struct Adagrad {
    static constexpr const char *name = "adagrad";
    static constexpr int variants = 1;
    static constexpr int states = 1, hypers = 3;

    T eps;
    T step_size, per_lr, per_lr_decay;  // lr / (1 + (t - 1) lr_decay), and its derivatives

    DIFFOPT_RULE Adagrad(const double *hyper, std::int64_t step) : eps(T(hyper[2])) {
        const auto before = static_cast<double>(step - 1);
        const double scale = 1 / (1 + before * hyper[1]);
        step_size = T(hyper[0] * scale);
        per_lr = T(scale);
        per_lr_decay = T(-hyper[0] * before * scale * scale);
    }

    DIFFOPT_RULE T forward(T g, T *s) const {
        s[0] += g * g;
        return -step_size * g / (std::sqrt(s[0]) + eps);
    }

    DIFFOPT_RULE T vjp(T g, const T *s, T du, T *ds, T *dh) const {
        const T sum = s[0] + g * g;
        const T root = std::sqrt(sum);
        const T inverse = T(1) / (root + eps);  // NOTE [one division]
        const T quotient = g * inverse;

        const T d_quotient = -step_size * du;
        dh[0] = -du * quotient * per_lr;
        dh[1] = -du * quotient * per_lr_decay;
        dh[2] = -d_quotient * (quotient * inverse);
        // At 0 the derivative of the root is taken as 0: NOTE [root of zero] in _composed.py.
        ds[0] += sum == T(0) ? T(0) : dh[2] / (T(2) * root);
        return d_quotient * inverse + T(2) * (g * ds[0]);
    }
};

}  // namespace
}  // namespace diffopt
