#pragma once

#include <pybind11/pybind11.h>

namespace diffopt {

/// What the loops must know of tensors that are plain memory: see _native.pyi.
pybind11::object look(const pybind11::tuple &columns, const pybind11::tuple &types,
                      const pybind11::str &device);

}  // namespace diffopt
