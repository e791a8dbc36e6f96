#include "kept.hpp"

#include <algorithm>
#include <cstdlib>
#include <iterator>
#include <mutex>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

#include "pages.hpp"

namespace diffopt {
namespace {

constexpr std::align_val_t alignment{memory_alignment};

/// NOTE [kept memory]
struct Kept {
    std::mutex lock;
    std::vector<Block> blocks;  // the oldest first
    std::size_t bytes = 0;
};

/// Never destroyed: tensors may outlive whatever is.
Kept &kept() {
    static auto *found = new Kept;
    return *found;
}

std::size_t read_limit() {
    constexpr std::size_t mebibyte = 1 << 20;
    const char *wanted = std::getenv("DIFFOPT_KEPT_MIB");
    if (!wanted || !*wanted) return 64 * mebibyte;
    char *end = nullptr;
    const auto found = std::strtoull(wanted, &end, 10);
    if (*end || *wanted < '0' || *wanted > '9')
        throw std::runtime_error(
            "DIFFOPT_KEPT_MIB must be a number of mebibytes, 0 to keep no memory, got " +
            std::string(wanted) + ".");
    return static_cast<std::size_t>(found) * mebibyte;
}

// Nobody waits for the lock. Whoever does not get it does without what is kept; so does a forked
// child in which it stays locked, because another thread held it.

/// The latest block that fits without much waste.
Block take_kept(std::size_t bytes) {
    const std::unique_lock<std::mutex> held(kept().lock, std::try_to_lock);
    if (!held) return {};
    auto &blocks = kept().blocks;
    const auto found = std::find_if(blocks.rbegin(), blocks.rend(), [&](const Block &block) {
        return bytes <= block.bytes && block.bytes - bytes <= bytes / 8;
    });
    if (found == blocks.rend()) return {};
    const Block block = *found;
    kept().bytes -= block.bytes;
    blocks.erase(std::next(found).base());
    return block;
}

}  // namespace

Block take_block(std::size_t bytes) {
    // Pages, in which the system counts; so sizes that differ little fit into one another.
    constexpr std::size_t page = 1 << 12;
    bytes = (bytes + page - 1) / page * page;
    const auto found = take_kept(bytes);
    if (found.memory) return found;
    void *memory = ::operator new(bytes, alignment, std::nothrow);
    make_ready(memory, bytes);
    return {memory, bytes};
}

void give_block_back(Block block) {
    std::vector<Block> dropped{block};
    {
        const std::unique_lock<std::mutex> held(kept().lock, std::try_to_lock);
        auto &blocks = kept().blocks;
        if (held && block.bytes <= kept_limit()) {
            blocks.push_back(block);
            dropped.clear();
            kept().bytes += block.bytes;
            auto first = blocks.begin();
            for (; kept().bytes > kept_limit(); ++first) {
                kept().bytes -= first->bytes;
                dropped.push_back(*first);
            }
            blocks.erase(blocks.begin(), first);
        }
    }
    for (const auto &old : dropped) ::operator delete(old.memory, alignment);
}

std::size_t kept_bytes() {
    const std::lock_guard<std::mutex> held(kept().lock);
    return kept().bytes;
}

std::size_t kept_limit() {
#ifdef __SANITIZE_ADDRESS__  // which shall see what uses memory that is gone
    static const std::size_t limit = 0 * read_limit();
#else
    static const std::size_t limit = read_limit();
#endif
    return limit;
}

}  // namespace diffopt
