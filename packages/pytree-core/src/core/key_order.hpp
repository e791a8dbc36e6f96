// In which order the leaves of a dict stand: that of its sorted keys.
#pragma once

#include "small_vector.hpp"

namespace pytree {

/// Writes where the j-th smallest key stands, if all keys are strings or all are ints of a
/// machine word. Otherwise returns false. Runs no code of the user and makes no Python object.
bool order_plain_keys(PyObject *const *keys, std::size_t size, std::uint32_t *order);

/// Writes where the j-th smallest key stands: of those that do not compare, by type first; or
/// where they stand anyway. The keys must be owned: to compare them may run their code.
void order_keys(PyObject *const *keys, std::size_t size, std::uint32_t *order);

}  // namespace pytree
