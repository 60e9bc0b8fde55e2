//! bitsandbytes as it is serialized. Four bits: `weight` has two codes in a byte, the first in the high bits, of the
//! matrix row by row; `weight.quant_map` the level of each code; `weight.absmax` the largest magnitude of each block. With
//! nested quantization that is a code too, of `weight.nested_quant_map`, times `weight.nested_absmax` of its block, plus
//! an offset; sizes are in the JSON of `weight.quant_state.bitsandbytes__nf4` (or fp4). Eight bits: `weight` (rows,
//! cols), and `SCB` (rows), the largest magnitude, which 127 stands for.

use std::sync::Arc;

use super::{Found, QuantizedMatrix, Row};
use crate::error::Result;
use crate::weights::Dtype;
use crate::weights::checkpoint::{Checkpoint, Raw};
use crate::weights::json::Json;

/// The scheme.
#[derive(Debug)]
pub struct BitsAndBytes {
    four: bool,
}

#[derive(Debug)]
struct Eight {
    numbers: Raw,
    scales: Raw,
}

#[derive(Debug)]
struct Four {
    codes: Raw,
    levels: Raw,
    largest: Raw,
    block: usize,
    nested: Option<Nested>,
}

#[derive(Debug)]
struct Nested {
    levels: Raw,
    largest: Raw,
    block: usize,
    offset: f32,
}

impl BitsAndBytes {
    pub fn of(json: &Json) -> Result<Self> {
        match (json.flag("load_in_4bit", false)?, json.flag("load_in_8bit", false)?) {
            (true, false) => Ok(Self { four: true }),
            (false, true) => Ok(Self { four: false }),
            _ => Err(json.wrong("load_in_4bit", "true, or load_in_8bit")),
        }
    }

    pub fn find(&self, checkpoint: &Checkpoint, name: &str, rows: usize, cols: usize) -> Found {
        if self.four { four(checkpoint, name, rows * cols) } else { eight(checkpoint, name, rows, cols) }
    }
}

fn eight(checkpoint: &Checkpoint, name: &str, rows: usize, cols: usize) -> Found {
    let scales = format!("{name}.SCB");
    if !checkpoint.has(&scales) {
        return Ok(None);
    }
    checkpoint.ask(&format!("{name}.weight_format"));
    let numbers = checkpoint.raw(&format!("{name}.weight"), &[rows, cols], &[safetensors::Dtype::I8])?;
    let matrix = Eight { numbers, scales: checkpoint.raw_floats(&scales, &[rows])? };
    Ok(Some((Arc::new(matrix), Dtype::Q8)))
}

fn four(checkpoint: &Checkpoint, name: &str, values: usize) -> Found {
    use safetensors::Dtype as D;
    let weight = format!("{name}.weight");
    let state = ["nf4", "fp4"].map(|kind| format!("{weight}.quant_state.bitsandbytes__{kind}"));
    let Some(state) = state.iter().find(|state| checkpoint.has(state)) else {
        return Ok(None);
    };
    let state = checkpoint.raw_any(state)?;
    let json: serde_json::Value = serde_json::from_slice(state.bytes()).unwrap_or_default();
    let size = |field: &str| {
        let size = json[field].as_u64().filter(|size| (1..1 << 20).contains(size));
        size.map(|size| size as usize)
            .ok_or_else(|| state.wrong(format!("be JSON with a whole number `{field}`")))
    };
    let block = size("blocksize")?;
    let blocks = values.div_ceil(block);
    let raw =
        |suffix: &str, shape: &[usize], dtype| checkpoint.raw(&format!("{weight}.{suffix}"), shape, &[dtype]);
    let nested = match checkpoint.has(&format!("{weight}.nested_absmax")) {
        false => None,
        true => {
            let block = size("nested_blocksize")?;
            let offset = json["nested_offset"].as_f64();
            let offset = offset.ok_or_else(|| state.wrong("be JSON with a number `nested_offset`"))?;
            Some(Nested {
                levels: raw("nested_quant_map", &[256], D::F32)?,
                largest: raw("nested_absmax", &[blocks.div_ceil(block)], D::F32)?,
                block,
                offset: offset as f32,
            })
        }
    };
    let matrix = Four {
        codes: checkpoint.raw(&weight, &[values.div_ceil(2), 1], &[D::U8])?,
        levels: raw("quant_map", &[16], D::F32)?,
        largest: raw("absmax", &[blocks], if nested.is_some() { D::U8 } else { D::F32 })?,
        block,
        nested,
    };
    Ok(Some((Arc::new(matrix), Dtype::Q8)))
}

impl QuantizedMatrix for Eight {
    fn row(&self, row: usize, out: &mut Row<'_>) {
        let numbers = &self.numbers.bytes()[row * out.cols()..];
        out.numbers(|first, group| {
            group.iter_mut().enumerate().for_each(|(i, n)| *n = i32::from(numbers[first + i] as i8));
            self.scales.float(row) / 127.0
        });
    }

    fn parts(&self) -> Vec<&Raw> {
        vec![&self.numbers, &self.scales]
    }
}

impl Four {
    fn largest(&self, block: usize) -> f32 {
        match &self.nested {
            None => self.largest.float(block),
            Some(nested) => {
                let level = nested.levels.float(usize::from(self.largest.bytes()[block]));
                level * nested.largest.float(block / nested.block) + nested.offset
            }
        }
    }
}

impl QuantizedMatrix for Four {
    fn row(&self, row: usize, out: &mut Row<'_>) {
        let start = row * out.cols();
        let codes = self.codes.bytes();
        out.values(|first, values| {
            for (i, value) in values.iter_mut().enumerate() {
                let at = start + first + i;
                let code = if at.is_multiple_of(2) { codes[at / 2] >> 4 } else { codes[at / 2] & 15 };
                *value = self.levels.float(usize::from(code)) * self.largest(at / self.block);
            }
        });
    }

    fn parts(&self) -> Vec<&Raw> {
        let nested = self.nested.iter().flat_map(|nested| [&nested.levels, &nested.largest]);
        [&self.codes, &self.levels, &self.largest].into_iter().chain(nested).collect()
    }
}
