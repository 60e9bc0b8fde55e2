// Softmax attention over the paged cache (Dao 2023, arXiv 2307.08691; split as in Flash-Decoding, Dao et al. 2023).
//
// A warp takes 16 queries: the heads that share keys, of one token or several. Scores and mixes are mma.m16n8k16, 64
// positions at a time, with a running softmax. **Batch invariance:** positions come in splits of 256, at multiples of
// 256; each has a softmax of its own, and they are merged in order. Where there are few tokens each split has a block of
// four warps (`attention_shared_*`, or where shared memory does not hold it a warp) and `attention_merge` merges; else one
// warp goes through them and merges as it goes, by the same operations. So a token gets the same bits in a prompt, alone,
// and in any batch.
//
// Values wider than 128 are cut: each piece has a warp, which computes the scores again. Caches of f32 are read by
// `attention_plain`, in single precision.
#include "cache.cuh"

constexpr uint32_t SPLIT = 256;
constexpr uint32_t QUERIES = 16;
constexpr uint32_t VALUES = 128;          // of a warp
constexpr uint32_t VALUE_TILES = VALUES / 8;
constexpr uint32_t PART = VALUES * QUERIES + 2 * QUERIES;  // floats of a split's result: mix, largest scores, sums

struct Span {
    uint32_t row, rows, position, table;
    uint32_t bidirectional;  // else its rows see positions up to their own
};

struct AttentionArgs {
    Cache cache;
    const float *q;
    uint8_t *out;
    const Span *spans;
    const uint32_t *blocks;
    const float *sinks;      // or none
    const float *relative_bias;  // or none
    float *parts;            // of splits; none: a warp goes through all of them
    uint32_t layer, heads;
    uint32_t q_stride, out_stride, out_form;  // floats; bytes
    uint32_t window;  // none: 2^31
    uint32_t reach;
    float scale, softcap;  // 0: none
    uint32_t tiles, pieces, splits;  // of a span, at most; of a value; at most
};

// What a warp works at.
struct Tile {
    Span span;
    uint32_t head, heads;   // the first of its query heads, and how many of them
    uint32_t kv_head, piece;
    uint32_t token, tokens;  // of the span
    uint32_t first, last;    // positions that any of its tokens sees
    bool any;
};

INLINE void seen(const AttentionArgs &a, const Span &span, uint32_t position, uint32_t &first, uint32_t &last) {
    last = span.bidirectional ? span.position + span.rows - 1 : position;
    first = position + 1 > a.window ? position + 1 - a.window : 0;
    if (span.bidirectional && last > position + a.window - 1) last = position + a.window - 1;
}

// Grid: (tiles of a span / warps of a block, kv_heads * parts of a group of heads * pieces, spans * splits).
INLINE Tile tile_of(const AttentionArgs &a, uint32_t tile, uint32_t y, uint32_t span) {
    Tile t;
    t.span = a.spans[span];
    const uint32_t group = a.heads / a.cache.kv_heads;
    const uint32_t each = group < QUERIES ? group : QUERIES, sets = (group + each - 1) / each;
    t.piece = y % a.pieces;
    uint32_t set = y / a.pieces % sets;
    t.kv_head = y / a.pieces / sets;
    t.head = t.kv_head * group + set * each;
    t.heads = group - set * each < each ? group - set * each : each;
    uint32_t tokens = QUERIES / each;
    t.token = tile * tokens;
    t.any = t.token < t.span.rows;
    t.tokens = t.any && t.span.rows - t.token < tokens ? t.span.rows - t.token : tokens;
    if (t.any) {
        uint32_t unused;
        seen(a, t.span, t.span.position + t.token, t.first, unused);
        seen(a, t.span, t.span.position + t.token + t.tokens - 1, unused, t.last);
    }
    return t;
}

// The token and the head of one of the 16 queries; false: none.
INLINE bool query_of(const AttentionArgs &a, const Tile &t, uint32_t query, uint32_t &token, uint32_t &head) {
    const uint32_t group = a.heads / a.cache.kv_heads, each = group < QUERIES ? group : QUERIES;
    token = t.token + query / each;
    head = t.head + query % each;
    return query / each < t.tokens && query % each < t.heads;
}

// A split's result, or that of several: in lane 4g + t values 8n + 2t and 8n + 2t + 1 of queries g and g + 8.
struct Mixed {
    float o[VALUE_TILES][4];
    float most[2], sum[2];
};

struct Merging {
    float keep[2], take[2];
};

// Makes (most, sum) those of both.
INLINE Merging merge_sums(float most[2], float sum[2], const float next_most[2], const float next_sum[2]) {
    Merging m;
    for (int r = 0; r < 2; r++) {
        float top = larger(most[r], next_most[r]);
        m.keep[r] = most[r] == -INFINITY ? 0.0f : expf(most[r] - top);
        m.take[r] = next_most[r] == -INFINITY ? 0.0f : expf(next_most[r] - top);
        sum[r] = fmaf(next_sum[r], m.take[r], sum[r] * m.keep[r]);
        most[r] = top;
    }
    return m;
}

INLINE float merge(float o, float keep, float next, float take) { return fmaf(next, take, o * keep); }

template <uint32_t TYPE> INLINE uint2 read_keys(const uint8_t *row, uint32_t at) {
    if constexpr (TYPE == CACHE_INT8) {
        uint2 pairs;
        bytes_to_bf16(*(const uint32_t *)(row + at) ^ 0x80808080u, pairs.x, pairs.y);
        return pairs;
    } else {
        return *(const uint2 *)(row + 2 * at);
    }
}

// The values of one dimension at this lane's 16 positions, in pairs.
template <uint32_t TYPE> INLINE void read_values(const uint8_t *row, uint32_t t, uint32_t pairs[8]) {
    if constexpr (TYPE == CACHE_INT8) {
        uint4 bytes = ((const uint4 *)row)[t];
        const uint32_t words[4] = {bytes.x, bytes.y, bytes.z, bytes.w};
        for (int i = 0; i < 4; i++) bytes_to_bf16(words[i] ^ 0x80808080u, pairs[2 * i], pairs[2 * i + 1]);
    } else {
        uint4 low = ((const uint4 *)row)[2 * t], high = ((const uint4 *)row)[2 * t + 1];
        pairs[0] = low.x;
        pairs[1] = low.y;
        pairs[2] = low.z;
        pairs[3] = low.w;
        pairs[4] = high.x;
        pairs[5] = high.y;
        pairs[6] = high.z;
        pairs[7] = high.w;
    }
}

// What a lane's two queries, g and g + 8, see.
struct Rows {
    uint32_t first[2], last[2], position[2], head[2];
    bool is_query[2];
};

INLINE Rows rows_of(const AttentionArgs &a, const Tile &tile) {
    Rows rows;
    for (int r = 0; r < 2; r++) {
        uint32_t token;
        rows.is_query[r] = query_of(a, tile, threadIdx.x % 32 / 4 + 8 * r, token, rows.head[r]);
        rows.position[r] = tile.span.position + token;
        seen(a, tile.span, rows.position[r], rows.first[r], rows.last[r]);
    }
    return rows;
}

// The positions of a split that any of a tile's tokens sees, from the start of a block.
INLINE void bounds(const Tile &tile, uint32_t split, uint32_t &from, uint32_t &end) {
    from = split * SPLIT;
    end = from + SPLIT;
    if (from < tile.first / BLOCK * BLOCK) from = tile.first / BLOCK * BLOCK;
    if (end > tile.last + 1) end = tile.last + 1;
}

// The scores of a block of positions from `at` on. `queries`: what this lane brings of q to each mma, (dimensions / 16) of
// 16 bytes; `keys`: rows so many bytes apart.
template <uint32_t TYPE>
INLINE void score(const AttentionArgs &a, const Rows &rows, const uint4 *queries, const uint8_t *keys, uint32_t row_bytes,
                  const float *scales, uint32_t at, float s[8][4]) {
    constexpr bool HALF = TYPE == CACHE_F16, INT8 = TYPE == CACHE_INT8;
    const uint32_t lane = threadIdx.x % 32, g = lane / 4, t = lane % 4, chunks = padded(a.cache.head_dim) / 16;
#pragma unroll
    for (int j = 0; j < 8; j++)
#pragma unroll
        for (int c = 0; c < 4; c++) s[j][c] = 0.0f;
    for (uint32_t c = 0; c < chunks; c++) {
        uint4 q = queries[c * 32];
        const uint32_t of_q[4] = {q.x, q.y, q.z, q.w};
#pragma unroll
        for (int j = 0; j < 8; j++) {
            uint2 k = read_keys<TYPE>(keys + (8 * j + g) * row_bytes, 16 * c + 4 * t);
            const uint32_t of_k[2] = {k.x, k.y};
            mma<HALF>(s[j], of_q, of_k);
        }
    }
#pragma unroll
    for (int j = 0; j < 8; j++)
#pragma unroll
        for (int c = 0; c < 4; c++) {
            const int r = c / 2;
            const uint32_t offset = 8 * j + 2 * t + c % 2, past = at + offset;
            float value = s[j][c];
            if (INT8) value *= scales[offset];
            value *= a.scale;
            const bool is_seen = rows.is_query[r] && past >= rows.first[r] && past <= rows.last[r];
            if (a.relative_bias != nullptr && is_seen)
                value += a.relative_bias[size_t(rows.head[r]) * 2 * a.reach + a.reach + past - rows.position[r]];
            if (a.softcap != 0.0f) value = a.softcap * tanhf(value / a.softcap);
            s[j][c] = is_seen ? value : -INFINITY;
        }
}

// Takes a block's scores into the running softmax: the weights of its values as mma takes them, and what becomes of the
// mix so far.
template <uint32_t TYPE>
INLINE void weigh(const float s[8][4], const float *scales, float most[2], float sum[2], float keep[2], uint32_t p[8][2]) {
    constexpr bool HALF = TYPE == CACHE_F16, INT8 = TYPE == CACHE_INT8;
    const uint32_t t = threadIdx.x % 4;
    float top[2] = {-INFINITY, -INFINITY};
#pragma unroll
    for (int j = 0; j < 8; j++)
#pragma unroll
        for (int c = 0; c < 4; c++) top[c / 2] = larger(top[c / 2], s[j][c]);
    float base[2];
#pragma unroll
    for (int r = 0; r < 2; r++) {
        top[r] = larger(top[r], __shfl_xor_sync(ALL, top[r], 1));
        top[r] = larger(top[r], __shfl_xor_sync(ALL, top[r], 2));
        top[r] = larger(top[r], most[r]);
        keep[r] = most[r] == -INFINITY ? 0.0f : expf(most[r] - top[r]);
        base[r] = top[r] == -INFINITY ? 0.0f : top[r];
        most[r] = top[r];
    }
    float sums[2] = {0.0f, 0.0f};
#pragma unroll
    for (int j = 0; j < 8; j++) {
        float weights[4];
#pragma unroll
        for (int c = 0; c < 4; c++) {
            weights[c] = expf(s[j][c] - base[c / 2]);
            sums[c / 2] += weights[c];
            if (INT8) weights[c] *= scales[8 * j + 2 * t + c % 2];
        }
        p[j][0] = pair_of<HALF>(weights[0], weights[1]);
        p[j][1] = pair_of<HALF>(weights[2], weights[3]);
    }
#pragma unroll
    for (int r = 0; r < 2; r++) {
        sums[r] += __shfl_xor_sync(ALL, sums[r], 1);
        sums[r] += __shfl_xor_sync(ALL, sums[r], 2);
        sum[r] = fmaf(sum[r], keep[r], sums[r]);
    }
}

// Adds a block's values in eight dimensions to the mix. `row`: the values of dimension g.
template <uint32_t TYPE> INLINE void mix(float o[4], const float keep[2], const uint32_t p[8][2], const uint8_t *row) {
    uint32_t of_v[8];
    read_values<TYPE>(row, threadIdx.x % 4, of_v);
#pragma unroll
    for (int c = 0; c < 4; c++) o[c] *= keep[c / 2];
#pragma unroll
    for (int j = 0; j < 8; j += 2) {
        const uint32_t of_p[4] = {p[j][0], p[j][1], p[j + 1][0], p[j + 1][1]};
        mma<TYPE == CACHE_F16>(o, of_p, of_v + j);
    }
}

// Of a value of the cache.
template <uint32_t TYPE> INLINE constexpr uint32_t bytes_of() { return TYPE == CACHE_INT8 ? 1 : 2; }

// One split, by a warp.
template <uint32_t TYPE>
INLINE void attend(const AttentionArgs &a, const Tile &tile, uint32_t split, const uint4 *queries, Mixed &mixed) {
    const uint32_t g = threadIdx.x % 32 / 4, row_bytes = padded(a.cache.head_dim) * bytes_of<TYPE>();
    const uint32_t value_from = tile.piece * VALUES, value_end = padded(a.cache.value_dim);
    const Rows rows = rows_of(a, tile);
    for (int r = 0; r < 2; r++) {
        mixed.most[r] = -INFINITY;
        mixed.sum[r] = 0.0f;
    }
#pragma unroll
    for (int n = 0; n < int(VALUE_TILES); n++)
#pragma unroll
        for (int c = 0; c < 4; c++) mixed.o[n][c] = 0.0f;
    uint32_t from, end;
    bounds(tile, split, from, end);
#pragma unroll 1
    for (uint32_t at = from; at < end; at += BLOCK) {
        const uint32_t block = a.blocks[tile.span.table + at / BLOCK];
        uint8_t *keys = keys_of(a.cache, block, a.layer, tile.kv_head);
        uint8_t *values = values_of(a.cache, block, a.layer, tile.kv_head);
        float s[8][4], keep[2];
        uint32_t p[8][2];
        score<TYPE>(a, rows, queries, keys, row_bytes, scales_of(keys, a.cache.head_dim), at, s);
        weigh<TYPE>(s, scales_of(values, a.cache.value_dim), mixed.most, mixed.sum, keep, p);
#pragma unroll
        for (int n = 0; n < int(VALUE_TILES); n++) {
            if (value_from + 8 * n >= value_end) continue;
            mix<TYPE>(mixed.o[n], keep, p, values + (value_from + 8 * n + g) * BLOCK * bytes_of<TYPE>());
        }
    }
}

// Brings this lane's queries to shared memory as mma takes them: each lane writes and reads its own. `warps` share the work.
template <bool HALF>
INLINE void read_queries(const AttentionArgs &a, const Tile &tile, uint4 *queries, uint32_t warp = 0, uint32_t warps = 1) {
    const uint32_t lane = threadIdx.x % 32, g = lane / 4, t = lane % 4, dim = a.cache.head_dim;
    for (uint32_t c = warp; c < padded(dim) / 16; c += warps) {
        float v[2][4];
        for (int r = 0; r < 2; r++) {
            uint32_t token, head;
            bool is_query = query_of(a, tile, g + 8 * r, token, head);
            const float *q = a.q + size_t(tile.span.row + token) * a.q_stride + size_t(head) * dim;
            for (int i = 0; i < 4; i++) {
                uint32_t d = 16 * c + 4 * t + i;
                v[r][i] = is_query && d < dim ? q[d] : 0.0f;
            }
        }
        queries[c * 32] = {pair_of<HALF>(v[0][0], v[0][1]), pair_of<HALF>(v[1][0], v[1][1]),
                           pair_of<HALF>(v[0][2], v[0][3]), pair_of<HALF>(v[1][2], v[1][3])};
    }
}

INLINE void write_values(const AttentionArgs &a, const Tile &tile, int n, const float o[4], const float most[2],
                         const float sum[2]) {
    const uint32_t lane = threadIdx.x % 32, g = lane / 4, t = lane % 4, dim = a.cache.value_dim;
    for (int c = 0; c < 4; c++) {
        uint32_t token, head, value = tile.piece * VALUES + 8 * n + 2 * t + c % 2;
        if (!query_of(a, tile, g + c / 2 * 8, token, head) || value >= dim) continue;
        float total = sum[c / 2], result = o[c];
        if (a.sinks != nullptr) {
            // a score without a value
            float top = larger(most[c / 2], a.sinks[head]), keep = expf(most[c / 2] - top);
            total = fmaf(total, keep, expf(a.sinks[head] - top));
            result *= keep;
        }
        uint8_t *out = a.out + size_t(tile.span.row + token) * a.out_stride;
        write_operand(a.out_form, out, head * dim + value, result / total);
    }
}

// Zeros behind the last column of an operand, for the tokens of a tile.
INLINE void pad(const AttentionArgs &a, const Tile &tile) {
    if (tile.head + tile.heads != a.heads || tile.piece != 0) return;
    uint32_t cols = a.heads * a.cache.value_dim, end = (cols + 31) / 32 * 32;
    for (uint32_t i = threadIdx.x % 32; i < (end - cols) * tile.tokens; i += 32) {
        uint8_t *out = a.out + size_t(tile.span.row + tile.token + i / (end - cols)) * a.out_stride;
        write_operand(a.out_form, out, cols + i % (end - cols), 0.0f);
    }
}

// Shared, for each warp: its queries, and the mix of all splits so far.
template <uint32_t TYPE> INLINE void attention(const AttentionArgs &a, unsigned char *shared) {
    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32, warps = blockDim.x / 32;
    const uint32_t index = blockIdx.x * warps + warp;
    const uint32_t spans = a.parts == nullptr ? blockIdx.z : blockIdx.z / a.splits;
    const uint32_t query_bytes = padded(a.cache.head_dim) / 16 * 512;
    const Tile tile = tile_of(a, index, blockIdx.y, spans);
    if (!tile.any) return;
    uint4 *queries = (uint4 *)(shared + warp * query_bytes) + lane;
    Mixed mixed;
    if (a.parts != nullptr) {
        const uint32_t split = blockIdx.z % a.splits;
        if (split < tile.first / SPLIT || split > tile.last / SPLIT) return;
        read_queries<TYPE == CACHE_F16>(a, tile, queries);
        attend<TYPE>(a, tile, split, queries, mixed);
        uint64_t at = ((uint64_t(spans) * a.tiles + index) * gridDim.y + blockIdx.y) * a.splits + split;
        float *part = a.parts + at * PART;
#pragma unroll
        for (int n = 0; n < int(VALUE_TILES); n++)
#pragma unroll
            for (int c = 0; c < 4; c++) part[(n * 4 + c) * 32 + lane] = mixed.o[n][c];
        if (lane % 4 == 0)
            for (int r = 0; r < 2; r++) {
                part[VALUES * QUERIES + lane / 4 + 8 * r] = mixed.most[r];
                part[VALUES * QUERIES + QUERIES + lane / 4 + 8 * r] = mixed.sum[r];
            }
        return;
    }
    read_queries<TYPE == CACHE_F16>(a, tile, queries);
    float *total = (float *)(shared + warps * query_bytes) + warp * VALUES * QUERIES + lane;
    float most[2] = {-INFINITY, -INFINITY}, sum[2] = {0.0f, 0.0f};
    for (uint32_t i = 0; i < VALUE_TILES * 4; i++) total[i * 32] = 0.0f;
#pragma unroll 1
    for (uint32_t split = tile.first / SPLIT; split <= tile.last / SPLIT; split++) {
        attend<TYPE>(a, tile, split, queries, mixed);
        Merging m = merge_sums(most, sum, mixed.most, mixed.sum);
#pragma unroll
        for (int n = 0; n < int(VALUE_TILES); n++)
#pragma unroll
            for (int c = 0; c < 4; c++) {
                float &o = total[(n * 4 + c) * 32];
                o = merge(o, m.keep[c / 2], mixed.o[n][c], m.take[c / 2]);
            }
    }
#pragma unroll 1
    for (uint32_t n = 0; n < VALUE_TILES; n++) {
        float o[4];
        for (int c = 0; c < 4; c++) o[c] = total[(n * 4 + c) * 32];
        write_values(a, tile, n, o, most, sum);
    }
    pad(a, tile);
}

#define ATTENTION(name, body, type)     \
    KERNEL(name, 128, AttentionArgs) {  \
        SHARED(shared);                 \
        body<type>(a, shared);          \
    }

ATTENTION(attention_bf16, attention, CACHE_BF16)
ATTENTION(attention_f16, attention, CACHE_F16)
ATTENTION(attention_int8, attention, CACHE_INT8)

constexpr uint32_t WARPS = SPLIT / BLOCK;           // of a split
constexpr uint32_t KEY_GAP = 32;                    // bytes between rows of keys: no two lanes read from one bank
constexpr uint32_t SHARE = VALUES / WARPS;          // values of a warp, at most

// A split by four warps, so that all it reads is under way at once: keys and values come to shared memory, each warp scores a
// block of positions, and then mixes a quarter of the values over all of them. The same operations as `attend`.
//
// Shared: queries; scores, (blocks, 32, lanes); keys, (positions, dimensions and a gap); values, (blocks, those of a piece,
// BLOCK).
template <uint32_t TYPE> INLINE void attention_shared(const AttentionArgs &a, unsigned char *shared) {
    constexpr uint32_t BYTES = bytes_of<TYPE>();
    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4;
    const uint32_t split = blockIdx.z % a.splits, span = blockIdx.z / a.splits;
    const Tile tile = tile_of(a, blockIdx.x, blockIdx.y, span);
    if (!tile.any || split < tile.first / SPLIT || split > tile.last / SPLIT) return;
    const uint32_t dim_bytes = padded(a.cache.head_dim) * BYTES, key_bytes = dim_bytes + KEY_GAP;
    const uint32_t value_from = tile.piece * VALUES, value_end = padded(a.cache.value_dim);
    const uint32_t wide = value_end < VALUES ? value_end : VALUES, share = (wide + 8 * WARPS - 1) / (8 * WARPS) * 8;
    const uint32_t first = value_from + warp * share;  // of this warp's values
    const uint32_t count = first >= value_end ? 0 : value_end - first < share ? value_end - first : share;
    uint4 *queries = (uint4 *)shared;
    float *scores = (float *)(shared + padded(a.cache.head_dim) / 16 * 512);
    uint8_t *keys = (uint8_t *)(scores + WARPS * 32 * 32), *values = keys + SPLIT * key_bytes;
    uint32_t from, end;
    bounds(tile, split, from, end);
    // this warp's block of keys, then its quarter of all values
    const uint32_t mine = split * SPLIT + warp * BLOCK;
    const bool has_block = mine >= from && mine < end;
    uint8_t *plane = nullptr;
    if (has_block) {
        plane = keys_of(a.cache, a.blocks[tile.span.table + mine / BLOCK], a.layer, tile.kv_head);
        const uint32_t pieces = dim_bytes / 16;
        for (uint32_t i = lane; i < BLOCK * pieces; i += 32)
            copy_async(keys + (warp * BLOCK + i / pieces) * key_bytes + i % pieces * 16, plane + i * 16, 16);
    }
    copy_commit();
    for (uint32_t at = from; at < end; at += BLOCK) {
        const uint8_t *all = values_of(a.cache, a.blocks[tile.span.table + at / BLOCK], a.layer, tile.kv_head);
        uint8_t *to = values + ((at - split * SPLIT) / BLOCK * wide + warp * share) * BLOCK * BYTES;
        for (uint32_t i = lane; i < count * BLOCK * BYTES / 16; i += 32)
            copy_async(to + i * 16, all + first * BLOCK * BYTES + i * 16, 16);
    }
    copy_commit();
    read_queries<TYPE == CACHE_F16>(a, tile, queries + lane, warp, WARPS);
    copy_wait<1>();
    __syncthreads();  // queries are there, and this warp's keys
    if (has_block) {
        float s[8][4];
        score<TYPE>(a, rows_of(a, tile), queries + lane, keys + warp * BLOCK * key_bytes, key_bytes,
                    scales_of(plane, a.cache.head_dim), mine, s);
#pragma unroll
        for (int j = 0; j < 8; j++)
#pragma unroll
            for (int c = 0; c < 4; c++) scores[(warp * 32 + j * 4 + c) * 32 + lane] = s[j][c];
    }
    copy_wait<0>();
    __syncthreads();
    float o[SHARE / 8][4] = {}, most[2] = {-INFINITY, -INFINITY}, sum[2] = {0.0f, 0.0f};
#pragma unroll 1
    for (uint32_t at = from; at < end; at += BLOCK) {
        const uint32_t index = (at - split * SPLIT) / BLOCK;
        float s[8][4], keep[2];
        uint32_t p[8][2];
#pragma unroll
        for (int j = 0; j < 8; j++)
#pragma unroll
            for (int c = 0; c < 4; c++) s[j][c] = scores[(index * 32 + j * 4 + c) * 32 + lane];
        uint8_t *all = values_of(a.cache, a.blocks[tile.span.table + at / BLOCK], a.layer, tile.kv_head);
        weigh<TYPE>(s, scales_of(all, a.cache.value_dim), most, sum, keep, p);
#pragma unroll
        for (int n = 0; n < int(SHARE / 8); n++) {
            if (8u * n >= count) continue;
            mix<TYPE>(o[n], keep, p, values + (index * wide + warp * share + 8 * n + g) * BLOCK * BYTES);
        }
    }
    uint64_t at = ((uint64_t(span) * a.tiles + blockIdx.x) * gridDim.y + blockIdx.y) * a.splits + split;
    float *part = a.parts + at * PART;
#pragma unroll
    for (int n = 0; n < int(SHARE / 8); n++)
#pragma unroll
        for (int c = 0; c < 4; c++)
            if (8u * n < count) part[((warp * share / 8 + n) * 4 + c) * 32 + lane] = o[n][c];
    if (warp == 0 && lane % 4 == 0)
        for (int r = 0; r < 2; r++) {
            part[VALUES * QUERIES + g + 8 * r] = most[r];
            part[VALUES * QUERIES + QUERIES + g + 8 * r] = sum[r];
        }
}

ATTENTION(attention_shared_bf16, attention_shared, CACHE_BF16)
ATTENTION(attention_shared_f16, attention_shared, CACHE_F16)
ATTENTION(attention_shared_int8, attention_shared, CACHE_INT8)

// Blocks: (tiles of a span, as above, spans), a warp each. Merges the splits in order.
KERNEL(attention_merge, 32, AttentionArgs) {
    const uint32_t lane = threadIdx.x;
    const Tile tile = tile_of(a, blockIdx.x, blockIdx.y, blockIdx.z);
    if (!tile.any) return;
    float total[VALUE_TILES][4] = {}, most[2] = {-INFINITY, -INFINITY}, sum[2] = {0.0f, 0.0f};
    for (uint32_t split = tile.first / SPLIT; split <= tile.last / SPLIT; split++) {
        uint64_t at = ((uint64_t(blockIdx.z) * a.tiles + blockIdx.x) * gridDim.y + blockIdx.y) * a.splits + split;
        const float *part = a.parts + at * PART;
        float next_most[2], next_sum[2];
        for (int r = 0; r < 2; r++) {
            next_most[r] = part[VALUES * QUERIES + lane / 4 + 8 * r];
            next_sum[r] = part[VALUES * QUERIES + QUERIES + lane / 4 + 8 * r];
        }
        Merging m = merge_sums(most, sum, next_most, next_sum);
#pragma unroll
        for (int n = 0; n < int(VALUE_TILES); n++) {
            if (tile.piece * VALUES + 8 * n >= padded(a.cache.value_dim)) continue;  // nobody wrote it
#pragma unroll
            for (int c = 0; c < 4; c++)
                total[n][c] = merge(total[n][c], m.keep[c / 2], part[(n * 4 + c) * 32 + lane], m.take[c / 2]);
        }
    }
#pragma unroll
    for (int n = 0; n < int(VALUE_TILES); n++) write_values(a, tile, n, total[n], most, sum);
    pad(a, tile);
}

// Blocks: (rows of a span at most, heads, spans), a warp each. Shared: 64 weights, and the mix so far.
KERNEL(attention_plain, 32, AttentionArgs) {
    SHARED(shared);
    const uint32_t lane = threadIdx.x, head = blockIdx.y, dim = a.cache.head_dim, values = a.cache.value_dim;
    const Span span = a.spans[blockIdx.z];
    if (blockIdx.x >= span.rows) return;
    float *weights = (float *)shared, *mix = weights + BLOCK;
    const uint32_t kv_head = head / (a.heads / a.cache.kv_heads), row = span.row + blockIdx.x;
    const uint32_t position = span.position + blockIdx.x;
    uint32_t first, last;
    seen(a, span, position, first, last);
    const float *q = a.q + size_t(row) * a.q_stride + size_t(head) * dim;
    float most = a.sinks == nullptr ? -INFINITY : a.sinks[head], sum = a.sinks == nullptr ? 0.0f : 1.0f;
    for (uint32_t i = lane; i < values; i += 32) mix[i] = 0.0f;
    for (uint32_t at = first / BLOCK * BLOCK; at <= last; at += BLOCK) {
        const uint32_t block = a.blocks[span.table + at / BLOCK];
        const float *keys = (const float *)keys_of(a.cache, block, a.layer, kv_head);
        const float *plane = (const float *)values_of(a.cache, block, a.layer, kv_head);
        float scores[2], top = most;
        for (int i = 0; i < 2; i++) {
            const uint32_t past = at + lane + 32 * i;
            float dot = 0.0f;
            for (uint32_t d = 0; d < dim; d++) dot = fmaf(q[d], keys[(lane + 32 * i) * padded(dim) + d], dot);
            dot *= a.scale;
            const bool is_seen = past >= first && past <= last;
            if (a.relative_bias != nullptr && is_seen)
                dot += a.relative_bias[size_t(head) * 2 * a.reach + a.reach + past - position];
            if (a.softcap != 0.0f) dot = a.softcap * tanhf(dot / a.softcap);
            scores[i] = is_seen ? dot : -INFINITY;
            top = larger(top, scores[i]);
        }
        top = warp_max(top);
        const float keep = most == -INFINITY ? 0.0f : expf(most - top), base = top == -INFINITY ? 0.0f : top;
        float added = 0.0f;
        __syncwarp();  // who still reads the last weights
        for (int i = 0; i < 2; i++) {
            float weight = expf(scores[i] - base);
            weights[place_of(lane + 32 * i)] = weight;
            added += weight;
        }
        sum = fmaf(sum, keep, warp_sum(added));
        most = top;
        __syncwarp();
        for (uint32_t i = lane; i < values; i += 32) {
            float next = mix[i] * keep;
            for (uint32_t p = 0; p < BLOCK; p++) next = fmaf(weights[p], plane[i * BLOCK + p], next);
            mix[i] = next;
        }
    }
    uint8_t *out = a.out + size_t(row) * a.out_stride;
    for (uint32_t i = lane; i < values; i += 32) write_operand(a.out_form, out, head * values + i, mix[i] / sum);
    const uint32_t cols = a.heads * values;
    for (uint32_t col = cols + lane; head + 1 == a.heads && col < (cols + 31) / 32 * 32; col += 32)
        write_operand(a.out_form, out, col, 0.0f);
}
