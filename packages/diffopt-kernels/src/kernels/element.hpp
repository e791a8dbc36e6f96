#pragma once

#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#define DIFFOPT_RULE __host__ __device__ __forceinline__
#elif defined(__GNUC__)
#define DIFFOPT_RULE inline __attribute__((always_inline))
#else
#define DIFFOPT_RULE inline
#endif

/* NOTE [unnamed namespaces in the kernel headers]
   simd.cpp is compiled once for each instruction set. Were these functions shared between its
   copies, the linker would keep one of each, perhaps one with AVX-512 in it, and run that on every
   machine. With internal linkage each copy keeps its own. */
namespace diffopt {
namespace {

struct BFloat16 {
    std::uint16_t bits;
};

struct Half {
    std::uint16_t bits;
};

template <typename To, typename From>
DIFFOPT_RULE To bit_cast(From from) {
    static_assert(sizeof(To) == sizeof(From), "a reinterpretation keeps the size");
    To to;
    std::memcpy(&to, &from, sizeof to);
    return to;
}

/// The number an element stands for, in the type that computes: never narrower than float.
DIFFOPT_RULE double widen(double x) { return x; }
DIFFOPT_RULE float widen(float x) { return x; }

DIFFOPT_RULE float widen(BFloat16 x) { return bit_cast<float>(std::uint32_t{x.bits} << 16); }

DIFFOPT_RULE float widen(Half x) {
#ifdef __CUDA_ARCH__  // in one instruction
    float wide;
    asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(x.bits));
    return wide;
#else
    const std::uint32_t exponent = (x.bits >> 10) & 0x1fu, fraction = x.bits & 0x3ffu;
    const std::uint32_t normal = ((exponent + 112) << 23) | (fraction << 13);
    const std::uint32_t special = 0x7f800000u | (fraction << 13);
    // Signed, because AVX2 converts only signed integers to float.
    const float subnormal = static_cast<float>(static_cast<std::int32_t>(fraction)) * 0x1p-24f;
    const std::uint32_t magnitude = exponent == 0    ? bit_cast<std::uint32_t>(subnormal)
                                    : exponent == 31 ? special
                                                     : normal;
    return bit_cast<float>(magnitude | (std::uint32_t{x.bits} & 0x8000u) << 16);
#endif
}

template <typename S>
using Wide = decltype(widen(S{}));

/// The element nearest to a number; ties go to the even one.
template <typename S>
DIFFOPT_RULE S narrow(Wide<S> x) {
    return x;
}

template <>
DIFFOPT_RULE BFloat16 narrow<BFloat16>(float x) {
#ifdef __CUDA_ARCH__
    BFloat16 nearest;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(nearest.bits) : "f"(x));
    return nearest;
#else
    const auto bits = bit_cast<std::uint32_t>(x);
    const std::uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    return {static_cast<std::uint16_t>(x != x ? 0x7fc0u : rounded)};
#endif
}

template <>
DIFFOPT_RULE Half narrow<Half>(float x) {
#ifdef __CUDA_ARCH__
    Half nearest;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(nearest.bits) : "f"(x));
    return nearest;
#else
    const auto bits = bit_cast<std::uint32_t>(x);
    const std::uint32_t magnitude = bits & 0x7fffffffu;
    const std::uint32_t rebased = magnitude - (112u << 23);
    const std::uint32_t normal = (rebased + 0xfffu + ((rebased >> 13) & 1u)) >> 13;
    // In [0.5, 1) a float's last place is 2^-24, as is a subnormal half's: the sum rounds for us.
    const std::uint32_t subnormal =
        bit_cast<std::uint32_t>(bit_cast<float>(magnitude) + 0.5f) - 0x3f000000u;
    const std::uint32_t finite = magnitude < 0x38800000u ? subnormal : normal;  // 2^-14
    const std::uint32_t special = magnitude > 0x7f800000u ? 0x7e00u : 0x7c00u;
    const std::uint32_t result = magnitude >= 0x477ff000u ? special : finite;  // 65520 and up
    return {static_cast<std::uint16_t>(result | ((bits >> 16) & 0x8000u))};
#endif
}

}  // namespace
}  // namespace diffopt
