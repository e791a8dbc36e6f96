#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "call.hpp"

namespace diffopt {

/// What lists of tensors have in common, and where they lie: one list after the other.
struct Found {
    static constexpr int on_cpu = -1;

    // Of the first list; the strides are empty for what is contiguous.
    std::vector<std::int64_t> sizes;
    std::vector<std::vector<std::int64_t>> shapes, strides;
    std::vector<std::uintptr_t> addresses;  // 0 for what is absent
    int device = on_cpu;                    // or the index of a GPU
    Dtype dtype = Dtype::float64;
    bool contiguous = true, complete = true;  // all of them; none is absent
};

/// Throws an invalid argument, as do the functions below where one would lead out of bounds.
void expect(bool right, const char *what);

/// What a step is told: its numbers once, or one row after another for each tensor.
struct Request {
    Call call;
    std::vector<Tensor> tensors;

    Request(int rule, int variant, int decay, bool maximize, bool applied,
            std::vector<double> numbers, const std::vector<std::int64_t> &steps,
            const Found &found);
    Request(const Request &) = delete;  // the tensors point into it

    /// Hyperparameters, with weight decay; columns of states.
    std::size_t width() const;
    std::size_t states() const;

    /// Takes the inputs as found, and the addresses of the outputs, 0 for none.
    void place_forward(const Found &found, const std::vector<std::uintptr_t> &outputs);

    /// Likewise; leaves out the tensors of which no output has a cotangent.
    void place_vjp(const Found &found, const std::vector<std::uintptr_t> &outputs);

   private:
    std::vector<double> numbers_;
};

}  // namespace diffopt
