#include "outputs.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>
#include <utility>
#include <vector>

#include "kept.hpp"
#include "pages.hpp"

namespace py = pybind11;

namespace diffopt {
namespace {

/// A tensor for DLPack. Its shape and strides follow, then its memory, if that is none of a block.
struct Lent {
    dlpack::Managed managed;
    Block block;
};

void give_back(dlpack::Managed *managed) {
    auto *lent = static_cast<Lent *>(managed->context);
    if (lent->block.memory) give_block_back(lent->block);
    std::free(lent);
}

struct GiveBack {
    void operator()(Lent *lent) const { give_back(&lent->managed); }
};

dlpack::DataType datatype_of(Dtype dtype) {
    switch (dtype) {
        case Dtype::float64:
            return {dlpack::floating, 64, 1};
        case Dtype::float32:
            return {dlpack::floating, 32, 1};
        case Dtype::bfloat16:
            return {dlpack::brain_floating, 16, 1};
        default:
            return {dlpack::floating, 16, 1};
    }
}

void put_contiguous_strides(const std::vector<std::int64_t> &shape, std::int64_t *strides) {
    std::int64_t stride = 1;
    for (std::size_t k = shape.size(); k-- > 0; stride *= std::max(shape[k], std::int64_t{1}))
        strides[k] = stride;
}

std::size_t bytes_of(const Form &form) {
    std::size_t bytes = element_bytes(form.dtype);
    for (const auto extent : form.shape) bytes *= static_cast<std::size_t>(extent);
    return bytes;
}

/// Small memory comes with what tells about it, by one call of the C library, which is quick to
/// give again what was just freed. (`malloc` itself: to ask it for an alignment takes longer.)
std::unique_ptr<Lent, GiveBack> allocate(const Form &form) {
    const std::size_t dimensions = form.shape.size(), bytes = bytes_of(form);
    const std::size_t header = sizeof(Lent) + 2 * dimensions * sizeof(std::int64_t);
    const bool small = bytes < least_kept_bytes;
    void *memory = std::malloc(header + (small ? memory_alignment + bytes : 0));
    if (!memory) throw std::bad_alloc();
    std::unique_ptr<Lent, GiveBack> lent(new (memory) Lent{});
    lent->managed = {1, 0, lent.get(), give_back, 0, {}};
    if (!small) lent->block = take_block(bytes);
    if (!small && !lent->block.memory) throw std::bad_alloc();

    auto *shape = reinterpret_cast<std::int64_t *>(lent.get() + 1), *strides = shape + dimensions;
    std::copy(form.shape.begin(), form.shape.end(), shape);
    if (form.strides.empty())
        put_contiguous_strides(form.shape, strides);
    else
        std::copy(form.strides.begin(), form.strides.end(), strides);
    const auto end = reinterpret_cast<std::uintptr_t>(strides + dimensions);
    void *within = reinterpret_cast<void *>((end + memory_alignment - 1) / memory_alignment *
                                            memory_alignment);
    lent->managed.tensor = {small ? within : lent->block.memory,
                            {dlpack::cpu, 0},
                            static_cast<std::int32_t>(dimensions),
                            datatype_of(form.dtype),
                            shape,
                            strides,
                            0};
    return lent;
}

}  // namespace

Outputs::Outputs(Looker looker, py::object empty_like)
    : looker_(std::move(looker)), empty_like_(std::move(empty_like)) {}

std::pair<py::object, std::uintptr_t> Outputs::make(const Form &form, PyObject *alike) const {
    if (looker_.exchange()) return lend(form);
    auto made = py::reinterpret_steal<py::object>(PyObject_CallOneArg(empty_like_.ptr(), alike));
    if (!made) throw py::error_already_set();
    View view;
    looker_.describe(made.ptr(), view);
    expect(view.device == Found::on_cpu && view.dtype == form.dtype && view.shape == form.shape &&
               view.strides == form.strides,
           "empty_like: unlike");
    make_ready(reinterpret_cast<void *>(view.address), view.bytes());
    return {std::move(made), view.address};
}

std::pair<py::object, std::uintptr_t> Outputs::lend(const Form &form) const {
    auto lent = allocate(form);
    const auto address = reinterpret_cast<std::uintptr_t>(lent->managed.tensor.data);
    void *object = nullptr;
    if (looker_.exchange()->import_owning(&lent->managed, &object) != 0)
        throw py::error_already_set();
    lent.release();
    return {py::reinterpret_steal<py::object>(static_cast<PyObject *>(object)), address};
}

}  // namespace diffopt
