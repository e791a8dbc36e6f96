#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <utility>
#include <vector>

#include "look.hpp"

namespace diffopt {

/// What a tensor on the CPU shall be like.
struct Form {
    Dtype dtype;
    const std::vector<std::int64_t> &shape, &strides;  // the latter empty where it is contiguous
};

/// Makes the tensors that the loops write to.
class Outputs {
   public:
    Outputs(Looker looker, pybind11::object empty_like);

    /// A new tensor, and its address. The other one is of the same form.
    std::pair<pybind11::object, std::uintptr_t> make(const Form &form, PyObject *alike) const;

   private:
    /// One of our memory, where torch takes that.
    std::pair<pybind11::object, std::uintptr_t> lend(const Form &form) const;

    Looker looker_;
    pybind11::object empty_like_;
};

}  // namespace diffopt
