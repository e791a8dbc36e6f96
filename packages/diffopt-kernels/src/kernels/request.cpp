#include "request.hpp"

#include <stdexcept>
#include <utility>

namespace diffopt {
namespace {

/// Reads addresses: one column for each array, one row for each tensor.
class Columns {
   public:
    Columns(const std::vector<std::uintptr_t> &addresses, std::size_t rows, const char *name)
        : next_(addresses.data()), end_(next_ + addresses.size()), rows_(rows), name_(name) {}

    /// Gives the next column to a member of each tensor.
    template <typename Member>
    void give(std::vector<Tensor> &tensors, Member member) {
        expect(static_cast<std::size_t>(end_ - next_) >= rows_, name_);
        for (std::size_t i = 0; i < rows_; ++i)
            member(tensors[i]) = reinterpret_cast<void *>(next_[i]);
        next_ += rows_;
    }

    void finish() const { expect(next_ == end_, name_); }

   private:
    const std::uintptr_t *next_, *end_;
    std::size_t rows_;
    const char *name_;
};

/// The inputs of the step itself. Parameters that are not used may follow.
Columns place_inputs(const Call &call, std::vector<Tensor> &tensors, std::size_t states,
                     const Found &found) {
    Columns columns(found.addresses, tensors.size(), "found: wrong count");
    columns.give(tensors, [](Tensor &t) -> auto & { return t.g; });
    for (std::size_t k = 0; k < states; ++k)
        columns.give(tensors, [k](Tensor &t) -> auto & { return t.states[k]; });
    if (call.decay != Decay::none || call.applied)
        columns.give(tensors, [](Tensor &t) -> auto & { return t.p; });
    return columns;
}

bool has_cotangent(const Tensor &t, std::size_t states) {
    const void *present = t.d_update;
    for (std::size_t k = 0; k < states; ++k) present = present ? present : t.d_states[k];
    return present != nullptr;
}

}  // namespace

void expect(bool right, const char *what) {
    if (!right) throw std::invalid_argument(what);
}

Request::Request(int rule, int variant, int decay, bool maximize, bool applied,
                 std::vector<double> numbers, const std::vector<std::int64_t> &steps,
                 const Found &found)
    : tensors(found.sizes.size()), numbers_(std::move(numbers)) {
    expect(0 <= rule && rule < static_cast<int>(rules().size()), "rule: unknown code");
    const auto &info = rules()[rule];
    expect(0 <= variant && variant < static_cast<int>(info.states.size()), "variant: unknown code");
    expect(0 <= decay && decay <= 2, "decay: unknown code");
    call = {rule, variant, found.dtype, static_cast<Decay>(decay), maximize, applied, false, false};
    const std::size_t rows = tensors.size();
    expect(numbers_.size() == width() || numbers_.size() == width() * rows, "hyper: wrong count");
    expect(steps.size() == rows, "steps: wrong count");
    const std::size_t stride = numbers_.size() == width() ? 0 : width();
    for (std::size_t i = 0; i < rows; ++i) {
        tensors[i].size = found.sizes[i], tensors[i].step = steps[i];
        tensors[i].hyper = numbers_.data() + i * stride;
    }
}

std::size_t Request::width() const {
    return static_cast<std::size_t>(rules()[call.rule].hypers) + 1;
}

std::size_t Request::states() const {
    return static_cast<std::size_t>(rules()[call.rule].states[call.variant]);
}

void Request::place_forward(const Found &found, const std::vector<std::uintptr_t> &outputs) {
    expect(found.complete, "found: not complete");
    place_inputs(call, tensors, states(), found);
    for (std::size_t i = 0; i < outputs.size(); ++i)
        expect(outputs[i] || tensors[i % tensors.size()].size == 0, "outputs: not complete");
    Columns columns(outputs, tensors.size(), "outputs: wrong count");
    columns.give(tensors, [](Tensor &t) -> auto & { return t.out_update; });
    for (std::size_t k = 0; k < states(); ++k)
        columns.give(tensors, [k](Tensor &t) -> auto & { return t.out_states[k]; });
    columns.finish();
}

void Request::place_vjp(const Found &found, const std::vector<std::uintptr_t> &outputs) {
    Columns cotangents = place_inputs(call, tensors, states(), found);
    cotangents.give(tensors, [](Tensor &t) -> auto & { return t.d_update; });
    for (std::size_t k = 0; k < states(); ++k)
        cotangents.give(tensors, [k](Tensor &t) -> auto & { return t.d_states[k]; });
    cotangents.finish();
    Columns columns(outputs, tensors.size(), "outputs: wrong count");
    columns.give(tensors, [](Tensor &t) -> auto & { return t.out_g; });
    for (std::size_t k = 0; k < states(); ++k)
        columns.give(tensors, [k](Tensor &t) -> auto & { return t.out_states[k]; });
    if (call.decay != Decay::none || call.applied)
        columns.give(tensors, [](Tensor &t) -> auto & { return t.out_p; });
    columns.finish();
    for (auto &t : tensors)
        if (!has_cotangent(t, states())) t.size = 0;
}

}  // namespace diffopt
