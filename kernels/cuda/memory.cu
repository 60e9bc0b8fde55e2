// Forgetting: overwrites memory, reads it back, and clears what a processor keeps between kernels.
#include "common.cuh"

constexpr uint32_t REGIONS = 64;

struct Place {
    uint8_t *at;      // at multiples of 16
    uint64_t bytes;   // multiples of 4
    uint64_t middle;  // where `sample` looks, besides both ends: a multiple of 4
};

struct ScrubArgs {
    Place places[REGIONS];
    uint32_t *dirty;
    uint32_t count;
};

// Blocks: (any, places). Sixteen bytes a thread at a time; sizes are of 64 bits.
KERNEL(scrub, 256, ScrubArgs) {
    const Place &place = a.places[blockIdx.y];
    uint64_t step = uint64_t(gridDim.x) * blockDim.x, first = uint64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    uint4 *words = (uint4 *)place.at;
    for (uint64_t i = first; i < place.bytes / 16; i += step) words[i] = {0, 0, 0, 0};
    uint32_t *rest = (uint32_t *)(place.at + place.bytes / 16 * 16);
    if (first < place.bytes % 16 / 4) rest[first] = 0;
}

// Blocks: places, a warp each. Reads 64 bytes at each end and in the middle back.
KERNEL(sample, 32, ScrubArgs) {
    const Place &place = a.places[blockIdx.x];
    const uint64_t words = place.bytes / 4;
    const uint64_t starts[3] = {0, place.middle / 4, words < 16 ? 0 : words - 16};
    uint32_t any = 0;
    if (threadIdx.x < 16)
        for (int i = 0; i < 3; i++) {
            uint64_t at = starts[i] + threadIdx.x;
            if (at < words) any |= ((const uint32_t *)place.at)[at];
        }
    if (any != 0) *a.dirty = 1;  // whoever writes it writes the same
}

struct VerifyArgs {
    const uint8_t *at;
    uint64_t bytes;  // a multiple of 16
    uint32_t *dirty;
};

// Blocks: any. Reads all of it.
KERNEL(verify, 256, VerifyArgs) {
    uint64_t step = uint64_t(gridDim.x) * blockDim.x;
    const uint4 *words = (const uint4 *)a.at;
    uint32_t any = 0;
    for (uint64_t i = uint64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < a.bytes / 16; i += step) {
        uint4 w = words[i];
        any |= w.x | w.y | w.z | w.w;
    }
    if (any != 0) *a.dirty = 1;
}

struct CleanArgs {
    uint32_t shared_bytes;
};

// A kernel finds in its registers and its shared memory what the one before it left there (LeftoverLocals,
// CVE-2023-4969). Blocks: as many as processors; each takes all that one has, 65,536 registers and its shared memory, so
// that each processor has to run one.
KERNEL(clean, 1024, CleanArgs) {
    SHARED(shared);
    uint4 *words = (uint4 *)shared;
    for (uint32_t i = threadIdx.x; i < a.shared_bytes / 16; i += blockDim.x) words[i] = {0, 0, 0, 0};
    __syncthreads();
    // read before a barrier and written behind it, so that all are alive at once
    volatile uint32_t *zeros = (volatile uint32_t *)shared;
    uint32_t registers[48];
#pragma unroll
    for (int i = 0; i < 48; i++) registers[i] = zeros[threadIdx.x + i];
    __syncthreads();
#pragma unroll
    for (int i = 0; i < 48; i++) zeros[threadIdx.x + i] = registers[i];
}
