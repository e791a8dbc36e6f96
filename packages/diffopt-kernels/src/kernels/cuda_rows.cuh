#pragma once

#include <cstdint>

#include "call.hpp"
#include "surroundings.hpp"

namespace diffopt::cuda {
namespace {  // see NOTE [unnamed namespaces in the kernel headers]

constexpr int threads = 256;  // of a block; a power of two
// What a block handles. Cut by size alone, so that sums come out alike on every device.
constexpr std::int64_t chunk_size = 4096;
constexpr std::size_t argument_size = 32'000;  // CUDA 12.1 and newer pass up to 32,764 bytes
constexpr std::size_t prepared_size = 256;     // bytes of workspace a tensor

std::int64_t chunks_of(std::int64_t size) { return (size + chunk_size - 1) / chunk_size; }

/// A rule and its surroundings, made ready for one tensor.
template <typename Rule, typename T>
struct Prepared {
    Rule rule;
    Surroundings<T> around;
};

/// One tensor of a launch.
template <typename Rule, typename T>
struct Row {
    Tensor tensor;
    std::int64_t first_chunk, number;  // counted through all tensors of the step
    bool aligned;                      // all arrays, to 16 bytes
    Prepared<Rule, T> prepared;
};

/// The argument of a kernel.
template <typename Rule, typename T>
struct Rows {
    static constexpr int capacity = static_cast<int>((argument_size - 64) / sizeof(Row<Rule, T>));

    Call call;
    int count;
    const unsigned char *prepared;  // by tensor, in the workspace; null: as the rows say
    double *partial;                // sums of each chunk; null: not wanted
    Row<Rule, T> rows[capacity];

    /// The row that a chunk belongs to: the last that does not begin after it.
    __device__ const Row<Rule, T> &find(std::int64_t chunk) const {
        int low = 0, high = count;
        while (high - low > 1) {
            const int middle = (low + high) / 2;
            (rows[middle].first_chunk <= chunk ? low : high) = middle;
        }
        return rows[low];
    }

    __device__ Prepared<Rule, T> prepared_for(const Row<Rule, T> &row) const {
        if (!prepared) return row.prepared;
        return *reinterpret_cast<const Prepared<Rule, T> *>(prepared + row.number * prepared_size);
    }
};

}  // namespace
}  // namespace diffopt::cuda
