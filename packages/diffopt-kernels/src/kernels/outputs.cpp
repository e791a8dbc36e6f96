#include "outputs.hpp"

#include <cstdint>
#include <memory>
#include <new>
#include <utility>
#include <vector>

#include "kept.hpp"

namespace py = pybind11;

namespace diffopt {
namespace {

/// A tensor of a block, for DLPack.
struct Lent {
    dlpack::Managed managed;
    Block block;
    std::vector<std::int64_t> shape, strides;
};

void give_back(dlpack::Managed *managed) {
    const auto *lent = static_cast<Lent *>(managed->context);
    give_block_back(lent->block);
    delete lent;
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

std::vector<std::int64_t> contiguous_strides(const std::vector<std::int64_t> &shape) {
    std::vector<std::int64_t> strides(shape.size());
    std::int64_t stride = 1;
    for (std::size_t k = shape.size(); k-- > 0; stride *= shape[k]) strides[k] = stride;
    return strides;
}

}  // namespace

Outputs::Outputs(Looker looker, py::object empty_like)
    : looker_(std::move(looker)), empty_like_(std::move(empty_like)) {}

py::object Outputs::make_like(PyObject *tensor, View &made) const {
    if (looker_.exchange()) {
        looker_.describe(tensor, made);
        if (made.bytes() >= least_kept_bytes) return make_of_kept(made);
    }
    auto like = py::reinterpret_steal<py::object>(PyObject_CallOneArg(empty_like_.ptr(), tensor));
    if (!like) throw py::error_already_set();
    looker_.describe(like.ptr(), made);
    return like;
}

py::object Outputs::make_of_kept(View &view) const {
    const auto block = take_block(view.bytes());
    if (!block.memory) throw std::bad_alloc();
    const auto datatype = datatype_of(view.dtype);
    auto strides = view.contiguous ? contiguous_strides(view.shape) : view.strides;
    std::unique_ptr<Lent, GiveBack> lent(new Lent{{}, block, view.shape, std::move(strides)});
    lent->managed = {1, 0, lent.get(), give_back, 0, {}};
    lent->managed.tensor = {block.memory,
                            {dlpack::cpu, 0},
                            static_cast<std::int32_t>(view.shape.size()),
                            datatype,
                            lent->shape.data(),
                            lent->strides.data(),
                            0};
    void *object = nullptr;
    if (looker_.exchange()->import_owning(&lent->managed, &object) != 0)
        throw py::error_already_set();
    lent.release();
    view.address = reinterpret_cast<std::uintptr_t>(block.memory);
    return py::reinterpret_steal<py::object>(static_cast<PyObject *>(object));
}

}  // namespace diffopt
