// Rotary embedding, and what it goes into: keys and values are stored in the cache on the way.
#include "cache.cuh"

struct RopeArgs {
    Cache cache;
    float *q, *k;
    const float *v;
    const float *table;         // (positions, dims): cosines, then sines; or none
    const uint32_t *positions;
    const uint32_t *slots;      // block * 64 + offset; none: nothing is stored. NONE: not this row
    uint32_t layer;
    uint32_t q_stride, k_stride, v_stride;  // floats
    uint32_t dims, interleaved;
    uint32_t q_heads;
};

INLINE float stored(uint32_t type, float value) {
    if (type == CACHE_BF16) return of_bits(to_bf16(value) << 16);
    if (type == CACHE_F16) return of_f16(to_f16(value));
    return value;
}

INLINE void store(uint32_t type, uint8_t *plane, uint32_t at, float value) {
    if (type == CACHE_F32)
        ((float *)plane)[at] = value;
    else if (type == CACHE_F16)
        ((uint16_t *)plane)[at] = uint16_t(to_f16(value));
    else if (type == CACHE_BF16)
        ((uint16_t *)plane)[at] = uint16_t(to_bf16(value));
    else
        ((int8_t *)plane)[at] = int8_t(int(rintf(value)));
}

// Blocks: (rows, kv_heads + q_heads), a warp each: the keys and values of a head, or the queries of one.
KERNEL(rope_store, 32, RopeArgs) {
    uint32_t row = blockIdx.x, lane = threadIdx.x, dim = a.cache.head_dim;
    bool is_key = blockIdx.y < a.cache.kv_heads;
    uint32_t head = is_key ? blockIdx.y : blockIdx.y - a.cache.kv_heads;
    float *x = is_key ? a.k + size_t(row) * a.k_stride + size_t(head) * dim
                      : a.q + size_t(row) * a.q_stride + size_t(head) * dim;
    if (a.table != nullptr) {
        const float *cosines = a.table + size_t(a.positions[row]) * a.dims, *sines = cosines + a.dims / 2;
        for (uint32_t i = lane; i < a.dims / 2; i += 32) {
            uint32_t first = a.interleaved ? 2 * i : i, second = a.interleaved ? 2 * i + 1 : i + a.dims / 2;
            float one = x[first], two = x[second];
            x[first] = one * cosines[i] - two * sines[i];
            x[second] = two * cosines[i] + one * sines[i];
        }
        __syncwarp();
    }
    if (!is_key || a.slots == nullptr || a.slots[row] == NONE) return;

    // Attention multiplies values of masked positions with zero, so they must be finite. Where they are not, zeros are
    // stored, and keys that are not numbers: who may attend to the position gets an error, who may not is untouched.
    const uint32_t type = a.cache.type, values = a.cache.value_dim;
    const uint32_t block = a.slots[row] / BLOCK, offset = a.slots[row] % BLOCK;
    const float *v = a.v + size_t(row) * a.v_stride + size_t(head) * values;
    float bad = 0.0f, largest[2] = {0.0f, 0.0f};
    for (uint32_t i = lane; i < values; i += 32) {
        if (!isfinite(stored(type, v[i]))) bad = 1.0f;
        largest[1] = larger(largest[1], fabsf(v[i]));
    }
    for (uint32_t i = lane; i < dim; i += 32) {
        if (type == CACHE_INT8 && !isfinite(x[i])) bad = 1.0f;
        largest[0] = larger(largest[0], fabsf(x[i]));
    }
    bad = warp_max(bad);
    uint8_t *keys = keys_of(a.cache, block, a.layer, head), *plane = values_of(a.cache, block, a.layer, head);
    float inverse[2] = {1.0f, 1.0f};
    if (type == CACHE_INT8) {
        for (int side = 0; side < 2; side++) {
            float most = warp_max(largest[side]);
            inverse[side] = most < 1e-30f ? 0.0f : 127.0f / most;
            if (lane == 0) {
                float scale = most < 1e-30f ? 0.0f : most / 127.0f;
                if (bad != 0.0f) scale = side == 0 ? of_bits(0x7fc00000u) : 0.0f;
                scales_of(side == 0 ? keys : plane, side == 0 ? dim : values)[offset] = scale;
            }
        }
    }
    for (uint32_t i = lane; i < dim; i += 32) {
        float value = x[i] * inverse[0];
        if (bad != 0.0f) value = type == CACHE_INT8 ? 0.0f : of_bits(0x7fc00000u);
        store(type, keys, offset * padded(dim) + i, value);
    }
    for (uint32_t i = lane; i < values; i += 32)
        store(type, plane, i * BLOCK + place_of(offset), bad != 0.0f ? 0.0f : v[i] * inverse[1]);
}
