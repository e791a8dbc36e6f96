#pragma once

#include <cmath>
#include <cstdint>

#include "element.hpp"

namespace diffopt {

/// Where weight decay enters: nowhere, into the gradient, or into the update (AdamW).
enum class Decay : int { none, coupled, decoupled };

/// One number for each hyperparameter, in the order in which Python passes them.
struct AdamHyper {
    double lr, beta1, beta2, eps, eps_root, weight_decay;
};

namespace {  // see NOTE [unnamed namespaces in the kernel headers]

/// What one element of the vector-Jacobian product gives: a cotangent for each input.
template <typename T>
struct AdamCotangents {
    T g, m, v, p;
    T lr, beta1, beta2, eps, eps_root, weight_decay;  // shares of sums over all elements
};

/// One Adam step of one element, and the vector-Jacobian product of that step.
///
/// Source: Kingma & Ba, "Adam: a method for stochastic optimization", ICLR 2015, alg. 1;
/// Loshchilov & Hutter, "Decoupled weight decay regularization", ICLR 2019, alg. 2.
template <typename T, Decay decay>
struct Adam {
    T sign;  // -1 to maximize
    T lr, beta1, beta2, eps, eps_root, weight_decay;
    T beta1_rest, beta2_rest;  // 1 - beta, rounded once
    T shrinkage;               // lr * weight_decay, rounded once
    T m_scale, v_scale;        // 1 / (1 - beta^t): what corrects the moments' bias
    T step_size;               // lr * m_scale, rounded once
    T m_slope, v_slope;        // d log(scale) / d beta

    Adam(const AdamHyper &hyper, bool maximize, std::int64_t step)
        : sign(maximize ? T(-1) : T(1)),
          lr(T(hyper.lr)),
          beta1(T(hyper.beta1)),
          beta2(T(hyper.beta2)),
          eps(T(hyper.eps)),
          eps_root(T(hyper.eps_root)),
          weight_decay(T(hyper.weight_decay)),
          beta1_rest(T(1 - hyper.beta1)),
          beta2_rest(T(1 - hyper.beta2)),
          shrinkage(T(hyper.lr * hyper.weight_decay)) {
        const auto t = static_cast<double>(step);
        const double m_correction = 1 - std::pow(hyper.beta1, t);
        const double v_correction = 1 - std::pow(hyper.beta2, t);
        m_scale = T(1 / m_correction);
        step_size = T(hyper.lr / m_correction);
        v_scale = T(1 / v_correction);
        m_slope = T(t * std::pow(hyper.beta1, t - 1) / m_correction);
        v_slope = T(t * std::pow(hyper.beta2, t - 1) / v_correction);
    }

    DIFFOPT_RULE T descent(T g, T p) const {
        g = sign * g;
        return decay == Decay::coupled ? g + weight_decay * p : g;
    }

    /// Turns moments into the new ones; returns the update, to be added to `p`.
    DIFFOPT_RULE T forward(T g, T &m, T &v, T p) const {
        g = descent(g, p);
        m = beta1 * m + beta1_rest * g;
        v = beta2 * v + beta2_rest * (g * g);
        const T u = -step_size * m / (std::sqrt(v * v_scale + eps_root) + eps);
        return decay == Decay::decoupled ? u - shrinkage * p : u;
    }

    /// Cotangents of all inputs, from those of the update `du` and of the new moments `dm`, `dv`.
    DIFFOPT_RULE AdamCotangents<T> vjp(T g, T m_old, T v_old, T p, T du, T dm, T dv) const {
        g = descent(g, p);
        const T m = beta1 * m_old + beta1_rest * g;
        const T v = beta2 * v_old + beta2_rest * (g * g);
        const T radicand = v * v_scale + eps_root;
        const T root = std::sqrt(radicand);
        const T denominator = root + eps;

        const T per_m = -step_size / denominator;  // d update / d m
        const T adam = per_m * m;                  // the update, but for decoupled decay
        const T d_eps = -du * (adam / denominator);
        // At 0 the derivative of the root is taken as 0: NOTE [root of zero] in _composed.py.
        const T d_radicand = radicand == T(0) ? T(0) : d_eps / (T(2) * root);
        dm += du * per_m;
        dv += d_radicand * v_scale;
        const T d_descent = beta1_rest * dm + T(2) * beta2_rest * (g * dv);

        AdamCotangents<T> d;
        d.g = sign * d_descent;
        d.m = beta1 * dm;
        d.v = beta2 * dv;
        d.p = T(0);
        d.lr = -du * (m_scale * m / denominator);
        d.beta1 = dm * (m_old - g) + du * adam * m_slope;
        d.beta2 = dv * (v_old - g * g) + d_radicand * v * v_scale * v_slope;
        d.eps = d_eps;
        d.eps_root = d_radicand;
        d.weight_decay = T(0);
        if constexpr (decay == Decay::coupled) {
            d.p = weight_decay * d_descent;
            d.weight_decay = p * d_descent;
        } else if constexpr (decay == Decay::decoupled) {
            d.p = -shrinkage * du;
            d.lr -= weight_decay * p * du;
            d.weight_decay = -lr * p * du;
        }
        return d;
    }
};

}  // namespace
}  // namespace diffopt
