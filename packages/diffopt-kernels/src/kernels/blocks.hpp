#pragma once

#include <cstdint>
#include <type_traits>

#include "call.hpp"
#include "stream.hpp"

namespace diffopt {
namespace {  // see NOTE [unnamed namespaces in the kernel headers]

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

}  // namespace
}  // namespace diffopt
