// What is left in a device's memory, and in what its processors keep between kernels. For tests: in no build without them.
#include "common.cuh"

struct FindLeaksArgs {
    uint32_t *out;         // (blocks, words)
    uint32_t *processors;  // of each block
    uint32_t words;
};

// What a block finds in its shared memory, of which it writes nothing (LeftoverLocals, CVE-2023-4969). Blocks: any; each
// takes all that one may have, so that no two are on a processor at once.
KERNEL(find_leaks, 256, FindLeaksArgs) {
    SHARED(shared);
    const volatile uint32_t *words = (const volatile uint32_t *)shared;
    uint32_t *out = a.out + uint64_t(blockIdx.x) * a.words;
    for (uint32_t i = threadIdx.x; i < a.words; i += blockDim.x) out[i] = words[i];
    if (threadIdx.x == 0) a.processors[blockIdx.x] = processor();
}

struct LeakProbeArgs {
    const uint32_t *pattern;
    uint32_t length;  // of the pattern, in words
    uint32_t words;
};

// Fills shared memory with a pattern, again and again, and leaves it there. Blocks: as above.
KERNEL(leak_probe, 256, LeakProbeArgs) {
    SHARED(shared);
    volatile uint32_t *words = (volatile uint32_t *)shared;  // nobody reads it here, and it is to be written
    for (uint32_t i = threadIdx.x; i < a.words; i += blockDim.x) words[i] = a.pattern[i % a.length];
}

struct SearchArgs {
    const uint32_t *at;
    const uint32_t *patterns;  // one behind another
    const uint32_t *ends;      // of each of them, in words
    uint32_t *found;           // (threads of all blocks, patterns): added to
    uint64_t words;
    uint32_t count;
};

// How often each pattern begins at a word of the memory. Blocks: any.
KERNEL(search_memory, 256, SearchArgs) {
    const uint64_t first = uint64_t(blockIdx.x) * blockDim.x + threadIdx.x, step = uint64_t(gridDim.x) * blockDim.x;
    for (uint32_t p = 0; p < a.count; p++) {
        const uint32_t start = p == 0 ? 0 : a.ends[p - 1], length = a.ends[p] - start;
        const uint32_t *pattern = a.patterns + start;
        const uint32_t head = pattern[0];
        uint32_t found = 0;
        for (uint64_t i = first; i + length <= a.words; i += step) {
            if (a.at[i] != head) continue;
            uint32_t same = 1;
            while (same < length && a.at[i + same] == pattern[same]) same++;
            found += same == length;
        }
        a.found[first * a.count + p] += found;
    }
}
