// As much of CUDA as cuda.cu asks for, on the CPU: the threads of a block are threads, which take
// one block after another. So the tests and sanitizers see the kernels on machines without a GPU.
#pragma once

#include <barrier>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

#define __global__
#define __device__
#define __grid_constant__
#define __launch_bounds__(count)
#define __shared__ static  // a block at a time runs

struct dim3 {
    unsigned x = 1, y = 1, z = 1;
    explicit dim3(unsigned x, unsigned y = 1) : x(x), y(y) {}
};

inline thread_local dim3 threadIdx{0}, blockIdx{0};
inline const dim3 blockDim{4};  // fewer than asked for: kernels may not rely on the number
inline dim3 gridDim{1};
inline std::barrier<> block_barrier{static_cast<std::ptrdiff_t>(blockDim.x)};

inline void __syncthreads() { block_barrier.arrive_and_wait(); }

struct alignas(16) uint4 {
    std::uint32_t x, y, z, w;
};

/// Reads and writes 16 bytes at once need an address of 16 bytes: sanitizers see that.
inline void __stwb(uint4 *to, uint4 value) { *to = value; }

using cudaError_t = int;
using cudaStream_t = struct Stream *;
constexpr cudaError_t cudaSuccess = 0;
struct cudaFuncAttributes {};

inline const char *cudaGetErrorString(cudaError_t) { return "emulated"; }
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline cudaError_t cudaSetDevice(int) { return cudaSuccess; }
inline cudaError_t cudaDriverGetVersion(int *version) { return *version = 13'000, cudaSuccess; }

template <typename Kernel>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes *, Kernel *) {
    return cudaSuccess;
}

template <typename Argument>
cudaError_t cudaLaunchKernel(void (*kernel)(Argument), dim3 blocks, dim3, void **arguments,
                             std::size_t, cudaStream_t) {
    static std::mutex one_kernel_at_a_time;
    const std::lock_guard<std::mutex> lock(one_kernel_at_a_time);
    const auto &argument = *static_cast<const Argument *>(arguments[0]);
    gridDim = blocks;
    const auto run = [&](unsigned thread) {
        threadIdx.x = thread;
        for (blockIdx.y = 0; blockIdx.y < blocks.y; ++blockIdx.y)
            for (blockIdx.x = 0; blockIdx.x < blocks.x; ++blockIdx.x) {
                kernel(argument);
                __syncthreads();
            }
    };
    std::vector<std::thread> others;
    for (unsigned thread = 1; thread < blockDim.x; ++thread) others.emplace_back(run, thread);
    run(0);
    for (auto &other : others) other.join();
    return cudaSuccess;
}
