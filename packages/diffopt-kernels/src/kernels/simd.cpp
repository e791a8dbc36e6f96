// The loops. Compiled once for each instruction set, under the name DIFFOPT_SIMD.

#include <algorithm>
#include <new>
#include <type_traits>
#include <utility>

#include "cpu.hpp"
#include "stream.hpp"
#include "surroundings.hpp"

#ifndef DIFFOPT_SIMD
#define DIFFOPT_SIMD baseline
#endif
#define DIFFOPT_TEXT_OF(name) #name
#define DIFFOPT_TEXT(name) DIFFOPT_TEXT_OF(name)

namespace diffopt {
namespace {

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

/// Elements that are handled between two looks at which arrays are there, how they are stored and
/// what is applied around the rule: all that lies between stays in the first cache.
constexpr std::int64_t block_size = 512;

/// The same where what is written goes around the caches: no more than the processor can have on
/// its way to memory while it computes on.
constexpr std::int64_t streamed_size = 64;

template <typename T>
const T zeros[block_size] = {};

/// Elements of an array as numbers that can be computed with: in place, or in `buffer`.
template <typename S, typename T = Wide<S>>
const T *load(const void *array, std::int64_t begin, std::int64_t size, T *buffer) {
    if (!array) return zeros<T>;
    const S *from = static_cast<const S *>(array) + begin;
    if constexpr (std::is_same_v<S, T>) {
        return from;
    } else {
#pragma omp simd
        for (std::int64_t i = 0; i < size; ++i) buffer[i] = widen(from[i]);
        return buffer;
    }
}

/// Where a loop may write numbers for an array: into it, or into `buffer`.
template <typename S, typename T = Wide<S>>
T *target(const Call &call, void *array, std::int64_t begin, T *buffer) {
    if constexpr (std::is_same_v<S, T>) {
        if (array && !call.streams) return static_cast<T *>(array) + begin;
    }
    return buffer;
}

template <typename S, typename T = Wide<S>>
void narrow_all(const T *numbers, std::int64_t size, S *to) {
#pragma omp simd
    for (std::int64_t i = 0; i < size; ++i) to[i] = narrow<S>(numbers[i]);
}

/// Puts numbers into their array, unless they are there.
template <typename S, typename T = Wide<S>>
void store(const Call &call, void *array, std::int64_t begin, std::int64_t size, const T *numbers) {
    if (!array) return;
    S *to = static_cast<S *>(array) + begin;
    if constexpr (std::is_same_v<S, T>) {
        if (call.streams)
            stream(to, numbers, size);
        else if (to != numbers)
            narrow_all(numbers, size, to);
    } else if (call.streams) {
        alignas(line) S narrowed[block_size];
        narrow_all(numbers, size, narrowed);
        stream(to, narrowed, size);
    } else {
        narrow_all(numbers, size, to);
    }
}

/// What the rule gets for its gradient.
template <typename T>
const T *descent(const Surroundings<T> &around, std::int64_t size, const T *g, const T *p,
                 T *buffer) {
    if (around.coupled) {
#pragma omp simd
        for (std::int64_t i = 0; i < size; ++i) buffer[i] = around.decayed(g[i], p[i]);
    } else if (around.maximize) {
#pragma omp simd
        for (std::int64_t i = 0; i < size; ++i) buffer[i] = -g[i];
    } else {
        return g;
    }
    return buffer;
}

/// Adds the shares of weight decay, and that of the learning rate in it.
template <typename T>
void add_sums(const Surroundings<T> &around, std::int64_t size, const T *p, const T *d_descent,
              const T *du, double &of_lr, double &of_decay) {
    double per_lr = 0, per_decay = 0;
    if (around.coupled) {
#pragma omp simd reduction(+ : per_decay)
        for (std::int64_t i = 0; i < size; ++i)
            per_decay += static_cast<double>(around.per_coupled(p[i], d_descent[i]));
    } else {
#pragma omp simd reduction(+ : per_lr, per_decay)
        for (std::int64_t i = 0; i < size; ++i) {
            per_lr += static_cast<double>(around.per_lr(p[i], du[i]));
            per_decay += static_cast<double>(around.per_decoupled(p[i], du[i]));
        }
    }
    of_lr += per_lr;
    of_decay += per_decay;
}

template <typename S>
void forward_chunk(const Call &call, const Tensor &t, std::int64_t begin, std::int64_t end) {
    using T = Wide<S>;
    const auto &kernel = find_kernel<T>(call.rule, call.variant, AllRules{});
    const Surroundings<T> around(call, t.hyper[0], t.hyper[kernel.hypers]);
    Prepared rule;
    kernel.prepare(t.hyper, t.step, rule);
    const bool needs_p = call.applied || call.decay != Decay::none;
    const bool bare = std::is_same_v<S, T> && !needs_p && !call.maximize && !call.streams;
    const std::int64_t stride = bare ? end - begin : call.streams ? streamed_size : block_size;
    T loaded[2 + max_states][block_size], descended[block_size];
    alignas(line) T written[1 + max_states][block_size];
    for (; begin < end; begin += stride) {
        const auto size = std::min(stride, end - begin);
        const T *p = needs_p ? load<S>(t.p, begin, size, loaded[0]) : nullptr;
        const T *g = load<S>(t.g, begin, size, loaded[1]);
        Arrays<T> a;
        a.g = descent(around, size, g, p, descended);
        for (int k = 0; k < kernel.states; ++k) {
            a.states[k] = load<S>(t.states[k], begin, size, loaded[2 + k]);
            a.out_states[k] = target<S>(call, t.out_states[k], begin, written[1 + k]);
        }
        T *update = call.in_place ? written[0] : target<S>(call, t.out_update, begin, written[0]);
        a.out = update;
        kernel.forward(rule, size, a);
        if (around.decoupled) {
#pragma omp simd
            for (std::int64_t i = 0; i < size; ++i) update[i] = around.shrunk(update[i], p[i]);
        }
        if (around.applied) {
#pragma omp simd
            for (std::int64_t i = 0; i < size; ++i) update[i] = around.moved(update[i], p[i]);
        }
        store<S>(call, t.out_update, begin, size, update);
        for (int k = 0; k < kernel.states; ++k)
            store<S>(call, t.out_states[k], begin, size, a.out_states[k]);
    }
    if (call.streams) settle();
}

template <typename S>
void vjp_chunk(const Call &call, const Tensor &t, std::int64_t begin, std::int64_t end,
               double *sums) {
    using T = Wide<S>;
    const auto &kernel = find_kernel<T>(call.rule, call.variant, AllRules{});
    const Surroundings<T> around(call, t.hyper[0], t.hyper[kernel.hypers]);
    Prepared rule;
    kernel.prepare(t.hyper, t.step, rule);
    const bool needs_p = call.decay != Decay::none;
    T loaded[3 + 2 * max_states][block_size], descended[block_size];
    // What is not wanted is written too, and stays in the first cache.
    alignas(line) T written[2 + max_states][block_size];
    // To add up the sums of a block takes long.
    const std::int64_t stride = call.streams && !sums ? streamed_size : block_size;
    for (; begin < end; begin += stride) {
        const auto size = std::min(stride, end - begin);
        const T *p = needs_p ? load<S>(t.p, begin, size, loaded[0]) : nullptr;
        const T *g = load<S>(t.g, begin, size, loaded[1]);
        const T *du = load<S>(t.d_update, begin, size, loaded[2]);
        T *out_g = target<S>(call, t.out_g, begin, written[0]);
        Arrays<T> a;
        a.g = descent(around, size, g, p, descended);
        a.d_update = du;
        a.out = out_g;
        for (int k = 0; k < kernel.states; ++k) {
            a.states[k] = load<S>(t.states[k], begin, size, loaded[3 + k]);
            a.d_states[k] = load<S>(t.d_states[k], begin, size, loaded[3 + max_states + k]);
            a.out_states[k] = target<S>(call, t.out_states[k], begin, written[2 + k]);
        }
        if (sums)
            kernel.vjp_and_sums(rule, size, a, sums);
        else
            kernel.vjp(rule, size, a);

        T *out_p = target<S>(call, t.out_p, begin, written[1]);
        if (around.coupled) {  // `out_g` is still the derivative by the descent
#pragma omp simd
            for (std::int64_t i = 0; i < size; ++i) out_p[i] = around.d_decayed(out_g[i]);
        } else if (around.decoupled) {
#pragma omp simd
            for (std::int64_t i = 0; i < size; ++i) out_p[i] = around.d_shrunk(du[i]);
        } else if (around.applied) {
            std::fill_n(out_p, size, T(0));
        }
        if (around.applied) {
#pragma omp simd
            for (std::int64_t i = 0; i < size; ++i) out_p[i] = around.d_parameter(out_p[i], du[i]);
        }
        if (sums && needs_p) add_sums(around, size, p, out_g, du, sums[0], sums[kernel.hypers]);
        if (around.maximize) {
#pragma omp simd
            for (std::int64_t i = 0; i < size; ++i) out_g[i] = -out_g[i];
        }
        store<S>(call, t.out_g, begin, size, out_g);
        if (needs_p || around.applied) store<S>(call, t.out_p, begin, size, out_p);
        for (int k = 0; k < kernel.states; ++k)
            store<S>(call, t.out_states[k], begin, size, a.out_states[k]);
    }
    if (call.streams) settle();
}

Forward choose_forward(Dtype dtype) {
    switch (dtype) {
        case Dtype::float64:
            return forward_chunk<double>;
        case Dtype::float32:
            return forward_chunk<float>;
        case Dtype::bfloat16:
            return forward_chunk<BFloat16>;
        default:
            return forward_chunk<Half>;
    }
}

Vjp choose_vjp(Dtype dtype) {
    switch (dtype) {
        case Dtype::float64:
            return vjp_chunk<double>;
        case Dtype::float32:
            return vjp_chunk<float>;
        case Dtype::bfloat16:
            return vjp_chunk<BFloat16>;
        default:
            return vjp_chunk<Half>;
    }
}

}  // namespace

extern const Simd DIFFOPT_SIMD;
const Simd DIFFOPT_SIMD{DIFFOPT_TEXT(DIFFOPT_SIMD), choose_forward, choose_vjp};

}  // namespace diffopt
