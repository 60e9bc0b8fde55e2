//! Rows of activations as the tiles read them: what makes them writes them so, in groups of 32 columns, and no pass
//! over memory goes into converting.
//!
//! ```text
//! F32    f32, zeros up to whole groups
//! Bf16   the same in bf16
//! Bytes  records of 40 bytes, one for each group: the scale (f32), the sum of the numbers (i32), 32 signed bytes
//! ```
//! A record's scale is the largest magnitude over 127, its numbers the values over the scale, rounded to nearest, ties
//! to even. Groups whose magnitudes are all below 1e-30 are zeros; one that holds an infinity or what is not a number
//! has such a scale, which spoils every sum: an overflow must reach the logits, not vanish.
#![expect(unsafe_code, reason = "kernels on raw pointers; the job's maker vouches for sizes")]

use super::format::GROUP;
use super::vector::{LANES, Vector};
use crate::backend::packed::{OperandType, RECORD, int8_scale_of};

/// Writes one group of a row.
///
/// # Safety
/// The row has the group; the instruction set is there.
#[inline(always)]
pub unsafe fn write_group<V: Vector>(operand: OperandType, row: *mut u8, group: usize, values: [V; 2]) {
    let [low, high] = values;
    // SAFETY: the caller's contract.
    unsafe {
        match operand {
            OperandType::F32 => {
                let to = row.cast::<f32>().add(group * GROUP);
                low.store(to);
                high.store(to.add(LANES));
            }
            OperandType::Bf16 => {
                let to = row.add(group * GROUP * 2);
                low.store_bf16(to);
                high.store_bf16(to.add(LANES * 2));
            }
            OperandType::F16 => unreachable!("no matrix of the CPU asks for it"),
            OperandType::Bytes => {
                let largest = V::magnitude(values);
                let (scale, inverse) = int8_scale_of(largest);
                let inverse = V::splat(inverse);
                let record = row.add(group * RECORD);
                let rounded = [low.mul(inverse).round(), high.mul(inverse).round()];
                let sum = V::store_bytes(rounded, record.add(8));
                record.cast::<f32>().write_unaligned(scale);
                record.add(4).cast::<i32>().write_unaligned(sum);
            }
        }
    }
}

/// The value of one column, for tests.
#[cfg(test)]
pub fn value(operand: OperandType, row: &[u8], col: usize) -> f32 {
    use crate::weights::Dtype;
    match operand {
        OperandType::F32 => Dtype::F32.read(&row[col * 4..][..4]),
        OperandType::Bf16 => Dtype::Bf16.read(&row[col * 2..][..2]),
        OperandType::F16 => Dtype::F16.read(&row[col * 2..][..2]),
        OperandType::Bytes => {
            let record = &row[col / GROUP * RECORD..][..RECORD];
            Dtype::F32.read(&record[..4]) * f32::from(record[8 + col % GROUP] as i8)
        }
    }
}
