//! AWQ, as AutoAWQ writes it. For its GEMM kernels `qweight` (cols, rows / 8) and `qzeros` (groups, rows / 8) have eight
//! numbers of neighbouring rows in a word, in the order 0, 2, 4, 6, 1, 3, 5, 7; `scales` (groups, rows). For its GEMV
//! kernels `qweight` (rows, cols / 8) has eight of neighbouring columns in their own order, `qzeros` (rows, groups / 8)
//! those of neighbouring groups, and `scales` (rows, groups), both wider than there are groups.
//! `weight = scale * (number - zero)`.

use std::sync::Arc;

use super::{Found, GROUP, QuantizedMatrix, Row, packed};
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
    /// The layout of GEMV.
    by_rows: bool,
}

#[derive(Debug)]
struct Matrix {
    by_rows: bool,
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
        let by_rows = match json.text("version")? {
            None => false,
            Some(version) if version.eq_ignore_ascii_case("gemm") => false,
            Some(version) if version.eq_ignore_ascii_case("gemv") => true,
            Some(_) => return Err(json.wrong("version", "gemm or gemv")),
        };
        let name = if json.field("group_size").is_some() { "group_size" } else { "q_group_size" };
        let group = match json.field(name).and_then(serde_json::Value::as_i64) {
            Some(-1) => None,
            _ => Some(json.required_size(name, 1 << 20)?),
        };
        Ok(Self { group, zeros: json.flag("zero_point", true)?, by_rows })
    }

    pub fn find(&self, checkpoint: &Checkpoint, name: &str, rows: usize, cols: usize) -> Found {
        if !checkpoint.has(&format!("{name}.qweight")) {
            return Ok(None);
        }
        let group = self.group.unwrap_or(cols);
        let groups = cols.div_ceil(group);
        let raw = |suffix: &str, shape: [usize; 2]| {
            checkpoint.raw(&format!("{name}.{suffix}"), &shape, &[safetensors::Dtype::I32])
        };
        // words of zeros in a row, as `calculate_zeros_width` has it
        let wide = match group {
            128.. => 1,
            64..128 => 2,
            _ => 4,
        };
        let zeros = groups.div_ceil(8).div_ceil(wide) * wide;
        let (numbers_of, zeros_of, scales_of) = match self.by_rows {
            true => ([rows, cols.div_ceil(8)], [rows, zeros], [rows, zeros * 8]),
            false => ([cols, rows.div_ceil(8)], [groups, rows.div_ceil(8)], [groups, rows]),
        };
        let matrix = Matrix {
            by_rows: self.by_rows,
            numbers: raw("qweight", numbers_of)?,
            zeros: if self.zeros { Some(raw("qzeros", zeros_of)?) } else { None },
            scales: checkpoint.raw_floats(&format!("{name}.scales"), &scales_of)?,
            group,
        };
        // numbers less their zeros are from -15 to 15
        let fits = !self.zeros && group.is_multiple_of(GROUP);
        Ok(Some((Arc::new(matrix), if fits { Dtype::Q4 } else { Dtype::Q8 })))
    }
}

impl Matrix {
    fn number(&self, row: usize, col: usize) -> i32 {
        let (number, group) = match self.by_rows {
            true => (in_order(&self.numbers, row, col), col / self.group),
            false => (in_turn(&self.numbers, col, row), col / self.group),
        };
        let zero = self.zeros.as_ref().map_or(8, |zeros| match self.by_rows {
            true => in_order(zeros, row, group),
            false => in_turn(zeros, group, row),
        });
        number - zero
    }

    fn scale(&self, row: usize, col: usize) -> f32 {
        let (group, width) = (col / self.group, self.scales.shape[1]);
        self.scales.float(if self.by_rows { row * width + group } else { group * width + row })
    }
}

/// Number `at` of a row whose words have neighbours in the order of GEMM.
fn in_turn(raw: &Raw, row: usize, at: usize) -> i32 {
    packed(raw.u32(row * raw.shape[1] + at / 8), 4, PLACE[at % 8])
}

/// Number `at` of a row whose words have neighbours in their own order.
fn in_order(raw: &Raw, row: usize, at: usize) -> i32 {
    packed(raw.u32(row * raw.shape[1] + at / 8), 4, at % 8)
}

impl QuantizedMatrix for Matrix {
    fn row(&self, row: usize, out: &mut Row<'_>) {
        let value = |col: usize| self.number(row, col);
        let scale = |col: usize| self.scale(row, col);
        let cols = out.cols();
        if self.group.is_multiple_of(GROUP) || self.group >= cols {
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
