#include "pages.hpp"

#include <algorithm>
#include <cstdint>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace diffopt {

/// Asks for huge pages, and for what is still missing at once, which takes half as long.
void make_ready(void *array, std::size_t bytes) {
#if defined(MADV_HUGEPAGE) && defined(MADV_POPULATE_WRITE)
    constexpr std::size_t huge = 1 << 21, worthwhile = 1 << 16;  // below, to ask costs more
    if (!array || bytes < worthwhile) return;
    static const auto page = static_cast<std::uintptr_t>(sysconf(_SC_PAGESIZE));
    const auto begin = reinterpret_cast<std::uintptr_t>(array), end = begin + bytes;
    const auto advise = [](std::uintptr_t from, std::uintptr_t to, int advice) {
        if (from < to) madvise(reinterpret_cast<void *>(from), to - from, advice);
    };
    advise((begin + huge - 1) / huge * huge, end / huge * huge, MADV_HUGEPAGE);

    const auto first = begin / page * page, last = (end + page - 1) / page * page;
    std::vector<unsigned char> present((last - first) / page);
    if (mincore(reinterpret_cast<void *>(first), last - first, present.data()) != 0) return;
    const auto is_there = [](unsigned char flags) { return flags & 1; };
    for (auto at = present.begin();;) {
        const auto from = std::find_if_not(at, present.end(), is_there);
        if (from == present.end()) return;
        at = std::find_if(from, present.end(), is_there);
        advise(first + (from - present.begin()) * page, first + (at - present.begin()) * page,
               MADV_POPULATE_WRITE);
    }
#else
    (void)array, (void)bytes;
#endif
}

}  // namespace diffopt
