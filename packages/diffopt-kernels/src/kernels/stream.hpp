#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#if defined(__SSE2__) || defined(_M_X64)
#include <immintrin.h>
#define DIFFOPT_STREAMS
#endif

#include "element.hpp"

namespace diffopt {
namespace {  // see NOTE [unnamed namespaces in the kernel headers]

#ifdef DIFFOPT_STREAMS
constexpr bool can_stream = true;
#else
constexpr bool can_stream = false;
#endif

/// Bytes that the caches and memory hand over as one.
constexpr std::size_t line = 64;

#if defined(__AVX512F__)
using Vector = __m512i;
DIFFOPT_RULE void stream_one(Vector *to, const Vector *from) {
    _mm512_stream_si512(to, _mm512_load_si512(from));
}
#elif defined(__AVX2__)
using Vector = __m256i;
DIFFOPT_RULE void stream_one(Vector *to, const Vector *from) {
    _mm256_stream_si256(to, _mm256_load_si256(from));
}
#elif defined(DIFFOPT_STREAMS)
using Vector = __m128i;
DIFFOPT_RULE void stream_one(Vector *to, const Vector *from) {
    _mm_stream_si128(to, _mm_load_si128(from));
}
#endif

/// Copies from a buffer that is aligned to lines, if it can around the caches.
template <typename S>
void stream(S *to, const S *from, std::int64_t size) {
    std::size_t rest = static_cast<std::size_t>(size) * sizeof(S), done = 0;
#ifdef DIFFOPT_STREAMS
    if (reinterpret_cast<std::uintptr_t>(to) % sizeof(Vector) == 0) {
        for (; rest >= sizeof(Vector); rest -= sizeof(Vector), done += sizeof(Vector))
            stream_one(
                reinterpret_cast<Vector *>(reinterpret_cast<char *>(to) + done),
                reinterpret_cast<const Vector *>(reinterpret_cast<const char *>(from) + done));
    }
#endif
    std::memcpy(reinterpret_cast<char *>(to) + done, reinterpret_cast<const char *>(from) + done,
                rest);
}

/// Waits until what was streamed can be seen by other threads.
DIFFOPT_RULE void settle() {
#ifdef DIFFOPT_STREAMS
    _mm_sfence();
#endif
}

}  // namespace
}  // namespace diffopt
