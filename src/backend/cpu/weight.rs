//! Weights of the fast backend: matrices packed once at loading, vectors as f32.
#![expect(unsafe_code, reason = "packs blocks in parallel, each into its own part of the pages")]

use std::sync::atomic::{AtomicU8, Ordering};

use memmap2::Mmap;

use super::format::Format;
use super::kernels::Kernels;
use super::linear::Matrix;
use super::memory::{pages, read_only};
use super::team::Team;
use super::vector::LANES;
use crate::backend::Quantize;
use crate::error::{Error, Result};
use crate::weights::Tensor;

/// Bytes of the file that are packed before their pages are given back.
const PIECE_BYTES: usize = 8 << 20;

/// A weight.
#[derive(Debug)]
pub struct Weight {
    data: Data,
    /// Rows; a vector has one.
    pub rows: usize,
    /// Values per row.
    pub cols: usize,
}

#[derive(Debug)]
enum Data {
    Packed { pages: Mmap, format: Format },
    Table(Vec<f32>),
}

impl Weight {
    /// Bytes of memory for a tensor.
    pub fn bytes_for(tensor: &Tensor, quantize: Option<Quantize>) -> u64 {
        match tensor.shape[..] {
            [rows, cols] => {
                let format = Format::of(tensor.dtype, quantize);
                (rows.div_ceil(LANES) * format.block_bytes(cols)) as u64
            }
            _ => (tensor.shape.iter().product::<usize>() * size_of::<f32>()) as u64,
        }
    }

    /// Packs a matrix, on all threads; widens a vector.
    ///
    /// # Errors
    /// Returns the errors of [`crate::backend::Backend::upload`].
    pub fn from_tensor(
        tensor: &Tensor,
        quantize: Option<Quantize>,
        kernels: &Kernels,
        team: &mut Team,
    ) -> Result<Self> {
        let [rows, cols] = tensor.shape[..] else {
            return Self::vector(tensor);
        };
        let tensor = &tensor.clone().in_sixteen_bits();
        let format = Format::of(tensor.dtype, quantize);
        let (dtype, row_bytes, block_bytes) = (tensor.dtype, tensor.row_bytes(), format.block_bytes(cols));
        let mut packed = pages(rows.div_ceil(LANES) * block_bytes)?;
        let failed = AtomicU8::new(0);
        let piece = (PIECE_BYTES / row_bytes.max(1)).max(1).next_multiple_of(LANES);
        let start = Start(packed.as_mut_ptr());
        for first in (0..rows).step_by(piece) {
            let count = piece.min(rows - first);
            team.run(team.size(), &|part| {
                for row in part.range(count, LANES).step_by(LANES) {
                    let row = first + row;
                    let lanes: Vec<_> = (row..(row + LANES).min(rows)).map(|row| tensor.row(row)).collect();
                    // SAFETY: block `row / LANES` is inside the pages, and this part's alone.
                    let block = unsafe { start.block(row / LANES, block_bytes) };
                    if !lanes.iter().all(|lane| dtype.all_finite(lane)) {
                        failed.fetch_max(NOT_FINITE, Ordering::Relaxed);
                    // SAFETY: who has kernels has their instruction set.
                    } else if unsafe { (kernels.pack)(format, dtype, cols, &lanes, block) }.is_err() {
                        failed.fetch_max(TOO_LARGE, Ordering::Relaxed);
                    }
                }
            });
            tensor.forget(first..first + count);
        }
        match failed.into_inner() {
            0 => Ok(Self { data: Data::Packed { pages: read_only(packed)?, format }, rows, cols }),
            TOO_LARGE => Err(Error::tensor(
                &tensor.file,
                &tensor.name,
                "hold magnitudes below 450,000 to be quantized",
            )),
            _ => Err(tensor.not_finite()),
        }
    }

    fn vector(tensor: &Tensor) -> Result<Self> {
        let values = tensor.finite_values()?;
        let cols = values.len();
        Ok(Self::from_table(values, cols))
    }

    /// A table that the decoder computed.
    pub fn from_table(values: Vec<f32>, cols: usize) -> Self {
        Self { rows: values.len() / cols.max(1), cols, data: Data::Table(values) }
    }

    /// How it is packed; none for a table.
    pub fn format(&self) -> Option<Format> {
        match &self.data {
            Data::Packed { format, .. } => Some(*format),
            Data::Table(_) => None,
        }
    }

    /// Bytes in all.
    pub fn bytes(&self) -> u64 {
        match &self.data {
            Data::Packed { pages, .. } => pages.len() as u64,
            Data::Table(values) => (values.len() * size_of::<f32>()) as u64,
        }
    }

    /// The values of a table.
    ///
    /// # Panics
    /// If it is a matrix.
    pub fn table(&self) -> &[f32] {
        match &self.data {
            Data::Table(values) => values,
            Data::Packed { .. } => panic!("a matrix is no table"),
        }
    }

    /// The matrix, for a product.
    ///
    /// # Panics
    /// If it is a table.
    pub fn matrix<'a>(&self, bias: Option<&'a [f32]>) -> Matrix<'a> {
        let Data::Packed { pages, format } = &self.data else {
            panic!("a table is no matrix");
        };
        Matrix {
            data: pages.as_ptr(),
            block_bytes: format.block_bytes(self.cols),
            line_bytes: format.line_bytes(self.cols),
            rows: self.rows,
            cols: self.cols.next_multiple_of(super::format::GROUP),
            bias,
        }
    }

    /// One row, widened. Returns the bytes that were read.
    pub fn read_row(&self, row: usize, out: &mut [f32]) -> u64 {
        match &self.data {
            Data::Table(values) => out.copy_from_slice(&values[row * self.cols..][..self.cols]),
            Data::Packed { pages, format } => {
                let block_bytes = format.block_bytes(self.cols);
                let block = &pages[row / LANES * block_bytes..][..block_bytes];
                for (col, value) in out.iter_mut().enumerate() {
                    *value = format.value(block, self.cols, row % LANES, col);
                }
            }
        }
        self.bytes() / self.rows.max(1) as u64
    }
}

const TOO_LARGE: u8 = 1;
const NOT_FINITE: u8 = 2;

/// Where the pages start.
struct Start(*mut u8);

// SAFETY: threads take blocks of their own.
unsafe impl Sync for Start {}

impl Start {
    /// # Safety
    /// The block is inside the pages, and no one else has it.
    #[expect(clippy::mut_from_ref, reason = "blocks are disjoint, by the contract")]
    unsafe fn block(&self, index: usize, bytes: usize) -> &mut [u8] {
        // SAFETY: the caller's contract.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(index * bytes), bytes) }
    }
}

/// The values of a bias, checked to be as many as the matrix has rows.
pub fn bias_of<'a>(weight: &Weight, bias: Option<&'a Weight>) -> Option<&'a [f32]> {
    let bias = bias.map(Weight::table);
    assert!(bias.is_none_or(|bias| bias.len() == weight.rows), "bias: columns differ");
    bias
}
