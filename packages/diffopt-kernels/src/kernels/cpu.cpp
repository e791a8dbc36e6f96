#include "cpu.hpp"

#include <algorithm>
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <utility>

#include "stream.hpp"

#ifdef _OPENMP
#include <omp.h>
#endif
#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#define DIFFOPT_FORKS
#endif

namespace diffopt {

extern const Simd baseline;
#ifdef DIFFOPT_X86
extern const Simd avx2, avx512;
#endif

namespace {

const Simd *simd = &baseline;

/// OpenMP's threads do not live on in a forked child, and a parallel region would wait for them.
bool forked = false;

/// The instruction sets that this machine can run, best first.
std::vector<const Simd *> available_simd() {
    std::vector<const Simd *> found;
#if defined(DIFFOPT_X86) && defined(__GNUC__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
        found.push_back(&avx512);
    if (__builtin_cpu_supports("avx2")) found.push_back(&avx2);
#endif
    found.push_back(&baseline);
    return found;
}

/// Elements [begin, end) of one tensor.
struct Chunk {
    const Tensor *tensor;
    std::int64_t begin, end;
};

constexpr std::int64_t chunk_size = 1 << 14;
constexpr std::int64_t parallel_size = 1 << 15;  // below, waking the threads costs more

/// Cut by size alone, so that sums over chunks come out alike for any number of threads.
std::vector<Chunk> cut(const std::vector<Tensor> &tensors) {
    std::vector<Chunk> chunks;
    for (const auto &tensor : tensors)
        for (std::int64_t begin = 0; begin < tensor.size; begin += chunk_size)
            chunks.push_back({&tensor, begin, std::min(begin + chunk_size, tensor.size)});
    return chunks;
}

template <typename Work>
void for_each(const std::vector<Chunk> &chunks, int threads, Work work) {
    const auto count = static_cast<std::int64_t>(chunks.size());
#ifdef _OPENMP
    std::int64_t size = 0;
    for (const auto &chunk : chunks) size += chunk.end - chunk.begin;
    if (threads > 1 && size >= parallel_size && !forked) {
        // Always the whole team, as torch does: a team that shrinks ends threads, and growing it
        // again starts new ones. Dynamic, because chunks of small tensors are small.
#pragma omp parallel for num_threads(threads) schedule(dynamic)
        for (std::int64_t i = 0; i < count; ++i) work(i);
        return;
    }
#else
    (void)threads;
#endif
    for (std::int64_t i = 0; i < count; ++i) work(i);
}

/// A call that touches this many bytes writes around the caches. Otherwise each line that it writes
/// is first read, to be written, and nothing stays in the second cache for those who read it next.
/// (Measured with such readers, on a Xeon with a second cache of 2 MB and an EPYC, whose third one,
/// of 32 MB, is near. On the Xeon also with memory that was just given to the process, which the
/// system has cleared, and so put into the caches. From here on all take less time.)
std::size_t least_streamed() {
#if defined(DIFFOPT_X86) && defined(__GNUC__)
    if (__builtin_cpu_is("amd")) return 32 << 20;
#endif
    return 20 << 20;
}

/// Tells how the outputs are best written, if all are new.
Call with_streams(Call call, const std::vector<Tensor> &tensors) {
    std::size_t touched = 0;
    for (const auto &t : tensors) {
        const auto size = static_cast<std::size_t>(t.size) * element_bytes(call.dtype);
        const auto touch = [&](const void *array) { touched += array ? size : 0; };
        for (const void *array : {t.g, t.p, t.d_update}) touch(array);
        for (const void *array : t.states) touch(array);
        for (const void *array : t.d_states) touch(array);
        for (const void *array : {t.out_update, t.out_g, t.out_p}) touch(array);
        for (const void *array : t.out_states) touch(array);
    }
    static const std::size_t least = least_streamed();
    call.streams = can_stream && touched >= least;
    return call;
}

template <template <typename, int> class R, int... variant>
RuleInfo describe(std::integer_sequence<int, variant...>) {
    return {R<double, 0>::name, R<double, 0>::hypers, {R<double, variant>::states...}};
}

template <template <typename, int> class... R>
std::vector<RuleInfo> list_rules(RuleList<R...>) {
    return {describe<R>(std::make_integer_sequence<int, R<double, 0>::variants>{})...};
}

}  // namespace

void forward(const Call &given, const std::vector<Tensor> &tensors, int threads) {
    const auto loop = simd->forward(given.dtype);
    // What is written in place has just been read.
    const auto call = given.in_place ? given : with_streams(given, tensors);
    const auto chunks = cut(tensors);
    for_each(chunks, threads, [&](std::int64_t i) {
        loop(call, *chunks[i].tensor, chunks[i].begin, chunks[i].end);
    });
}

void vjp(const Call &given, const std::vector<Tensor> &tensors, double *sums, int threads) {
    const auto loop = simd->vjp(given.dtype);
    const auto call = with_streams(given, tensors);
    const auto chunks = cut(tensors);
    const auto width = sums ? static_cast<std::size_t>(rules()[call.rule].hypers) + 1 : 0;
    std::vector<double> shares(chunks.size() * width);
    for_each(chunks, threads, [&](std::int64_t i) {
        loop(call, *chunks[i].tensor, chunks[i].begin, chunks[i].end,
             sums ? &shares[i * width] : nullptr);
    });
    std::fill_n(sums, width * tensors.size(), 0.0);
    for (std::size_t i = 0; i < chunks.size(); ++i)
        for (std::size_t k = 0; k < width; ++k)
            sums[k * tensors.size() + (chunks[i].tensor - tensors.data())] += shares[i * width + k];
}

const std::vector<RuleInfo> &rules() {
    static const auto found = list_rules(AllRules{});
    return found;
}

const char *simd_name() { return simd->name; }

void choose_simd() {
#ifdef DIFFOPT_FORKS
    static const int registered = pthread_atfork(nullptr, nullptr, [] { forked = true; });
    (void)registered;
#endif
    const auto available = available_simd();
    simd = available.front();
    const char *wanted = std::getenv("DIFFOPT_SIMD");
    if (!wanted || !*wanted) return;
    std::string names;
    for (const auto *candidate : available) {
        if (candidate->name == std::string(wanted)) {
            simd = candidate;
            return;
        }
        names += std::string(names.empty() ? "" : ", ") + candidate->name;
    }
    throw std::runtime_error("DIFFOPT_SIMD must be one of " + names + " on this machine, got " +
                             wanted + ".");
}

bool has_openmp() {
#ifdef _OPENMP
    return true;
#else
    return false;
#endif
}

}  // namespace diffopt
