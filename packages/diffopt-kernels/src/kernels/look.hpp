#pragma once

#include <pybind11/pybind11.h>

#include <vector>

#include "dlpack.hpp"

namespace diffopt {

/// Tells what the loops must know of tensors that are plain memory: see _native.pyi.
class Looker {
   public:
    Looker(pybind11::tuple types, pybind11::tuple dtypes, const pybind11::object &exchange);

    pybind11::object operator()(const pybind11::tuple &columns, std::size_t complete) const;

   private:
    pybind11::tuple types_, dtypes_;
    const dlpack::Exchange *exchange_ = nullptr;  // null: tensors are asked by their attributes
};

}  // namespace diffopt
