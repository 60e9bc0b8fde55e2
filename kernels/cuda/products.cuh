// What all products have in common: their arguments, which of several a block works at, and what becomes of a sum.
#pragma once

#include "activation.cuh"
#include "matrix.cuh"

enum Mode : uint32_t {
    SET = 0,       // out = sum + bias
    ADD = 1,       // out += (sum + bias) * scale
    ACTIVATED = 2  // an operand: activation(sum + bias), or of pairs activation(gate) * up
};

// One of up to three matrices that the same activations are multiplied with.
struct Product {
    Linear linear;
    uint8_t *out;
    uint32_t rows, out_stride;  // bytes from one token to the next
};

struct LinearArgs {
    Product products[3];     // of a pair the first two linears are gate and up
    const Linear *table;     // of experts: three each; then the linears above are not read
    const uint32_t *starts;  // of experts: where their tokens start, and where the last one's end
    const uint8_t *x;
    float *sums;                // of slices, (products or matrices of a pair, slices, tokens, rows); none: a block adds up
    uint64_t sums_each;         // floats of a product or matrix there
    uint64_t x_each;            // bytes from one head's activations to the next one's
    uint32_t from_table;        // which of the three
    uint32_t x_stride, x_form;  // bytes from one token to the next
    uint32_t out_each;          // bytes from one head's results to the next one's
    uint32_t out_form;
    uint32_t tiles_each;  // row tiles of a head; 0: no heads
    uint32_t tokens;      // of one expert or head
    uint32_t slice;       // column tiles of a slice
    uint32_t slices;      // that have blocks of their own
    uint32_t mode;
    float scale;
    uint32_t pair;
    Activation activation;
};

// The product that a block works at: one of several matrices, experts or heads.
struct Job {
    Linear first, second;
    const uint8_t *x;
    uint8_t *out;
    uint32_t rows, out_stride;
    uint32_t tokens;
    uint32_t row_tile;  // of the first row in the matrix
};

template <bool PAIR> INLINE Job job_of(const LinearArgs &a, uint32_t z) {
    const Product &product = a.products[PAIR || a.tiles_each != 0 || a.table != nullptr ? 0 : z];
    Job job;
    job.first = product.linear;
    job.second = a.products[1].linear;
    job.rows = product.rows;
    job.out_stride = product.out_stride;
    job.out = product.out;
    job.x = a.x;
    job.tokens = a.tokens;
    job.row_tile = 0;
    if (a.tiles_each != 0) {
        job.x += z * a.x_each;
        job.out += size_t(z) * a.out_each;
        job.row_tile = z * a.tiles_each;
    }
    if (a.table != nullptr) {
        uint32_t start = a.starts[z];
        job.first = a.table[3 * z + a.from_table];
        if (PAIR) job.second = a.table[3 * z + a.from_table + 1];
        job.x += size_t(start) * a.x_stride;
        job.out += size_t(start) * job.out_stride;
        job.tokens = a.starts[z + 1] - start;
    }
    return job;
}

INLINE void finish(const LinearArgs &a, const Job &job, uint32_t row, uint32_t token, float first, float second,
                   bool pair) {
    if (row >= job.rows || token >= job.tokens) return;
    uint8_t *out = job.out + size_t(token) * job.out_stride;
    if (job.first.bias != nullptr) first += job.first.bias[row];
    if (a.mode == ACTIVATED) {
        if (pair) {
            if (job.second.bias != nullptr) second += job.second.bias[row];
            first = gated(a.activation, first, second);
        } else {
            first = activate(a.activation, first);
        }
        return write_operand(a.out_form, out, row, first);
    }
    float *to = (float *)out + row;
    *to = a.mode == ADD ? fmaf(first, a.scale, *to) : first;
}

// Zeros behind the last column of an operand, up to whole tiles.
INLINE void pad(const LinearArgs &a, const Job &job, uint32_t first, uint32_t count, uint32_t thread, uint32_t threads) {
    if (a.mode != ACTIVATED) return;
    uint32_t end = (job.rows + TILE_COLS - 1) / TILE_COLS * TILE_COLS, missing = end - job.rows;
    for (uint32_t i = thread; i < missing * count; i += threads) {
        uint32_t token = first + i / missing;
        if (token < job.tokens) {
            write_operand(a.out_form, job.out + size_t(token) * job.out_stride, job.rows + i % missing, 0.0f);
        }
    }
}

// ---- blocks of 128 rows: 8 row tiles of a matrix, or of a pair's matrices in turn

constexpr int GEMM_TILES = 8;
constexpr int GEMM_STRIDE = GEMM_TILES * TILE_ROWS + 4;  // of sums: no two lanes write to one bank

// The results of such a block, from shared memory, so that neighbours write neighbours: (tokens, GEMM_STRIDE).
template <int TOKENS, bool PAIR>
INLINE void leave(const LinearArgs &a, const Job &job, uint32_t z, uint32_t slice, uint32_t first, uint32_t tile_from,
                  const float *sums) {
    constexpr uint32_t OUT = (PAIR ? GEMM_TILES / 2 : GEMM_TILES) * TILE_ROWS;
#pragma unroll 1
    for (uint32_t e = threadIdx.x; e < OUT * TOKENS; e += blockDim.x) {
        uint32_t row = e % OUT, at = PAIR ? row / TILE_ROWS * 2 * TILE_ROWS + row % TILE_ROWS : row;
        const float *sum = sums + e / OUT * GEMM_STRIDE + at;
        const uint32_t out_row = tile_from * TILE_ROWS + row, token = first + e / OUT;
        if (a.sums == nullptr) {
            finish(a, job, out_row, token, sum[0], PAIR ? sum[TILE_ROWS] : 0.0f, PAIR);
        } else if (out_row < job.rows && token < job.tokens) {
            float *to = a.sums + z * a.sums_each + (size_t(slice) * job.tokens + token) * job.rows + out_row;
            to[0] = sum[0];
            if (PAIR) to[a.sums_each] = sum[TILE_ROWS];
        }
    }
    __syncthreads();  // the next tokens take the memory
    if (a.sums == nullptr && blockIdx.y == 0) pad(a, job, first, TOKENS, threadIdx.x, blockDim.x);
}
