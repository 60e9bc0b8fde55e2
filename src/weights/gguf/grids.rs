//! The types of GGUF whose groups of values are points of a grid: `IQ1_S` to `IQ3_S` (llama.cpp's `ggml-quants`). A block
//! holds numbers of points, signs or shifts, and scales for groups of 16 or 32 values.

use super::blocks::{Kind, half_at};

/// Points of all grids, one after another, in numbers of 16 bits that hold the level of each coordinate: eight of two bits,
/// or four of three. `tools/fixture_gguf.py` writes it from the tables of llama.cpp's Python package.
static POINTS: &[u8; 2 * (256 + 512 + 1024 + 2048 + 256 + 512)] = include_bytes!("grids.bin");

/// Where a grid begins, and the levels of its coordinates.
struct Grid<const LEVELS: usize> {
    first: usize,
    levels: [i8; LEVELS],
}

const IQ2: [i8; 3] = [0x08, 0x19, 0x2b];
const IQ2_XXS: Grid<3> = Grid { first: 0, levels: IQ2 };
const IQ2_XS: Grid<3> = Grid { first: 256, levels: IQ2 };
const IQ2_S: Grid<3> = Grid { first: 768, levels: IQ2 };
const IQ1: Grid<3> = Grid { first: 1792, levels: [-1, 0, 1] };
const IQ3_XXS: Grid<8> = Grid { first: 3840, levels: [0x04, 0x0c, 0x14, 0x1c, 0x24, 0x2c, 0x34, 0x3e] };
const IQ3_S: Grid<8> = Grid { first: 4096, levels: [0x01, 0x03, 0x05, 0x07, 0x09, 0x0b, 0x0d, 0x0f] };

/// What `IQ1` adds to each level, or takes off.
const SHIFT: f32 = 0.125;

impl<const LEVELS: usize> Grid<LEVELS> {
    /// Coordinate `at` of a point.
    fn value(&self, point: usize, at: usize) -> f32 {
        let bits = if LEVELS == 3 { 2 } else { 3 };
        let [low, high] = POINTS.as_chunks::<2>().0[self.first + point];
        let level = usize::from(u16::from_le_bytes([low, high]) >> (bits * at)) & ((1 << bits) - 1);
        // no point of three levels has a fourth
        f32::from(self.levels[level.min(LEVELS - 1)])
    }
}

/// Signs of eight values in seven bits: the number of minus signs is even.
fn sign(code: u32, at: usize) -> f32 {
    let code = code & 127;
    let signs = code | (code.count_ones() & 1) << 7;
    if signs >> at & 1 == 1 { -1.0 } else { 1.0 }
}

/// The sign of a value, from eight bits.
fn plain_sign(signs: u8, at: usize) -> f32 {
    if signs >> at & 1 == 1 { -1.0 } else { 1.0 }
}

fn u16_at(block: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([block[at], block[at + 1]])
}

fn u32_at(block: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]])
}

/// The values of one block of a type with a grid.
///
/// # Panics
/// For other types.
pub fn decode(kind: Kind, block: &[u8], out: &mut [f32]) {
    let d = half_at(block, 0);
    for (i, out) in out.iter_mut().enumerate() {
        *out = match kind {
            Kind::Iq2Xxs => {
                let (codes, rest) = (2 + i / 32 * 8, u32_at(block, 6 + i / 32 * 8));
                let scale = d * (0.5 + (rest >> 28) as f32) * 0.25;
                let part = i % 32 / 8;
                let point = usize::from(block[codes + part]);
                scale * IQ2_XXS.value(point, i % 8) * sign(rest >> (7 * part), i % 8)
            }
            Kind::Iq2Xs => {
                let code = u16_at(block, 2 + i / 8 * 2);
                let scale = d * (0.5 + nibble(&block[66..], i / 16)) * 0.25;
                scale * IQ2_XS.value(usize::from(code & 511), i % 8) * sign(u32::from(code >> 9), i % 8)
            }
            Kind::Iq2S => {
                let (codes, signs, high) = (&block[2..34], &block[34..66], &block[66..74]);
                let scale = d * (0.5 + nibble(&block[74..], i / 16)) * 0.25;
                let part = i / 8;
                let point = usize::from(codes[part]) | usize::from(high[part / 4] >> (part % 4 * 2) & 3) << 8;
                scale * IQ2_S.value(point, i % 8) * plain_sign(signs[part], i % 8)
            }
            Kind::Iq3Xxs => {
                let rest = u32_at(block, 66 + i / 32 * 4);
                let scale = d * (0.5 + (rest >> 28) as f32) * 0.5;
                let point = usize::from(block[2 + i / 4]);
                scale * IQ3_XXS.value(point, i % 4) * sign(rest >> (7 * (i % 32 / 8)), i % 8)
            }
            Kind::Iq3S => {
                let (codes, high, signs) = (&block[2..66], &block[66..74], &block[74..106]);
                let scale = d * (1.0 + 2.0 * nibble(&block[106..], i / 32));
                let part = i / 4;
                let point = usize::from(codes[part]) | usize::from(high[part / 8] >> (part % 8) & 1) << 8;
                scale * IQ3_S.value(point, i % 4) * plain_sign(signs[i / 8], i % 8)
            }
            Kind::Iq1S => {
                let rest = u16_at(block, 34 + i / 32 * 2);
                let scale = d * f32::from(2 * (rest >> 12 & 7) + 1);
                let shift = if rest & 0x8000 == 0 { SHIFT } else { -SHIFT };
                let high = usize::from(rest >> (3 * (i % 32 / 8)) & 7) << 8;
                scale * (IQ1.value(usize::from(block[2 + i / 8]) | high, i % 8) + shift)
            }
            Kind::Iq1M => iq1_m(block, i),
            other => unreachable!("{other:?} has no grid"),
        };
    }
}

/// `IQ1_M`, the only type whose scale of a block lies in pieces: in the highest bits of its four groups of scales.
fn iq1_m(block: &[u8], i: usize) -> f32 {
    let scales = &block[48..56];
    let whole = (0..4).fold(0, |whole, part| whole | u16_at(scales, 2 * part) >> 12 << (4 * part));
    let d = half_at(&whole.to_le_bytes(), 0);
    let scale = d * f32::from(2 * (u16_at(scales, i / 64 * 2) >> (3 * (i % 64 / 16)) & 7) + 1);
    let part = i / 8;
    let rest = block[32 + part / 2] >> (part % 2 * 4);
    let shift = if rest & 8 == 0 { SHIFT } else { -SHIFT };
    scale * (IQ1.value(usize::from(block[part]) | usize::from(rest & 7) << 8, i % 8) + shift)
}

/// Number `at` of four bits.
fn nibble(bytes: &[u8], at: usize) -> f32 {
    f32::from(bytes[at / 2] >> (at % 2 * 4) & 15)
}
