#pragma once

#include <cstdint>
#include <new>
#include <type_traits>
#include <utility>

#include "rules.hpp"

namespace diffopt {
namespace {  // see NOTE [unnamed namespaces in the kernel headers]

/// A rule made ready for one tensor.
struct Prepared {
    alignas(16) unsigned char bytes[192];
};

template <typename Rule>
void prepare(const double *hyper, std::int64_t step, Prepared &prepared) {
    static_assert(sizeof(Rule) <= sizeof prepared.bytes, "make Prepared larger");
    static_assert(std::is_trivially_copyable_v<Rule>, "nothing destroys it");
    new (prepared.bytes) Rule(hyper, step);
}

template <typename Rule>
const Rule &prepared_rule(const Prepared &prepared) {
    return *std::launder(reinterpret_cast<const Rule *>(prepared.bytes));
}

/// Elements that are all present and contiguous. What a loop writes may be what it reads, or apart
/// from it: never shifted against it.
template <typename T>
struct Arrays {
    const T *g, *states[max_states];
    const T *d_update, *d_states[max_states];  // vjp only
    T *out;                                    // update; vjp: cotangent of the gradient
    T *out_states[max_states];                 // new states; vjp: cotangents of the old
};

/// One variant of a rule.
template <typename T>
struct Kernel {
    int states, hypers;
    void (*prepare)(const double *hyper, std::int64_t step, Prepared &);
    void (*forward)(const Prepared &, std::int64_t size, const Arrays<T> &);
    void (*vjp)(const Prepared &, std::int64_t size, const Arrays<T> &);
    /// The same, and adds to the sums over hyperparameters.
    void (*vjp_and_sums)(const Prepared &, std::int64_t size, const Arrays<T> &, double *sums);
};

// The body of the loop stands in a function, because arrays that are declared in a loop under
// `omp simd` keep GCC from vectorizing it.
template <typename Rule, typename T, std::size_t... k>
DIFFOPT_RULE void forward_element(const Rule &rule, const Arrays<T> &a, std::int64_t i,
                                  std::index_sequence<k...>) {
    T s[] = {a.states[k][i]..., T(0)};
    a.out[i] = rule.forward(a.g[i], s);
    ((a.out_states[k][i] = s[k]), ...);
}

/// Cotangents of the hyperparameters. No array: see above.
template <typename T>
struct Shares {
    T share0, share1, share2, share3, share4, share5;
};
static_assert(max_hypers == 6, "a share for each");

template <typename Rule, typename T, std::size_t... k>
DIFFOPT_RULE Shares<T> vjp_element(const Rule &rule, const Arrays<T> &a, std::int64_t i,
                                   std::index_sequence<k...>) {
    const T s[] = {a.states[k][i]..., T(0)};
    T ds[] = {a.d_states[k][i]..., T(0)}, dh[max_hypers] = {};
    a.out[i] = rule.vjp(a.g[i], s, a.d_update[i], ds, dh);
    ((a.out_states[k][i] = ds[k]), ...);
    return {dh[0], dh[1], dh[2], dh[3], dh[4], dh[5]};
}

template <typename Rule, typename T>
void forward_loop(const Prepared &prepared, std::int64_t size, const Arrays<T> &arrays) {
    using Index = std::make_index_sequence<Rule::states>;
    const auto rule = prepared_rule<Rule>(prepared);
    const Arrays<T> a = arrays;
#pragma omp simd
    for (std::int64_t i = 0; i < size; ++i) forward_element(rule, a, i, Index{});
}

template <typename Rule, typename T>
void vjp_loop(const Prepared &prepared, std::int64_t size, const Arrays<T> &arrays) {
    using Index = std::make_index_sequence<Rule::states>;
    const auto rule = prepared_rule<Rule>(prepared);
    const Arrays<T> a = arrays;
#pragma omp simd
    for (std::int64_t i = 0; i < size; ++i) vjp_element(rule, a, i, Index{});
}

template <typename Rule, typename T>
void vjp_and_sums_loop(const Prepared &prepared, std::int64_t size, const Arrays<T> &arrays,
                       double *sums) {
    using Index = std::make_index_sequence<Rule::states>;
    const auto rule = prepared_rule<Rule>(prepared);
    const Arrays<T> a = arrays;
    double sum0 = 0, sum1 = 0, sum2 = 0, sum3 = 0, sum4 = 0, sum5 = 0;
#pragma omp simd reduction(+ : sum0, sum1, sum2, sum3, sum4, sum5)
    for (std::int64_t i = 0; i < size; ++i) {
        const auto d = vjp_element(rule, a, i, Index{});
        sum0 += static_cast<double>(d.share0);
        if constexpr (Rule::hypers > 1) sum1 += static_cast<double>(d.share1);
        if constexpr (Rule::hypers > 2) sum2 += static_cast<double>(d.share2);
        if constexpr (Rule::hypers > 3) sum3 += static_cast<double>(d.share3);
        if constexpr (Rule::hypers > 4) sum4 += static_cast<double>(d.share4);
        if constexpr (Rule::hypers > 5) sum5 += static_cast<double>(d.share5);
    }
    const double found[] = {sum0, sum1, sum2, sum3, sum4, sum5};
    for (int h = 0; h < Rule::hypers; ++h) sums[h] += found[h];
}

template <typename Rule, typename T>
constexpr Kernel<T> make_kernel() {
    static_assert(Rule::states <= max_states && Rule::hypers <= max_hypers, "raise the maximum");
    return {Rule::states,          Rule::hypers,      prepare<Rule>,
            forward_loop<Rule, T>, vjp_loop<Rule, T>, vjp_and_sums_loop<Rule, T>};
}

template <typename T, template <typename, int> class R, typename Numbers>
struct Variants;
template <typename T, template <typename, int> class R, int... variant>
struct Variants<T, R, std::integer_sequence<int, variant...>> {
    static constexpr Kernel<T> kernels[] = {make_kernel<R<T, variant>, T>()...};
};

/// The kernels of a rule and variant. (No containers of the standard library in this file: the
/// linker would share their functions between the instruction sets.)
template <typename T, template <typename, int> class... R>
const Kernel<T> &find_kernel(int rule, int variant, RuleList<R...>) {
    static constexpr const Kernel<T> *rules[] = {
        Variants<T, R, std::make_integer_sequence<int, R<T, 0>::variants>>::kernels...};
    return rules[rule][variant];
}

}  // namespace
}  // namespace diffopt
