#pragma once

#include "rules/adagrad.hpp"
#include "rules/adam.hpp"
#include "rules/lion.hpp"
#include "rules/nadam.hpp"
#include "rules/rmsprop.hpp"
#include "rules/sgd.hpp"

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

template <template <typename, int> class... Rules>
struct RuleList {};

/// All rules, in the order of the codes that Python passes.
using AllRules = RuleList<Sgd, Rmsprop, Adagrad, Adam, Lion, Nadam>;

constexpr int max_states = 3, max_hypers = 6;

}  // namespace
}  // namespace diffopt
