// Layouts of keys that were met before.
//
// Programs flatten trees of the same few shapes again and again. A layout is found by the
// addresses of its keys, which it keeps alive: equal addresses are the same strings and ints.
// A layout enters when its keys are seen for the second time, so that trees of ever new keys
// pay for a look and no more. There is a bound on layouts and one on their keys.
#pragma once

#include "key_layout.hpp"

namespace pytree {

/// The keys of a dict that is read, borrowed from it, and what the cache knows of them.
class KeysInQuestion {
   public:
    KeysInQuestion(PyObject *const *keys, std::size_t size, bool sorted);

    /// The layout, new or met before.
    nb::object layout() const;
    /// Writes the order of the children, for who needs no layout: either there, and then
    /// returns null; or in the layout that is returned.
    nb::object order(std::uint32_t *order) const;

   private:
    nb::object known() const;
    nb::object make() const;

    PyObject *const *keys_;
    std::size_t size_;
    bool sorted_;
    std::uint64_t hash_;
};

/// Forgets all layouts.
void clear_layouts();

}  // namespace pytree
