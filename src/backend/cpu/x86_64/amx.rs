//! AMX: matrix products in tile registers, for prefill and large batches.
//!
//! One call makes 16 tokens times 64 weight rows (four packed blocks of 16). Stable Rust has no AMX intrinsics, hence
//! `asm!`. Between two pieces of `asm!` nothing but the tile configuration survives: each loads, multiplies and stores
//! what it needs itself, and names the tiles it changes. Tests run the very same code where there is no AMX: see
//! `amx_emulated.rs`.
#![expect(
    unsafe_code,
    reason = "assembly on raw pointers; callers vouch for sizes and for the instruction set"
)]

use std::arch::asm;
use std::arch::x86_64::*;
use std::mem::MaybeUninit;

/// Weight rows of a packed block: one tile is so wide.
pub const BLOCK_ROWS: usize = 16;
/// Blocks of one product.
pub const BLOCKS: usize = 4;
/// Tokens of one product: one tile is so high.
pub const TOKENS: usize = 16;
/// Columns of a bf16 tile, and of a group of quantized weights.
pub const COLUMNS: usize = 32;
/// Values in a row of the output.
pub const OUT_COLUMNS: usize = BLOCKS * BLOCK_ROWS;
/// Bytes of a group of activations: f32 scale, i32 sum, 32 signed bytes.
pub const RECORD_BYTES: usize = 40;

/// Bytes of a line: one row of a tile, 4 bytes for each of 16 weight rows.
const LINE: usize = 64;
const BF16_TILE_BYTES: usize = 16 * LINE;
/// Lines of a group of bytes.
const GROUP_LINES: usize = 8;
/// Where a record's bytes begin; the sum is at 4.
const RECORD_VALUES: usize = 8;

/// Whether this process may use the kernels below on this machine, tried out. Asks the system for the tile registers:
/// the right is the process's, and threads started later have it too.
pub fn detect() -> bool {
    // SAFETY: `self_test` runs only behind the instruction sets and the system's leave.
    has_avx512() && has_amx() && request_tiles() && unsafe { self_test() }
}

/// What the kernels need besides AMX.
pub fn has_avx512() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512bf16")
        && is_x86_feature_detected!("avx512vnni")
        && is_x86_feature_detected!("f16c")
        && is_x86_feature_detected!("fma")
}

/// The processor has tiles with products of bf16 and of bytes, and the system saves the tile registers. Needs leaf 7,
/// which AVX-512 brings. Leaves 0x1D and 0x1E, which describe tiles, read zero on some virtual machines.
fn has_amx() -> bool {
    const OSXSAVE: u32 = 1 << 27;
    const BF16_TILE_INT8: u32 = 1 << 22 | 1 << 24 | 1 << 25;
    const TILE_STATE: u32 = 1 << 17 | 1 << 18;
    if __cpuid(1).ecx & OSXSAVE == 0 || __cpuid_count(7, 0).edx & BF16_TILE_INT8 != BF16_TILE_INT8 {
        return false;
    }
    let state: u32;
    // SAFETY: OSXSAVE says that the instruction may be used; register 0 is always there.
    unsafe {
        asm!("xgetbv", in("ecx") 0, out("eax") state, out("edx") _, options(nomem, nostack, preserves_flags));
    }
    state & TILE_STATE == TILE_STATE
}

/// Asks for the tile registers, which Linux gives only to who asks.
#[cfg(target_os = "linux")]
fn request_tiles() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    const TILE_DATA: libc::c_long = 18;
    // SAFETY: two numbers go in, a status comes out.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, TILE_DATA) == 0 }
}

#[cfg(not(target_os = "linux"))]
fn request_tiles() -> bool {
    false
}

/// The operand of `ldtilecfg`.
#[repr(C, align(64))]
struct Config {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

/// Tiles 0 to 3: sums, 16 tokens by 16 weight rows. 4 and 5: bf16 of tokens and of weights. 6 and 7: bytes of tokens
/// and of weights. A static, so that there are no stores that a compiler could drop or delay.
static CONFIG: Config = Config {
    palette: 1,
    start_row: 0,
    reserved: [0; 14],
    row_bytes: [64, 64, 64, 64, 64, 64, 32, 64, 0, 0, 0, 0, 0, 0, 0, 0],
    rows: [16, 16, 16, 16, 16, 16, 16, 8, 0, 0, 0, 0, 0, 0, 0, 0],
};

/// Gives this thread's tiles the shapes that both products need, and zeros.
///
/// # Safety
/// [`detect`] said yes, in this process and before this thread was started (or on it).
#[inline]
pub unsafe fn configure() {
    // SAFETY: the caller's contract; the operand is 64 bytes. No `readonly` nor `nomem`: the block also stands for the
    // order of the configuration and the products, which are `asm!` too.
    unsafe {
        asm!(
            "ldtilecfg [{}]", in(reg) &raw const CONFIG,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack, preserves_flags),
        );
    }
}

/// Zeros this thread's tiles and gives them back: no content stays in them.
///
/// # Safety
/// The caller keeps the contract of [`configure`].
#[inline]
pub unsafe fn release() {
    // SAFETY: the caller's contract.
    unsafe {
        asm!(
            "tilerelease",
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack, preserves_flags),
        );
    }
}

/// `out[t][16 * b + r] = sum_k x[t][k] * weights[b][r][k]` in bf16 with f32 sums, over `32 * tiles` columns.
///
/// A tile of weights is 16 lines of 64 bytes; line `l` has, for each of 16 rows, columns `2l` and `2l + 1`. `x` is 16
/// rows, `x_stride` bytes apart; `out` is (16, 64), of any alignment. Denormals count as zero; the sums of even and of
/// odd columns are kept apart within a tile, whatever the batch.
///
/// # Safety
/// Between [`configure`] and [`release`]; `tiles` tiles at each of `weights`, 16 rows at `x`, 1024 values at `out`.
#[inline]
pub unsafe fn bf16_product(
    weights: [*const u8; BLOCKS],
    tiles: usize,
    x: *const u8,
    x_stride: usize,
    out: *mut f32,
) {
    let [w0, w1, w2, w3] = weights;
    // SAFETY: the caller's contract: reads the tiles and rows that it vouches for, writes 16 lines of each block.
    unsafe {
        asm!(
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            "test {tiles}, {tiles}",
            "jz 3f",
            "2:",
            "tileloadd tmm4, [{x} + {x_stride}*1]",
            "tileloadd tmm5, [{w0} + {line}*1]",
            "tdpbf16ps tmm0, tmm4, tmm5",
            "tileloadd tmm5, [{w1} + {line}*1]",
            "tdpbf16ps tmm1, tmm4, tmm5",
            "tileloadd tmm5, [{w2} + {line}*1]",
            "tdpbf16ps tmm2, tmm4, tmm5",
            "tileloadd tmm5, [{w3} + {line}*1]",
            "tdpbf16ps tmm3, tmm4, tmm5",
            "add {x}, {line}",
            "add {w0}, {tile}",
            "add {w1}, {tile}",
            "add {w2}, {tile}",
            "add {w3}, {tile}",
            "dec {tiles}",
            "jnz 2b",
            "3:",
            "tilestored [{out} + {out_stride}*1], tmm0",
            "tilestored [{out} + {out_stride}*1 + 64], tmm1",
            "tilestored [{out} + {out_stride}*1 + 128], tmm2",
            "tilestored [{out} + {out_stride}*1 + 192], tmm3",
            tiles = inout(reg) tiles => _,
            x = inout(reg) x => _,
            w0 = inout(reg) w0 => _,
            w1 = inout(reg) w1 => _,
            w2 = inout(reg) w2 => _,
            w3 = inout(reg) w3 => _,
            x_stride = in(reg) x_stride,
            line = in(reg) LINE,
            out = in(reg) out,
            out_stride = in(reg) OUT_COLUMNS * size_of::<f32>(),
            tile = const BF16_TILE_BYTES,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _, out("tmm4") _, out("tmm5") _,
            options(nostack),
        );
    }
}

/// `out[t][16 * b + r] = sum_k x[t][k] * weights[b][r][k]` for weights quantized in groups of 32 columns.
///
/// A group of weights is 8 lines of 64 bytes; line `l` has, for each of 16 rows, columns `4l` to `4l + 3`, plus 128.
/// With `BITS4` it is 4 lines: line `l` has line `2l` in its low nibbles and `2l + 1` in its high ones, plus 8. Of
/// `scales`, 16 f16 belong to a group. `x` is 16 rows, `x_stride` bytes apart, of [`RECORD_BYTES`] per group: f32
/// scale, i32 sum of the bytes (so it fits 16 bits), 32 signed bytes. `out` is (`tokens`, 64).
///
/// Group by group, from 0: `sum = fma((dot - bias * sum of bytes) as f32, weight scale * x scale, sum)`: so the result
/// has the same bits whatever the batch, and as any code that keeps to this order.
///
/// # Safety
/// Between [`configure`] and [`release`], on a machine with [`has_avx512`]. `groups` groups at each of `weights` and
/// `scales`; 16 rows at `x` are readable (though only `tokens`, 1 to 16, count); `tokens` rows at `out` are writable.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,f16c,fma")]
pub unsafe fn int8_product<const BITS4: bool>(
    weights: [*const u8; BLOCKS],
    scales: [*const u16; BLOCKS],
    groups: usize,
    x: *const u8,
    x_stride: usize,
    tokens: usize,
    out: *mut f32,
) {
    debug_assert!((1..=TOKENS).contains(&tokens), "tokens of a product");
    let mut scratch = MaybeUninit::<Scratch>::uninit();
    let scratch = scratch.as_mut_ptr();
    for block in 0..BLOCKS {
        let job = Block { weights: weights[block], scales: scales[block], groups, x, x_stride, scratch };
        // SAFETY: the caller's contract; the block's columns are inside `out`.
        unsafe {
            let out = out.add(block * BLOCK_ROWS);
            match tokens {
                1..=4 => job.run::<BITS4, 4>(tokens, out),
                5..=8 => job.run::<BITS4, 8>(tokens, out),
                _ => job.run::<BITS4, 16>(tokens, out),
            }
        }
    }
}

/// Two of each, so that groups overlap: the processor multiplies ahead while it folds in. On the stack, which is
/// scrubbed.
#[repr(C, align(1024))]
struct Scratch {
    /// (tokens, weight rows)
    products: [[i32; TOKENS * BLOCK_ROWS]; 2],
    /// Nibbles made bytes.
    bytes: [[u8; GROUP_LINES * LINE]; 2],
}

/// Sixteen weight rows, all groups.
#[derive(Clone, Copy)]
struct Block {
    weights: *const u8,
    scales: *const u16,
    groups: usize,
    x: *const u8,
    x_stride: usize,
    scratch: *mut Scratch,
}

impl Block {
    /// Products of the first `T` tokens, of which `tokens` are stored.
    #[inline(always)]
    unsafe fn run<const BITS4: bool, const T: usize>(self, tokens: usize, out: *mut f32) {
        // SAFETY: groups below `groups`, tokens below 16, and stores of `tokens` rows.
        unsafe {
            let mut sums = [_mm512_setzero_ps(); T];
            let mut group = 0;
            while group + 1 < self.groups {
                self.multiply::<BITS4, 0>(group);
                self.multiply::<BITS4, 1>(group + 1);
                self.fold::<BITS4, 0, T>(group, &mut sums);
                self.fold::<BITS4, 1, T>(group + 1, &mut sums);
                group += 2;
            }
            if group < self.groups {
                self.multiply::<BITS4, 0>(group);
                self.fold::<BITS4, 0, T>(group, &mut sums);
            }
            for (token, &sum) in sums.iter().enumerate() {
                if token < tokens {
                    _mm512_storeu_ps(out.add(token * OUT_COLUMNS), sum);
                }
            }
        }
    }

    /// The dot products of a group, by tile `SIDE` into scratch `SIDE`.
    #[inline(always)]
    unsafe fn multiply<const BITS4: bool, const SIDE: usize>(&self, group: usize) {
        // SAFETY: the caller's contract: 16 rows of 32 bytes at `x`, 8 lines at `weights` or in scratch; `asm!` writes
        // the 16 lines of `products`, which leave this function as a pointer, so that no store or load moves across.
        unsafe {
            let weights = if BITS4 {
                let bytes = (&raw mut (*self.scratch).bytes[SIDE]).cast::<u8>();
                widen_nibbles(self.weights.add(group * GROUP_LINES / 2 * LINE), bytes);
                bytes.cast_const()
            } else {
                self.weights.add(group * GROUP_LINES * LINE)
            };
            asm!(
                "tilezero tmm{sums}",
                "tileloadd tmm6, [{x} + {x_stride}*1]",
                "tileloadd tmm7, [{weights} + {line}*1]",
                "tdpbsud tmm{sums}, tmm6, tmm7",
                "tilestored [{products} + {line}*1], tmm{sums}",
                sums = const SIDE,
                x = in(reg) self.x.add(group * RECORD_BYTES + RECORD_VALUES),
                x_stride = in(reg) self.x_stride,
                weights = in(reg) weights,
                line = in(reg) LINE,
                products = in(reg) &raw mut (*self.scratch).products[SIDE],
                out("tmm0") _, out("tmm1") _, out("tmm6") _, out("tmm7") _,
                options(nostack, preserves_flags),
            );
        }
    }

    /// Adds a group's dot products to the sums, scaled.
    #[inline(always)]
    unsafe fn fold<const BITS4: bool, const SIDE: usize, const T: usize>(
        &self,
        group: usize,
        sums: &mut [__m512; T],
    ) {
        // SAFETY: the caller's contract: 16 scales, `T` records; `multiply` has written the products of this side.
        unsafe {
            let scales = _mm512_cvtph_ps(_mm256_loadu_si256(self.scales.add(group * BLOCK_ROWS).cast()));
            let products = (&raw const (*self.scratch).products[SIDE]).cast::<i32>();
            // Multiplies the low half of the sum of bytes, which is all of it. LLVM makes more of a shift or a product.
            let bias = _mm512_set1_epi32(i32::from(if BITS4 { -8_i16 as u16 } else { -128_i16 as u16 }));
            for (token, sum) in sums.iter_mut().enumerate() {
                let record = self.x.add(token * self.x_stride + group * RECORD_BYTES);
                let x_scale = _mm512_set1_ps(record.cast::<f32>().read_unaligned());
                let x_sum = _mm512_set1_epi32(record.add(4).cast::<i32>().read_unaligned());
                let dot = _mm512_load_si512(products.add(token * BLOCK_ROWS).cast());
                let dot = _mm512_cvtepi32_ps(_mm512_add_epi32(dot, _mm512_madd_epi16(x_sum, bias)));
                *sum = _mm512_fmadd_ps(dot, _mm512_mul_ps(scales, x_scale), *sum);
            }
        }
    }
}

/// Four lines of nibbles to eight of bytes.
#[inline(always)]
unsafe fn widen_nibbles(from: *const u8, to: *mut u8) {
    // SAFETY: the caller's contract: 4 lines to read, 8 aligned ones to write.
    unsafe {
        let low = _mm512_set1_epi8(0x0f);
        for line in 0..GROUP_LINES / 2 {
            let pairs = _mm512_loadu_si512(from.add(line * LINE).cast());
            let high = _mm512_and_si512(_mm512_srli_epi16::<4>(pairs), low);
            _mm512_store_si512(to.add(2 * line * LINE).cast(), _mm512_and_si512(pairs, low));
            _mm512_store_si512(to.add((2 * line + 1) * LINE).cast(), high);
        }
    }
}

/// Whether both products are right here, for small whole numbers: their sums are exact in any order. Some virtual
/// machines report instructions that they do not have, or have wrong.
///
/// # Safety
/// AMX instructions and [`has_avx512`] work in this process, or are emulated.
pub unsafe fn self_test() -> bool {
    let mut state = 1_u32;
    let mut draw = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    // SAFETY: the caller's contract; each test's buffers have the sizes that the products name.
    unsafe {
        configure();
        let right = bf16_right(&mut draw) && int8_right::<false>(&mut draw) && int8_right::<true>(&mut draw);
        release();
        right
    }
}

/// Tiles and groups of the self-test: enough for every branch of the loops.
const TEST_GROUPS: usize = 3;

unsafe fn bf16_right(draw: &mut impl FnMut() -> u8) -> bool {
    let mut small = || ((f32::from(draw() % 17) - 8.0).to_bits() >> 16) as u16;
    let cols = TEST_GROUPS * COLUMNS;
    let weights: Vec<u16> = (0..BLOCKS * BLOCK_ROWS * cols).map(|_| small()).collect();
    let x: Vec<u16> = (0..TOKENS * cols).map(|_| small()).collect();
    let mut out = [f32::NAN; TOKENS * OUT_COLUMNS];
    let block = |b| weights[b * BLOCK_ROWS * cols..].as_ptr().cast();
    // SAFETY: the caller's contract, and the sizes above.
    unsafe {
        bf16_product(std::array::from_fn(block), TEST_GROUPS, x.as_ptr().cast(), 2 * cols, out.as_mut_ptr())
    };
    let wide = |bits: u16| f32::from_bits(u32::from(bits) << 16);
    let weight = |n: usize, k: usize| {
        let line = n / BLOCK_ROWS * (cols / 2) + k / 2;
        wide(weights[line * LINE / 2 + n % BLOCK_ROWS * 2 + k % 2])
    };
    let dot = |t: usize, n: usize| (0..cols).map(|k| wide(x[t * cols + k]) * weight(n, k)).sum::<f32>();
    (0..TOKENS).all(|t| (0..OUT_COLUMNS).all(|n| out[t * OUT_COLUMNS + n] == dot(t, n)))
}

unsafe fn int8_right<const BITS4: bool>(draw: &mut impl FnMut() -> u8) -> bool {
    let stride = TEST_GROUPS * RECORD_BYTES;
    let lines = if BITS4 { GROUP_LINES / 2 } else { GROUP_LINES };
    let block_bytes = TEST_GROUPS * lines * LINE;
    let weights: Vec<u8> = (0..BLOCKS * block_bytes).map(|_| draw()).collect();
    // Powers of two, 1/2 and 1 here and 1 and 2 for `x`: with them too, every sum is below 24 bits.
    let scales: Vec<u16> = (0..OUT_COLUMNS * TEST_GROUPS).map(|_| u16::from(14 + draw() % 2) << 10).collect();
    let mut x: Vec<u8> = (0..TOKENS * stride).map(|_| draw()).collect();
    for record in x.chunks_exact_mut(RECORD_BYTES) {
        let sum: i32 = record[RECORD_VALUES..].iter().map(|&byte| i32::from(byte as i8)).sum();
        let scale = f32::from(1 + record[0] % 2);
        record[..4].copy_from_slice(&scale.to_le_bytes());
        record[4..8].copy_from_slice(&sum.to_le_bytes());
    }
    let mut out = [f32::NAN; TOKENS * OUT_COLUMNS];
    let block = |b| weights[b * block_bytes..].as_ptr();
    let block_scales = |b| scales[b * TEST_GROUPS * BLOCK_ROWS..].as_ptr();
    let (blocks, block_scales) = (std::array::from_fn(block), std::array::from_fn(block_scales));
    // SAFETY: the caller's contract, and the sizes above.
    unsafe {
        int8_product::<BITS4>(
            blocks,
            block_scales,
            TEST_GROUPS,
            x.as_ptr(),
            stride,
            TOKENS,
            out.as_mut_ptr(),
        );
    }
    let weight = |n: usize, group: usize, column: usize| {
        let line = if BITS4 { column / 8 } else { column / 4 };
        let start = n / BLOCK_ROWS * block_bytes + (group * lines + line) * LINE;
        let byte = i32::from(weights[start + n % BLOCK_ROWS * 4 + column % 4]);
        if BITS4 { (byte >> (column / 4 % 2 * 4) & 15) - 8 } else { byte - 128 }
    };
    let dot = |t: usize, n: usize| {
        let of_group = |group: usize| {
            let record = &x[t * stride + group * RECORD_BYTES..][..RECORD_BYTES];
            let product = |k: usize| i32::from(record[RECORD_VALUES + k] as i8) * weight(n, group, k);
            let scale = scales[(n / BLOCK_ROWS * TEST_GROUPS + group) * BLOCK_ROWS + n % BLOCK_ROWS];
            let scale = 2_f32.powi(i32::from(scale >> 10) - 15);
            let x_scale = f32::from_le_bytes([record[0], record[1], record[2], record[3]]);
            (0..COLUMNS).map(product).sum::<i32>() as f32 * scale * x_scale
        };
        (0..TEST_GROUPS).map(of_group).sum::<f32>()
    };
    (0..TOKENS).all(|t| (0..OUT_COLUMNS).all(|n| out[t * OUT_COLUMNS + n] == dot(t, n)))
}
