//! AWQ, as AutoAWQ writes it for its GEMM kernels: `qweight` (cols, rows / 8) and `qzeros` (groups, rows / 8) have eight
//! numbers of neighbouring rows in a word, in the order 0, 2, 4, 6, 1, 3, 5, 7; `scales` (groups, rows).
//! `weight = scale * (number - zero)`.

use std::sync::Arc;

use super::{Coded, Found, GROUP, Row, packed};
use crate::error::Result;
use crate::weights::Dtype;
use crate::weights::checkpoint::{Checkpoint, Raw};
use crate::weights::json::Json;

/// Where in a word a row is.
const PLACE: [usize; 8] = [0, 4, 1, 5, 2, 6, 3, 7];

/// The scheme.
#[derive(Debug)]
pub struct Awq {
    group: Option<usize>,
    zeros: bool,
}

#[derive(Debug)]
struct Matrix {
    numbers: Raw,
    zeros: Option<Raw>,
    scales: Raw,
    group: usize,
}

impl Awq {
    pub fn of(json: &Json) -> Result<Self> {
        let bits = if json.field("bits").is_some() { "bits" } else { "w_bit" };
        if json.required_size(bits, 8)? != 4 {
            return Err(json.wrong(bits, "4"));
        }
        if json.text("version")?.is_some_and(|version| !version.eq_ignore_ascii_case("gemm")) {
            return Err(json.wrong("version", "gemm"));
        }
        let name = if json.field("group_size").is_some() { "group_size" } else { "q_group_size" };
        let group = match json.field(name).and_then(serde_json::Value::as_i64) {
            Some(-1) => None,
            _ => Some(json.required_size(name, 1 << 20)?),
        };
        Ok(Self { group, zeros: json.flag("zero_point", true)? })
    }

    pub fn find(&self, checkpoint: &Checkpoint, name: &str, rows: usize, cols: usize) -> Found {
        if !checkpoint.has(&format!("{name}.qweight")) {
            return Ok(None);
        }
        let group = self.group.unwrap_or(cols);
        let groups = cols.div_ceil(group);
        let raw = |suffix: &str, rows_of: usize| {
            let shape = [rows_of, rows.div_ceil(8)];
            checkpoint.raw(&format!("{name}.{suffix}"), &shape, &[safetensors::Dtype::I32])
        };
        let matrix = Matrix {
            numbers: raw("qweight", cols)?,
            zeros: if self.zeros { Some(raw("qzeros", groups)?) } else { None },
            scales: checkpoint.raw_floats(&format!("{name}.scales"), &[groups, rows])?,
            group,
        };
        // numbers less their zeros are from -15 to 15
        let fits = !self.zeros && group.is_multiple_of(GROUP);
        Ok(Some((Arc::new(matrix), if fits { Dtype::Q4 } else { Dtype::Q8 })))
    }
}

impl Coded for Matrix {
    fn row(&self, row: usize, out: &mut Row<'_>) {
        let (words, rows) = (self.numbers.shape[1], self.scales.shape[1]);
        let number = |raw: &Raw, at: usize| packed(raw.u32(at * words + row / 8), 4, PLACE[row % 8]);
        let value = |col: usize| {
            let zero = self.zeros.as_ref().map_or(8, |zeros| number(zeros, col / self.group));
            number(&self.numbers, col) - zero
        };
        let scale = |col: usize| self.scales.float(col / self.group * rows + row);
        if self.group.is_multiple_of(GROUP) || self.scales.shape[0] == 1 {
            out.numbers(|first, numbers| {
                numbers.iter_mut().enumerate().for_each(|(i, n)| *n = value(first + i));
                scale(first)
            });
        } else {
            out.values(|first, values| {
                for (i, out) in values.iter_mut().enumerate() {
                    *out = scale(first + i) * value(first + i) as f32;
                }
            });
        }
    }

    fn parts(&self) -> Vec<&Raw> {
        [&self.numbers, &self.scales].into_iter().chain(&self.zeros).collect()
    }
}
