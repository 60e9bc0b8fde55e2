//! What both CPU backends stand on: weights where they are mapped, and the arena.
#![expect(unsafe_code, reason = "addresses inside the mapped weights")]

use crate::backend::{Buf, Kv};
use crate::error::{Error, Result};
use crate::memory::{Arena, Layout, Scrubbed};
use crate::weights::{Dtype, Tensor};

/// A weight: a matrix in the mapped file, or a small table of f32.
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
    Mapped(Tensor),
    Owned(Vec<f32>),
}

impl Weight {
    /// A matrix stays where it is; a vector is widened.
    pub fn from_tensor(tensor: &Tensor) -> Self {
        if let [rows, cols] = tensor.shape[..] {
            return Self { data: Data::Mapped(tensor.clone()), rows, cols };
        }
        let values: Vec<f32> =
            tensor.bytes().chunks(tensor.dtype.bytes()).map(|bytes| tensor.dtype.read(bytes)).collect();
        let cols = values.len();
        Self::from_table(values, cols)
    }

    /// A table that the decoder computed.
    pub fn from_table(values: Vec<f32>, cols: usize) -> Self {
        Self { rows: values.len() / cols.max(1), cols, data: Data::Owned(values) }
    }

    /// Element type.
    pub fn dtype(&self) -> Dtype {
        match &self.data {
            Data::Mapped(tensor) => tensor.dtype,
            Data::Owned(_) => Dtype::F32,
        }
    }

    /// Bytes in all.
    pub fn bytes(&self) -> u64 {
        (self.rows * self.cols * self.dtype().bytes()) as u64
    }

    /// The values of a table.
    ///
    /// # Panics
    /// If it is a mapped matrix.
    pub fn table(&self) -> &[f32] {
        match &self.data {
            Data::Owned(values) => values,
            Data::Mapped(tensor) => panic!("{} is a matrix", tensor.name),
        }
    }

    /// The address of a row, which may be less aligned than its elements: read it unaligned.
    pub fn row_pointer(&self, row: usize) -> *const u8 {
        assert!(row < self.rows.max(1), "row {row} of a weight with {} rows", self.rows);
        let start = match &self.data {
            Data::Mapped(tensor) => tensor.bytes().as_ptr(),
            Data::Owned(values) => values.as_ptr().cast(),
        };
        // SAFETY: a tensor's bytes are checked at loading to be rows * cols elements; the row is one of them.
        unsafe { start.add(row * self.cols * self.dtype().bytes()) }
    }

    /// One value, widened.
    pub fn value(&self, row: usize, col: usize) -> f32 {
        match &self.data {
            Data::Owned(values) => values[row * self.cols + col],
            Data::Mapped(tensor) => {
                let bytes = tensor.dtype.bytes();
                tensor.dtype.read(&tensor.bytes()[(row * self.cols + col) * bytes..][..bytes])
            }
        }
    }
}

/// The arena once it is reserved, with the cache in it.
#[derive(Debug, Default)]
pub struct Memory(Option<(Arena, Kv)>);

impl Memory {
    /// Maps it.
    ///
    /// # Errors
    /// The memory is not to be had.
    pub fn reserve(&mut self, layout: &Layout, kv: Kv) -> Result<()> {
        let arena = Arena::new(layout).map_err(|error| Error::Memory {
            needed: layout.bytes() as u64,
            what: "activations and KV cache",
            limit: format!("the system says: {error}"),
        })?;
        self.0 = Some((arena, kv));
        Ok(())
    }

    /// The arena.
    pub fn arena(&mut self) -> &mut Arena {
        &mut self.0.as_mut().expect("reserved before the first verb").0
    }

    /// The cache's place in it.
    pub fn kv(&self) -> Kv {
        self.0.as_ref().expect("reserved before the first verb").1
    }

    /// Copies rows of one buffer to the start of another.
    pub fn gather(&mut self, rows: &[u32], x: Buf, out: Buf) {
        for (to, &from) in rows.iter().enumerate() {
            let (x, out) = self.arena().read_write::<f32, f32>(x.row(from as usize), out.row(to));
            out.copy_from_slice(x);
        }
    }

    /// Overwrites KV blocks.
    pub fn scrub_blocks(&mut self, blocks: &[u32]) -> Scrubbed {
        let kv = self.kv();
        let arena = self.arena();
        blocks.iter().fold(Scrubbed::nothing(), |sum, &block| sum.and(arena.scrub(kv.block(block))))
    }

    /// Overwrites everything.
    pub fn scrub_all(&mut self) -> Scrubbed {
        self.0.as_mut().map_or(Scrubbed::nothing(), |(arena, _)| arena.scrub_all())
    }

    /// Gives the arena up to be closed.
    pub fn into_arena(self) -> Option<Arena> {
        self.0.map(|(arena, _)| arena)
    }
}
