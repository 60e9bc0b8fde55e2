//! Matrices whose rows are worked out from others': with what an adapter adds, in another type, or turned over.

use std::sync::Arc;

use super::adapter::{Delta, Magnitude};
use super::checkpoint::{Raw, Tensor};
use super::dtype::Dtype;
use super::quantized::{QuantizedMatrix, Row};
use crate::error::Result;

/// W + scale * B * A, or the same values in another type.
#[derive(Debug)]
struct Made {
    from: Tensor,
    low_rank: Option<LowRank>,
}

#[derive(Debug)]
struct LowRank {
    /// A's values.
    a: Vec<f32>,
    /// Its rows are the matrix's.
    b: Tensor,
    scale: f32,
    factors: Factors,
}

/// What DoRA multiplies the sum by.
#[derive(Debug)]
enum Factors {
    None,
    /// Each row is given this length.
    Rows(Vec<f32>),
    /// Each column is multiplied.
    Cols(Vec<f64>),
}

impl LowRank {
    /// Row `row` of W, which is in `values`, with what is added; in double precision, so that the sum is rounded once.
    fn sum(&self, row: usize, values: &[f32], sums: &mut Vec<f64>) {
        let mut weights = vec![0.0; self.b.shape[1]];
        self.b.dtype.read_all(&self.b.row(row), &mut weights);
        sums.clear();
        sums.extend(values.iter().map(|value| f64::from(*value)));
        for (weight, a) in weights.iter().zip(self.a.chunks_exact(values.len())) {
            let weight = f64::from(*weight) * f64::from(self.scale);
            sums.iter_mut().zip(a).for_each(|(sum, a)| *sum += weight * f64::from(*a));
        }
    }

    fn scaled(&self, row: usize, sums: &mut [f64]) {
        match &self.factors {
            Factors::None => {}
            Factors::Rows(lengths) => {
                let factor = f64::from(lengths[row]) / length(sums.iter().copied());
                sums.iter_mut().for_each(|sum| *sum *= factor);
            }
            Factors::Cols(factors) => sums.iter_mut().zip(factors).for_each(|(sum, factor)| *sum *= factor),
        }
    }
}

fn length(values: impl Iterator<Item = f64>) -> f64 {
    values.map(|value| value * value).sum::<f64>().sqrt()
}

impl QuantizedMatrix for Made {
    fn row(&self, row: usize, out: &mut Row<'_>) {
        let mut values = vec![0.0; out.cols()];
        self.from.dtype.read_all(&self.from.row(row), &mut values);
        if let Some(low_rank) = &self.low_rank {
            let mut sums = Vec::new();
            low_rank.sum(row, &values, &mut sums);
            low_rank.scaled(row, &mut sums);
            values.iter_mut().zip(sums).for_each(|(value, sum)| *value = sum as f32);
        }
        out.values(|first, group| group.copy_from_slice(&values[first..][..group.len()]));
    }

    fn parts(&self) -> Vec<&Raw> {
        Vec::new()
    }
}

impl LowRank {
    fn of(delta: &Delta) -> Result<Self> {
        let (a, b) = (delta.a.finite_values()?, delta.b.clone());
        Ok(Self { a, b, scale: delta.scale, factors: Factors::None })
    }
}

/// What DoRA multiplies each output of the sum of a matrix and what is added by: the length that it is given over that which it
/// has. None for other adapters.
///
/// # Errors
/// A value of the adapter is not finite, or a sum has no length.
pub fn factors(tensor: &Tensor, delta: &Delta) -> Result<Option<Vec<f32>>> {
    let factors: Vec<f64> = match &delta.magnitude {
        None => return Ok(None),
        Some(Magnitude::Cols(lengths)) => column_factors(tensor, &LowRank::of(delta)?, lengths),
        Some(Magnitude::Rows(lengths)) => {
            let (low_rank, mut sums) = (LowRank::of(delta)?, Vec::new());
            let factor = |(row, wanted): (usize, &f32)| {
                low_rank.sum(row, &tensor.row_values(row), &mut sums);
                f64::from(*wanted) / length(sums.iter().copied())
            };
            lengths.iter().enumerate().map(factor).collect()
        }
    };
    tensor.forget(0..tensor.rows());
    match factors.iter().all(|factor| factor.is_finite()) {
        true => Ok(Some(factors.into_iter().map(|factor| factor as f32).collect())),
        false => Err(delta.b.not_finite()),
    }
}

/// The matrix with what the adapter adds. Whole numbers become bf16.
///
/// # Errors
/// A value of the adapter is not finite.
pub fn merged(tensor: Tensor, delta: &Delta) -> Result<Tensor> {
    let dtype = tensor.dtype.dequantized();
    let mut low_rank = LowRank::of(delta)?;
    low_rank.factors = match &delta.magnitude {
        None => Factors::None,
        Some(Magnitude::Rows(lengths)) => Factors::Rows(lengths.clone()),
        Some(Magnitude::Cols(lengths)) => Factors::Cols(column_factors(&tensor, &low_rank, lengths)),
    };
    let made = Made { from: tensor.clone(), low_rank: Some(low_rank) };
    Ok(Tensor::made(Arc::new(made), &tensor, dtype))
}

/// What makes the columns of the sum as long as `lengths` says.
fn column_factors(tensor: &Tensor, low_rank: &LowRank, lengths: &[f32]) -> Vec<f64> {
    let mut squares = vec![0.0_f64; lengths.len()];
    let (mut values, mut sums) = (vec![0.0; lengths.len()], Vec::new());
    for row in 0..tensor.rows() {
        tensor.dtype.read_all(&tensor.row(row), &mut values);
        low_rank.sum(row, &values, &mut sums);
        squares.iter_mut().zip(&sums).for_each(|(square, sum)| *square += sum * sum);
    }
    lengths.iter().zip(squares).map(|(length, square)| f64::from(*length) / square.sqrt()).collect()
}

/// This tensor, rounded to `dtype`.
pub fn rounded(tensor: &Tensor, dtype: Dtype) -> Tensor {
    Tensor::made(Arc::new(Made { from: tensor.clone(), low_rank: None }), tensor, dtype)
}

/// A matrix turned over, in f32: its columns become rows.
///
/// # Errors
/// A value is not finite.
pub fn transposed(tensor: &Tensor) -> Result<Tensor> {
    let values = tensor.finite_values()?;
    let [rows, cols] = [tensor.shape[0], tensor.shape[1]];
    let turned = (0..cols).flat_map(|col| values.iter().skip(col).step_by(cols).copied()).collect();
    let mut like = tensor.clone();
    like.shape = vec![cols, rows];
    Ok(Tensor::made(Arc::new(Values(turned)), &like, Dtype::F32))
}

/// A matrix of values that were worked out before.
#[derive(Debug)]
pub struct Values(pub Vec<f32>);

impl QuantizedMatrix for Values {
    fn row(&self, row: usize, out: &mut Row<'_>) {
        let values = &self.0[row * out.cols()..][..out.cols()];
        out.values(|first, group| group.copy_from_slice(&values[first..][..group.len()]));
    }

    fn parts(&self) -> Vec<&Raw> {
        Vec::new()
    }
}
