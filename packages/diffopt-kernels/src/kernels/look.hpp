#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <optional>
#include <vector>

#include "call.hpp"
#include "dlpack.hpp"

namespace diffopt {

/// What lists of tensors have in common, and where they lie: one list after the other.
struct Found {
    static constexpr int on_cpu = -1;

    std::vector<std::int64_t> sizes;        // of the first list
    std::vector<std::uintptr_t> addresses;  // 0 for what is absent
    int device = on_cpu;                    // or the index of a GPU
    Dtype dtype = Dtype::float64;
    bool contiguous = true, complete = true;  // all of them; none is absent
};

/// Tells what the loops must know of tensors that are plain memory: see _native.pyi.
class Looker {
   public:
    Looker(pybind11::tuple types, pybind11::tuple dtypes, const pybind11::object &exchange);

    std::optional<Found> operator()(const pybind11::tuple &columns, std::size_t complete) const;

   private:
    pybind11::tuple types_, dtypes_;
    const dlpack::Exchange *exchange_ = nullptr;  // null: tensors are asked by their attributes
};

}  // namespace diffopt
