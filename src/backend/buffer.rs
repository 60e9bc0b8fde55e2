//! Activation buffers, planned before the first request: regions with offsets, not pointers, so that a backend may record a
//! step into one command buffer.

use super::packed::OperandType;
use crate::memory::{Layout, Region};

/// A planned activation buffer: (rows, cols), row-major, at most `rows` of them in use in a step.
///
/// Most hold f32. Those planned as operands are written by one op for the matrix product of the next, in the [`OperandType`] that
/// the matrices want ([`super::Ops::operand_type`]).
#[derive(Clone, Copy, Debug)]
pub struct Buf {
    /// How the values of an operand are written.
    pub form: OperandType,
    pub(super) region: Region,
    /// Values per row.
    pub cols: usize,
    /// Values of f32 that a row has room for.
    pub(super) stride: usize,
}

impl Buf {
    /// Columns of an operand come in groups of this many.
    pub const GROUP: usize = 32;
    /// Rows that kernels may read behind the last row of an operand.
    pub const SPARE_ROWS: usize = 16;

    /// Plans a buffer of f32; none when the sizes overflow.
    pub fn plan(layout: &mut Layout, rows: usize, cols: usize) -> Option<Self> {
        Self::with_stride(layout, rows, cols, cols)
    }

    /// Plans an operand of matrix products; none when the sizes overflow.
    pub fn plan_operand(layout: &mut Layout, rows: usize, cols: usize) -> Option<Self> {
        let stride = cols.checked_next_multiple_of(Self::GROUP)?;
        Self::with_stride(layout, rows.checked_add(Self::SPARE_ROWS)?, cols, stride)
    }

    fn with_stride(layout: &mut Layout, rows: usize, cols: usize, stride: usize) -> Option<Self> {
        let bytes = rows.checked_mul(stride)?.checked_mul(size_of::<f32>())?;
        Some(Self { form: OperandType::F32, region: layout.region(bytes)?, cols, stride })
    }

    /// This operand in another form.
    pub fn of(self, form: OperandType) -> Self {
        Self { form, ..self }
    }

    /// This buffer without its first `rows` rows.
    pub fn skip(self, rows: usize) -> Self {
        let start = rows * self.row_bytes();
        Self { region: self.region.part(start, self.region.bytes() - start), ..self }
    }

    /// The memory of a buffer for rows of fewer values.
    pub fn narrow(self, cols: usize) -> Self {
        assert!(cols <= self.cols, "a buffer of {} columns for {cols}", self.cols);
        let stride = if self.stride == self.cols { cols } else { cols.next_multiple_of(Self::GROUP) };
        Self { cols, stride, ..self }
    }

    /// Bytes from one row to the next.
    pub fn row_bytes(&self) -> usize {
        match self.form {
            OperandType::F32 => self.stride * size_of::<f32>(),
            form => form.row_bytes(self.cols),
        }
    }

    /// Values of f32 from one row to the next; of an operand, in that form only.
    pub fn stride(&self) -> usize {
        self.stride
    }

    /// The region of the first `rows` rows.
    pub fn rows(&self, rows: usize) -> Region {
        self.region.part(0, rows * self.stride * size_of::<f32>())
    }

    /// The region of one row's values.
    pub fn row(&self, row: usize) -> Region {
        let bytes = size_of::<f32>();
        self.region.part(row * self.stride * bytes, self.cols * bytes)
    }
}
