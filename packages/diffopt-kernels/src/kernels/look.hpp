#pragma once

#include <pybind11/pybind11.h>

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "dlpack.hpp"
#include "request.hpp"

namespace diffopt {

/// What one tensor is.
struct View {
    std::uintptr_t address;
    int device;
    Dtype dtype;
    std::vector<std::int64_t> shape;
    std::vector<std::int64_t> strides;  // none where it is contiguous
    bool contiguous;

    std::int64_t size() const;
    std::size_t bytes() const;
};

/// The tensors of lists, one list after the other; null unless these are lists of one length.
pybind11::tuple flatten(const pybind11::tuple &columns);

/// What a tuple holds.
std::vector<PyObject *> items(const pybind11::tuple &tuple);

/// Tells what the loops must know of tensors that are plain memory: see _native.pyi.
class Looker {
   public:
    Looker(pybind11::tuple types, pybind11::tuple dtypes, const pybind11::object &exchange);

    std::optional<Found> operator()(const pybind11::tuple &columns, std::size_t complete) const;

    /// The same of lists of `rows` tensors in a row, which the caller holds, where all of them are
    /// on the CPU, and those of a row lie alike in memory, without gaps. (Else soon nothing,
    /// because something else must look again.)
    std::optional<Found> look_on_cpu(const std::vector<PyObject *> &flat, std::size_t rows,
                                     std::size_t complete) const;

    /// One tensor, or nothing if it is not plain memory.
    std::optional<View> look_at(PyObject *tensor) const;

    /// One that is known to be no lazy negation. Throws if it is not plain memory.
    void describe(PyObject *tensor, View &view) const;

    /// What torch offers others; null where it does not yet.
    const dlpack::Exchange *exchange() const { return exchange_; }

   private:
    std::optional<Found> look(const std::vector<PyObject *> &flat, std::size_t rows,
                              std::size_t complete, bool anywhere) const;
    void look_at(PyObject *tensor, View &view) const;

    pybind11::tuple types_, dtypes_;
    pybind11::object is_neg_;
    const dlpack::Exchange *exchange_ = nullptr;  // null: tensors are asked by their attributes
};

}  // namespace diffopt
