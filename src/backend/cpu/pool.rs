//! Pooling: the rows of a text to one. A thousandth of a step's work, so one thread and plain loops.

use std::ops::Range;

use super::memory::CpuMemory;
use crate::backend::{Buf, Pooling};

/// See [`crate::backend::Backend::pool`]. Sums run over the rows in order: they do not depend on other texts.
pub fn pool(memory: &mut CpuMemory, texts: &[Range<u32>], pooling: Pooling, x: Buf, out: Buf) {
    assert_eq!(x.cols, out.cols, "pool: columns differ");
    for (text, rows) in texts.iter().enumerate() {
        assert!(!rows.is_empty(), "pool: a text without rows");
        let one = match pooling {
            Pooling::First => Some(rows.start),
            Pooling::Last => Some(rows.end - 1),
            _ => None,
        };
        if let Some(row) = one {
            memory.gather_to(row, x, text, out);
            continue;
        }
        let mut sum = 0.0_f32;
        for (index, row) in rows.clone().enumerate() {
            let (x, out) = memory.arena().read_write::<f32, f32>(x.row(row as usize), out.row(text));
            let weight = match pooling {
                Pooling::Weighted { from } => (from as usize + index) as f32,
                _ => 1.0,
            };
            sum += weight;
            for (out, x) in out.iter_mut().zip(x) {
                *out = match (index, pooling) {
                    (0, _) => x * weight,
                    (_, Pooling::Max) => out.max(*x),
                    _ => *out + x * weight,
                };
            }
        }
        let divisor = match pooling {
            Pooling::Mean | Pooling::Weighted { .. } => sum,
            Pooling::MeanSqrtLen => sum.sqrt(),
            _ => continue,
        };
        memory.arena().slice_mut::<f32>(out.row(text)).iter_mut().for_each(|value| *value /= divisor);
    }
}
