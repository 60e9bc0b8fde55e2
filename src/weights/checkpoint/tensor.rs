//! A tensor's rows, wherever they come from, and its bytes.

use std::borrow::Cow;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::weights::Dtype;
use crate::weights::adapter::rounded;
use crate::weights::dtype::f8_e8m0;
use crate::weights::map::Map;
use crate::weights::quantized::{QuantizedMatrix, Row};

/// A tensor in a mapped file, or a matrix that is decoded from some, or some of the rows of one.
#[derive(Clone, Debug)]
pub struct Tensor {
    pub(super) source: TensorSource,
    pub(super) rows: Rows,
    /// Its name in the checkpoint.
    pub name: String,
    /// The file that holds it.
    pub file: PathBuf,
    /// Element type.
    pub dtype: Dtype,
    /// Shape, outermost first.
    pub shape: Vec<usize>,
}

/// Where rows come from.
#[derive(Clone, Debug)]
pub(super) enum TensorSource {
    Stored {
        map: Arc<Map>,
        start: usize,
    },
    /// In double precision; rounded to single.
    Double {
        map: Arc<Map>,
        start: usize,
    },
    Quantized(Arc<dyn QuantizedMatrix>),
}

/// Which of the stored rows are the tensor's: `group` of every `stride`, from `first` on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rows {
    pub(super) first: usize,
    pub(super) group: usize,
    pub(super) stride: usize,
}

impl Tensor {
    /// Rows; of a vector, values.
    pub fn rows(&self) -> usize {
        self.shape[0]
    }

    /// Values of a row.
    fn cols(&self) -> usize {
        self.shape[1..].iter().product()
    }

    /// Bytes of a row.
    pub fn row_bytes(&self) -> usize {
        self.dtype.row_bytes(self.cols())
    }

    /// Bytes of a row in the file, where it is not decoded.
    fn stored_row_bytes(&self) -> usize {
        match self.source {
            TensorSource::Double { .. } => 2 * self.row_bytes(),
            _ => self.row_bytes(),
        }
    }

    /// Bytes of all rows.
    pub fn bytes(&self) -> u64 {
        (self.rows() * self.row_bytes()) as u64
    }

    /// One that only has a name and a shape: nobody reads its values.
    #[cfg(feature = "candle")]
    pub fn without_values(name: &str, shape: &[usize]) -> Self {
        let rows = shape.first().copied().unwrap_or(1);
        Self {
            source: TensorSource::Stored { map: Arc::new(Map::empty()), start: 0 },
            rows: Rows { first: 0, group: rows, stride: rows },
            name: name.to_owned(),
            file: PathBuf::new(),
            dtype: Dtype::F32,
            shape: shape.to_vec(),
        }
    }

    /// A matrix that is decoded.
    pub fn quantized(matrix: Arc<dyn QuantizedMatrix>, dtype: Dtype, rows: usize, cols: usize) -> Self {
        let first = matrix.parts()[0];
        Self {
            name: first.name.clone(),
            file: first.file.clone(),
            source: TensorSource::Quantized(matrix),
            rows: Rows { first: 0, group: rows, stride: rows },
            dtype,
            shape: vec![rows, cols],
        }
    }

    /// A matrix whose rows are worked out: of the shape and with the name of another.
    pub fn made(matrix: Arc<dyn QuantizedMatrix>, like: &Self, dtype: Dtype) -> Self {
        let rows = like.rows();
        Self {
            source: TensorSource::Quantized(matrix),
            rows: Rows { first: 0, group: rows, stride: rows },
            dtype,
            ..like.clone()
        }
    }

    /// This tensor in bf16, if it is quantized to whole numbers.
    pub fn dequantized(mut self) -> Self {
        match self.source {
            TensorSource::Quantized(_) => self.dtype = self.dtype.dequantized(),
            TensorSource::Double { .. } => {}
            TensorSource::Stored { .. } if self.dtype.is_quantized() => {
                return rounded(&self, Dtype::Bf16);
            }
            _ => {}
        }
        self
    }

    /// This tensor for a reader that has no use for [`Dtype::F8`].
    pub fn in_sixteen_bits(self) -> Self {
        Self { dtype: self.dtype.worked_out(), ..self }
    }

    /// Whether its rows are decoded, or of groups.
    pub fn is_quantized(&self) -> bool {
        !matches!(self.source, TensorSource::Stored { .. }) || self.dtype.is_quantized()
    }

    /// The bytes of a row in its element type, little-endian.
    pub fn row(&self, row: usize) -> Cow<'_, [u8]> {
        let bytes = self.row_bytes();
        match &self.source {
            TensorSource::Stored { map, start } => {
                Cow::Borrowed(&map.bytes()[start + self.rows.stored(row) * bytes..][..bytes])
            }
            TensorSource::Double { map, start } => {
                let stored = &map.bytes()[start + self.rows.stored(row) * 2 * bytes..][..2 * bytes];
                let values = stored.as_chunks().0.iter().map(|value| f64::from_le_bytes(*value) as f32);
                Cow::Owned(values.flat_map(f32::to_le_bytes).collect())
            }
            TensorSource::Quantized(matrix) => {
                let mut decoded = vec![0; bytes];
                matrix.row(self.rows.stored(row), &mut Row::new(self.dtype, self.cols(), &mut decoded));
                Cow::Owned(decoded)
            }
        }
    }

    /// All values, row by row, widened.
    pub fn values(&self) -> Vec<f32> {
        let cols = self.cols();
        let mut values = vec![0.0; self.rows() * cols];
        for (row, values) in values.chunks_exact_mut(cols).enumerate() {
            self.dtype.read_all(&self.row(row), values);
        }
        values
    }

    /// The values of a row, widened.
    pub fn row_values(&self, row: usize) -> Vec<f32> {
        let mut values = vec![0.0; self.cols()];
        self.dtype.read_all(&self.row(row), &mut values);
        values
    }

    /// See [`Tensor::values`].
    ///
    /// # Errors
    /// One is not finite.
    pub fn finite_values(&self) -> Result<Vec<f32>> {
        if self.is_finite() { Ok(self.values()) } else { Err(self.not_finite()) }
    }

    /// The error that a value is infinite or not a number.
    pub fn not_finite(&self) -> Error {
        Error::tensor(&self.file, &self.name, "hold finite values only")
    }

    /// Whether all values are finite.
    pub fn is_finite(&self) -> bool {
        (0..self.rows()).all(|row| self.dtype.all_finite(&self.row(row)))
    }

    /// Takes the pages of some rows out of this process's memory; of a decoded matrix, all of its pages.
    pub fn forget(&self, rows: Range<usize>) {
        if rows.is_empty() {
            return;
        }
        match &self.source {
            TensorSource::Stored { map, start } | TensorSource::Double { map, start } => {
                let bytes = self.stored_row_bytes();
                let first = start + self.rows.stored(rows.start) * bytes;
                map.forget(first, start + (self.rows.stored(rows.end - 1) + 1) * bytes - first);
            }
            TensorSource::Quantized(matrix) => matrix.parts().iter().for_each(|part| part.forget()),
        }
    }

    /// The `rows` rows of this tensor that come first in each `stride`, after `first`.
    ///
    /// # Panics
    /// If there are no such rows, or this is itself a part.
    pub fn part(&self, first: usize, group: usize, stride: usize, rows: usize) -> Self {
        assert!(self.rows.group == self.rows(), "{}: a part of a part", self.name);
        let last = first + (rows - 1) / group * stride + (rows - 1) % group;
        assert!(last < self.rows() && group <= stride, "{}: rows outside the tensor", self.name);
        let mut shape = self.shape.clone();
        shape[0] = rows;
        Self { rows: Rows { first, group, stride }, shape, ..self.clone() }
    }

    /// The matrix `index` of a stored tensor of several.
    ///
    /// # Panics
    /// If there is no such matrix.
    pub fn slab(&self, index: usize) -> Self {
        assert!(index < self.rows(), "{}: no matrix {index}", self.name);
        let mut source = self.source.clone();
        match &mut source {
            TensorSource::Stored { start, .. } | TensorSource::Double { start, .. } => {
                *start += self.rows.stored(index) * self.stored_row_bytes();
            }
            TensorSource::Quantized(_) => panic!("{}: decoded", self.name),
        }
        let shape = self.shape[1..].to_vec();
        let rows = Rows { first: 0, group: shape[0], stride: shape[0] };
        Self { source, rows, shape, ..self.clone() }
    }
}

impl Rows {
    /// Where a row is among the stored ones.
    fn stored(&self, row: usize) -> usize {
        self.first + row / self.group * self.stride + row % self.group
    }
}

/// A tensor of any type, as bytes.
#[derive(Clone, Debug)]
pub struct Raw {
    pub(super) map: Arc<Map>,
    pub(super) range: Range<usize>,
    pub(super) dtype: safetensors::Dtype,
    pub shape: Vec<usize>,
    pub name: String,
    pub file: PathBuf,
}

impl Raw {
    /// All of them.
    pub fn bytes(&self) -> &[u8] {
        &self.map.bytes()[self.range.clone()]
    }

    /// Value `index` of a tensor of 32-bit whole numbers.
    pub fn u32(&self, index: usize) -> u32 {
        u32::from_le_bytes(self.bytes().as_chunks().0[index])
    }

    /// Value `index` of a tensor of floating point.
    pub fn float(&self, index: usize) -> f32 {
        match self.dtype {
            safetensors::Dtype::F32 => f32::from_le_bytes(self.bytes().as_chunks().0[index]),
            safetensors::Dtype::F64 => f64::from_le_bytes(self.bytes().as_chunks().0[index]) as f32,
            safetensors::Dtype::BF16 => Dtype::Bf16.read(&self.bytes()[2 * index..][..2]),
            safetensors::Dtype::F8_E8M0 => f8_e8m0(self.bytes()[index]),
            _ => Dtype::F16.read(&self.bytes()[2 * index..][..2]),
        }
    }

    /// Its element type.
    pub fn dtype(&self) -> safetensors::Dtype {
        self.dtype
    }

    /// The error that it must `expected`.
    pub fn wrong(&self, expected: impl Into<String>) -> Error {
        Error::tensor(&self.file, &self.name, expected)
    }

    fn forget(&self) {
        self.map.forget(self.range.start, self.range.len());
    }
}
