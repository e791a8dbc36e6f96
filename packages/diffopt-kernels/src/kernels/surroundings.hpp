#pragma once

#include "call.hpp"

namespace diffopt {
namespace {  // see NOTE [unnamed namespaces in the kernel headers]

/// What is applied around every rule: maximization, weight decay and, where it is asked for, the
/// update itself.
template <typename T>
struct Surroundings {
    bool coupled, decoupled, maximize, applied;
    T sign, lr, weight_decay;
    T shrinkage;  // lr * weight_decay, rounded once

    DIFFOPT_RULE Surroundings(const Call &call, double lr, double weight_decay)
        : coupled(call.decay == Decay::coupled),
          decoupled(call.decay == Decay::decoupled),
          maximize(call.maximize),
          applied(call.applied),
          sign(call.maximize ? T(-1) : T(1)),
          lr(T(lr)),
          weight_decay(T(weight_decay)),
          shrinkage(T(lr * weight_decay)) {}

    /// What a rule gets for its gradient, where decay is coupled, and the parameter's cotangent.
    DIFFOPT_RULE T decayed(T g, T p) const { return sign * g + weight_decay * p; }
    DIFFOPT_RULE T d_decayed(T d_descent) const { return weight_decay * d_descent; }

    /// The update, where decay is decoupled, and the parameter's cotangent.
    DIFFOPT_RULE T shrunk(T u, T p) const { return u - shrinkage * p; }
    DIFFOPT_RULE T d_shrunk(T du) const { return -shrinkage * du; }

    /// What is given for the update, and the parameter's cotangent with what it adds to that.
    DIFFOPT_RULE T moved(T u, T p) const { return applied ? p + u : u; }
    DIFFOPT_RULE T d_parameter(T d_p, T du) const { return applied ? d_p + du : d_p; }

    /// Cotangents of weight decay, coupled and decoupled, and of the learning rate in the latter.
    DIFFOPT_RULE T per_coupled(T p, T d_descent) const { return p * d_descent; }
    DIFFOPT_RULE T per_decoupled(T p, T du) const { return -lr * p * du; }
    DIFFOPT_RULE T per_lr(T p, T du) const { return -weight_decay * p * du; }
};

}  // namespace
}  // namespace diffopt
