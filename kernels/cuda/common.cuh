// What all kernels share: how they are declared, element types, and the few instructions that C++ has no word for.
//
// Everything compiles twice: for the device, and as C++ for tests/kernels_emulated. Only this file knows the difference.
#pragma once

#ifdef AMNESIC_EMULATED
#include "emulator.h"
#else
#include <cstdint>
#define SHARED(name) extern __shared__ __align__(16) unsigned char name[]
// One argument: a struct that src/backend/cuda/args.rs has field by field.
#define KERNEL(name, threads, Args) \
    extern "C" __global__ void __launch_bounds__(threads) amnesic_##name(const Args a)
#endif

#define INLINE __device__ __forceinline__

constexpr unsigned ALL = 0xffffffffu;
constexpr uint32_t NONE = 0xffffffffu;

// ---- element types

// How an operand is written, as backend::Form.
enum OperandType : uint32_t { FORM_F32 = 0, FORM_BF16 = 1, FORM_F16 = 2 };

INLINE float of_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

INLINE uint32_t bits_of(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    return bits;
}

INLINE float bf16_low(uint32_t pair) { return of_bits(pair << 16); }
INLINE float bf16_high(uint32_t pair) { return of_bits(pair & 0xffff0000u); }

#ifdef AMNESIC_EMULATED
INLINE uint32_t to_bf16(float value) {
    uint32_t bits = bits_of(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fffu;
    return (bits + 0x7fffu + ((bits >> 16) & 1)) >> 16;
}

INLINE uint32_t bf16_pair(float low, float high) { return to_bf16(low) | to_bf16(high) << 16; }

INLINE float of_f16(uint32_t half) {
    uint32_t sign = (half & 0x8000u) << 16, exponent = (half >> 10) & 31, mantissa = half & 0x3ffu;
    if (exponent == 31) return of_bits(sign | 0x7f800000u | mantissa << 13);
    if (exponent == 0) {
        float value = float(mantissa) * 0x1p-24f;
        return of_bits(bits_of(value) | sign);
    }
    return of_bits(sign | (exponent + 112) << 23 | mantissa << 13);
}

INLINE uint32_t to_f16(float value) {
    uint32_t bits = bits_of(value), sign = (bits >> 16) & 0x8000u, size = bits & 0x7fffffffu;
    if (size > 0x7f800000u) return 0x7fffu;
    if (size >= 0x477ff000u) return sign | 0x7c00u;  // 65520 and more
    if (size < 0x38800000u) {                        // below the smallest normal: steps of 2^-24
        float steps = of_bits(size) * 0x1p24f;
        return sign | uint32_t(nearbyintf(steps));
    }
    size += 0xfffu + ((size >> 13) & 1);
    return sign | ((size - 0x38000000u) >> 13);
}

INLINE uint32_t f16_pair(float low, float high) { return to_f16(low) | to_f16(high) << 16; }
#else
INLINE uint32_t bf16_pair(float low, float high) {
    uint32_t pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}

INLINE uint32_t to_bf16(float value) { return bf16_pair(value, 0.0f) & 0xffffu; }

INLINE float of_f16(uint32_t half) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"((unsigned short)half));
    return value;
}

INLINE uint32_t f16_pair(float low, float high) {
    uint32_t pair;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}

INLINE uint32_t to_f16(float value) { return f16_pair(value, 0.0f) & 0xffffu; }
#endif

// Four unsigned bytes minus 128, as two pairs of bf16. Each is exact: 8 bits fit into the mantissa.
INLINE void bytes_to_bf16(uint32_t bytes, uint32_t &low, uint32_t &high) {
    constexpr uint32_t MAGIC = 0x4b000000u;  // 2^23: its last bit is 1
    constexpr float ZERO = 8388608.0f + 128.0f;
    float v[4];
    for (int i = 0; i < 4; i++) v[i] = of_bits(MAGIC | (bytes >> 8 * i & 0xffu)) - ZERO;
    low = bf16_pair(v[0], v[1]);
    high = bf16_pair(v[2], v[3]);
}

// Two values in sixteen bits each.
template <bool HALF> INLINE uint32_t pair_of(float low, float high) {
    return HALF ? f16_pair(low, high) : bf16_pair(low, high);
}

// Writes one value of an operand's row.
INLINE void write_operand(uint32_t form, void *row, uint32_t col, float value) {
    if (form == FORM_F32)
        ((float *)row)[col] = value;
    else
        ((uint16_t *)row)[col] = uint16_t(form == FORM_BF16 ? to_bf16(value) : to_f16(value));
}

// ---- warps and blocks

INLINE float warp_sum(float value) {
    for (unsigned mask = 16; mask > 0; mask /= 2) value += __shfl_xor_sync(ALL, value, mask);
    return value;
}

// The larger one; what is not a number stays.
INLINE float larger(float a, float b) { return a > b || a != a ? a : b; }

INLINE float warp_max(float value) {
    for (unsigned mask = 16; mask > 0; mask /= 2) value = larger(value, __shfl_xor_sync(ALL, value, mask));
    return value;
}

// The sum over a block of whole warps, for all of its threads. `partial` has a float for each warp.
INLINE float block_sum(float value, float *partial) {
    value = warp_sum(value);
    unsigned warps = blockDim.x / 32;
    if (warps == 1) return value;
    __syncthreads();  // who still reads the last sum
    if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = value;
    __syncthreads();
    float sum = partial[0];
    for (unsigned warp = 1; warp < warps; warp++) sum += partial[warp];
    return sum;
}

// ---- matrix instructions

// c += a * b: (16, 16) by (16, 8). Lane 4g + t brings of a the pairs of columns 2t and 2t + 8 in rows g and g + 8 (a[0]:
// g, 2t; a[1]: g + 8, 2t; a[2]: g, 2t + 8; a[3]: g + 8, 2t + 8), of b those rows of column g; it gets of c the columns
// 2t, 2t + 1 in rows g (c[0], c[1]) and g + 8. PTX ISA, mma.m16n8k16.
template <bool HALF> INLINE void mma(float c[4], const uint32_t a[4], const uint32_t b[2]) {
#ifdef AMNESIC_EMULATED
    struct Lane {
        uint32_t a[4], b[2];
    } mine;
    memcpy(mine.a, a, 16);
    memcpy(mine.b, b, 8);
    auto slots = emulator::meet(mine, __LINE__);
    unsigned lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    auto part = [](uint32_t pair, unsigned high) {
        return HALF ? of_f16(high ? pair >> 16 : pair & 0xffffu) : high ? bf16_high(pair) : bf16_low(pair);
    };
    double sums[4] = {c[0], c[1], c[2], c[3]};
    for (unsigned k = 0; k < 16; k++) {
        unsigned from = (k % 8) / 2, far = k / 8, high = k % 2;
        const Lane &row = *(const Lane *)slots[4 * g + from];
        for (unsigned n = 0; n < 2; n++) {
            const Lane &column = *(const Lane *)slots[4 * (2 * t + n) + from];
            double x = part(column.b[far], high);
            sums[n] += x * part(row.a[2 * far], high);
            sums[2 + n] += x * part(row.a[2 * far + 1], high);
        }
    }
    for (unsigned i = 0; i < 4; i++) c[i] = float(sums[i]);
#else
    if (HALF)
        asm(
            "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
            : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
    else
        asm(
            "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
            : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

// Four 8 by 8 matrices of pairs' halves from shared memory: lane 8i + r brings where 16 bytes of row r of matrix i are, and
// lane 4g + t gets of each matrix columns 2t and 2t + 1 of row g: what it brings of b to mma. PTX ISA, ldmatrix.
INLINE uint4 load_matrices(const void *row) {
#ifdef AMNESIC_EMULATED
    auto slots = emulator::meet(row, __LINE__);
    unsigned lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    uint32_t words[4];
    for (unsigned i = 0; i < 4; i++)
        memcpy(&words[i], (const char *)emulator::of_lane<const void *>(slots, 8 * i + g) + 4 * t, 4);
    return {words[0], words[1], words[2], words[3]};
#else
    uint4 v;
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "r"(uint32_t(__cvta_generic_to_shared(row)))
                 : "memory");
    return v;
#endif
}

// ---- copies into shared memory that do not hold their thread up

// Sixteen bytes; zeros for those behind the first `bytes` of them.
INLINE void copy_async(void *to, const void *from, uint32_t bytes) {
#ifdef AMNESIC_EMULATED
    emulator::copy_async(to, from, bytes);
#else
    uint32_t at = uint32_t(__cvta_generic_to_shared(to));
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(at), "l"(from), "r"(bytes) : "memory");
#endif
}

INLINE void copy_commit() {
#ifdef AMNESIC_EMULATED
    emulator::copy_commit();
#else
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Until at most LEFT of what was committed are under way.
template <int LEFT> INLINE void copy_wait() {
#ifdef AMNESIC_EMULATED
    emulator::copy_wait(LEFT);
#else
    asm volatile("cp.async.wait_group %0;" ::"n"(LEFT) : "memory");
#endif
}

// Reads weights: once, so past the first cache.
INLINE uint4 load_once(const uint4 *from) {
#ifdef AMNESIC_EMULATED
    return *from;
#else
    uint4 v;
    asm("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
        : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
        : "l"(from));
    return v;
#endif
}

INLINE uint2 load_once(const uint2 *from) {
#ifdef AMNESIC_EMULATED
    return *from;
#else
    uint2 v;
    asm("ld.global.nc.L1::no_allocate.v2.u32 {%0,%1}, [%2];" : "=r"(v.x), "=r"(v.y) : "l"(from));
    return v;
#endif
}

// The number of the processor that runs the block.
INLINE uint32_t processor() {
#ifdef AMNESIC_EMULATED
    return blockIdx.x % 2;
#else
    uint32_t number;
    asm volatile("mov.u32 %0, %%smid;" : "=r"(number));
    return number;
#endif
}
