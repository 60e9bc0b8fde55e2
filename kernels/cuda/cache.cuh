// The paged KV cache as it lies in the device's memory: (blocks, layers, 2, kv_heads) planes, all keys before all values.
//
// A plane has 64 positions. Keys are (position, dimension); values (dimension, position), the positions in the order in
// which a lane of mma wants them: p at p % 8 / 2 * 16 + p / 8 * 2 + p % 2, so that lane 4g + t finds its 16 in one piece.
// Dimensions are padded with zeros to 16. Planes of int8 end with a scale of f32 for each position.
#pragma once

#include "common.cuh"

enum CacheType : uint32_t { CACHE_F32 = 0, CACHE_F16 = 1, CACHE_BF16 = 2, CACHE_INT8 = 3 };

constexpr uint32_t BLOCK = 64;

struct Cache {
    uint8_t *base;
    uint64_t block_bytes, layer_bytes;
    uint32_t type, kv_heads;
    uint32_t head_dim, value_dim;
    uint32_t key_bytes, value_bytes;  // of a plane
};

INLINE uint32_t padded(uint32_t dim) { return (dim + 15) / 16 * 16; }

INLINE uint8_t *keys_of(const Cache &c, uint32_t block, uint32_t layer, uint32_t head) {
    return c.base + block * c.block_bytes + layer * c.layer_bytes + size_t(head) * c.key_bytes;
}

INLINE uint8_t *values_of(const Cache &c, uint32_t block, uint32_t layer, uint32_t head) {
    return c.base + block * c.block_bytes + layer * c.layer_bytes + size_t(c.kv_heads) * c.key_bytes +
           size_t(head) * c.value_bytes;
}

// Where a position's values stand in a row of a plane.
INLINE uint32_t place_of(uint32_t position) { return position % 8 / 2 * 16 + position / 8 * 2 + position % 2; }

// The scales behind a plane of int8.
INLINE float *scales_of(uint8_t *plane, uint32_t dim) { return (float *)(plane + padded(dim) * BLOCK); }
