// Weights as they lie in the device's memory, packed once by src/backend/cuda/weight.rs.
//
// A matrix of 16 or fewer bits comes in tiles of 16 rows and 32 columns, (row tiles, column tiles), zeros behind its
// ends. In a tile each lane of a warp finds what it brings to the two mma.m16n8k16 of its halves in one piece, so that a
// tile is one or two coalesced reads. Lane 4g + t has of half h the columns c = 16h + 2t and c + 8 with their neighbours,
// which is also what it brings to wgmma (hopper.cu): there activations come from shared memory in their own order.
//
//   bf16, f16  1024 bytes: for each half, for each lane, row g: columns c, c+1; row g+8: the same; row g: columns c+8,
//              c+9; row g+8: the same
//   q8          512 bytes: for each lane, for each half: columns c, c+1, c+8, c+9 of row g, then of row g+8; plus 128
//   q4          256 bytes: for each lane 32 bits of row g, then of row g+8: column c in bits 8h, c+8 in bits 8h+4, and
//              their neighbours 16 bits above; plus 8
//   f8          512 bytes: as q8; e4m3
// For each tile there are 32 bytes of scales, f16 of row g, of row g+8; of f8 64 bytes, of f32. A matrix of f32 is
// row-major.
#pragma once

#include "common.cuh"

enum Format : uint32_t { F32 = 0, F16 = 1, BF16 = 2, Q8 = 3, Q4 = 4, F8 = 5 };

struct Matrix {
    const uint8_t *data;
    const uint8_t *scales;
    uint32_t rows, cols;
    uint32_t format;
    uint32_t stride;  // of f32: values from one row to the next; else tiles of a row tile
};

// A matrix and its bias, as they stand in a table of experts.
struct Linear {
    Matrix weight;
    const float *bias;
};

constexpr uint32_t TILE_ROWS = 16, TILE_COLS = 32;

INLINE constexpr uint32_t tile_bytes(uint32_t format) {
    return format == Q4 ? 256 : format == Q8 || format == F8 ? 512 : 1024;
}

// Of a tile's scales.
INLINE constexpr uint32_t scale_bytes(uint32_t format) {
    return format == Q8 || format == Q4 ? 32 : format == F8 ? 64 : 0;
}

// One bit of sign, four of exponent and three of mantissa, as the upper half of a single: the lower exponent's bits fit,
// and their bias is 120 less. Exact, denormals too.
INLINE float of_e4m3(uint32_t code) { return of_bits((code & 0x80u) << 24 | (code & 0x7fu) << 20) * 0x1p120f; }

// One value, for the embedding.
INLINE float value_at(const Matrix &m, uint32_t row, uint32_t col) {
    if (m.format == F32) return ((const float *)m.data)[size_t(row) * m.stride + col];
    size_t tile = size_t(row / TILE_ROWS) * m.stride + col / TILE_COLS;
    uint32_t g = row % 8, below = row % TILE_ROWS / 8, c = col % TILE_COLS, t = c % 8 / 2, lane = 4 * g + t;
    uint32_t half = c / 16, far = c % 16 / 8, odd = c % 2;
    const uint8_t *data = m.data + tile * tile_bytes(m.format);
    if (m.format == F16 || m.format == BF16) {
        uint16_t bits = ((const uint16_t *)data)[half * 256 + lane * 8 + (2 * far + below) * 2 + odd];
        return m.format == F16 ? of_f16(bits) : of_bits(uint32_t(bits) << 16);
    }
    const uint8_t *scales = m.scales + tile * scale_bytes(m.format);
    if (m.format == F8)
        return ((const float *)scales)[2 * g + below] * of_e4m3(data[lane * 16 + half * 8 + below * 4 + 2 * far + odd]);
    float scale = of_f16(((const uint16_t *)scales)[2 * g + below]);
    if (m.format == Q8) return scale * (float(data[lane * 16 + half * 8 + below * 4 + 2 * far + odd]) - 128.0f);
    uint32_t bits = ((const uint32_t *)data)[lane * 2 + below];
    return scale * (float(bits >> (4 * (2 * half + far) + 16 * odd) & 15) - 8.0f);
}

// ---- what a lane brings of a tile

// Of a tile: the two a-operands of mma, and what their product is multiplied with.
struct Fragment {
    uint32_t a[2][4];
};

// Nibbles in bits 0 to 3 and 16 to 19, minus 8, as a pair of bf16.
INLINE uint32_t nibbles_to_bf16(uint32_t bits) {
    uint32_t pair = (bits & 0x000f000fu) | 0x43004300u;  // 128 and the nibble
#ifdef AMNESIC_EMULATED
    return bf16_pair(bf16_low(pair) - 136.0f, bf16_high(pair) - 136.0f);
#else
    uint32_t result;
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(result) : "r"(pair), "r"(0x3f803f80u), "r"(0xc308c308u));
    return result;
#endif
}

// Four of e4m3, as two pairs of bf16.
INLINE void e4m3_to_bf16(uint32_t codes, uint32_t &low, uint32_t &high) {
#ifdef AMNESIC_EMULATED
    float v[4];
    for (int i = 0; i < 4; i++) v[i] = of_e4m3(codes >> 8 * i & 0xffu);
    low = bf16_pair(v[0], v[1]);
    high = bf16_pair(v[2], v[3]);
#else
    const uint32_t pairs[2] = {__byte_perm(codes, 0, 0x1404), __byte_perm(codes, 0, 0x3424)};
    uint32_t results[2];
#pragma unroll
    for (int i = 0; i < 2; i++) {
        uint32_t bits = (pairs[i] & 0x80008000u) | (pairs[i] & 0x7f007f00u) >> 4;
        // times 2^120, plus -0
        asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(results[i]) : "r"(bits), "r"(0x7b807b80u), "r"(0x80008000u));
    }
    low = results[0];
    high = results[1];
#endif
}

// Factors on rows g and g + 8 of a tile.
template <uint32_t FORMAT> INLINE float2 read_scales(const uint8_t *scales, uint32_t g) {
    if constexpr (FORMAT == F8) return ((const float2 *)scales)[g];
    uint32_t both = ((const uint32_t *)scales)[g];
    return {of_f16(both & 0xffffu), of_f16(both >> 16)};
}

// What a lane reads of a tile, before it is unpacked.
template <uint32_t FORMAT> struct Packed {
    uint4 words[2];
};
template <> struct Packed<Q8> {
    uint4 words[1];
};
template <> struct Packed<F8> {
    uint4 words[1];
};
template <> struct Packed<Q4> {
    uint2 words[1];
};

template <uint32_t FORMAT> INLINE Packed<FORMAT> read_tile(const uint8_t *tile, uint32_t lane, bool shared) {
    Packed<FORMAT> packed;
    if constexpr (FORMAT == Q4) {
        const uint2 *from = (const uint2 *)tile + lane;
        packed.words[0] = shared ? *from : load_once(from);
    } else {
        const uint4 *from = (const uint4 *)tile + lane;
        for (int half = 0; half < (FORMAT == Q8 || FORMAT == F8 ? 1 : 2); half++)
            packed.words[half] = shared ? from[half * 32] : load_once(from + half * 32);
    }
    return packed;
}

template <uint32_t FORMAT> INLINE Fragment unpack(const Packed<FORMAT> &packed) {
    Fragment f;
    if constexpr (FORMAT == Q4) {
        uint32_t x = packed.words[0].x, y = packed.words[0].y;
        for (int half = 0; half < 2; half++)
            for (int pair = 0; pair < 2; pair++) {
                int shift = 4 * (2 * half + pair);
                f.a[half][2 * pair] = nibbles_to_bf16(x >> shift);
                f.a[half][2 * pair + 1] = nibbles_to_bf16(y >> shift);
            }
    } else if constexpr (FORMAT == Q8) {
        uint4 w = packed.words[0];
        bytes_to_bf16(w.x, f.a[0][0], f.a[0][2]);
        bytes_to_bf16(w.y, f.a[0][1], f.a[0][3]);
        bytes_to_bf16(w.z, f.a[1][0], f.a[1][2]);
        bytes_to_bf16(w.w, f.a[1][1], f.a[1][3]);
    } else if constexpr (FORMAT == F8) {
        uint4 w = packed.words[0];
        e4m3_to_bf16(w.x, f.a[0][0], f.a[0][2]);
        e4m3_to_bf16(w.y, f.a[0][1], f.a[0][3]);
        e4m3_to_bf16(w.z, f.a[1][0], f.a[1][2]);
        e4m3_to_bf16(w.w, f.a[1][1], f.a[1][3]);
    } else {
        for (int half = 0; half < 2; half++) {
            uint4 w = packed.words[half];
            f.a[half][0] = w.x;
            f.a[half][1] = w.y;
            f.a[half][2] = w.z;
            f.a[half][3] = w.w;
        }
    }
    return f;
}

// acc += tile * x, by the same instructions wherever it is called: who multiplies how many rows changes no bit.
template <uint32_t FORMAT> INLINE void multiply(float acc[4], const Fragment &f, uint4 x, float2 scales) {
    constexpr bool HALF = FORMAT == F16;
    uint32_t low[2] = {x.x, x.y}, high[2] = {x.z, x.w};
    if constexpr (scale_bytes(FORMAT) != 0) {
        float part[4] = {0.0f, 0.0f, 0.0f, 0.0f};
        mma<HALF>(part, f.a[0], low);
        mma<HALF>(part, f.a[1], high);
        acc[0] = fmaf(scales.x, part[0], acc[0]);
        acc[1] = fmaf(scales.x, part[1], acc[1]);
        acc[2] = fmaf(scales.y, part[2], acc[2]);
        acc[3] = fmaf(scales.y, part[3], acc[3]);
    } else {
        mma<HALF>(acc, f.a[0], low);
        mma<HALF>(acc, f.a[1], high);
    }
}
