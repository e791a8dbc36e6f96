#include "layout_cache.hpp"

#include <algorithm>

#include "key_order.hpp"

namespace pytree {
namespace {

constexpr std::size_t kSets = 1024;
constexpr std::size_t kWays = 4;  // whose slots fill one line of the processor's cache
constexpr std::size_t kMaxKeys = std::size_t{1} << 18;

struct Slot {
    KeyLayout *layout;   // owned, or null
    std::uint32_t mark;  // half of its hash, so that most others are told apart at once
    bool sorted;
};

/// Where layouts of one part of all hashes are.
struct alignas(64) Set {
    Slot slots[kWays];
    std::uint32_t missed[kWays];           // halves of hashes that were looked for in vain
    std::uint32_t next_slot, next_missed;  // to be overwritten

    bool has_missed(std::uint32_t mark) const {
        return std::find(missed, missed + kWays, mark) != missed + kWays;
    }
    void miss(std::uint32_t mark) { missed[next_missed++ % kWays] = mark; }
};

Set sets[kSets];
std::size_t keys_held = 0;

Set &set_of(std::uint64_t hash) { return sets[hash >> 54]; }
static_assert(kSets == 1 << (64 - 54));

std::uint32_t mark_of(std::uint64_t hash) { return static_cast<std::uint32_t>(hash); }

void vacate(Slot &slot) {
    KeyLayout *layout = std::exchange(slot.layout, nullptr);
    if (layout == nullptr) return;
    keys_held -= layout->size();
    Py_DECREF(layout);  // of strings and ints, so that no code of the user can run
}

}  // namespace

KeysInQuestion::KeysInQuestion(PyObject *const *keys, std::size_t size, bool sorted)
    : keys_(keys), size_(size), sorted_(sorted), hash_(2 * size + sorted) {
    for (std::size_t i = 0; i < size; ++i) {
        hash_ = (hash_ ^ reinterpret_cast<std::uintptr_t>(keys[i]) >> 4) * 0x9e3779b97f4a7c15ull;
    }
}

nb::object KeysInQuestion::known() const {
    for (const Slot &slot : set_of(hash_).slots) {
        bool same = slot.mark == mark_of(hash_) && slot.layout != nullptr &&
                    slot.layout->size() == size_ && slot.sorted == sorted_ &&
                    std::equal(keys_, keys_ + size_, slot.layout->keys());
        if (same) return nb::borrow(reinterpret_cast<PyObject *>(slot.layout));
    }
    return {};
}

nb::object KeysInQuestion::make() const {
    nb::object made = make_layout(keys_, size_, sorted_);
    Set &set = set_of(hash_);
    if (!set.has_missed(mark_of(hash_))) {
        set.miss(mark_of(hash_));
        return made;
    }
    if (!as_layout(made)->is_plain() || size_ > kMaxKeys) return made;
    if (keys_held + size_ > kMaxKeys) clear_layouts();
    Slot &slot = set.slots[set.next_slot++ % kWays];
    vacate(slot);
    slot = {reinterpret_cast<KeyLayout *>(nb::object(made).release().ptr()), mark_of(hash_),
            sorted_};
    keys_held += size_;
    return made;
}

nb::object KeysInQuestion::layout() const {
    nb::object found = known();
    return found.is_valid() ? found : make();
}

nb::object KeysInQuestion::order(std::uint32_t *order) const {
    nb::object found = known();
    if (found.is_valid()) return found;
    Set &set = set_of(hash_);
    bool again = set.has_missed(mark_of(hash_));
    if (again || !sorted_ || !order_plain_keys(keys_, size_, order)) return make();
    set.miss(mark_of(hash_));
    return {};
}

void clear_layouts() {
    for (Set &set : sets) {
        for (Slot &slot : set.slots) vacate(slot);
        std::fill_n(set.missed, kWays, 0u);
    }
}

}  // namespace pytree
