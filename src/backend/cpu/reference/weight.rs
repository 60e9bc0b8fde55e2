//! Weights as they lie in the file, or as f32.

use super::super::format::{GROUP, quantize4, quantize8};
use crate::backend::Quantize;
use crate::backend::packed::int8_scale;
use crate::error::{Error, Result};
use crate::memory::Secret;
use crate::weights::{Dtype, Tensor};

/// A weight of the reference: a matrix in the mapped file, or values of f32.
#[derive(Debug)]
pub struct Weight {
    pub data: Data,
    pub rows: usize,
    pub cols: usize,
    /// What x is rounded to before it meets this.
    pub rounded: Rounded,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rounded {
    No,
    /// To whole numbers, in groups.
    Groups,
    /// To a type of 16 bits.
    To(Dtype),
}

#[derive(Debug)]
pub enum Data {
    Mapped(Tensor),
    Table(Vec<f32>),
}

impl Weight {
    pub fn from_tensor(tensor: &Tensor, quantize: Option<Quantize>) -> Result<Self> {
        let [rows, cols] = tensor.shape[..] else {
            let values = tensor.finite_values()?;
            return Ok(Self { rows: 1, cols: values.len(), data: Data::Table(values), rounded: Rounded::No });
        };
        let tensor = &tensor.clone().in_sixteen_bits();
        if !tensor.is_finite() {
            return Err(tensor.not_finite());
        }
        if tensor.dtype.is_quantized() && !(quantize == Some(Quantize::Q4) && tensor.dtype == Dtype::Q8) {
            return Ok(Self { rows, cols, data: Data::Table(tensor.values()), rounded: Rounded::Groups });
        }
        let Some(quantize) = quantize else {
            if tensor.is_quantized() {
                // decoding a row for each of its values would take too long
                return Ok(Self { rows, cols, data: Data::Table(tensor.values()), rounded: Rounded::No });
            }
            return Ok(Self { rows, cols, data: Data::Mapped(tensor.clone()), rounded: Rounded::No });
        };
        let mut values = tensor.values();
        for group in values.chunks_mut(cols).flat_map(|row| row.chunks_mut(GROUP)) {
            let mut padded = [0.0; GROUP];
            padded[..group.len()].copy_from_slice(group);
            let (scale, numbers) = match quantize {
                Quantize::Q8 => quantize8(&padded),
                Quantize::Q4 => quantize4(&padded),
            }
            .map_err(|_| Error::tensor(&tensor.file, &tensor.name, "hold values that can be quantized"))?;
            group.iter_mut().zip(numbers).for_each(|(value, n)| *value = scale.to_f32() * f32::from(n));
        }
        Ok(Self { rows, cols, data: Data::Table(values), rounded: Rounded::Groups })
    }

    pub fn bytes(&self) -> u64 {
        match &self.data {
            Data::Mapped(tensor) => tensor.bytes(),
            Data::Table(values) => (values.len() * size_of::<f32>()) as u64,
        }
    }

    pub fn value(&self, row: usize, col: usize) -> f32 {
        match &self.data {
            Data::Table(values) => values[row * self.cols + col],
            Data::Mapped(tensor) => {
                let dtype = tensor.dtype;
                dtype.read(&tensor.row(row)[dtype.row_bytes(col)..dtype.row_bytes(col + 1)])
            }
        }
    }

    pub fn table(&self) -> &[f32] {
        match &self.data {
            Data::Table(values) => values,
            Data::Mapped(tensor) => panic!("{} is a matrix", tensor.name),
        }
    }

    /// What x is for this weight: itself, or in groups of whole numbers times the largest magnitude over 127.
    pub fn operand(&self, x: &[f32]) -> Secret<[f64]> {
        let mut operand = Secret::<[f64]>::with_capacity(x.len());
        let values = operand.refill(x.iter().map(|&x| f64::from(x)));
        if let Rounded::To(dtype) = self.rounded {
            let rounded = |x: f32| match dtype {
                Dtype::F16 => half::f16::from_f32(x).to_f32(),
                _ => half::bf16::from_f32(x).to_f32(),
            };
            values.iter_mut().zip(x).for_each(|(value, &x)| *value = f64::from(rounded(x)));
        }
        if self.rounded == Rounded::Groups {
            for (x, values) in x.chunks(GROUP).zip(values.chunks_mut(GROUP)) {
                let (scale, inverse) = int8_scale(x);
                for (x, value) in x.iter().zip(values) {
                    *value = f64::from(scale) * f64::from((x * inverse).round_ties_even());
                }
            }
        }
        operand
    }

    pub fn dot(&self, row: usize, x: &[f64], bias: Option<&Weight>) -> f64 {
        let products = x.iter().enumerate().map(|(col, x)| x * f64::from(self.value(row, col)));
        products.sum::<f64>() + bias.map_or(0.0, |bias| f64::from(bias.table()[row]))
    }
}

#[cfg(feature = "forensics")]
impl Weight {
    /// A row of a matrix.
    pub fn row(&self, row: usize) -> impl ExactSizeIterator<Item = f32> {
        (0..self.cols).map(move |col| self.value(row, col))
    }
}
