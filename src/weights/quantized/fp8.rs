//! Floating point of eight bits, as DeepSeek and Qwen publish it (`weight_scale_inv`, one for each block) and as FBGEMM,
//! ModelOpt and Quark do (`weight_scale`, one for each row or for all). `weight = scale * value`, whatever the name of the
//! scale says. Values are e4m3; those of e5m2 become bf16.

use std::sync::Arc;

use half::f16;

use super::{Found, GROUP, QuantizedMatrix, Row, fp4};
use crate::error::Result;
use crate::weights::Dtype;
use crate::weights::checkpoint::{Checkpoint, Raw};
use crate::weights::json::Json;

/// The scheme.
#[derive(Debug)]
pub struct Fp8 {
    block: Option<[usize; 2]>,
}

/// The types of values.
pub const TYPES: [safetensors::Dtype; 2] = [safetensors::Dtype::F8_E4M3, safetensors::Dtype::F8_E5M2];

#[derive(Debug)]
struct Matrix {
    codes: Raw,
    scales: Raw,
    /// Whether values are e5m2.
    wide: bool,
    block: [usize; 2],
    across: usize,
    /// Whether scales are in the layout for tensor cores.
    blocked: bool,
}

impl Fp8 {
    pub fn of(json: &Json) -> Result<Self> {
        if json.text("fmt")?.is_some_and(|fmt| !["e4m3", "e5m2"].contains(&fmt)) {
            return Err(json.wrong("fmt", "e4m3 or e5m2"));
        }
        let block = match json.field("weight_block_size") {
            None => None,
            Some(sides) => {
                let side =
                    |i: usize| sides.get(i).and_then(serde_json::Value::as_u64).filter(|side| *side > 0);
                let (Some(rows), Some(cols)) = (side(0), side(1)) else {
                    return Err(json.wrong("weight_block_size", "two whole numbers from 1"));
                };
                Some([rows as usize, cols as usize])
            }
        };
        Ok(Self { block })
    }

    /// Without blocks: one scale for each row, or for all, as the tensors have it.
    pub fn plain() -> Self {
        Self { block: None }
    }

    pub fn find(&self, checkpoint: &Checkpoint, name: &str, rows: usize, cols: usize) -> Found {
        let weight = format!("{name}.weight");
        let Some(dtype) = checkpoint.dtype(&weight).filter(|dtype| TYPES.contains(dtype)) else {
            return Ok(None);
        };
        let codes = checkpoint.raw(&weight, &[rows, cols], &[dtype])?;
        super::ask_beside(checkpoint, name);
        let inverse = format!("{name}.weight_scale_inv");
        let scale = if checkpoint.has(&inverse) { inverse } else { format!("{name}.weight_scale") };
        let (block, shape) = match (self.block, checkpoint.shape(&scale)) {
            (Some([down, across]), _) => ([down, across], vec![rows.div_ceil(down), cols.div_ceil(across)]),
            (None, Some(shape)) if shape.iter().product::<usize>() == 1 => ([rows, cols], shape.to_vec()),
            (None, Some([_])) => ([1, cols], vec![rows]),
            (None, _) => ([1, cols], vec![rows, 1]),
        };
        Ok(Some(scaled(codes, checkpoint.raw_floats(&scale, &shape)?, block, false)))
    }
}

/// Values of one of [`TYPES`], with a scale for each block of so many rows and columns; those may be [`fp4::blocked`].
pub fn scaled(
    codes: Raw,
    scales: Raw,
    block: [usize; 2],
    blocked: bool,
) -> (Arc<dyn QuantizedMatrix>, Dtype) {
    let wide = codes.dtype() == safetensors::Dtype::F8_E5M2;
    let across = codes.shape[1].div_ceil(block[1]);
    let groups = !wide && (across == 1 || block[1].is_multiple_of(GROUP));
    let matrix = Matrix { codes, scales, wide, block, across, blocked };
    (Arc::new(matrix), if groups { Dtype::F8 } else { Dtype::Bf16 })
}

impl QuantizedMatrix for Matrix {
    fn row(&self, row: usize, out: &mut Row<'_>) {
        let codes = &self.codes.bytes()[row * out.cols()..];
        let scale = |col: usize| {
            let (down, across) = (row / self.block[0], col / self.block[1]);
            self.scales.float(match self.blocked {
                false => down * self.across + across,
                true => fp4::blocked(down, across, self.across),
            })
        };
        if self.wide {
            return out.values(|first, values| {
                for (i, value) in values.iter_mut().enumerate() {
                    // e5m2 is the upper half of an f16
                    let exact = f16::from_bits(u16::from(codes[first + i]) << 8);
                    *value = exact.to_f32() * scale(first + i);
                }
            });
        }
        out.floats(codes, scale);
    }

    fn parts(&self) -> Vec<&Raw> {
        vec![&self.codes, &self.scales]
    }
}
