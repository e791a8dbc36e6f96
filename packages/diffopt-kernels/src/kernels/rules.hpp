#pragma once

#include <cmath>
#include <cstdint>

#include "element.hpp"

/* NOTE [rules]
   A rule is one step of one element and the vector-Jacobian product of that step, as a struct
   template over the type that computes and over a variant, which Python numbers likewise:

       static constexpr const char *name;         as Python calls it
       static constexpr int variants;             0, 1, ... variants - 1
       static constexpr int states, hypers;       arrays besides the gradient; hyperparameters
       Rule(const double *hyper, step)            with what is the same for all elements
       T forward(g, s)                            turns the states into the new ones in `s`;
                                                  returns the update, to be added to the parameter
       T vjp(g, s, du, ds, dh)                    turns the cotangents of the new states in `ds`
                                                  into those of the old; sets those of the
                                                  hyperparameters; returns that of the gradient

   A rule knows nothing of maximization and weight decay: the loops apply them around it. */

/* NOTE [one division]
   Divisions and roots take most of the time of a loop whose arrays lie in the caches. So the
   vector-Jacobian products, which need several quotients with one denominator, multiply by its
   inverse instead; that moves their last bits. The steps themselves divide as torch.optim does. */
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

template <template <typename, int> class... Rules>
struct RuleList {};

/// All rules, in the order of the codes that Python passes.
using AllRules = RuleList<Sgd, Rmsprop, Adagrad, Adam, Lion, Nadam>;

constexpr int max_states = 3, max_hypers = 6;

}  // namespace
}  // namespace diffopt
