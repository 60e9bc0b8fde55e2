//! The AMX products as tiles; all other kernels are those of AVX-512 with BF16.
//!
//! bf16 takes AMX for every batch, a single row included: its sums are rounded in an order of their own, and a row must
//! get the same bits in any batch. Int8 sums are exact, so few rows take VNNI, which wastes nothing on absent ones.
#![expect(unsafe_code, reason = "adapts kernels on raw pointers; callers vouch for sizes")]

use super::amx::{BLOCKS, COLUMNS, OUT_COLUMNS, TOKENS, bf16_product, configure, int8_product, release};
use super::avx512::bf16;
use crate::backend::cpu::kernels::Kernels;
use crate::backend::cpu::tile::{self, Tile};

const _: () = assert!(TOKENS == tile::MOST && OUT_COLUMNS == tile::ROWS && BLOCKS == tile::BLOCKS);

/// From this many rows of x on, int8 takes AMX. An estimate: a product computes sixteen rows whatever their number.
const FEW: usize = 8;

/// The kernels of a processor with AMX.
pub const KERNELS: Kernels = Kernels {
    tokens: TOKENS,
    bf16_pairs: Some(bf16_pairs),
    q8: int8::<false>,
    q4: int8::<true>,
    around: Some((configured, released)),
    ..bf16::KERNELS
};

unsafe fn configured() {
    // SAFETY: the caller's contract is ours.
    unsafe { configure() }
}

unsafe fn released() {
    // SAFETY: the caller's contract is ours.
    unsafe { release() }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn bf16_pairs(tile: &Tile) {
    if !tile.cols.is_multiple_of(COLUMNS) {
        // Heads of odd sizes. It depends on the shape alone, so rows still get the same bits in any batch.
        let narrow = bf16::KERNELS.bf16_pairs.expect("the set has bf16");
        // SAFETY: the caller's contract is ours.
        return unsafe { narrow(tile) };
    }
    let mut sums = [0.0_f32; TOKENS * OUT_COLUMNS];
    // SAFETY: the caller's contract: `configured` was called, and sixteen rows of x can be read.
    unsafe {
        bf16_product(tile.weights, tile.cols / COLUMNS, tile.x, tile.x_stride, sums.as_mut_ptr());
        let out = std::slice::from_raw_parts_mut(tile.out, tile.tokens * OUT_COLUMNS);
        match tile.add {
            true => out.iter_mut().zip(&sums).for_each(|(out, sum)| *out += sum),
            false => out.copy_from_slice(&sums[..out.len()]),
        }
    }
}

unsafe fn int8<const BITS4: bool>(tile: &Tile) {
    debug_assert!(!tile.add, "the cache is never in groups");
    // SAFETY: the caller's contract: `configured` was called, and sixteen rows of x can be read.
    unsafe {
        if tile.tokens < FEW {
            let few = if BITS4 { bf16::KERNELS.q4 } else { bf16::KERNELS.q8 };
            return few(tile);
        }
        let scales = tile.scales.map(|scales| scales.cast::<u16>());
        let groups = tile.cols / COLUMNS;
        int8_product::<BITS4>(tile.weights, scales, groups, tile.x, tile.x_stride, tile.tokens, tile.out);
    }
}
