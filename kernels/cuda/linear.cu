// Products of rows of activations with matrices: linear layers, gated MLPs, experts, heads.
//
// The matrix is the left factor: 16 of its rows by 8 tokens are one mma, so that one token wastes seven eighths of an
// instruction that nobody waits for, and not of a read. **Batch invariance:** the columns of a matrix are cut into at most
// eight slices by its shape alone; within a slice tiles are added up in order, and slices in order. `skinny_*` gives each
// slice to a warp, and is bound by reading the matrix once; `wide_*` runs through them one after the other, from shared
// memory, and adds at their ends; where that makes too few blocks each slice has blocks of its own, and `add_slices` adds
// up. All of them give a token the same bits, whatever tokens are beside it.
//
// Values of f32 are multiplied without mma (`plain`), which would round them to 10 bits.
#include "products.cuh"

// Eight activations of a token: those that this lane brings to a tile.
template <bool HALF> INLINE uint4 read_x(const uint8_t *row, uint32_t tile, uint32_t t, uint32_t form) {
    if (form != FORM_F32) {
        const uint32_t *pairs = (const uint32_t *)row + tile * (TILE_COLS / 2) + t;
        return {pairs[0], pairs[4], pairs[8], pairs[12]};
    }
    const float *v = (const float *)row + tile * TILE_COLS + 2 * t;
    return {pair_of<HALF>(v[0], v[1]), pair_of<HALF>(v[8], v[9]), pair_of<HALF>(v[16], v[17]),
            pair_of<HALF>(v[24], v[25])};
}

// Blocks: (row tiles, tokens / (8 * NT), matrices, experts or heads). A warp for each slice; shared: a sum for each.
template <uint32_t FORMAT, int NT, bool PAIR> INLINE void gemv(const LinearArgs &a, float *sums) {
    constexpr int MATRICES = PAIR ? 2 : 1;
    constexpr bool SCALED = scale_bytes(FORMAT) != 0;
    const Job job = job_of<PAIR>(a, blockIdx.z);
    const uint32_t first = blockIdx.y * NT * 8;
    if (first >= job.tokens || blockIdx.x * TILE_ROWS >= job.rows) return;
    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const uint32_t tiles = job.first.weight.stride, row_tile = job.row_tile + blockIdx.x;
    const uint32_t begin = warp * a.slice, end = begin + a.slice < tiles ? begin + a.slice : tiles;
    float acc[MATRICES][NT][4] = {};
    const uint8_t *rows[NT];
#pragma unroll
    for (int n = 0; n < NT; n++) {
        uint32_t token = first + n * 8 + g;
        rows[n] = job.x + size_t(token < job.tokens ? token : job.tokens - 1) * a.x_stride;
    }
#pragma unroll(SCALED && NT * MATRICES > 4 ? 1 : NT > 2 ? 2 : 4)
    for (uint32_t tile = begin; tile < end; tile++) {
        Fragment f[MATRICES];
        float2 scales[MATRICES] = {};
#pragma unroll
        for (int i = 0; i < MATRICES; i++) {
            const Matrix &m = i == 0 ? job.first.weight : job.second.weight;
            size_t at = size_t(row_tile) * tiles + tile;
            f[i] = unpack<FORMAT>(read_tile<FORMAT>(m.data + at * tile_bytes(FORMAT), lane, false));
            if (SCALED) scales[i] = read_scales<FORMAT>(m.scales + at * scale_bytes(FORMAT), g);
        }
#pragma unroll
        for (int n = 0; n < NT; n++) {
            uint4 x = read_x<FORMAT == F16>(rows[n], tile, t, a.x_form);
#pragma unroll
            for (int i = 0; i < MATRICES; i++) multiply<FORMAT>(acc[i][n], f[i], x, scales[i]);
        }
    }
    constexpr uint32_t EACH = NT * 128;  // sums of a matrix
#pragma unroll
    for (int i = 0; i < MATRICES; i++)
#pragma unroll
        for (int n = 0; n < NT; n++)
#pragma unroll
            for (int c = 0; c < 4; c++) sums[((warp * MATRICES + i) * NT + n) * 128 + c * 32 + lane] = acc[i][n][c];
    __syncthreads();
    const uint32_t slices = (tiles + a.slice - 1) / a.slice;
#pragma unroll 1
    for (uint32_t e = threadIdx.x; e < EACH; e += blockDim.x) {
        float sum[MATRICES];
#pragma unroll
        for (int i = 0; i < MATRICES; i++) {
            sum[i] = sums[i * EACH + e];
#pragma unroll 1
            for (uint32_t s = 1; s < slices; s++) sum[i] += sums[(s * MATRICES + i) * EACH + e];
        }
        uint32_t from = e % 32, c = e / 32 % 4;
        uint32_t row = blockIdx.x * TILE_ROWS + from / 4 + c / 2 * 8;
        uint32_t token = first + e / 128 * 8 + from % 4 * 2 + c % 2;
        finish(a, job, row, token, sum[0], sum[MATRICES - 1], PAIR);
    }
    if (blockIdx.x == 0) pad(a, job, first, NT * 8, threadIdx.x, blockDim.x);
}

#define GEMV(name, format, nt, pair)          \
    KERNEL(name, 256, LinearArgs) {             \
        SHARED(shared);                         \
        gemv<format, nt, pair>(a, (float *)shared); \
    }

GEMV(gemv_bf16_8, BF16, 1, false)
GEMV(gemv_bf16_16, BF16, 2, false)
GEMV(gemv_bf16_32, BF16, 4, false)
GEMV(gemv_bf16_64, BF16, 8, false)
GEMV(gemv_f16_8, F16, 1, false)
GEMV(gemv_f16_16, F16, 2, false)
GEMV(gemv_f16_32, F16, 4, false)
GEMV(gemv_f16_64, F16, 8, false)
GEMV(gemv_q8_8, Q8, 1, false)
GEMV(gemv_q8_16, Q8, 2, false)
GEMV(gemv_q8_32, Q8, 4, false)
GEMV(gemv_q8_64, Q8, 8, false)
GEMV(gemv_q4_8, Q4, 1, false)
GEMV(gemv_q4_16, Q4, 2, false)
GEMV(gemv_q4_32, Q4, 4, false)
GEMV(gemv_q4_64, Q4, 8, false)
GEMV(gemv_f8_8, F8, 1, false)
GEMV(gemv_f8_16, F8, 2, false)
GEMV(gemv_f8_32, F8, 4, false)
GEMV(gemv_f8_64, F8, 8, false)
GEMV(gemv_pair_bf16_8, BF16, 1, true)
GEMV(gemv_pair_bf16_16, BF16, 2, true)
GEMV(gemv_pair_bf16_32, BF16, 4, true)
GEMV(gemv_pair_f16_8, F16, 1, true)
GEMV(gemv_pair_f16_16, F16, 2, true)
GEMV(gemv_pair_f16_32, F16, 4, true)
GEMV(gemv_pair_q8_8, Q8, 1, true)
GEMV(gemv_pair_q8_16, Q8, 2, true)
GEMV(gemv_pair_q8_32, Q8, 4, true)
GEMV(gemv_pair_q4_8, Q4, 1, true)
GEMV(gemv_pair_q4_16, Q4, 2, true)
GEMV(gemv_pair_q4_32, Q4, 4, true)
GEMV(gemv_pair_f8_8, F8, 1, true)
GEMV(gemv_pair_f8_16, F8, 2, true)
GEMV(gemv_pair_f8_32, F8, 4, true)

// ---- many tokens

constexpr int GEMM_STAGES = 4;  // column tiles under way

template <uint32_t FORMAT, int TOKENS> INLINE constexpr uint32_t stage_bytes() {
    return GEMM_TILES * (tile_bytes(FORMAT) + scale_bytes(FORMAT)) + TOKENS * TILE_COLS * 2;
}

// A place for 16 bytes of a token's activations in shared memory: eight tokens' same places are in different banks.
INLINE uint32_t place_of_x(uint32_t token, uint32_t chunk) {
    return token * TILE_COLS * 2 + (chunk ^ token / 2 % 4) * 16;
}

// Blocks: (tokens / TOKENS, or for experts a few; row tiles / 8, or of pairs / 4; matrices, experts or heads, times slices
// that have blocks of their own). Neighbours share weights. Eight warps, each with TOKENS / 32 row tiles by 32 tokens.
template <uint32_t FORMAT, int TOKENS, bool PAIR>
INLINE void gemm_block(const LinearArgs &a, const Job &job, uint32_t z, uint32_t slice, uint32_t first,
                       unsigned char *shared) {
    constexpr uint32_t BYTES = tile_bytes(FORMAT), SCALES = scale_bytes(FORMAT), PIECES = SCALES / 16;
    constexpr uint32_t SCALES_AT = GEMM_TILES * BYTES, X_AT = SCALES_AT + GEMM_TILES * SCALES;
    constexpr int BY_TOKENS = TOKENS / 32, ROWS = BY_TOKENS;  // row tiles of a warp
    const uint32_t thread = threadIdx.x, warp = thread / 32, lane = thread % 32, g = lane / 4, t = lane % 4;
    const uint32_t by_rows = warp / BY_TOKENS, by_tokens = warp % BY_TOKENS;
    const uint32_t all = job.first.weight.stride, row_tiles = (job.rows + TILE_ROWS - 1) / TILE_ROWS;
    const uint32_t tile_from = blockIdx.y * (PAIR ? GEMM_TILES / 2 : GEMM_TILES);
    const uint32_t begin = a.sums == nullptr ? 0 : slice * a.slice;
    const uint32_t end = a.sums == nullptr || begin + a.slice > all ? all : begin + a.slice;

    auto copy = [&](uint32_t tile) {
        unsigned char *stage = shared + tile % GEMM_STAGES * stage_bytes<FORMAT, TOKENS>();
        auto at = [&](uint32_t i, const Matrix *&m) {
            m = PAIR && i % 2 == 1 ? &job.second.weight : &job.first.weight;
            uint32_t row_tile = tile_from + (PAIR ? i / 2 : i);
            if (row_tile >= row_tiles) row_tile = row_tiles - 1;
            return size_t(job.row_tile + row_tile) * all + tile;
        };
        const Matrix *m;
        for (uint32_t i = thread; i < GEMM_TILES * BYTES / 16; i += 256) {
            size_t from = at(i / (BYTES / 16), m);
            copy_async(stage + i * 16, m->data + from * BYTES + i % (BYTES / 16) * 16, 16);
        }
        if constexpr (SCALES != 0)
            if (thread < GEMM_TILES * SCALES / 16) {
                size_t from = at(thread / PIECES, m);
                copy_async(stage + SCALES_AT + thread * 16, m->scales + from * SCALES + thread % PIECES * 16, 16);
            }
        for (uint32_t i = thread; i < TOKENS * 4; i += 256) {
            uint32_t token = first + i / 4;
            const uint8_t *row = job.x + size_t(token < job.tokens ? token : 0) * a.x_stride;
            copy_async(stage + X_AT + place_of_x(i / 4, i % 4), row + tile * TILE_COLS * 2 + i % 4 * 16,
                       token < job.tokens ? 16 : 0);
        }
    };

    float acc[ROWS][4][4] = {}, total[ROWS][4][4] = {};
    for (uint32_t i = 0; i < GEMM_STAGES - 1; i++) {
        if (begin + i < end) copy(begin + i);
        copy_commit();
    }
#pragma unroll 1
    for (uint32_t tile = begin, left = a.slice; tile < end; tile++) {
        copy_wait<GEMM_STAGES - 2>();
        __syncthreads();
        if (tile + GEMM_STAGES - 1 < end) copy(tile + GEMM_STAGES - 1);
        copy_commit();
        const unsigned char *stage = shared + tile % GEMM_STAGES * stage_bytes<FORMAT, TOKENS>();
        uint4 x[4];
#pragma unroll
        for (int n = 0; n < 4; n++)
            x[n] = load_matrices(stage + X_AT + place_of_x(by_tokens * 32 + n * 8 + lane % 8, lane / 8));
#pragma unroll
        for (int i = 0; i < ROWS; i++) {
            uint32_t of = by_rows * ROWS + i;
            Fragment f = unpack<FORMAT>(read_tile<FORMAT>(stage + of * BYTES, lane, true));
            float2 scales = {};
            if constexpr (SCALES != 0) scales = read_scales<FORMAT>(stage + SCALES_AT + of * SCALES, g);
#pragma unroll
            for (int n = 0; n < 4; n++) multiply<FORMAT>(acc[i][n], f, x[n], scales);
        }
        if (--left == 0 || tile + 1 == end) {
            const bool is_first = tile < begin + a.slice;
            left = a.slice;
#pragma unroll
            for (int i = 0; i < ROWS; i++)
#pragma unroll
                for (int n = 0; n < 4; n++)
#pragma unroll
                    for (int c = 0; c < 4; c++) {
                        total[i][n][c] = is_first ? acc[i][n][c] : total[i][n][c] + acc[i][n][c];
                        acc[i][n][c] = 0.0f;
                    }
        }
    }
    copy_wait<0>();
    __syncthreads();  // the stages are free
    // through shared memory, so that neighbours write neighbours: (tokens, rows), of pairs gate and up in turn by tiles
    float *sums = (float *)shared;
#pragma unroll
    for (int i = 0; i < ROWS; i++)
#pragma unroll
        for (int n = 0; n < 4; n++)
#pragma unroll
            for (int c = 0; c < 4; c++) {
                uint32_t row = (by_rows * ROWS + i) * TILE_ROWS + g + c / 2 * 8;
                sums[(by_tokens * 32 + n * 8 + 2 * t + c % 2) * GEMM_STRIDE + row] = total[i][n][c];
            }
    __syncthreads();
    leave<TOKENS, PAIR>(a, job, z, slice, first, tile_from, sums);
}

template <uint32_t FORMAT, int TOKENS, bool PAIR> INLINE void gemm(const LinearArgs &a, unsigned char *shared) {
    const uint32_t z = blockIdx.z / a.slices, slice = blockIdx.z % a.slices;
    const Job job = job_of<PAIR>(a, z);
    if (blockIdx.y * (PAIR ? GEMM_TILES / 2 : GEMM_TILES) * TILE_ROWS >= job.rows) return;
    // an expert's tokens are known to the device alone: its blocks go on until there are no more
    for (uint32_t first = blockIdx.x * TOKENS; first < job.tokens; first += gridDim.x * TOKENS)
        gemm_block<FORMAT, TOKENS, PAIR>(a, job, z, slice, first, shared);
}

#define GEMM(name, format, tokens, pair)       \
    KERNEL(name, 256, LinearArgs) {            \
        SHARED(shared);                        \
        gemm<format, tokens, pair>(a, shared); \
    }

GEMM(gemm_bf16_32, BF16, 32, false)
GEMM(gemm_bf16_64, BF16, 64, false)
GEMM(gemm_bf16_128, BF16, 128, false)
GEMM(gemm_f16_32, F16, 32, false)
GEMM(gemm_f16_64, F16, 64, false)
GEMM(gemm_f16_128, F16, 128, false)
GEMM(gemm_q8_32, Q8, 32, false)
GEMM(gemm_q8_64, Q8, 64, false)
GEMM(gemm_q8_128, Q8, 128, false)
GEMM(gemm_q4_32, Q4, 32, false)
GEMM(gemm_q4_64, Q4, 64, false)
GEMM(gemm_q4_128, Q4, 128, false)
GEMM(gemm_f8_32, F8, 32, false)
GEMM(gemm_f8_64, F8, 64, false)
GEMM(gemm_f8_128, F8, 128, false)
GEMM(gemm_pair_bf16_32, BF16, 32, true)
GEMM(gemm_pair_bf16_64, BF16, 64, true)
GEMM(gemm_pair_bf16_128, BF16, 128, true)
GEMM(gemm_pair_f16_32, F16, 32, true)
GEMM(gemm_pair_f16_64, F16, 64, true)
GEMM(gemm_pair_f16_128, F16, 128, true)
GEMM(gemm_pair_q8_32, Q8, 32, true)
GEMM(gemm_pair_q8_64, Q8, 64, true)
GEMM(gemm_pair_q8_128, Q8, 128, true)
GEMM(gemm_pair_q4_32, Q4, 32, true)
GEMM(gemm_pair_q4_64, Q4, 64, true)
GEMM(gemm_pair_q4_128, Q4, 128, true)
GEMM(gemm_pair_f8_32, F8, 32, true)
GEMM(gemm_pair_f8_64, F8, 64, true)
GEMM(gemm_pair_f8_128, F8, 128, true)

// Blocks: (rows / 256, tokens, matrices). Adds up what slices with blocks of their own gave, in order.
KERNEL(add_slices, 256, LinearArgs) {
    const uint32_t z = blockIdx.z, token = blockIdx.y, row = blockIdx.x * 256 + threadIdx.x;
    const Job job = a.pair ? job_of<true>(a, z) : job_of<false>(a, z);
    if (row < job.rows) {
        const float *from = a.sums + z * a.sums_each + size_t(token) * job.rows + row;
        const size_t each = size_t(job.tokens) * job.rows;
        float first = from[0], second = a.pair ? from[a.sums_each] : 0.0f;
        for (uint32_t slice = 1; slice < a.slices; slice++) {
            first += from[slice * each];
            if (a.pair) second += from[a.sums_each + slice * each];
        }
        finish(a, job, row, token, first, second, a.pair);
    }
    if (blockIdx.x == 0) pad(a, job, token, 1, threadIdx.x, 256);
}

// ---- single precision

constexpr int PLAIN_TOKENS = 4;

// Blocks: (rows / 8, tokens / 4, matrices, experts or heads). A warp for each row: lane l adds up columns 4l to 4l + 3 of every 128.
template <bool PAIR> INLINE void plain(const LinearArgs &a) {
    constexpr int MATRICES = PAIR ? 2 : 1;
    const Job job = job_of<PAIR>(a, blockIdx.z);
    const uint32_t lane = threadIdx.x % 32, row = blockIdx.x * 8 + threadIdx.x / 32;
    const uint32_t width = (job.first.weight.cols + TILE_COLS - 1) / TILE_COLS * TILE_COLS;
    for (uint32_t first = blockIdx.y * PLAIN_TOKENS; first < job.tokens; first += gridDim.y * PLAIN_TOKENS) {
        float sums[MATRICES][PLAIN_TOKENS] = {};
        if (row < job.rows) {
            for (uint32_t col = 4 * lane; col < width; col += 128) {
                for (int i = 0; i < MATRICES; i++) {
                    const Matrix &m = i == 0 ? job.first.weight : job.second.weight;
                    size_t at = size_t(job.row_tile * TILE_ROWS + row) * m.stride + col;
                    const float *w = (const float *)m.data + at;
                    for (int n = 0; n < PLAIN_TOKENS; n++) {
                        uint32_t token = first + n < job.tokens ? first + n : first;
                        const float *x = (const float *)(job.x + size_t(token) * a.x_stride) + col;
                        for (int c = 0; c < 4; c++) sums[i][n] = fmaf(w[c], x[c], sums[i][n]);
                    }
                }
            }
        }
        float first_sum = 0.0f, second_sum = 0.0f;
#pragma unroll
        for (int n = 0; n < PLAIN_TOKENS; n++) {
            float sum = warp_sum(sums[0][n]), other = PAIR ? warp_sum(sums[MATRICES - 1][n]) : 0.0f;
            if (lane == unsigned(n)) {
                first_sum = sum;
                second_sum = other;
            }
        }
        if (lane < PLAIN_TOKENS) finish(a, job, row, first + lane, first_sum, second_sum, PAIR);
        if (blockIdx.x == 0) pad(a, job, first, PLAIN_TOKENS, threadIdx.x, blockDim.x);
    }
}

KERNEL(plain, 256, LinearArgs) { plain<false>(a); }
KERNEL(plain_pair, 256, LinearArgs) { plain<true>(a); }
