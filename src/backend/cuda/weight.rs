//! Weights on the device: matrices packed into tiles (`kernels/cuda/matrix.cuh` has the layout), vectors as f32.
#![expect(unsafe_code, reason = "packs into memory that the device reads")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use super::args;
use super::driver::{DeviceAllocation, Driver, Host};
use crate::backend::Quantize;
use crate::backend::cpu::format::{self, GROUP};
use crate::backend::packed::{LANES, OperandType};
use crate::error::{Error, Result};
use crate::weights::{Dtype, Tensor};

/// Bytes that are packed before they are sent.
const PIECE_BYTES: usize = 32 << 20;

/// A weight.
#[derive(Debug)]
pub struct Weight<D: Driver> {
    memory: DeviceAllocation<D>,
    matrix: args::Matrix,
    /// The format of a matrix.
    format: Option<Format>,
    /// Rows; a vector has one.
    pub rows: usize,
    /// Values per row.
    pub cols: usize,
}

/// How a matrix is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    F32,
    F16,
    Bf16,
    Q8,
    Q4,
    F8,
}

impl Format {
    /// The format of a matrix stored as `dtype`.
    fn of(dtype: Dtype, quantize: Option<Quantize>) -> Self {
        match (format::Format::of(dtype, quantize), dtype) {
            (format::Format::Bf16, Dtype::F8) => Self::F8,
            (format::Format::F32, _) => Self::F32,
            (format::Format::F16, _) => Self::F16,
            (format::Format::Bf16, _) => Self::Bf16,
            (format::Format::Q8, _) => Self::Q8,
            (format::Format::Q4, _) => Self::Q4,
        }
    }

    /// Its number in `matrix.cuh`.
    fn number(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Bf16 => 2,
            Self::Q8 => 3,
            Self::Q4 => 4,
            Self::F8 => 5,
        }
    }
}

/// Bytes of a tile of 16 rows and 32 columns, and those of its scales.
fn tile_bytes(format: Format) -> (usize, usize) {
    const SCALES: usize = 2 * LANES;
    match format {
        Format::F32 => (4 * GROUP * LANES, 0),
        Format::F16 | Format::Bf16 => (2 * GROUP * LANES, 0),
        Format::Q8 => (GROUP * LANES, SCALES),
        Format::Q4 => (GROUP * LANES / 2, SCALES),
        Format::F8 => (GROUP * LANES, 2 * SCALES),
    }
}

/// Bytes for a tensor.
pub fn bytes_for(tensor: &Tensor, quantize: Option<Quantize>) -> u64 {
    let [rows, cols] = tensor.shape[..] else {
        return (tensor.shape.iter().product::<usize>() * size_of::<f32>()) as u64;
    };
    let (data, scales) = tile_bytes(Format::of(tensor.dtype, quantize));
    (rows.div_ceil(LANES) * cols.div_ceil(GROUP) * (data + scales)) as u64
}

/// Two buffers that weights go through: one is packed into while the other is sent.
#[derive(Debug)]
pub struct Staging<D: Driver> {
    buffers: [Option<Host<D>>; 2],
    turn: usize,
}

impl<D: Driver> Default for Staging<D> {
    fn default() -> Self {
        Self { buffers: [None, None], turn: 0 }
    }
}

impl<D: Driver> Staging<D> {
    /// A buffer that nothing reads any more.
    fn next(&mut self, driver: &Arc<D>, bytes: usize) -> Result<&mut [u8]> {
        self.turn = 1 - self.turn;
        driver.wait(self.turn); // what is sent from the other buffer goes on meanwhile
        let buffer = &mut self.buffers[self.turn];
        if buffer.as_ref().is_none_or(|buffer| buffer.bytes() < bytes) {
            *buffer = None;
            *buffer = Some(Host::new(driver, bytes.max(PIECE_BYTES))?);
        }
        let buffer = buffer.as_ref().expect("just made");
        // SAFETY: ours alone, and the device is done with it.
        Ok(unsafe { std::slice::from_raw_parts_mut(buffer.at(), bytes) })
    }
}

impl<D: Driver> Staging<D> {
    /// The buffer of the last call was sent.
    fn sent(&self, driver: &D) {
        driver.mark(self.turn);
    }
}

impl<D: Driver> Weight<D> {
    /// Packs a matrix, on all processors of the host; widens a vector.
    ///
    /// # Errors
    /// Returns the errors of [`crate::backend::Backend::upload`].
    pub fn from_tensor(
        driver: &Arc<D>,
        staging: &mut Staging<D>,
        tensor: &Tensor,
        quantize: Option<Quantize>,
    ) -> Result<Self> {
        let [rows, cols] = tensor.shape[..] else {
            let values = tensor.finite_values()?;
            let cols = values.len();
            return Self::from_table(driver, staging, &values, cols);
        };
        let format = Format::of(tensor.dtype, quantize);
        let (of_tile, of_scales) = tile_bytes(format);
        let tiles = cols.div_ceil(GROUP);
        let (band, scale_band) = (tiles * of_tile, tiles * of_scales); // of 16 rows
        let bands = rows.div_ceil(LANES);
        let memory = DeviceAllocation::new(driver, bands * (band + scale_band), "weights")?;
        let scales_at = bands * band;
        let failed = AtomicU8::new(0);
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let each = (PIECE_BYTES / (band + scale_band).max(1)).max(1);
        for first in (0..bands).step_by(each) {
            let count = each.min(bands - first);
            let (bytes, scale_bytes) = (count * band, count * scale_band);
            let buffer = staging.next(driver, bytes + scale_bytes)?;
            buffer.fill(0);
            let (data, scales) = buffer.split_at_mut(bytes);
            let share = count.div_ceil(threads);
            std::thread::scope(|scope| {
                let mut scales = scales.chunks_mut((share * scale_band).max(1));
                for (part, data) in data.chunks_mut((share * band).max(1)).enumerate() {
                    let (scales, failed) = (scales.next().unwrap_or(&mut []), &failed);
                    scope.spawn(move || {
                        let mut scales = scales.chunks_mut(scale_band.max(1));
                        for (i, data) in data.chunks_mut(band).enumerate() {
                            let from = (first + part * share + i) * LANES;
                            let scales = scales.next().unwrap_or(&mut []);
                            let found = pack(tensor, format, from..(from + LANES).min(rows), data, scales);
                            failed.fetch_max(found, Ordering::Relaxed);
                        }
                    });
                }
            });
            // SAFETY: the memory has these bands; the buffer is left alone until it was waited for.
            unsafe {
                driver.write(memory.at() + (first * band) as u64, data.as_ptr(), bytes);
                if scale_bytes > 0 {
                    let to = memory.at() + (scales_at + first * scale_band) as u64;
                    driver.write(to, scales.as_ptr(), scale_bytes);
                }
            }
            staging.sent(driver);
            tensor.forget(first * LANES..((first + count) * LANES).min(rows));
        }
        match failed.into_inner() {
            0 => {}
            TOO_LARGE => {
                let expected = "hold magnitudes below 450,000 to be quantized";
                return Err(Error::tensor(&tensor.file, &tensor.name, expected));
            }
            _ => return Err(tensor.not_finite()),
        }
        let matrix = args::Matrix {
            data: memory.at(),
            scales: if of_scales > 0 { memory.at() + scales_at as u64 } else { 0 },
            rows: rows as u32,
            cols: cols as u32,
            format: format.number(),
            stride: if format == Format::F32 { (tiles * GROUP) as u32 } else { tiles as u32 },
        };
        Ok(Self { memory, matrix, format: Some(format), rows, cols })
    }

    /// A table that the decoder computed.
    ///
    /// # Errors
    /// The memory is not to be had.
    pub fn from_table(
        driver: &Arc<D>,
        staging: &mut Staging<D>,
        values: &[f32],
        cols: usize,
    ) -> Result<Self> {
        let bytes = size_of_val(values);
        let memory = DeviceAllocation::new(driver, bytes, "weights")?;
        if !values.is_empty() {
            let buffer = staging.next(driver, bytes)?;
            buffer.as_chunks_mut().0.iter_mut().zip(values).for_each(|(to, value)| *to = value.to_le_bytes());
            // SAFETY: both have the bytes; the buffer is left alone until it was waited for.
            unsafe { driver.write(memory.at(), buffer.as_ptr(), bytes) };
            staging.sent(driver);
        }
        let rows = values.len() / cols.max(1);
        let data = memory.at();
        let (of_rows, of_cols) = (rows as u32, cols as u32);
        let matrix =
            args::Matrix { data, scales: 0, rows: of_rows, cols: of_cols, format: 0, stride: of_cols };
        Ok(Self { memory, matrix, format: None, rows, cols })
    }

    /// For kernels.
    pub fn matrix(&self) -> args::Matrix {
        self.matrix
    }

    /// The values of a table.
    ///
    /// # Panics
    /// If it is a matrix.
    pub fn table(&self) -> u64 {
        assert!(self.format.is_none(), "a matrix is no table");
        self.memory.at()
    }

    /// How a matrix is packed.
    ///
    /// # Panics
    /// If it is a table.
    pub fn format(&self) -> Format {
        self.format.expect("products are with matrices")
    }

    /// How activations come to it: in its own type; whole numbers are multiplied with bf16.
    pub fn form(&self) -> OperandType {
        match self.format() {
            Format::F32 => OperandType::F32,
            Format::F16 => OperandType::F16,
            Format::Bf16 | Format::Q8 | Format::Q4 | Format::F8 => OperandType::Bf16,
        }
    }

    /// Bytes in all.
    pub fn bytes(&self) -> u64 {
        match self.format {
            Some(format) => {
                let (data, scales) = tile_bytes(format);
                (self.rows.div_ceil(LANES) * self.cols.div_ceil(GROUP) * (data + scales)) as u64
            }
            None => (self.rows * self.cols * size_of::<f32>()) as u64,
        }
    }
}

const TOO_LARGE: u8 = 1;
const NOT_FINITE: u8 = 2;

/// Where a tile's column lies: the lane of four that has it, its half, whether it is in the half's second eight, whether it is odd.
fn place(col: usize) -> (usize, usize, usize, usize) {
    (col % 8 / 2, col / 16, col % 16 / 8, col % 2)
}

/// Packs up to 16 rows, into zeros. Returns 0, or what is wrong with them.
fn pack(
    tensor: &Tensor,
    format: Format,
    rows: std::ops::Range<usize>,
    data: &mut [u8],
    scales: &mut [u8],
) -> u8 {
    let (cols, (of_tile, of_scales)) = (tensor.shape[1], tile_bytes(format));
    for (lane, row) in rows.map(|row| tensor.row(row)).enumerate() {
        if !tensor.dtype.all_finite(&row) {
            return NOT_FINITE;
        }
        if format == Format::F32 {
            let stride = data.len() / LANES;
            data[lane * stride..][..row.len()].copy_from_slice(&row);
            continue;
        }
        let (g, below) = (lane % 8, lane / 8);
        for (tile, first) in (0..cols).step_by(GROUP).enumerate() {
            let (bytes, count) = (tensor.dtype.group(&row, first, cols), GROUP.min(cols - first));
            let tile_data = &mut data[tile * of_tile..][..of_tile];
            match format {
                Format::F32 => {}
                Format::F16 | Format::Bf16 => {
                    for (col, value) in bytes.as_chunks::<2>().0.iter().enumerate() {
                        let (t, half, far, odd) = place(col);
                        let at = half * 512 + (4 * g + t) * 16 + (2 * far + below) * 4 + odd * 2;
                        tile_data[at..at + 2].copy_from_slice(value);
                    }
                }
                Format::F8 => {
                    let (scale, codes) = bytes.split_at(4);
                    let scale_at = tile * of_scales + (2 * g + below) * 4;
                    scales[scale_at..scale_at + 4].copy_from_slice(scale);
                    for (col, code) in codes.iter().enumerate() {
                        let (t, half, far, odd) = place(col);
                        tile_data[(4 * g + t) * 16 + half * 8 + below * 4 + 2 * far + odd] = *code;
                    }
                }
                Format::Q8 | Format::Q4 => {
                    let of = if format == Format::Q8 { format::Format::Q8 } else { format::Format::Q4 };
                    let Ok((scale, numbers)) = of.numbers(tensor.dtype, bytes, count) else {
                        return TOO_LARGE;
                    };
                    let scale_at = tile * of_scales + (2 * g + below) * 2;
                    scales[scale_at..scale_at + 2].copy_from_slice(&scale.to_le_bytes());
                    for (col, number) in numbers.into_iter().enumerate() {
                        let (t, half, far, odd) = place(col);
                        if format == Format::Q8 {
                            let at = (4 * g + t) * 16 + half * 8 + below * 4 + 2 * far + odd;
                            tile_data[at] = (i16::from(number) + 128) as u8;
                        } else {
                            let bit = 4 * (2 * half + far) + 16 * odd;
                            let at = (4 * g + t) * 8 + below * 4 + bit / 8;
                            tile_data[at] |= ((number + 8) as u8) << (bit % 8);
                        }
                    }
                }
            }
        }
    }
    0
}
