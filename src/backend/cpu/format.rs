//! How weights are packed: blocks of 16 rows, interleaved so that one line gives all rows their next columns.
//!
//! Per block, with the columns padded by zeros to whole groups of 32:
//! ```text
//! F32   line c       row 0..16: column c                       64 bytes a column
//! F16   half line c  row 0..16: column c                       32 bytes a column
//! Bf16  line c       row 0..16: columns 2c, 2c+1               64 bytes for two (the layout of AMX's B tiles)
//! Q8    line c       row 0..16: columns 4c..4c+4, plus 128     64 bytes for four, then the scales
//! Q4    line c       row 0..16: columns 8c..8c+4 plus 8 in the low nibbles, 8c+4..8c+8 in the high, then the scales
//! ```
//! Scales are f16, (groups, 16 rows). Both quantized formats hold a scale and 32 whole numbers for a group, value =
//! scale * number: those of GGUF's `Q8_0` and `Q4_0`, in another order.

#![expect(clippy::needless_range_loop, reason = "closures would not be compiled for the instruction set")]

use std::borrow::Cow;

use half::f16;

use super::vector::{LANES, LINE, STORED_ZERO};
use crate::backend::{Buf, Quantize};
use crate::weights::Dtype;
use crate::weights::dtype::q4_numbers;

/// Columns that share a scale.
pub const GROUP: usize = Buf::GROUP;

/// How a matrix is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    F32,
    F16,
    Bf16,
    Q8,
    Q4,
}

impl Format {
    /// The format of a matrix stored as `dtype`.
    pub fn of(dtype: Dtype, quantize: Option<Quantize>) -> Self {
        match (quantize, dtype) {
            (Some(Quantize::Q4), _) | (_, Dtype::Q4) => Self::Q4, // eight bits would not say more
            (Some(Quantize::Q8), _) | (None, Dtype::Q8) => Self::Q8,
            (None, Dtype::F32) => Self::F32,
            (None, Dtype::F16) => Self::F16,
            (None, Dtype::Bf16 | Dtype::F8) => Self::Bf16,
        }
    }

    /// Bytes of a block's lines.
    pub fn line_bytes(self, cols: usize) -> usize {
        let cols = cols.next_multiple_of(GROUP);
        match self {
            Self::F32 => cols * LINE,
            Self::F16 | Self::Bf16 => cols * LINE / 2,
            Self::Q8 => cols * LINE / 4,
            Self::Q4 => cols * LINE / 8,
        }
    }

    /// Bytes of a block, scales included.
    pub fn block_bytes(self, cols: usize) -> usize {
        let scales = match self {
            Self::Q8 | Self::Q4 => cols.div_ceil(GROUP) * LANES * 2,
            _ => 0,
        };
        self.line_bytes(cols) + scales
    }

    /// Packs up to 16 rows into a block that is all zeros.
    ///
    /// # Errors
    /// A value is too large for a scale of f16.
    #[inline(always)] // into a function of the instruction set, which rounds in one instruction
    pub fn pack(
        self,
        dtype: Dtype,
        cols: usize,
        rows: &[Cow<'_, [u8]>],
        block: &mut [u8],
    ) -> Result<(), TooLarge> {
        let (lines, scales) = block.split_at_mut(self.line_bytes(cols));
        for (group, first) in (0..cols).step_by(GROUP).enumerate() {
            let count = GROUP.min(cols - first);
            for (lane, row) in rows.iter().enumerate() {
                let bytes = dtype.group(row, first, cols);
                match self {
                    Self::F32 => scatter::<4>(bytes, &mut lines[first * LINE..], lane, LINE),
                    Self::F16 => scatter::<2>(bytes, &mut lines[first * LINE / 2..], lane, LINE / 2),
                    Self::Bf16 if count.is_multiple_of(2) => {
                        scatter::<4>(bytes, &mut lines[first * LINE / 2..], lane, LINE);
                    }
                    Self::Bf16 => {
                        let mut even = bytes.to_vec(); // an odd number of columns: the last line gets a zero
                        even.extend([0, 0]);
                        scatter::<4>(&even, &mut lines[first * LINE / 2..], lane, LINE);
                    }
                    Self::Q8 | Self::Q4 => {
                        let at = (group * LANES + lane) * 2;
                        let scale = &mut scales[at..at + 2];
                        let (step, numbers) = self.numbers(dtype, bytes, count)?;
                        if self == Self::Q8 {
                            scale.copy_from_slice(&step.to_le_bytes());
                            let mut stored = [0; GROUP];
                            for i in 0..GROUP {
                                stored[i] = (i32::from(numbers[i]) + STORED_ZERO) as u8;
                            }
                            scatter::<4>(&stored, &mut lines[first * LINE / 4..], lane, LINE);
                        } else {
                            scale.copy_from_slice(&step.to_le_bytes());
                            let mut nibbles = [0; GROUP / 2];
                            for i in 0..GROUP / 2 {
                                let low = i / 4 * 8 + i % 4;
                                nibbles[i] = (numbers[low] + 8) as u8 | ((numbers[low + 4] + 8) as u8) << 4;
                            }
                            scatter::<4>(&nibbles, &mut lines[first * LINE / 8..], lane, LINE);
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// The scale and numbers of a group: as they are stored, or quantized.
    ///
    /// # Errors
    /// A value is too large for a scale of f16.
    #[inline(always)]
    pub fn numbers(self, dtype: Dtype, bytes: &[u8], count: usize) -> Result<(f16, [i8; GROUP]), TooLarge> {
        let stored = |bytes: &[u8]| f16::from_le_bytes([bytes[0], bytes[1]]);
        match (self, dtype) {
            (Self::Q8, Dtype::Q8) => {
                let mut numbers = [0; GROUP];
                for i in 0..count {
                    numbers[i] = bytes[2 + i] as i8;
                }
                Ok((stored(bytes), numbers))
            }
            (Self::Q4, Dtype::Q4) => {
                let mut numbers = q4_numbers(&bytes[2..]);
                numbers[count..].fill(0);
                Ok((stored(bytes), numbers))
            }
            _ => {
                let mut values = [0.0; GROUP];
                dtype.read_all(bytes, &mut values[..count]);
                if self == Self::Q8 { quantize8(&values) } else { quantize4(&values) }
            }
        }
    }

    /// One value of a packed block.
    pub fn value(self, block: &[u8], cols: usize, lane: usize, col: usize) -> f32 {
        let (lines, scales) = block.split_at(self.line_bytes(cols));
        let scale = || Dtype::F16.read(&scales[(col / GROUP * LANES + lane) * 2..][..2]);
        match self {
            Self::F32 => Dtype::F32.read(&lines[col * LINE + lane * 4..][..4]),
            Self::F16 => Dtype::F16.read(&lines[col * LINE / 2 + lane * 2..][..2]),
            Self::Bf16 => Dtype::Bf16.read(&lines[col / 2 * LINE + lane * 4 + col % 2 * 2..][..2]),
            Self::Q8 => {
                let stored = lines[col / 4 * LINE + lane * 4 + col % 4];
                (i32::from(stored) - STORED_ZERO) as f32 * scale()
            }
            Self::Q4 => {
                let nibbles = lines[col / 8 * LINE + lane * 4 + col % 4];
                let nibble = if col % 8 < 4 { nibbles & 15 } else { nibbles >> 4 };
                (i32::from(nibble) - 8) as f32 * scale()
            }
        }
    }
}

/// A value does not fit: its scale would be beyond f16.
#[derive(Clone, Copy, Debug)]
pub struct TooLarge;

/// Puts each `N` bytes of a row into its lane of the next line.
#[inline(always)]
fn scatter<const N: usize>(bytes: &[u8], lines: &mut [u8], lane: usize, line: usize) {
    for (i, piece) in bytes.as_chunks::<N>().0.iter().enumerate() {
        lines[i * line + lane * N..][..N].copy_from_slice(piece);
    }
}

/// A scale, and its reciprocal; zero has none.
#[inline(always)]
fn scale_of(step: f32) -> Result<(f16, f32, f32), TooLarge> {
    let scale = f16::from_f32(step);
    let wide = scale.to_f32();
    match wide.is_finite() {
        true => Ok((scale, wide, if wide == 0.0 { 0.0 } else { 1.0 / wide })),
        false => Err(TooLarge),
    }
}

/// Whole numbers within ±127, and the scale: the largest magnitude over 127.
#[inline(always)]
pub fn quantize8(values: &[f32; GROUP]) -> Result<(f16, [i8; GROUP]), TooLarge> {
    let mut largest = 0.0_f32;
    for value in values {
        largest = largest.max(value.abs());
    }
    let (scale, _, inverse) = scale_of(largest / 127.0)?;
    let mut numbers = [0; GROUP];
    for i in 0..GROUP {
        numbers[i] = (values[i] * inverse).round_ties_even().clamp(-127.0, 127.0) as i8;
    }
    Ok((scale, numbers))
}

/// Whole numbers from -8 to 7, and the scale with the smallest squared error of several that are tried: the value of
/// largest magnitude is taken for -8 exactly, or a little beyond, which clips it and serves the others better.
#[inline(always)]
pub fn quantize4(values: &[f32; GROUP]) -> Result<(f16, [i8; GROUP]), TooLarge> {
    /// What the largest magnitude is taken for.
    const ENDS: [f32; 8] = [-8.0, 7.0, -7.5, -8.5, -9.0, -9.5, -10.0, -7.0];
    let (mut most, mut least) = (0.0_f32, 0.0_f32);
    for &value in values {
        most = most.max(value);
        least = least.min(value);
    }
    let largest = if most > -least { most } else { least };
    let mut best = (f32::INFINITY, f16::ZERO, 0.0);
    for end in ENDS {
        let (scale, wide, inverse) = scale_of(largest / end)?;
        let mut errors = [0.0_f32; 8];
        for i in 0..GROUP {
            let error = values[i] - nibble(values[i] * inverse) * wide;
            errors[i % 8] += error * error;
        }
        let mut error = 0.0;
        for part in errors {
            error += part;
        }
        if error < best.0 {
            best = (error, scale, inverse);
        }
    }
    let mut numbers = [0; GROUP];
    for i in 0..GROUP {
        numbers[i] = nibble(values[i] * best.2) as i8;
    }
    Ok((best.1, numbers))
}

#[inline(always)]
fn nibble(scaled: f32) -> f32 {
    scaled.round_ties_even().clamp(-8.0, 7.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(seed: u64) -> [f32; GROUP] {
        std::array::from_fn(|i| (crate::sample::rng::uniform(seed, i as u64) * 2.0 - 1.0) as f32)
    }

    /// Every format, cut off at any column and row, gives back what was packed.
    #[test]
    fn packed_values_are_read_back() {
        for cols in [1, 2, 7, 31, 32, 33, 64, 71] {
            for count in [1, 5, 16] {
                for dtype in [Dtype::F32, Dtype::F16, Dtype::Bf16] {
                    let cell = |row: usize, col: usize| values(row as u64 + 1)[col % GROUP];
                    let rows: Vec<Vec<u8>> = (0..count)
                        .map(|row| (0..cols).flat_map(|col| dtype.write(cell(row, col))).collect())
                        .collect();
                    let rows: Vec<_> = rows.iter().map(|row| Cow::Borrowed(row.as_slice())).collect();
                    for quantize in [None, Some(Quantize::Q8), Some(Quantize::Q4)] {
                        let format = Format::of(dtype, quantize);
                        let mut block = vec![0; format.block_bytes(cols)];
                        format.pack(dtype, cols, &rows, &mut block).unwrap();
                        for row in 0..count {
                            for col in 0..cols {
                                let stored =
                                    dtype.read(&rows[row][dtype.row_bytes(col)..dtype.row_bytes(col + 1)]);
                                let error = (format.value(&block, cols, row, col) - stored).abs();
                                let allowed = match quantize {
                                    None => 0.0,
                                    Some(Quantize::Q8) => 0.51 / 127.0,
                                    Some(Quantize::Q4) => 1.01 / 7.0,
                                };
                                assert!(error <= allowed, "{format:?} {cols} {row} {col}: {error}");
                            }
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn scales_cover_the_extremes() {
        let largest = [0.0, 1e-9, 1e-41, 1e-4, 1.0, 1e5];
        for size in largest {
            let values = values(3).map(|value| value * size);
            let (scale, numbers) = quantize8(&values).unwrap();
            for (value, number) in values.iter().zip(numbers) {
                // scales below the smallest f16 give zeros: an error of half of its smallest step times 127
                let error = (value - scale.to_f32() * f32::from(number)).abs();
                assert!(error <= size * 0.6 / 127.0 + 4e-6, "{size}: {value}, {error}");
            }
            assert!(quantize4(&values).is_ok());
        }
        assert!(quantize8(&[1e9; GROUP]).is_err() && quantize4(&[-1e9; GROUP]).is_err());
    }

    /// No scale that rounds to the nearest step can be off by more than what the plain choice would be.
    #[test]
    fn four_bits_are_no_worse_than_the_plain_choice() {
        for seed in 0..200 {
            let values = values(seed);
            let (scale, numbers) = quantize4(&values).unwrap();
            let largest = values
                .iter()
                .fold(0.0_f32, |most, &value| if value.abs() > most.abs() { value } else { most });
            let plain = f16::from_f32(largest / -8.0).to_f32();
            let squares = |found: &dyn Fn(usize) -> f32| -> f32 {
                values.iter().enumerate().map(|(i, value)| (value - found(i)).powi(2)).sum()
            };
            let ours = squares(&|i| scale.to_f32() * f32::from(numbers[i]));
            let theirs = squares(&|i| plain * (values[i] / plain).round().clamp(-8.0, 7.0));
            assert!(ours <= theirs * 1.000_01, "{seed}: {ours}, {theirs}");
        }
    }
}
