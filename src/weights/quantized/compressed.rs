//! compressed-tensors, as vLLM's LLM Compressor writes it, in its formats `pack-quantized`, `int-quantized`,
//! `float-quantized`, `naive-quantized`, `nvfp4-pack-quantized` and `mxfp4-pack-quantized`.
//!
//! Packed: `weight_packed` (rows, cols / n) has n numbers of consecutive columns in a word, each plus half of its range;
//! `weight_zero_point` (rows / n, groups) likewise of consecutive rows; `weight_shape`; `weight_g_idx` (cols). Else
//! `weight` (rows, cols), and `weight_zero_point` as `weight_scale`. That is (groups of rows, groups of columns): one
//! for all, for each row, for groups of columns of each row, or for blocks. `weight = scale * (number - zero)`.

use std::sync::Arc;

use super::{Found, GROUP, QuantizedMatrix, Row, fp4, one_of, packed};
use crate::error::Result;
use crate::weights::Dtype;
use crate::weights::checkpoint::{Checkpoint, Raw};
use crate::weights::json::Json;

/// Groups of a checkpoint.
const MAX_GROUPS: usize = 64;

/// The scheme. A checkpoint may have several groups of layers, quantized in different ways; which of them a matrix is in
/// shows in the types and shapes of its tensors.
#[derive(Debug)]
pub struct Compressed(Vec<Group>);

/// How the matrices of a group are quantized.
#[derive(Debug)]
enum Group {
    Eight(Numbers),
    Nvfp4,
    Mxfp4,
}

/// Whole numbers, or floating point of eight bits.
#[derive(Debug)]
struct Numbers {
    bits: usize,
    float: bool,
    symmetric: bool,
    /// Rows and columns that share a scale.
    shared: Shared,
}

#[derive(Clone, Copy, Debug)]
enum Shared {
    All,
    Row,
    Columns(usize),
    Block(usize, usize),
}

#[derive(Debug)]
struct Matrix {
    numbers: Raw,
    zeros: Option<Raw>,
    scales: Raw,
    groups: Option<Raw>,
    bits: usize,
    packed: bool,
    float: bool,
    /// Rows and columns that share a scale.
    shared: [usize; 2],
    /// Scales in a row of them.
    across: usize,
}

impl Compressed {
    pub fn of(json: &Json) -> Result<Self> {
        let groups = json.object("config_groups")?.ok_or_else(|| json.wrong("config_groups", "an object"))?;
        let mut all = Vec::new();
        for name in groups.names().take(MAX_GROUPS) {
            let group = groups.object(name)?.ok_or_else(|| groups.wrong(name, "an object"))?;
            // a group may be of activations only
            if let Some(weights) = group.object("weights")? {
                all.push(Group::of(&weights)?);
            }
        }
        if all.is_empty() || groups.names().count() > MAX_GROUPS {
            let expected = format!("an object of 1 to {MAX_GROUPS} groups, one with `weights` among them");
            return Err(json.wrong("config_groups", expected));
        }
        Ok(Self(all))
    }

    pub fn find(&self, checkpoint: &Checkpoint, name: &str, rows: usize, cols: usize) -> Found {
        if !checkpoint.has(&format!("{name}.weight_scale")) {
            return Ok(None);
        }
        super::ask_beside(checkpoint, name);
        let mut first = None;
        for group in &self.0 {
            let found = match group {
                Group::Eight(numbers) => numbers.find(checkpoint, name, rows, cols),
                Group::Nvfp4 => fp4::nvfp4(fp4::Names::Compressed, checkpoint, name, rows, cols),
                Group::Mxfp4 => fp4::mxfp4(fp4::Names::Compressed, checkpoint, name, rows, cols),
            };
            match found {
                Ok(Some(found)) => return Ok(Some(found)),
                Ok(None) => {}
                Err(error) => first = first.or(Some(error)),
            }
        }
        first.map_or(Ok(None), Err)
    }
}

impl Group {
    fn of(weights: &Json) -> Result<Self> {
        let float = match weights.text("type")? {
            None | Some("int") => false,
            Some("float") => true,
            Some(_) => return Err(weights.wrong("type", "int or float")),
        };
        let bits = weights.required_size("num_bits", 8)?;
        if float && bits == 4 {
            return match (weights.text("strategy")?, weights.size("group_size", 1 << 20)?) {
                (Some("tensor_group"), Some(16)) => Ok(Self::Nvfp4),
                (Some("group"), Some(32)) => Ok(Self::Mxfp4),
                _ => {
                    Err(weights.wrong("strategy", "tensor_group of 16, or group of 32, for float of 4 bits"))
                }
            };
        }
        if ![4, 8].contains(&bits) {
            return Err(weights.wrong("num_bits", "8 or 4"));
        }
        let shared = match weights.text("strategy")? {
            Some("tensor") => Shared::All,
            Some("channel") => Shared::Row,
            Some("group") => Shared::Columns(weights.required_size("group_size", 1 << 20)?),
            Some("block") => {
                let sides = weights.field("block_structure").and_then(serde_json::Value::as_array);
                let side = |i: usize| {
                    let side = sides.and_then(|sides| sides.get(i)?.as_u64()).filter(|side| *side > 0);
                    side.and_then(|side| usize::try_from(side).ok())
                };
                let (Some(rows), Some(cols)) = (side(0), side(1)) else {
                    return Err(weights.wrong("block_structure", "two whole numbers from 1"));
                };
                Shared::Block(rows, cols)
            }
            _ => return Err(weights.wrong("strategy", "tensor, channel, group or block")),
        };
        let symmetric = weights.flag("symmetric", true)?;
        Ok(Self::Eight(Numbers { bits, float, symmetric, shared }))
    }
}

impl Numbers {
    fn find(&self, checkpoint: &Checkpoint, name: &str, rows: usize, cols: usize) -> Found {
        use safetensors::Dtype as D;
        let scale_name = format!("{name}.weight_scale");
        let raw = |suffix: &str, shape: &[usize], dtypes: &[D]| {
            checkpoint.raw(&format!("{name}.{suffix}"), shape, dtypes)
        };
        let shared = match self.shared {
            Shared::All => [rows, cols],
            Shared::Row => [1, cols],
            Shared::Columns(group) => [1, group],
            Shared::Block(rows, cols) => [rows, cols],
        };
        let (down, across) = (rows.div_ceil(shared[0]), cols.div_ceil(shared[1]));
        let shape = &match self.shared {
            Shared::All => one_of(checkpoint, &scale_name, &[&[1], &[], &[1, 1]]),
            Shared::Row => one_of(checkpoint, &scale_name, &[&[rows, 1], &[rows]]),
            _ => vec![down, across],
        };
        let packed = checkpoint.has(&format!("{name}.weight_packed"));
        let each = 32 / self.bits;
        let numbers = match (packed, self.float) {
            (true, _) => raw("weight_packed", &[rows, cols.div_ceil(each)], &[D::I32])?,
            (false, true) => raw("weight", &[rows, cols], &[D::F8_E4M3])?,
            (false, false) => raw("weight", &[rows, cols], &[D::I8])?,
        };
        let zeros = match (self.symmetric, packed) {
            (true, _) => {
                checkpoint.ask(&format!("{name}.weight_zero_point")); // some write zeros
                None
            }
            (false, true) => Some(raw("weight_zero_point", &[down.div_ceil(each), across], &[D::I32])?),
            (false, false) => Some(raw("weight_zero_point", shape, &[D::I8])?),
        };
        checkpoint.ask(&format!("{name}.weight_shape"));
        let groups = match checkpoint.has(&format!("{name}.weight_g_idx")) {
            true => Some(raw("weight_g_idx", &[cols], &[D::I32])?),
            false => None,
        };
        if let Some(index) = &groups
            && (0..cols).any(|col| index.u32(col) as usize >= across)
        {
            return Err(index.wrong(format!("hold numbers below {across}, the number of groups")));
        }
        let scales = checkpoint.raw_floats(&scale_name, shape)?;
        let in_groups = groups.is_none() && (shared[1].is_multiple_of(GROUP) || across == 1);
        let dtype = match self.float {
            true if in_groups => Dtype::F8,
            true => Dtype::Bf16,
            false if in_groups && self.bits == 4 && self.symmetric => Dtype::Q4,
            false => Dtype::Q8,
        };
        let (bits, float) = (self.bits, self.float);
        let matrix = Matrix { numbers, zeros, scales, groups, bits, packed, float, shared, across };
        Ok(Some((Arc::new(matrix), dtype)))
    }
}

impl Matrix {
    fn scale_at(&self, row: usize, col: usize) -> usize {
        let across = match &self.groups {
            Some(groups) => groups.u32(col) as usize,
            None => col / self.shared[1],
        };
        row / self.shared[0] * self.across + across
    }

    fn number(&self, row: usize, col: usize) -> i32 {
        let (each, half) = (32 / self.bits, 1 << (self.bits - 1));
        if !self.packed {
            let number = |raw: &Raw, at: usize| i32::from(raw.bytes()[at] as i8);
            let zero = self.zeros.as_ref().map_or(0, |zeros| number(zeros, self.scale_at(row, col)));
            return number(&self.numbers, row * self.numbers.shape[1] + col) - zero;
        }
        let word = self.numbers.u32(row * self.numbers.shape[1] + col / each);
        let zero = self.zeros.as_ref().map_or(half, |zeros| {
            let (down, across) =
                (self.scale_at(row, col) / self.across, self.scale_at(row, col) % self.across);
            packed(zeros.u32(down / each * self.across + across), self.bits, down % each)
        });
        packed(word, self.bits, col % each) - zero
    }
}

impl QuantizedMatrix for Matrix {
    fn row(&self, row: usize, out: &mut Row<'_>) {
        let scale = |col: usize| self.scales.float(self.scale_at(row, col));
        if self.float {
            let codes = &self.numbers.bytes()[row * out.cols()..];
            out.floats(codes, scale);
        } else if self.groups.is_none() && (self.shared[1].is_multiple_of(GROUP) || self.across == 1) {
            out.numbers(|first, numbers| {
                numbers.iter_mut().enumerate().for_each(|(i, n)| *n = self.number(row, first + i));
                scale(first)
            });
        } else {
            out.values(|first, values| {
                for (i, value) in values.iter_mut().enumerate() {
                    *value = scale(first + i) * self.number(row, first + i) as f32;
                }
            });
        }
    }

    fn parts(&self) -> Vec<&Raw> {
        [&self.numbers, &self.scales].into_iter().chain(&self.zeros).chain(&self.groups).collect()
    }
}
