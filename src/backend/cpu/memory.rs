//! What both CPU backends stand on: the arena, and the memory of packed weights.

use memmap2::{Mmap, MmapMut};

use crate::backend::packed::PackedKv;
use crate::backend::{Buf, Kv};
use crate::error::{Error, Result};
use crate::memory::ledger::NotCovered;
use crate::memory::{Arena, Layout, Scrubbed};

/// Memory for packed weights: pages of the system, large ones where it gives them, all zero.
///
/// # Errors
/// The memory is not to be had.
pub fn pages(bytes: usize) -> Result<MmapMut> {
    let pages = MmapMut::map_anon(bytes.max(1)).map_err(|error| refused(bytes, &error))?;
    #[cfg(target_os = "linux")]
    let _ = pages.advise(memmap2::Advice::HugePage); // refused is fine: it saves address translations only
    Ok(pages)
}

/// From here on nothing writes to the weights, and the system sees to it.
///
/// # Errors
/// The system refuses.
pub fn read_only(pages: MmapMut) -> Result<Mmap> {
    let bytes = pages.len();
    pages.make_read_only().map_err(|error| refused(bytes, &error))
}

fn refused(bytes: usize, error: &std::io::Error) -> Error {
    Error::Memory { needed: bytes as u64, what: "packed weights", limit: format!("the system says: {error}") }
}

/// The arena once it is reserved, with the cache in it.
#[derive(Debug, Default)]
pub struct CpuMemory(Option<(Arena, PackedKv)>);

impl CpuMemory {
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
        self.0 = Some((arena, PackedKv::of(kv)));
        Ok(())
    }

    /// The arena.
    pub fn arena(&mut self) -> &mut Arena {
        &mut self.0.as_mut().expect("reserved before the first step").0
    }

    /// The cache's place in it.
    pub fn kv(&self) -> PackedKv {
        self.0.as_ref().expect("reserved before the first step").1
    }

    /// Copies rows of one buffer to the start of another.
    pub fn gather(&mut self, rows: &[u32], x: Buf, out: Buf) {
        rows.iter().enumerate().for_each(|(to, &from)| self.gather_to(from, x, to, out));
    }

    /// Copies a row of one buffer to a row of another.
    pub fn gather_to(&mut self, from: u32, x: Buf, to: usize, out: Buf) {
        let (x, out) = self.arena().read_write::<f32, f32>(x.row(from as usize), out.row(to));
        out.copy_from_slice(x);
    }

    /// Copies rows of two buffers to the rows of one, behind each other.
    pub fn concat(&mut self, rows: usize, parts: [Buf; 2], out: Buf) {
        assert_eq!(parts[0].cols + parts[1].cols, out.cols, "join: columns differ");
        for row in 0..rows {
            let mut first = 0;
            for part in parts {
                let (from, to) = self.arena().read_write::<f32, f32>(part.row(row), out.row(row));
                to[first..first + part.cols].copy_from_slice(from);
                first += part.cols;
            }
        }
    }

    /// Copies one KV block to another.
    pub fn copy_block(&mut self, from: u32, to: u32) {
        let kv = self.kv();
        let (from, to) = self.arena().read_write::<u8, u8>(kv.block(from), kv.block(to));
        to.copy_from_slice(from);
    }

    /// Lends the bytes of a KV block.
    pub fn with_block(&mut self, block: u32, act: &mut dyn FnMut(&mut [u8])) {
        let region = self.kv().block(block);
        act(self.arena().slice_mut::<u8>(region));
    }

    /// Overwrites KV blocks.
    pub fn scrub_blocks(&mut self, blocks: &[u32]) -> Option<Scrubbed> {
        let kv = self.kv();
        let arena = self.arena();
        Scrubbed::sum(blocks.iter().map(|&block| arena.scrub(kv.block(block))))
    }

    /// Overwrites the first rows of buffers; says how many regions that is.
    pub fn scrub_rows(&mut self, used: impl Iterator<Item = (Buf, usize)>) -> (u64, Option<Scrubbed>) {
        let arena = self.arena();
        let mut regions = 0;
        let proofs = used.inspect(|_| regions += 1).map(|(buf, rows)| arena.scrub(buf.rows(rows)));
        let sum = Scrubbed::sum(proofs);
        (regions, sum)
    }

    /// Overwrites everything.
    pub fn scrub_all(&mut self) -> Option<Scrubbed> {
        self.0.as_mut().map(|(arena, _)| arena.scrub_all())
    }

    /// Bytes that are locked, and what the platform refused.
    pub fn protection(&self) -> (u64, Vec<NotCovered>) {
        self.0
            .as_ref()
            .map_or((0, Vec::new()), |(arena, _)| (arena.locked_bytes(), arena.not_covered().to_vec()))
    }

    /// Gives the arena up to be closed.
    pub fn into_arena(self) -> Option<Arena> {
        self.0.map(|(arena, _)| arena)
    }
}
