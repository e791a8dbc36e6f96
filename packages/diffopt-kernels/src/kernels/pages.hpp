#pragma once

#include <cstddef>

namespace diffopt {

/// Has the memory below an output made ready, which often is fresh: to touch each page of 4 KB for
/// the first time takes longer than to compute what is written there.
void make_ready(void *array, std::size_t bytes);

}  // namespace diffopt
