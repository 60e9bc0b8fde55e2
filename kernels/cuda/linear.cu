// Products of rows of activations with matrices: linear layers, gated MLPs, experts, heads.
//
// The matrix is the left factor: 16 of its rows by 8 tokens are one mma, so that one token wastes seven eighths of an
// instruction that nobody waits for, and not of a read. **Batch invariance:** the columns of a matrix are cut into at most
// eight slices by its shape alone; within a slice tiles are added up in order, and slices in order. `skinny_*` gives each
// slice to a warp, and is bound by reading the matrix once; `wide_*` runs through them one after the other, from shared
// memory, and adds at their ends. Both give a token the same bits, whatever tokens are beside it.
//
// Values of f32 are multiplied without mma (`plain`), which would round them to 10 bits.
#include "activation.cuh"
#include "matrix.cuh"

enum Mode : uint32_t {
    SET = 0,       // out = sum + bias
    ADD = 1,       // out += (sum + bias) * scale
    ACTIVATED = 2  // an operand: activation(sum + bias), or of pairs activation(gate) * up
};

struct LinearArgs {
    Linear first, second;      // of pairs: gate and up
    const Linear *table;       // of experts: three each; then the two above are not read
    const uint32_t *starts;    // of experts: where their tokens start, and where the last one's end
    const uint8_t *x;
    uint8_t *out;
    uint64_t x_each;           // bytes from one head's activations to the next one's
    uint32_t from_table;       // which of the three
    uint32_t x_stride, x_form; // bytes from one token to the next
    uint32_t out_stride;       // bytes, too
    uint32_t out_each;         // and from one head's results to the next one's
    uint32_t out_form;
    uint32_t tiles_each;       // row tiles of a head
    uint32_t rows, tokens;     // of one expert or head
    uint32_t slice;            // column tiles of a slice
    uint32_t mode;
    float scale;
    Activation activation;
};

// The product that a block works at: one of several experts or heads, or the only one.
struct Job {
    Linear first, second;
    const uint8_t *x;
    uint8_t *out;
    uint32_t tokens;
    uint32_t row_tile;  // of the first row in the matrix
};

template <bool PAIR> INLINE Job job_of(const LinearArgs &a, uint32_t z) {
    Job job{a.first, a.second, a.x + z * a.x_each, a.out + size_t(z) * a.out_each, a.tokens, z * a.tiles_each};
    if (a.table != nullptr) {
        uint32_t start = a.starts[z];
        job.first = a.table[3 * z + a.from_table];
        if (PAIR) job.second = a.table[3 * z + a.from_table + 1];
        job.x = a.x + size_t(start) * a.x_stride;
        job.out = a.out + size_t(start) * a.out_stride;
        job.tokens = a.starts[z + 1] - start;
        job.row_tile = 0;
    }
    return job;
}

INLINE void finish(const LinearArgs &a, const Job &job, uint32_t row, uint32_t token, float first, float second,
                   bool pair) {
    if (row >= a.rows || token >= job.tokens) return;
    uint8_t *out = job.out + size_t(token) * a.out_stride;
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
    uint32_t end = (a.rows + TILE_COLS - 1) / TILE_COLS * TILE_COLS, missing = end - a.rows;
    for (uint32_t i = thread; i < missing * count; i += threads) {
        uint32_t token = first + i / missing;
        if (token < job.tokens) {
            write_operand(a.out_form, job.out + size_t(token) * a.out_stride, a.rows + i % missing, 0.0f);
        }
    }
}

// Eight activations of a token: those that this lane brings to a tile.
template <bool HALF> INLINE uint4 read_x(const uint8_t *row, uint32_t tile, uint32_t t, uint32_t form) {
    if (form != FORM_F32) return ((const uint4 *)row)[tile * 4 + t];
    const float *v = (const float *)row + tile * TILE_COLS + t * 8;
    return {pair_of<HALF>(v[0], v[1]), pair_of<HALF>(v[2], v[3]), pair_of<HALF>(v[4], v[5]), pair_of<HALF>(v[6], v[7])};
}

// Blocks: (row tiles, tokens / (8 * NT), experts or heads). A warp for each slice; shared: a sum for each.
template <uint32_t FORMAT, int NT, bool PAIR> INLINE void skinny(const LinearArgs &a, float *sums) {
    constexpr int MATRICES = PAIR ? 2 : 1;
    constexpr bool SCALED = FORMAT == Q8 || FORMAT == Q4;
    const Job job = job_of<PAIR>(a, blockIdx.z);
    const uint32_t first = blockIdx.y * NT * 8;
    if (first >= job.tokens) return;
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
        uint32_t scales[MATRICES] = {};
#pragma unroll
        for (int i = 0; i < MATRICES; i++) {
            const Matrix &m = i == 0 ? job.first.weight : job.second.weight;
            size_t at = size_t(row_tile) * tiles + tile;
            f[i] = unpack<FORMAT>(read_tile<FORMAT>(m.data + at * tile_bytes(FORMAT), lane, false));
            if (SCALED) scales[i] = ((const uint32_t *)(m.scales + at * SCALE_BYTES))[g];
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
    if (a.mode == ACTIVATED && blockIdx.x == 0) pad(a, job, first, NT * 8, threadIdx.x, blockDim.x);
}

#define SKINNY(name, format, nt, pair)          \
    KERNEL(name, 256, LinearArgs) {             \
        SHARED(shared);                         \
        skinny<format, nt, pair>(a, (float *)shared); \
    }

SKINNY(skinny_bf16_8, BF16, 1, false)
SKINNY(skinny_bf16_16, BF16, 2, false)
SKINNY(skinny_bf16_32, BF16, 4, false)
SKINNY(skinny_bf16_64, BF16, 8, false)
SKINNY(skinny_f16_8, F16, 1, false)
SKINNY(skinny_f16_16, F16, 2, false)
SKINNY(skinny_f16_32, F16, 4, false)
SKINNY(skinny_f16_64, F16, 8, false)
SKINNY(skinny_q8_8, Q8, 1, false)
SKINNY(skinny_q8_16, Q8, 2, false)
SKINNY(skinny_q8_32, Q8, 4, false)
SKINNY(skinny_q8_64, Q8, 8, false)
SKINNY(skinny_q4_8, Q4, 1, false)
SKINNY(skinny_q4_16, Q4, 2, false)
SKINNY(skinny_q4_32, Q4, 4, false)
SKINNY(skinny_q4_64, Q4, 8, false)
SKINNY(skinny_pair_bf16_8, BF16, 1, true)
SKINNY(skinny_pair_bf16_16, BF16, 2, true)
SKINNY(skinny_pair_bf16_32, BF16, 4, true)
SKINNY(skinny_pair_f16_8, F16, 1, true)
SKINNY(skinny_pair_f16_16, F16, 2, true)
SKINNY(skinny_pair_f16_32, F16, 4, true)
SKINNY(skinny_pair_q8_8, Q8, 1, true)
SKINNY(skinny_pair_q8_16, Q8, 2, true)
SKINNY(skinny_pair_q8_32, Q8, 4, true)
SKINNY(skinny_pair_q4_8, Q4, 1, true)
SKINNY(skinny_pair_q4_16, Q4, 2, true)
SKINNY(skinny_pair_q4_32, Q4, 4, true)

// ---- many tokens

constexpr int WIDE_TILES = 8;     // row tiles of a block: of pairs, gate and up in turn
constexpr int WIDE_TOKENS = 128;  // tokens of a block
constexpr int WIDE_STAGES = 4;    // column tiles under way
constexpr int WIDE_STRIDE = WIDE_TILES * TILE_ROWS + 4;  // of sums: no two lanes write to one bank

template <uint32_t FORMAT> INLINE constexpr uint32_t stage_bytes() {
    return WIDE_TILES * (tile_bytes(FORMAT) + SCALE_BYTES) + WIDE_TOKENS * TILE_COLS * 2;
}

// Blocks: (row tiles / 8, or of pairs / 4; tokens / 128, or for experts 1; experts or heads). Eight warps: two by rows,
// four by tokens, each 4 row tiles by 32 tokens.
template <uint32_t FORMAT, bool PAIR> INLINE void wide_block(const LinearArgs &a, const Job &job, uint32_t first,
                                                             unsigned char *shared) {
    constexpr bool SCALED = FORMAT == Q8 || FORMAT == Q4;
    constexpr uint32_t BYTES = tile_bytes(FORMAT);
    constexpr uint32_t SCALES_AT = WIDE_TILES * BYTES, X_AT = SCALES_AT + WIDE_TILES * SCALE_BYTES;
    const uint32_t thread = threadIdx.x, warp = thread / 32, lane = thread % 32, g = lane / 4, t = lane % 4;
    const uint32_t by_rows = warp / 4, by_tokens = warp % 4;
    const uint32_t tiles = job.first.weight.stride, row_tiles = (a.rows + TILE_ROWS - 1) / TILE_ROWS;
    const uint32_t tile_from = blockIdx.x * (PAIR ? WIDE_TILES / 2 : WIDE_TILES);

    auto copy = [&](uint32_t tile) {
        unsigned char *stage = shared + tile % WIDE_STAGES * stage_bytes<FORMAT>();
        auto at = [&](uint32_t i, const Matrix *&m) {
            m = PAIR && i % 2 == 1 ? &job.second.weight : &job.first.weight;
            uint32_t row_tile = tile_from + (PAIR ? i / 2 : i);
            if (row_tile >= row_tiles) row_tile = row_tiles - 1;
            return size_t(job.row_tile + row_tile) * tiles + tile;
        };
        const Matrix *m;
        for (uint32_t i = thread; i < WIDE_TILES * BYTES / 16; i += 256) {
            size_t from = at(i / (BYTES / 16), m);
            copy_async(stage + i * 16, m->data + from * BYTES + i % (BYTES / 16) * 16, 16);
        }
        if (SCALED && thread < WIDE_TILES * SCALE_BYTES / 16) {
            size_t from = at(thread / 2, m);
            copy_async(stage + SCALES_AT + thread * 16, m->scales + from * SCALE_BYTES + thread % 2 * 16, 16);
        }
        for (uint32_t i = thread; i < WIDE_TOKENS * 4; i += 256) {
            uint32_t token = first + i / 4;
            const uint8_t *row = job.x + size_t(token < job.tokens ? token : 0) * a.x_stride;
            copy_async(stage + X_AT + i * 16, row + tile * TILE_COLS * 2 + i % 4 * 16, token < job.tokens ? 16 : 0);
        }
    };

    float acc[4][4][4] = {}, total[4][4][4] = {};
    for (uint32_t tile = 0; tile < WIDE_STAGES - 1; tile++) {
        if (tile < tiles) copy(tile);
        copy_commit();
    }
#pragma unroll 1
    for (uint32_t tile = 0, left = a.slice; tile < tiles; tile++) {
        copy_wait<WIDE_STAGES - 2>();
        __syncthreads();
        if (tile + WIDE_STAGES - 1 < tiles) copy(tile + WIDE_STAGES - 1);
        copy_commit();
        const unsigned char *stage = shared + tile % WIDE_STAGES * stage_bytes<FORMAT>();
        uint4 x[4];
#pragma unroll
        for (int n = 0; n < 4; n++)
            x[n] = ((const uint4 *)(stage + X_AT))[(by_tokens * 32 + n * 8 + g) * 4 + t];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            uint32_t of = by_rows * 4 + i;
            Fragment f = unpack<FORMAT>(read_tile<FORMAT>(stage + of * BYTES, lane, true));
            uint32_t scales = SCALED ? ((const uint32_t *)(stage + SCALES_AT + of * SCALE_BYTES))[g] : 0;
#pragma unroll
            for (int n = 0; n < 4; n++) multiply<FORMAT>(acc[i][n], f, x[n], scales);
        }
        if (--left == 0 || tile + 1 == tiles) {
            const bool is_first = tile < a.slice;
            left = a.slice;
#pragma unroll
            for (int i = 0; i < 4; i++)
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
    for (int i = 0; i < 4; i++)
#pragma unroll
        for (int n = 0; n < 4; n++)
#pragma unroll
            for (int c = 0; c < 4; c++) {
                uint32_t row = (by_rows * 4 + i) * TILE_ROWS + g + c / 2 * 8;
                sums[(by_tokens * 32 + n * 8 + 2 * t + c % 2) * WIDE_STRIDE + row] = total[i][n][c];
            }
    __syncthreads();
    constexpr uint32_t ROWS = (PAIR ? WIDE_TILES / 2 : WIDE_TILES) * TILE_ROWS;
#pragma unroll 1
    for (uint32_t e = thread; e < ROWS * WIDE_TOKENS; e += 256) {
        uint32_t row = e % ROWS, at = PAIR ? row / TILE_ROWS * 2 * TILE_ROWS + row % TILE_ROWS : row;
        const float *sum = sums + e / ROWS * WIDE_STRIDE + at;
        finish(a, job, tile_from * TILE_ROWS + row, first + e / ROWS, sum[0], PAIR ? sum[TILE_ROWS] : 0.0f, PAIR);
    }
    __syncthreads();  // the next tokens take the stages
    if (a.mode == ACTIVATED && blockIdx.x == 0) pad(a, job, first, WIDE_TOKENS, thread, 256);
}

template <uint32_t FORMAT, bool PAIR> INLINE void wide(const LinearArgs &a, unsigned char *shared) {
    const Job job = job_of<PAIR>(a, blockIdx.z);
    // an expert's tokens are known to the device alone: its blocks go on until there are no more
    for (uint32_t first = blockIdx.y * WIDE_TOKENS; first < job.tokens; first += gridDim.y * WIDE_TOKENS)
        wide_block<FORMAT, PAIR>(a, job, first, shared);
}

#define WIDE(name, format, pair)       \
    KERNEL(name, 256, LinearArgs) {    \
        SHARED(shared);                \
        wide<format, pair>(a, shared); \
    }

WIDE(wide_bf16, BF16, false)
WIDE(wide_f16, F16, false)
WIDE(wide_q8, Q8, false)
WIDE(wide_q4, Q4, false)
WIDE(wide_pair_bf16, BF16, true)
WIDE(wide_pair_f16, F16, true)
WIDE(wide_pair_q8, Q8, true)
WIDE(wide_pair_q4, Q4, true)

// ---- single precision

constexpr int PLAIN_TOKENS = 4;

// Blocks: (rows / 8, tokens / 4, experts or heads). A warp for each row: lane l adds up columns 4l to 4l + 3 of every 128.
template <bool PAIR> INLINE void plain(const LinearArgs &a) {
    constexpr int MATRICES = PAIR ? 2 : 1;
    const Job job = job_of<PAIR>(a, blockIdx.z);
    const uint32_t lane = threadIdx.x % 32, row = blockIdx.x * 8 + threadIdx.x / 32;
    const uint32_t width = (job.first.weight.cols + TILE_COLS - 1) / TILE_COLS * TILE_COLS;
    for (uint32_t first = blockIdx.y * PLAIN_TOKENS; first < job.tokens; first += gridDim.y * PLAIN_TOKENS) {
        float sums[MATRICES][PLAIN_TOKENS] = {};
        if (row < a.rows) {
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
        if (a.mode == ACTIVATED && blockIdx.x == 0) pad(a, job, first, PLAIN_TOKENS, threadIdx.x, blockDim.x);
    }
}

KERNEL(plain, 256, LinearArgs) { plain<false>(a); }
KERNEL(plain_pair, 256, LinearArgs) { plain<true>(a); }
