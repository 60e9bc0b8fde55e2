//! Matrices that a checkpoint holds quantized, decoded row by row into one of our element types.
//!
//! Whole numbers with a scale for each group of columns become [`Dtype::Q8`] or [`Dtype::Q4`] without loss, where the
//! groups are 32 columns or a multiple of that and scales fit f16; columns in another order, and levels that are not
//! evenly spaced, are rounded to eight bits. Floating point of eight bits becomes [`Dtype::F8`], likewise without loss, or
//! else bf16. Quantized activations, which some
//! of these formats ask for, are not what the format says but what the backend does.

mod awq;
mod bitsandbytes;
mod compressed;
mod fp4;
mod fp8;
mod gptq;
mod hqq;
mod mxfp4;
#[cfg(test)]
mod packages;
#[cfg(test)]
mod published;
mod torchao;

use std::collections::HashMap;
use std::fmt::Debug;
use std::sync::Arc;

use half::f16;

use super::checkpoint::{Checkpoint, Raw, Tensor};
use super::dtype::{Dtype, GROUP, f8_e4m3};
use super::gguf::{self, Kind};
use super::json::Json;
use crate::error::Result;

pub use mxfp4::{Mxfp4, Transposed};

/// A matrix of a format.
pub trait QuantizedMatrix: Debug + Send + Sync {
    /// Decodes a row.
    fn row(&self, row: usize, out: &mut Row<'_>);

    /// The tensors that it is in.
    fn parts(&self) -> Vec<&Raw>;
}

/// A row on its way into an element type.
#[derive(Debug)]
pub struct Row<'a> {
    dtype: Dtype,
    cols: usize,
    bytes: &'a mut [u8],
}

impl<'a> Row<'a> {
    /// `bytes` are those of a row of `dtype`.
    pub fn new(dtype: Dtype, cols: usize, bytes: &'a mut [u8]) -> Self {
        assert_eq!(bytes.len(), dtype.row_bytes(cols), "a row of the type");
        Self { dtype, cols, bytes }
    }

    /// Columns.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// The columns of each 32 as `scale * number`: `group` is given the first column and numbers to fill, and returns the
    /// scale.
    pub fn numbers(&mut self, mut group: impl FnMut(usize, &mut [i32]) -> f32) {
        for first in (0..self.cols).step_by(GROUP) {
            let (mut numbers, count) = ([0; GROUP], GROUP.min(self.cols - first));
            let scale = group(first, &mut numbers[..count]);
            let least = if self.dtype == Dtype::Q4 { -8..=7 } else { -128..=127 };
            let exact = f16::from_f32(scale);
            let fits = numbers.iter().all(|number| least.contains(number)) && exact.to_f32().is_finite();
            match self.dtype {
                Dtype::Q8 | Dtype::Q4 if fits && (exact.is_normal() || scale == 0.0) => {
                    self.put(first, exact, &numbers);
                }
                _ => {
                    let values = numbers.map(|number| scale * number as f32);
                    self.put_values(first, &values[..count]);
                }
            }
        }
    }

    /// Floating point numbers of eight bits and the scales of columns; in [`Dtype::F8`] each 32 have that of the first.
    pub fn floats(&mut self, codes: &[u8], scale: impl Fn(usize) -> f32) {
        if self.dtype != Dtype::F8 {
            return self.values(|first, values| {
                for (i, value) in values.iter_mut().enumerate() {
                    *value = f8_e4m3(codes[first + i]) * scale(first + i);
                }
            });
        }
        for (first, codes) in (0..self.cols).step_by(GROUP).zip(codes[..self.cols].chunks(GROUP)) {
            let group = self.group(first);
            group[..4].copy_from_slice(&scale(first).to_le_bytes());
            group[4..][..codes.len()].copy_from_slice(codes);
        }
    }

    /// The values of each 32 columns: `group` is given the first column and values to fill.
    pub fn values(&mut self, mut group: impl FnMut(usize, &mut [f32])) {
        for first in (0..self.cols).step_by(GROUP) {
            let (mut values, count) = ([0.0; GROUP], GROUP.min(self.cols - first));
            group(first, &mut values[..count]);
            self.put_values(first, &values[..count]);
        }
    }

    fn group(&mut self, first: usize) -> &mut [u8] {
        let bytes = self.dtype.row_bytes(GROUP);
        let at = first / GROUP * bytes;
        let end = self.bytes.len().min(at + bytes);
        &mut self.bytes[at..end]
    }

    fn put(&mut self, first: usize, scale: f16, numbers: &[i32; GROUP]) {
        let dtype = self.dtype;
        let group = self.group(first);
        group[..2].copy_from_slice(&scale.to_le_bytes());
        match dtype {
            Dtype::Q8 => group[2..].iter_mut().zip(numbers).for_each(|(byte, n)| *byte = *n as i8 as u8),
            Dtype::Q4 => {
                for (i, byte) in group[2..].iter_mut().enumerate() {
                    *byte = (numbers[i] + 8) as u8 | ((numbers[i + GROUP / 2] + 8) as u8) << 4;
                }
            }
            _ => unreachable!("checked by the callers"),
        }
    }

    fn put_values(&mut self, first: usize, values: &[f32]) {
        let dtype = self.dtype;
        match dtype {
            Dtype::Q8 | Dtype::Q4 => {
                let most = if dtype == Dtype::Q8 { 127.0 } else { 7.0 };
                let largest = values.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
                // a value that is not finite gives a scale that is not, and that is refused
                let scale = match values.iter().all(|value| value.is_finite()) {
                    true => f16::from_f32(largest / most),
                    false => f16::INFINITY,
                };
                let inverse = if scale == f16::ZERO { 0.0 } else { 1.0 / scale.to_f32() };
                let mut numbers = [0; GROUP];
                for (number, value) in numbers.iter_mut().zip(values) {
                    *number = (value * inverse).round_ties_even().clamp(-most, most) as i32;
                }
                self.put(first, scale, &numbers);
            }
            _ => dtype.write_all(values, self.group(first)),
        }
    }
}

/// How a checkpoint's matrices are quantized, from `quantization_config` of its config.json.
#[derive(Debug)]
pub enum Scheme {
    Gptq(gptq::Gptq),
    Awq(awq::Awq),
    Compressed(compressed::Compressed),
    Fp8(fp8::Fp8),
    BitsAndBytes(bitsandbytes::BitsAndBytes),
    Mxfp4,
    Torchao,
    Hqq,
    /// Matrices in NVFP4, as ModelOpt writes it; others in FP8.
    Nvfp4,
    /// Matrices in MXFP4 apart, as Quark writes it.
    Mxfp4Apart,
    /// Types of the tensors, by name.
    Gguf(HashMap<String, Kind>),
}

impl Scheme {
    /// Reads it; none for a checkpoint that is not quantized.
    ///
    /// # Errors
    /// It is a scheme, or has a setting, that is not known; the error names the field.
    pub fn of(config: &Json) -> Result<Option<Self>> {
        let Some(json) = config.object("quantization_config")?.or(config.object("compression_config")?)
        else {
            return Ok(None);
        };
        Ok(Some(match json.text("quant_method")? {
            Some("gptq") => Self::Gptq(gptq::Gptq::of(&json)?),
            Some("awq") => Self::Awq(awq::Awq::of(&json)?),
            Some("compressed-tensors") => Self::Compressed(compressed::Compressed::of(&json)?),
            Some("fp8" | "fbgemm_fp8") => Self::Fp8(fp8::Fp8::of(&json)?),
            Some("bitsandbytes") => Self::BitsAndBytes(bitsandbytes::BitsAndBytes::of(&json)?),
            Some("mxfp4") => Self::Mxfp4,
            Some("torchao") => Self::Torchao,
            Some("hqq") => Self::Hqq,
            Some("auto-round") => Self::auto_round(&json)?,
            Some("modelopt" | "modelopt_fp4") => Self::modelopt(&json)?,
            Some("quark") => Self::quark(&json)?,
            Some(known @ ("quanto" | "aqlm" | "quip" | "spqr" | "vptq" | "higgs" | "eetq")) => {
                let expected = format!("{METHODS}: {known} is not supported; convert to one of these");
                return Err(json.wrong("quant_method", expected));
            }
            _ => return Err(json.wrong("quant_method", METHODS)),
        }))
    }

    /// AutoRound writes the formats of GPTQ and AWQ.
    fn auto_round(json: &Json) -> Result<Self> {
        let format = json.text("packing_format")?.unwrap_or("auto_round:auto_gptq");
        if json.text("data_type")?.is_some_and(|kind| kind != "int") {
            return Err(json.wrong("data_type", "int"));
        }
        match format {
            "auto_round:auto_gptq" | "auto_round:gptq" | "auto_gptq" => Ok(Self::Gptq(gptq::Gptq::of(json)?)),
            "auto_round:auto_awq" | "auto_round:awq" | "auto_awq" => Ok(Self::Awq(awq::Awq::of(json)?)),
            _ => Err(json.wrong("packing_format", "auto_round:auto_gptq or auto_round:auto_awq")),
        }
    }

    /// ModelOpt names algorithms; newer files have the groups of compressed-tensors too, which say less.
    fn modelopt(json: &Json) -> Result<Self> {
        let inner = json.object("quantization")?;
        let json = inner.as_ref().unwrap_or(json);
        match json.text("quant_algo")? {
            Some("FP8" | "FP8_PER_CHANNEL_PER_TOKEN") => Ok(Self::Fp8(fp8::Fp8::plain())),
            Some("NVFP4" | "W4A16_NVFP4") => Ok(Self::Nvfp4),
            _ => Err(json.wrong("quant_algo", "FP8, FP8_PER_CHANNEL_PER_TOKEN, NVFP4 or W4A16_NVFP4")),
        }
    }

    /// Quark names the type of weights, for all layers.
    fn quark(json: &Json) -> Result<Self> {
        let global = json.object("global_quant_config")?;
        let global = global.ok_or_else(|| json.wrong("global_quant_config", "an object"))?;
        let weight = global.object("weight")?.ok_or_else(|| global.wrong("weight", "an object"))?;
        match weight.text("dtype")? {
            Some("fp8_e4m3" | "fp8_e5m2") => Ok(Self::Fp8(fp8::Fp8::plain())),
            Some("fp4") => Ok(Self::Mxfp4Apart),
            _ => Err(weight.wrong("dtype", "fp8_e4m3, fp8_e5m2 or fp4")),
        }
    }

    /// The scheme of a checkpoint whose config.json names none, as its tensors show it: hqq's own writer leaves it out.
    pub fn shown_by(checkpoint: &Checkpoint) -> Option<Self> {
        checkpoint.names().any(|name| name.ends_with(".W_q")).then_some(Self::Hqq)
    }

    /// The matrix `name` (without `.weight`), if the checkpoint has it in this scheme.
    ///
    /// # Errors
    /// A tensor of it is missing or of another shape or type.
    pub fn matrix(
        &self,
        checkpoint: &Checkpoint,
        name: &str,
        rows: usize,
        cols: usize,
    ) -> Result<Option<Tensor>> {
        let found: Option<(Arc<dyn QuantizedMatrix>, Dtype)> = match self {
            Self::Gptq(scheme) => scheme.find(checkpoint, name, rows, cols)?,
            Self::Awq(scheme) => scheme.find(checkpoint, name, rows, cols)?,
            Self::Compressed(scheme) => scheme.find(checkpoint, name, rows, cols)?,
            Self::Fp8(scheme) => scheme.find(checkpoint, name, rows, cols)?,
            Self::BitsAndBytes(scheme) => scheme.find(checkpoint, name, rows, cols)?,
            Self::Mxfp4 => None, // experts only
            Self::Torchao => torchao::find(checkpoint, name, rows, cols)?,
            Self::Hqq => hqq::find(checkpoint, name, rows, cols)?,
            Self::Nvfp4 => {
                ask_beside(checkpoint, name);
                match fp4::nvfp4(fp4::Names::Plain, checkpoint, name, rows, cols)? {
                    None => fp8::Fp8::plain().find(checkpoint, name, rows, cols)?,
                    found => found,
                }
            }
            Self::Mxfp4Apart => {
                ask_beside(checkpoint, name);
                fp4::mxfp4(fp4::Names::Plain, checkpoint, name, rows, cols)?
            }
            Self::Gguf(kinds) => return gguf::find(kinds, checkpoint, name, rows, cols),
        };
        Ok(found.map(|(coded, dtype)| Tensor::quantized(coded, dtype, rows, cols)))
    }
}

/// What checkpoints may be quantized by.
const METHODS: &str = "gptq, awq, compressed-tensors, fp8, fbgemm_fp8, bitsandbytes, mxfp4, torchao, hqq, \
                       auto-round, modelopt or quark";

/// Tensors beside a matrix that are of no use here: activations are scaled as they come, and the cache of keys and values
/// is not quantized, so that its scales (`k_scale`, `v_scale`) say nothing.
const BESIDE: [&str; 12] = [
    "input_scale",
    "input_scale_ub",
    "input_zero_point",
    "input_global_scale",
    "activation_scale",
    "output_scale",
    "output_zero_point",
    "q_scale",
    "k_scale",
    "v_scale",
    "kv_scale",
    "prob_output_scale",
];

/// Counts what stands beside a matrix, or beside the attention that it is in, as read.
fn ask_beside(checkpoint: &Checkpoint, name: &str) {
    let module = name.rsplit_once('.').map_or("", |(module, _)| module);
    for beside in BESIDE {
        checkpoint.ask(&format!("{name}.{beside}"));
        checkpoint.ask(&format!("{module}.{beside}"));
        checkpoint.ask(&format!("{module}.attn.{beside}"));
    }
}

/// The shape that a tensor has, of those that it may have; else the first, for the error.
fn one_of(checkpoint: &Checkpoint, name: &str, shapes: &[&[usize]]) -> Vec<usize> {
    let found = shapes.iter().find(|shape| checkpoint.shape(name) == Some(**shape));
    found.unwrap_or(&shapes[0]).to_vec()
}

/// A found matrix, and what its rows become.
type Found = Result<Option<(Arc<dyn QuantizedMatrix>, Dtype)>>;

/// Signed or unsigned numbers of `bits` packed into words of 32, the first in the lowest bits.
fn packed(word: u32, bits: usize, index: usize) -> i32 {
    (word >> (bits * index) & ((1 << bits) - 1)) as i32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(dtype: Dtype, cols: usize, fill: impl Fn(&mut Row<'_>)) -> Vec<f32> {
        let mut bytes = vec![0; dtype.row_bytes(cols)];
        fill(&mut Row::new(dtype, cols, &mut bytes));
        let mut values = vec![0.0; cols];
        dtype.read_all(&bytes, &mut values);
        values
    }

    #[test]
    fn numbers_that_fit_are_exact() {
        for (dtype, least, most) in [(Dtype::Q8, -128, 127), (Dtype::Q4, -8, 7), (Dtype::F32, -999, 999)] {
            for cols in [1, 31, 32, 33, 70] {
                let number = |col: usize| least + (col as i32 * 7) % (most - least + 1);
                let scale = |first: usize| 0.25 + first as f32;
                let values = decoded(dtype, cols, |row| {
                    row.numbers(|first, numbers| {
                        numbers.iter_mut().enumerate().for_each(|(i, n)| *n = number(first + i));
                        scale(first)
                    });
                });
                for (col, value) in values.iter().enumerate() {
                    assert_eq!(
                        *value,
                        scale(col / GROUP * GROUP) * number(col) as f32,
                        "{dtype} {cols} {col}"
                    );
                }
            }
        }
    }

    #[test]
    fn what_does_not_fit_is_rounded() {
        let numbers = |row: &mut Row<'_>| {
            row.numbers(|_, numbers| {
                numbers.iter_mut().enumerate().for_each(|(i, n)| *n = i as i32 * 10);
                1.0
            });
        };
        for (i, value) in decoded(Dtype::Q8, 32, numbers).iter().enumerate() {
            assert!((value - i as f32 * 10.0).abs() < 310.0 / 127.0 * 0.51, "{i}: {value}");
        }
        let bad = |row: &mut Row<'_>| row.values(|_, values| values.fill(f32::NAN));
        assert!(!decoded(Dtype::Q8, 32, bad).iter().any(|value| value.is_finite()));
    }
}
