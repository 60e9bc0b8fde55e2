//! The block formats of GGUF files (llama.cpp's `ggml-quants`): how many values a block has, in how many bytes, and which.

use half::f16;

/// An element type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    F32,
    F16,
    Bf16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2K,
    Q3K,
    Q4K,
    Q5K,
    Q6K,
    Iq1S,
    Iq1M,
    Iq2Xxs,
    Iq2Xs,
    Iq2S,
    Iq3Xxs,
    Iq3S,
    Iq4Nl,
    Iq4Xs,
    Tq1_0,
    Tq2_0,
    Mxfp4,
    Nvfp4,
}

/// Values of the largest block.
pub const MOST: usize = 256;

/// Names of all types that ever were in a file, by their numbers, those among them that nobody writes any more.
const NAMES: [&str; 43] = [
    "F32",
    "F16",
    "Q4_0",
    "Q4_1",
    "Q4_2",
    "Q4_3",
    "Q5_0",
    "Q5_1",
    "Q8_0",
    "Q8_1",
    "Q2_K",
    "Q3_K",
    "Q4_K",
    "Q5_K",
    "Q6_K",
    "Q8_K",
    "IQ2_XXS",
    "IQ2_XS",
    "IQ3_XXS",
    "IQ1_S",
    "IQ4_NL",
    "IQ3_S",
    "IQ2_S",
    "IQ4_XS",
    "I8",
    "I16",
    "I32",
    "I64",
    "F64",
    "IQ1_M",
    "BF16",
    "Q4_0_4_4",
    "Q4_0_4_8",
    "Q4_0_8_8",
    "TQ1_0",
    "TQ2_0",
    "IQ4_NL_4_4",
    "IQ4_NL_4_8",
    "IQ4_NL_8_8",
    "MXFP4",
    "NVFP4",
    "Q1_0",
    "Q2_0",
];

/// The levels of `IQ4_NL` and `IQ4_XS`.
const UNEVEN: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];
/// Twice the values of e2m1.
const E2M1: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

impl Kind {
    /// By its number in a file.
    pub fn of(number: u32) -> Option<Self> {
        Some(match number {
            0 => Self::F32,
            1 => Self::F16,
            2 => Self::Q4_0,
            3 => Self::Q4_1,
            6 => Self::Q5_0,
            7 => Self::Q5_1,
            8 => Self::Q8_0,
            10 => Self::Q2K,
            11 => Self::Q3K,
            12 => Self::Q4K,
            13 => Self::Q5K,
            14 => Self::Q6K,
            16 => Self::Iq2Xxs,
            17 => Self::Iq2Xs,
            18 => Self::Iq3Xxs,
            19 => Self::Iq1S,
            20 => Self::Iq4Nl,
            21 => Self::Iq3S,
            22 => Self::Iq2S,
            23 => Self::Iq4Xs,
            29 => Self::Iq1M,
            30 => Self::Bf16,
            34 => Self::Tq1_0,
            35 => Self::Tq2_0,
            39 => Self::Mxfp4,
            40 => Self::Nvfp4,
            _ => return None,
        })
    }

    /// What llama.cpp calls the type of this number, known here or not.
    pub fn name_of(number: u32) -> String {
        let name = usize::try_from(number).ok().and_then(|number| NAMES.get(number));
        name.map_or_else(|| format!("unknown ({number})"), |name| (*name).to_owned())
    }

    /// What llama.cpp calls it.
    pub fn name(self) -> &'static str {
        let number = (0..).find(|number| Self::of(*number) == Some(self)).expect("each kind has a number");
        NAMES[number as usize]
    }

    /// Values of a block, and its bytes.
    pub fn block(self) -> (usize, usize) {
        match self {
            Self::F32 => (1, 4),
            Self::F16 | Self::Bf16 => (1, 2),
            Self::Q4_0 | Self::Iq4Nl => (32, 18),
            Self::Q4_1 => (32, 20),
            Self::Q5_0 => (32, 22),
            Self::Q5_1 => (32, 24),
            Self::Q8_0 => (32, 34),
            Self::Mxfp4 => (32, 17),
            Self::Q2K => (MOST, 84),
            Self::Q3K => (MOST, 110),
            Self::Q4K => (MOST, 144),
            Self::Q5K => (MOST, 176),
            Self::Q6K => (MOST, 210),
            Self::Iq1S => (MOST, 50),
            Self::Iq1M => (MOST, 56),
            Self::Iq2Xxs => (MOST, 66),
            Self::Iq2Xs => (MOST, 74),
            Self::Iq2S => (MOST, 82),
            Self::Iq3Xxs => (MOST, 98),
            Self::Iq3S => (MOST, 110),
            Self::Iq4Xs => (MOST, 136),
            Self::Tq1_0 => (MOST, 54),
            Self::Tq2_0 => (MOST, 66),
            Self::Nvfp4 => (64, 36),
        }
    }

    /// The numbers of a block of 32 whose values are whole numbers times one scale, and that scale; none for other kinds.
    ///
    /// # Panics
    /// If the slices are not of [`Kind::block`]'s sizes.
    pub fn numbers(self, block: &[u8], out: &mut [i32]) -> Option<f32> {
        let code = |codes: &[u8], i: usize| codes[i % 16] >> (i / 16 * 4) & 15;
        let each = |out: &mut [i32], number: &dyn Fn(usize) -> i32| {
            out.iter_mut().enumerate().for_each(|(i, out)| *out = number(i));
        };
        match self {
            Self::Q5_0 => {
                let high = u32::from_le_bytes(block[2..].as_chunks().0[0]);
                each(out, &|i| i32::from(code(&block[6..], i)) + 16 * (high >> i & 1) as i32 - 16);
                Some(half_at(block, 0))
            }
            Self::Iq4Nl => {
                each(out, &|i| i32::from(UNEVEN[usize::from(code(&block[2..], i))]));
                Some(half_at(block, 0))
            }
            Self::Mxfp4 => {
                each(out, &|i| i32::from(E2M1[usize::from(code(&block[1..], i))]));
                Some(power_of_two(block[0]))
            }
            _ => None,
        }
    }

    /// The values of one block.
    ///
    /// # Panics
    /// If the slices are not of [`Kind::block`]'s sizes.
    pub fn decode(self, block: &[u8], out: &mut [f32]) {
        assert_eq!((out.len(), block.len()), self.block(), "one block");
        match self {
            Self::F32 => out[0] = f32::from_le_bytes(block.as_chunks().0[0]),
            Self::F16 => out[0] = half_at(block, 0),
            Self::Bf16 => out[0] = half::bf16::from_le_bytes(block.as_chunks().0[0]).to_f32(),
            Self::Q4_0 => halves(&block[2..], out, |code, _| half_at(block, 0) * (f32::from(code) - 8.0)),
            Self::Q4_1 => {
                halves(&block[4..], out, |code, _| half_at(block, 0) * f32::from(code) + half_at(block, 2))
            }
            Self::Q5_0 => {
                let high = u32::from_le_bytes(block[2..].as_chunks().0[0]);
                halves(&block[6..], out, |code, i| half_at(block, 0) * (fifth(code, high, i) - 16.0));
            }
            Self::Q5_1 => {
                let high = u32::from_le_bytes(block[4..].as_chunks().0[0]);
                halves(&block[8..], out, |code, i| {
                    half_at(block, 0) * fifth(code, high, i) + half_at(block, 2)
                });
            }
            Self::Q8_0 => {
                out.iter_mut()
                    .zip(&block[2..])
                    .for_each(|(out, code)| *out = half_at(block, 0) * f32::from(*code as i8));
            }
            Self::Iq4Nl => {
                halves(&block[2..], out, |code, _| half_at(block, 0) * f32::from(UNEVEN[usize::from(code)]));
            }
            Self::Mxfp4 => {
                let scale = power_of_two(block[0]);
                halves(&block[1..], out, |code, _| scale * f32::from(E2M1[usize::from(code)]));
            }
            Self::Q2K => {
                let (scales, codes) = (&block[..16], &block[16..80]);
                let (d, least) = (half_at(block, 80), half_at(block, 82));
                for (i, out) in out.iter_mut().enumerate() {
                    // 32 values to a shift of two bits, 128 to 32 bytes
                    let code = codes[i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2) & 3;
                    let scale = scales[i / 16];
                    *out = d * f32::from(scale & 15) * f32::from(code) - least * f32::from(scale >> 4);
                }
            }
            Self::Q3K => {
                let (high, codes, scales) = (&block[..32], &block[32..96], &block[96..108]);
                let d = half_at(block, 108);
                for (i, out) in out.iter_mut().enumerate() {
                    let group = i / 16;
                    let low = scales[group % 8] >> (group / 8 * 4) & 15;
                    let scale = low | (scales[8 + group % 4] >> (group / 4 * 2) & 3) << 4;
                    let code = codes[i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2) & 3;
                    let missing = 4 * (1 - (high[i % 32] >> (i / 32) & 1));
                    *out = d * (f32::from(scale) - 32.0) * (f32::from(code) - f32::from(missing));
                }
            }
            Self::Q4K | Self::Q5K => {
                let (d, least) = (half_at(block, 0), half_at(block, 2));
                let scales = &block[4..16];
                let (high, codes) = match self {
                    Self::Q5K => (Some(&block[16..48]), &block[48..]),
                    _ => (None, &block[16..]),
                };
                for (i, out) in out.iter_mut().enumerate() {
                    let group = i / 32;
                    let (scale, offset) = six_bits(scales, group);
                    let code = codes[i / 64 * 32 + i % 32] >> (group % 2 * 4) & 15;
                    let code = code | high.map_or(0, |high| (high[i % 32] >> group & 1) << 4);
                    *out = d * f32::from(scale) * f32::from(code) - least * f32::from(offset);
                }
            }
            Self::Q6K => {
                let (low, high, scales) = (&block[..128], &block[128..192], &block[192..208]);
                let d = half_at(block, 208);
                for (i, out) in out.iter_mut().enumerate() {
                    let (part, at) = (i / 128, i % 128);
                    let code = low[part * 64 + at % 64] >> (at / 64 * 4) & 15;
                    let code = code | (high[part * 32 + at % 32] >> (at / 32 * 2) & 3) << 4;
                    *out = d * f32::from(scales[i / 16] as i8) * (f32::from(code) - 32.0);
                }
            }
            Self::Iq4Xs => {
                let d = half_at(block, 0);
                let (high, low, codes) =
                    (u16::from_le_bytes([block[2], block[3]]), &block[4..8], &block[8..]);
                for (i, out) in out.iter_mut().enumerate() {
                    let group = i / 32;
                    let scale =
                        u16::from(low[group / 2] >> (group % 2 * 4) & 15) | (high >> (2 * group) & 3) << 4;
                    let code = codes[group * 16 + i % 16] >> (i % 32 / 16 * 4) & 15;
                    *out = d * (f32::from(scale) - 32.0) * f32::from(UNEVEN[usize::from(code)]);
                }
            }
            Self::Tq1_0 => {
                let d = half_at(block, 52);
                for (i, out) in out.iter_mut().enumerate() {
                    // five values of three levels to a byte, four in the last ones; the first in the highest place
                    let (byte, place) = match i {
                        0..160 => (block[i % 32], i / 32),
                        160..240 => (block[32 + (i - 160) % 16], (i - 160) / 16),
                        _ => (block[48 + (i - 240) % 4], (i - 240) / 4),
                    };
                    let shifted = byte.wrapping_mul([1, 3, 9, 27, 81][place]);
                    *out = d * (f32::from(((u16::from(shifted) * 3) >> 8) as u8) - 1.0);
                }
            }
            Self::Tq2_0 => {
                let d = half_at(block, 64);
                for (i, out) in out.iter_mut().enumerate() {
                    let code = block[i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2) & 3;
                    *out = d * (f32::from(code) - 1.0);
                }
            }
            Self::Nvfp4 => {
                for (i, out) in out.iter_mut().enumerate() {
                    let (group, at) = (i / 16, i % 16);
                    let code = block[4 + group * 8 + at % 8] >> (at / 8 * 4) & 15;
                    *out = half_of_e4m3(block[group]) * f32::from(E2M1[usize::from(code)]);
                }
            }
            _ => super::grids::decode(self, block, out),
        }
    }
}

/// Half of 2^(exponent - 127): the levels are doubled.
fn power_of_two(exponent: u8) -> f32 {
    match exponent {
        exponent @ 0..2 => f32::from_bits(0x0020_0000 << exponent),
        exponent => f32::from_bits((u32::from(exponent) - 1) << 23),
    }
}

/// Half of an e4m3 without a sign; what would be no number is zero, as llama.cpp has it.
fn half_of_e4m3(code: u8) -> f32 {
    match code {
        0x7f => 0.0,
        0xff => 240.0,
        code => crate::weights::dtype::f8_e4m3(code & 0x7f) * 0.5,
    }
}

pub(super) fn half_at(bytes: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
}

/// Codes of four bits: value i and value i + 16 in one byte.
fn halves(codes: &[u8], out: &mut [f32], value: impl Fn(u8, usize) -> f32) {
    for (i, out) in out.iter_mut().enumerate() {
        *out = value(codes[i % 16] >> (i / 16 * 4) & 15, i);
    }
}

/// With the fifth bit from elsewhere.
fn fifth(code: u8, high: u32, index: usize) -> f32 {
    f32::from(code | ((high >> index & 1) << 4) as u8)
}

/// Scale and offset of a group of `Q4_K` and `Q5_K`, six bits each, of eight groups in twelve bytes.
fn six_bits(packed: &[u8], group: usize) -> (u8, u8) {
    match group {
        0..4 => (packed[group] & 63, packed[group + 4] & 63),
        _ => {
            let (low, scale, offset) = (packed[group + 4], packed[group - 4], packed[group]);
            (low & 15 | (scale >> 2 & 0x30), low >> 4 | (offset >> 2 & 0x30))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// Random blocks of each type, and what llama.cpp's Python package `gguf` makes of them (`tools/fixture_gguf.py`).
    #[test]
    fn blocks_are_what_the_reference_decodes() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/gguf");
        let bytes = std::fs::read(folder.join("blocks.safetensors")).unwrap();
        let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let mut seen = 0;
        for number in 0..64 {
            let Some(kind) = Kind::of(number) else { continue };
            let (values, size) = kind.block();
            if values == 1 {
                continue;
            }
            let blocks = tensors.tensor(&format!("{number}.blocks")).unwrap().data().to_vec();
            let expected = tensors.tensor(&format!("{number}.values")).unwrap().data().to_vec();
            let expected = expected.as_chunks::<4>().0.iter().map(|value| f32::from_le_bytes(*value));
            let mut mine = vec![0.0; blocks.len() / size * values];
            for (block, out) in blocks.chunks(size).zip(mine.chunks_mut(values)) {
                kind.decode(block, out);
            }
            assert!(mine.len() >= 256 && mine.iter().copied().eq(expected), "{kind:?}");
            seen += 1;
        }
        assert_eq!(seen, 23);
    }
}
