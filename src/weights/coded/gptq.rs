//! GPTQ, as AutoGPTQ and GPTQModel write it: `qweight` (cols / n, rows) has n numbers of consecutive columns in a word,
//! `qzeros` (groups, rows / n) those of consecutive rows, `scales` (groups, rows), `g_idx` (cols) each column's group.
//! `weight = scale * (number - zero)`; in the first version of the format zeros are stored less one.

use std::sync::Arc;

use super::{Coded, Found, Row, packed};
use crate::error::Result;
use crate::weights::Dtype;
use crate::weights::checkpoint::{Checkpoint, Raw};
use crate::weights::json::Json;

/// The scheme.
#[derive(Debug)]
pub struct Gptq {
    bits: usize,
    group: Option<usize>,
    symmetric: bool,
    /// Columns may be in any group.
    ordered: bool,
    /// What is added to stored zeros.
    zero: i32,
}

#[derive(Debug)]
struct Matrix {
    numbers: Raw,
    zeros: Raw,
    scales: Raw,
    groups: Option<Raw>,
    group: usize,
    bits: usize,
    zero: i32,
}

impl Gptq {
    pub fn of(json: &Json) -> Result<Self> {
        let bits = json.required_size("bits", 8)?;
        if ![4, 8].contains(&bits) {
            return Err(json.wrong("bits", "4 or 8"));
        }
        let group = match json.field("group_size").and_then(serde_json::Value::as_i64) {
            Some(-1) => None,
            _ => Some(json.required_size("group_size", 1 << 20)?),
        };
        let zero = match json.text("checkpoint_format")? {
            None | Some("gptq") => 1,
            Some("gptq_v2") => 0,
            Some(_) => return Err(json.wrong("checkpoint_format", "gptq or gptq_v2")),
        };
        Ok(Self {
            bits,
            group,
            symmetric: json.flag("sym", true)?,
            ordered: json.flag("desc_act", false)?,
            zero,
        })
    }

    pub fn find(&self, checkpoint: &Checkpoint, name: &str, rows: usize, cols: usize) -> Found {
        if !checkpoint.has(&format!("{name}.qweight")) {
            return Ok(None);
        }
        let (bits, each) = (self.bits, 32 / self.bits);
        let group = self.group.unwrap_or(cols);
        let groups = cols.div_ceil(group);
        let raw = |suffix: &str, shape: &[usize], dtype| {
            checkpoint.raw(&format!("{name}.{suffix}"), shape, &[dtype])
        };
        let matrix = Matrix {
            numbers: raw("qweight", &[cols.div_ceil(each), rows], safetensors::Dtype::I32)?,
            zeros: raw("qzeros", &[groups, rows.div_ceil(each)], safetensors::Dtype::I32)?,
            scales: checkpoint.raw_floats(&format!("{name}.scales"), &[groups, rows])?,
            groups: match checkpoint.has(&format!("{name}.g_idx")) {
                true => Some(raw("g_idx", &[cols], safetensors::Dtype::I32)?),
                false => None,
            },
            group,
            bits,
            zero: self.zero,
        };
        if let Some(index) = &matrix.groups {
            for col in 0..cols {
                if index.u32(col) as usize >= groups {
                    return Err(index.wrong(format!("hold numbers below {groups}, the number of groups")));
                }
                if !self.ordered && index.u32(col) as usize != col / group {
                    return Err(index.wrong("name groups of neighbours: desc_act is false"));
                }
            }
        }
        // with columns of any group, no 32 neighbours share a scale
        let fits = bits == 4 && self.symmetric && !self.ordered && group.is_multiple_of(super::GROUP);
        Ok(Some((Arc::new(matrix), if fits { Dtype::Q4 } else { Dtype::Q8 })))
    }
}

impl Matrix {
    fn of(&self, row: usize, col: usize, group: usize) -> i32 {
        let (each, rows) = (32 / self.bits, self.numbers.shape[1]);
        let number = packed(self.numbers.u32(col / each * rows + row), self.bits, col % each);
        let zeros = self.zeros.u32(group * self.zeros.shape[1] + row / each);
        number - (packed(zeros, self.bits, row % each) + self.zero)
    }
}

impl Coded for Matrix {
    fn row(&self, row: usize, out: &mut Row<'_>) {
        let rows = self.numbers.shape[1];
        let group_of = |col: usize| match &self.groups {
            Some(groups) => groups.u32(col) as usize,
            None => col / self.group,
        };
        let cols = out.cols();
        let last = |first: usize| (first + super::GROUP).min(cols) - 1;
        let neighbours =
            (0..cols).step_by(super::GROUP).all(|first| group_of(first) == group_of(last(first)))
                && (1..cols).all(|col| group_of(col) >= group_of(col - 1));
        if neighbours {
            out.numbers(|first, numbers| {
                let group = group_of(first);
                numbers.iter_mut().enumerate().for_each(|(i, n)| *n = self.of(row, first + i, group));
                self.scales.float(group * rows + row)
            });
        } else {
            out.values(|first, values| {
                for (i, value) in values.iter_mut().enumerate() {
                    let group = group_of(first + i);
                    *value = self.scales.float(group * rows + row) * self.of(row, first + i, group) as f32;
                }
            });
        }
    }

    fn parts(&self) -> Vec<&Raw> {
        [&self.numbers, &self.zeros, &self.scales].into_iter().chain(&self.groups).collect()
    }
}
