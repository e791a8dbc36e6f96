#pragma once

#include <pybind11/pybind11.h>

#include "look.hpp"

namespace diffopt {

/// Makes the tensors that the loops write to.
class Outputs {
   public:
    Outputs(Looker looker, pybind11::object empty_like);

    /// A new tensor like one that is contiguous and on the CPU, and where it lies.
    pybind11::object make_like(PyObject *tensor, View &made) const;

   private:
    /// One of what the view tells, of NOTE [kept memory]; tells the view where it lies.
    pybind11::object make_of_kept(View &view) const;

    Looker looker_;
    pybind11::object empty_like_;
};

}  // namespace diffopt
