#pragma once

#include <cstddef>

namespace diffopt {

/* NOTE [kept memory]
   The outputs of a step die together and are made again in the next. The C library gives large
   blocks back to the system when they are freed, which then clears them for the next step: about a
   fifth of the time of a network's step. So the memory of outputs that are gone is kept, up to a
   limit, and used for those that are made. */

/// The smallest block that is worth keeping.
constexpr std::size_t least_kept_bytes = 1 << 16;

/// To what the memory of tensors is aligned: a line of the cache.
constexpr std::size_t memory_alignment = 64;

/// Memory, and how much there is of it.
struct Block {
    void *memory;  // null if there is none
    std::size_t bytes;
};

/// Returns so many bytes or some more, ready and aligned.
Block take_block(std::size_t bytes);

/// Takes it back, from any thread.
void give_block_back(Block block);

/// How much is kept now, and how much may be: `DIFFOPT_KEPT_MIB`, by default 64. Throws where that
/// is no number.
std::size_t kept_bytes();
std::size_t kept_limit();

}  // namespace diffopt
