#pragma once

#include <pybind11/pybind11.h>

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "look.hpp"
#include "outputs.hpp"

namespace diffopt {

/// Both passes of a step, from tensors to tensors, where these are on the CPU, those of a row alike
/// in memory and without gaps, and each hyperparameter is one number for all: see _native.pyi.
/// Otherwise they return None.
class Passes {
   public:
    Passes(const Looker &looker, pybind11::object empty_like);

    /// Whether torch takes memory that is not its own: NOTE [kept memory].
    bool keeps() const { return looker_.exchange() != nullptr; }

    pybind11::object forward(int rule, int variant, bool decoupled, bool maximize, bool applied,
                             const pybind11::tuple &numbers, const pybind11::tuple &bounds,
                             const pybind11::tuple &columns, const pybind11::object &steps,
                             const pybind11::object &known, int threads) const;
    pybind11::object vjp(int rule, int variant, int decay, bool maximize, bool applied,
                         const pybind11::tuple &numbers, const pybind11::tuple &steps,
                         const pybind11::tuple &sizes, const pybind11::tuple &tensors,
                         const pybind11::tuple &cotangents, const pybind11::tuple &needed,
                         int threads) const;

   private:
    struct Numbers {
        std::vector<double> values;
        std::vector<std::size_t> learned;  // places of those that are tensors
    };
    /// Unless `kept` is null, those that are None stand there one after the other.
    std::optional<Numbers> read(const pybind11::tuple &numbers, PyObject *const *kept) const;

    /// Makes a tensor like each of the first row over and over, where it is wanted: into a tuple,
    /// from its place `first` on. Returns their addresses, 0 for those that are not wanted.
    std::vector<std::uintptr_t> make_row(const std::vector<PyObject *> &flat, const Found &found,
                                         const std::vector<bool> &wanted, pybind11::tuple &into,
                                         std::size_t first) const;

    /// Makes the derivatives by hyperparameters from their sums, the rows of which are `width`.
    void put_sums(const std::vector<double> &sums, const Numbers &hyper, PyObject *const *kept,
                  const std::vector<bool> &wanted, pybind11::tuple &into, std::size_t first) const;

    Looker looker_;
    Outputs outputs_;
};

}  // namespace diffopt
