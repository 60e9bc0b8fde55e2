//! Floating point of eight bits, as DeepSeek and Qwen publish it (`weight_scale_inv`, one for each block) and as FBGEMM
//! does (`weight_scale`, one for each row or for all). `weight = scale * value`, whatever the name of the scale says.

use std::sync::Arc;

use super::{Coded, Found, GROUP, Row};
use crate::error::Result;
use crate::weights::Dtype;
use crate::weights::checkpoint::{Checkpoint, Raw};
use crate::weights::json::Json;

/// The scheme.
#[derive(Debug)]
pub struct Fp8 {
    block: Option<[usize; 2]>,
}

#[derive(Debug)]
struct Matrix {
    codes: Raw,
    scales: Raw,
    block: [usize; 2],
    across: usize,
}

impl Fp8 {
    pub fn of(json: &Json) -> Result<Self> {
        if json.text("fmt")?.is_some_and(|fmt| fmt != "e4m3") {
            return Err(json.wrong("fmt", "e4m3"));
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

    pub fn find(&self, checkpoint: &Checkpoint, name: &str, rows: usize, cols: usize) -> Found {
        let weight = format!("{name}.weight");
        if checkpoint.dtype(&weight) != Some(safetensors::Dtype::F8_E4M3) {
            return Ok(None);
        }
        let codes = checkpoint.raw(&weight, &[rows, cols], &[safetensors::Dtype::F8_E4M3])?;
        for beside in ["input_scale", "activation_scale", "input_scale_ub"] {
            checkpoint.ask(&format!("{name}.{beside}"));
        }
        let inverse = format!("{name}.weight_scale_inv");
        let scale = if checkpoint.has(&inverse) { inverse } else { format!("{name}.weight_scale") };
        let (block, shape) = match (self.block, checkpoint.shape(&scale)) {
            (Some([down, across]), _) => ([down, across], vec![rows.div_ceil(down), cols.div_ceil(across)]),
            (None, Some(shape)) if shape.iter().product::<usize>() == 1 => ([rows, cols], shape.to_vec()),
            (None, Some([_])) => ([1, cols], vec![rows]),
            (None, _) => ([1, cols], vec![rows, 1]),
        };
        let scales = checkpoint.raw_floats(&scale, &shape)?;
        let matrix = Matrix { codes, scales, block, across: cols.div_ceil(block[1]) };
        let groups = matrix.across == 1 || block[1].is_multiple_of(GROUP);
        Ok(Some((Arc::new(matrix), if groups { Dtype::F8 } else { Dtype::Bf16 })))
    }
}

impl Coded for Matrix {
    fn row(&self, row: usize, out: &mut Row<'_>) {
        let codes = &self.codes.bytes()[row * out.cols()..];
        let scale = |col: usize| self.scales.float(row / self.block[0] * self.across + col / self.block[1]);
        out.floats(codes, scale);
    }

    fn parts(&self) -> Vec<&Raw> {
        vec![&self.codes, &self.scales]
    }
}
