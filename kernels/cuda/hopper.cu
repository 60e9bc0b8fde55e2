// Products with many tokens on Hopper, by wgmma (PTX ISA, "Asynchronous Warpgroup Level Matrix Instructions"): mma.sync
// reaches some six tenths of what its tensor cores can do.
//
// As `wide_*` in linear.cu: the matrix is the left factor, 128 rows a block, of which each warp has a row tile in the very
// registers that it has for mma; activations, 128 tokens by 64 columns, lie in shared memory in rows of 128 bytes whose
// pieces of 16 are swizzled. Weights come from memory into registers without a stop, since only one warp uses them; they
// are asked into the second cache some steps before. Products of one step run while the next step's operands arrive.
//
// **Batch invariance:** slices and order are those of linear.cu. That wgmma adds up the sixteen products of an instruction
// to the same bits as mma is nowhere promised: both are compared on random numbers before the first session uses it
// (`wgmma_agrees`), and where they differ `wide_*` stays.
//
// By the hardware's numbers a step of a block takes the tensor cores 512 clocks (4096 operations each), in which shared
// memory, good for 64 KB, gives 32 KB to products and takes 16 KB of copies. Weights in shared memory too would be 16 KB
// more each way. Not yet measured.
#include "products.cuh"

constexpr int TOKENS = 128;                       // of a block
constexpr int STAGES = 5;                         // steps of activations in shared memory
constexpr uint32_t STEP_BYTES = 128;              // of a token's activations: 64 columns
constexpr uint32_t STAGE_BYTES = TOKENS * STEP_BYTES;
constexpr uint32_t AHEAD = 6;                     // steps that weights are asked for before

// Sums of 64 rows (16 of each warp) by 128 tokens: [n][0], [n][1] are row g, tokens 8n + 2t and the next; [n][2], [n][3]
// those of row g + 8. As mma has them.
using Sums = float[TOKENS / 8][4];

// sums (+)= a * b. `b`: 16 columns of 128 tokens, in rows of 128 bytes; STAGE at a multiple of 1024.
template <bool HALF> INLINE void wgmma(Sums &sums, const uint4 &a, const unsigned char *b, bool add) {
#ifdef AMNESIC_EMULATED
    auto slots = emulator::meet(a, __LINE__);
    unsigned lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    struct Rows {
        float x[2][16];
    } rows;
    for (unsigned k = 0; k < 16; k++) {
        uint4 of = emulator::of_lane<uint4>(slots, 4 * g + k % 8 / 2);
        const uint32_t pairs[2] = {k < 8 ? of.x : of.z, k < 8 ? of.y : of.w};
        for (int r = 0; r < 2; r++) {
            uint32_t bits = k % 2 ? pairs[r] >> 16 : pairs[r] & 0xffffu;
            rows.x[r][k] = HALF ? of_f16(bits) : of_bits(bits << 16);
        }
    }
    emulator::later([&sums, rows, b, add, t] {
        for (unsigned n = 0; n < TOKENS / 8; n++)
            for (unsigned c = 0; c < 4; c++) {
                double sum = add ? sums[n][c] : 0.0f;
                for (unsigned k = 0; k < 16; k++) {
                    uintptr_t at = uintptr_t(b) + (8 * n + 2 * t + c % 2) * STEP_BYTES + 2 * k;
                    at ^= (at >> 7 & 7) << 4;
                    uint16_t bits;
                    memcpy(&bits, (const void *)at, 2);
                    sum += double(rows.x[c / 2][k]) * (HALF ? of_f16(bits) : of_bits(uint32_t(bits) << 16));
                }
                sums[n][c] = float(sum);
            }
    });
#else
    // where it begins; 1024 bytes from eight tokens to the next eight; swizzled by 128 bytes
    const uint64_t descriptor = uint64_t((uint32_t(__cvta_generic_to_shared(b)) & 0x3ffffu) >> 4) | 1ull << 16 |
                                uint64_t(1024 >> 4) << 32 | 1ull << 62;
#define WGMMA(type)                                                                                                   \
    asm volatile(                                                                                                     \
        "{\n.reg .pred add;\nsetp.ne.b32 add, %69, 0;\n"                                                              \
        "wgmma.mma_async.sync.aligned.m64n128k16.f32." type "." type " "                                              \
        "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "  \
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "  \
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "  \
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "  \
        "{%64, %65, %66, %67}, %68, add, 1, 1, 0;\n}\n"                                                               \
        : "+f"(sums[0][0]), "+f"(sums[0][1]), "+f"(sums[0][2]), "+f"(sums[0][3]), "+f"(sums[1][0]), "+f"(sums[1][1]), "+f"(sums[1][2]), "+f"(sums[1][3]), "+f"(sums[2][0]), "+f"(sums[2][1]), "+f"(sums[2][2]), "+f"(sums[2][3]), "+f"(sums[3][0]), "+f"(sums[3][1]), "+f"(sums[3][2]), "+f"(sums[3][3]), "+f"(sums[4][0]), "+f"(sums[4][1]), "+f"(sums[4][2]), "+f"(sums[4][3]), "+f"(sums[5][0]), "+f"(sums[5][1]), "+f"(sums[5][2]), "+f"(sums[5][3]), "+f"(sums[6][0]), "+f"(sums[6][1]), "+f"(sums[6][2]), "+f"(sums[6][3]), "+f"(sums[7][0]), "+f"(sums[7][1]), "+f"(sums[7][2]), "+f"(sums[7][3]), "+f"(sums[8][0]), "+f"(sums[8][1]), "+f"(sums[8][2]), "+f"(sums[8][3]), "+f"(sums[9][0]), "+f"(sums[9][1]), "+f"(sums[9][2]), "+f"(sums[9][3]), "+f"(sums[10][0]), "+f"(sums[10][1]), "+f"(sums[10][2]), "+f"(sums[10][3]), "+f"(sums[11][0]), "+f"(sums[11][1]), "+f"(sums[11][2]), "+f"(sums[11][3]), "+f"(sums[12][0]), "+f"(sums[12][1]), "+f"(sums[12][2]), "+f"(sums[12][3]), "+f"(sums[13][0]), "+f"(sums[13][1]), "+f"(sums[13][2]), "+f"(sums[13][3]), "+f"(sums[14][0]), "+f"(sums[14][1]), "+f"(sums[14][2]), "+f"(sums[14][3]), "+f"(sums[15][0]), "+f"(sums[15][1]), "+f"(sums[15][2]), "+f"(sums[15][3])                                                                                                     \
        : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "l"(descriptor), "r"(int(add)))
    if (HALF)
        WGMMA("f16");
    else
        WGMMA("bf16");
#undef WGMMA
#endif
}

// What was written to registers and shared memory before is there for products behind it.
INLINE void begin_products() {
#ifndef AMNESIC_EMULATED
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#endif
}

INLINE void commit_products() {
#ifdef AMNESIC_EMULATED
    emulator::later_commit();
#else
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#endif
}

// Until at most LEFT of what was committed are under way.
template <int LEFT> INLINE void wait_for_products() {
#ifdef AMNESIC_EMULATED
    emulator::later_wait(LEFT);
#else
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(LEFT) : "memory");
#endif
}

// Copies of this thread that have arrived in shared memory are seen by wgmma, which reads past the thread's own view of it.
INLINE void show_copies() {
#ifndef AMNESIC_EMULATED
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

// Asks a line of 128 bytes into the second cache.
INLINE void ask_for(const void *line) {
#ifdef AMNESIC_EMULATED
    (void)line;
#else
    asm volatile("prefetch.global.L2 [%0];" ::"l"(line));
#endif
}

// What the compiler knows of sums ends here: they are written by products that it does not see.
INLINE void keep_sums(Sums &sums) {
#ifndef AMNESIC_EMULATED
#pragma unroll
    for (int n = 0; n < TOKENS / 8; n++)
#pragma unroll
        for (int c = 0; c < 4; c++) asm volatile("" : "+f"(sums[n][c])::"memory");
#else
    (void)sums;
#endif
}

// As `wide_block`. Column tiles of the matrix, and of each slice, are a multiple of four: steps come in pairs.
template <bool HALF, bool PAIR>
INLINE void hopper_block(const LinearArgs &a, const Job &job, uint32_t z, uint32_t first, unsigned char *shared) {
    const uint32_t thread = threadIdx.x, warp = thread / 32, lane = thread % 32, g = lane / 4, t = lane % 4;
    const Matrix &m = PAIR && warp % 2 == 1 ? job.second.weight : job.first.weight;
    const uint32_t row_tiles = (job.rows + TILE_ROWS - 1) / TILE_ROWS, steps = job.first.weight.stride / 2;
    const uint32_t tile_from = blockIdx.y * (PAIR ? GEMM_TILES / 2 : GEMM_TILES);
    uint32_t row_tile = tile_from + (PAIR ? warp / 2 : warp);
    if (row_tile >= row_tiles) row_tile = row_tiles - 1;
    // a step of a row tile: two column tiles of 1024 bytes, each with two halves
    const uint8_t *weights = m.data + size_t(job.row_tile + row_tile) * steps * 2048;

    auto copy = [&](uint32_t step) {
        unsigned char *stage = shared + step % STAGES * STAGE_BYTES;
        for (uint32_t i = thread; i < TOKENS * 8; i += 256) {
            const uint32_t at = i / 8, token = first + at, piece = i % 8;
            const uint8_t *row = job.x + size_t(token < job.tokens ? token : 0) * a.x_stride;
            copy_async(stage + at * STEP_BYTES + (piece ^ at % 8) * 16, row + step * STEP_BYTES + piece * 16,
                       token < job.tokens ? 16 : 0);
        }
    };
    auto ask = [&](uint32_t step) {
        if (step < steps && lane < 16) ask_for(weights + size_t(step) * 2048 + lane * 128);
    };
    auto load = [&](uint4(&to)[4], uint32_t step) {
        const uint4 *from = (const uint4 *)(weights + size_t(step) * 2048) + lane;
#pragma unroll
        for (int i = 0; i < 4; i++) to[i] = load_once(from + i * 32);
    };

    Sums sums = {}, total = {};
    uint4 even[4], odd[4];
    for (uint32_t step = 0; step < AHEAD; step++) ask(step);
    for (uint32_t step = 0; step < STAGES - 2; step++) {
        if (step < steps) copy(step);
        copy_commit();
    }
    load(even, 0);
    // One step: `now` is multiplied, and `next` comes in once the products before, which read it, are done. The stage
    // that is written was read by those before them, of every warp: each waited for them before it came to the barrier.
    auto advance = [&](uint32_t step, const uint4(&now)[4], uint4(&next)[4], bool add) {
        copy_wait<STAGES - 3>();
        show_copies();
        __syncthreads();
        const unsigned char *stage = shared + step % STAGES * STAGE_BYTES;
        begin_products();
#pragma unroll
        for (int i = 0; i < 4; i++) wgmma<HALF>(sums, now[i], stage + i * 32, add || i > 0);
        commit_products();
        if (step + STAGES - 2 < steps) copy(step + STAGES - 2);
        copy_commit();
        ask(step + AHEAD);
        wait_for_products<1>();
        load(next, step + 1 < steps ? step + 1 : step);
    };
#pragma unroll 1
    for (uint32_t from = 0; from < steps; from += a.slice / 2) {
        const uint32_t end = from + a.slice / 2 < steps ? from + a.slice / 2 : steps;
#pragma unroll 1
        for (uint32_t step = from; step < end; step += 2) {
            advance(step, even, odd, step > from);
            advance(step + 1, odd, even, true);
        }
        wait_for_products<0>();
        keep_sums(sums);
#pragma unroll
        for (int n = 0; n < TOKENS / 8; n++)
#pragma unroll
            for (int c = 0; c < 4; c++) total[n][c] = from == 0 ? sums[n][c] : total[n][c] + sums[n][c];
    }
    copy_wait<0>();
    __syncthreads();  // the stages are free
    float *out = (float *)shared;
#pragma unroll
    for (int n = 0; n < TOKENS / 8; n++)
#pragma unroll
        for (int c = 0; c < 4; c++)
            out[(n * 8 + 2 * t + c % 2) * GEMM_STRIDE + warp * TILE_ROWS + g + c / 2 * 8] = total[n][c];
    __syncthreads();
    leave<TOKENS, PAIR>(a, job, z, 0, first, tile_from, out);
}

// Blocks: as of `wide_*`, without slices of their own.
template <bool HALF, bool PAIR> INLINE void hopper(const LinearArgs &a, unsigned char *memory) {
    const Job job = job_of<PAIR>(a, blockIdx.z);
    if (blockIdx.y * (PAIR ? GEMM_TILES / 2 : GEMM_TILES) * TILE_ROWS >= job.rows) return;
    unsigned char *shared = memory + (1024 - uintptr_t(memory) % 1024) % 1024;
    for (uint32_t first = blockIdx.x * TOKENS; first < job.tokens; first += gridDim.x * TOKENS)
        hopper_block<HALF, PAIR>(a, job, blockIdx.z, first, shared);
}

#define HOPPER(name, half, pair)   \
    KERNEL(name, 256, LinearArgs) { \
        SHARED(memory);            \
        hopper<half, pair>(a, memory); \
    }

HOPPER(hopper_bf16, false, false)
HOPPER(hopper_f16, true, false)
HOPPER(hopper_pair_bf16, false, true)
HOPPER(hopper_pair_f16, true, true)
