#pragma once

#include <cstdint>

#include "../element.hpp"

namespace diffopt {
namespace {  // see NOTE [unnamed namespaces in the kernel headers]

/// Stochastic gradient descent; with `momentum`, heavy ball; with `nesterov`, one step ahead of it.
///
/// Source: Sutskever et al., "On the importance of initialization and momentum in deep learning",
/// ICML 2013, with the step size factored out as torch.optim.SGD does.
template <typename T, int variant>
struct Sgd {
    static constexpr const char *name = "sgd";
    static constexpr int variants = 3;
    static constexpr bool momentous = variant > 0, nesterov = variant == 2;
    static constexpr int states = momentous, hypers = 3;

    T lr, momentum, dampening_rest;
    bool first;  // the first step takes the gradient itself as momentum

    DIFFOPT_RULE Sgd(const double *hyper, std::int64_t step)
        : lr(T(hyper[0])),
          momentum(T(hyper[1])),
          dampening_rest(T(1 - hyper[2])),
          first(step == 1) {}

    DIFFOPT_RULE T buffer(T g, T b) const { return first ? g : momentum * b + dampening_rest * g; }

    DIFFOPT_RULE T forward(T g, T *s) const {
        if constexpr (momentous) {
            s[0] = buffer(g, s[0]);
            g = nesterov ? g + momentum * s[0] : s[0];
        }
        return -lr * g;
    }

    DIFFOPT_RULE T vjp(T g, const T *s, T du, T *ds, T *dh) const {
        const T d_step = -lr * du;
        dh[1] = dh[2] = T(0);
        if constexpr (!momentous) {
            dh[0] = -du * g;
            return d_step;
        } else {
            const T b = buffer(g, s[0]);
            dh[0] = -du * (nesterov ? g + momentum * b : b);
            const T d_b = ds[0] + (nesterov ? momentum * d_step : d_step);
            dh[1] = (first ? T(0) : d_b * s[0]) + (nesterov ? d_step * b : T(0));
            dh[2] = first ? T(0) : -d_b * g;
            ds[0] = first ? T(0) : momentum * d_b;
            return (first ? d_b : dampening_rest * d_b) + (nesterov ? d_step : T(0));
        }
    }
};

}  // namespace
}  // namespace diffopt
