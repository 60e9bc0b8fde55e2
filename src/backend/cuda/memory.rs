//! What a device holds: weights come in, memory is reserved, steps are submitted, recorded and done again, rows are read, and all
//! of it is overwritten.
#![expect(unsafe_code, reason = "reads and copies memory of the device, of sizes that it names")]

use std::ops::Range;

use super::args::{Place, VerifyArgs};
use super::attention::{PART, PARTS_BYTES, PARTS_EACH, splits_of};
use super::driver::{DeviceAllocation, Driver, Host};
use super::graphs::{self, Key};
use super::sampling::{self, Sampling};
use super::scrub::PendingScrub;
use super::weight::{self, Staging, Weight};
use super::{Arena, Cuda, shape, wgmma_agrees};
use crate::backend::packed::PackedKv;
use crate::backend::{Batch, Buf, Counters, DeviceMemory, Fence, Kv, KvShape, Quantize};
use crate::error::{Error, Result};
use crate::memory::ledger::NotCovered;
use crate::memory::{Layout, Scrubbed, arena::Closed};
use crate::weights::Tensor;

impl<D: Driver> Cuda<D> {
    /// Does what was recorded of such a step; false if nothing was, and if so it may be recorded now.
    fn replay(&mut self, batch: &Batch<'_>) -> bool {
        let key = Key {
            rows: batch.ids.len(),
            outputs: batch.outputs.len(),
            splits: splits_of(batch),
            generation: self.inputs.generation(),
        };
        self.flush();
        let Some((weight_bytes, parts_used)) = self.graphs.replay(key, &*self.driver) else {
            self.graphs.record(key, self.counters.weight_bytes, &*self.driver);
            return false;
        };
        for &block in batch.blocks {
            let _ = self.kv().block(block); // panics outside the cache
        }
        self.counters.weight_bytes += weight_bytes;
        let arena = self.arena.as_mut().expect("reserved before the first step");
        arena.parts_used = arena.parts_used.max(parts_used);
        true
    }

    /// Copies rows to the host; false if there is no memory for them.
    fn copy_to_host(&mut self, buf: Buf, rows: Range<usize>) -> bool {
        let stride = buf.row_bytes();
        let bytes = rows.len() * stride;
        let from = self.address(buf.region.part(rows.start * stride, bytes));
        let arena = self.arena.as_mut().expect("reserved before the first step");
        if arena.host.bytes() < bytes {
            match Host::new(&self.driver, bytes) {
                Ok(host) => arena.host = host,
                Err(_) => {
                    self.driver.fail();
                    return false;
                }
            }
        }
        // SAFETY: both have the bytes, and the device has written them when `synchronize` returns.
        unsafe {
            self.driver.read(from, arena.host.at(), bytes);
            self.driver.synchronize();
            if self.driver.failed() {
                arena.host.at().write_bytes(0, bytes);
            }
        }
        arena.read = Some((buf.region, rows));
        true
    }
}

impl<D: Driver> DeviceMemory for Cuda<D> {
    type Weight = Weight<D>;

    fn name(&self) -> String {
        self.driver.name().into()
    }

    fn arithmetic(&self) -> &'static str {
        "cuda"
    }

    fn weight_bytes(tensor: &Tensor, quantize: Option<Quantize>) -> u64 {
        weight::bytes_for(tensor, quantize)
    }

    fn kv_block_bytes(shape: &KvShape) -> Option<usize> {
        PackedKv::block_bytes(shape)
    }

    fn scratch_bytes(logits: Option<(usize, usize)>) -> u64 {
        (PARTS_BYTES + logits.map_or(0, sampling::scratch_bytes)) as u64
    }

    fn upload(&mut self, tensor: &Tensor, quantize: Option<Quantize>) -> Result<Weight<D>> {
        Weight::from_tensor(&self.driver, &mut self.staging, tensor, quantize)
    }

    fn upload_table(&mut self, values: Vec<f32>, cols: usize) -> Result<Weight<D>> {
        Weight::from_table(&self.driver, &mut self.staging, &values, cols)
    }

    fn reserve(&mut self, mut layout: Layout, kv: Kv, logits: Option<Buf>) -> Result<()> {
        self.driver.synchronize();
        self.staging = Staging::default();
        self.wgmma = self.driver.trusts_wgmma(wgmma_agrees);
        #[cfg(test)]
        {
            self.wgmma &= !self.plain;
        }
        let parts_bytes = self.driver.processors() as usize * PARTS_EACH * PART * size_of::<f32>();
        let needed = layout.bytes() as u64;
        let what = "activations and KV cache";
        let too_large = || Error::Memory { needed, what, limit: "that is more than there can be".into() };
        let parts = layout.region(parts_bytes.min(PARTS_BYTES)).ok_or_else(too_large)?;
        let status = layout.region(64).ok_or_else(too_large)?;
        let sampling = logits.filter(|logits| logits.region.bytes() > 0);
        let sampling =
            sampling.map(|logits| Sampling::plan(&self.driver, &mut layout, logits)).transpose()?;
        let memory = DeviceAllocation::new(&self.driver, layout.bytes(), what)?;
        let (told, host) = (Host::new(&self.driver, 16)?, Host::new(&self.driver, 4096)?);
        let regions = layout.regions();
        self.arena = Some(Arena {
            memory,
            kv: PackedKv::of(kv),
            regions,
            parts,
            parts_used: 0,
            status,
            told,
            host,
            buffers: layout.ranges(),
            sampling,
            read: None,
        });
        // it holds what the last owner left
        self.pending.push(Place { at: self.address(status), bytes: 16, middle: 0 });
        self.flush();
        let _ = self.scrub_all();
        Ok(())
    }

    fn padded_rows(&self, rows: usize) -> usize {
        graphs::bucket(rows)
    }

    fn submit(&mut self, batch: &Batch<'_>, record: impl FnOnce(&mut Self)) -> Fence {
        let known = self.graphs.knows(batch);
        let fence = self.counters.submitted(batch);
        self.outputs = batch.outputs.len();
        self.put(batch);
        if !known || !self.replay(batch) {
            record(self);
            let (weight_bytes, parts_used) = (self.counters.weight_bytes, self.arena().parts_used);
            self.graphs.recorded(weight_bytes, parts_used, &*self.driver);
        }
        fence
    }

    fn read(&mut self, fence: &Fence, buf: Buf, row: usize) -> &[f32] {
        self.counters.check(fence);
        let stride = buf.row_bytes();
        let there = self.arena().read.clone();
        let known = there.filter(|(region, rows)| *region == buf.region && rows.contains(&row));
        let first = match known {
            Some((_, rows)) => rows.start,
            None => {
                self.flush();
                // who reads a row of logits reads those behind it too
                let end = self.outputs.max(row + 1).min(buf.region.bytes() / stride).max(row + 1);
                if !self.copy_to_host(buf, row..end) {
                    return &[];
                }
                row
            }
        };
        let at = (row - first) * stride;
        // SAFETY: `copy_to_host` saw to it that the row is there.
        unsafe { std::slice::from_raw_parts(self.arena().host.at().add(at).cast::<f32>(), buf.cols) }
    }

    fn copy_block(&mut self, from: u32, to: u32) {
        self.flush();
        let [from, to] = [from, to].map(|block| self.kv().block(block));
        assert_ne!(from, to, "a block to itself");
        // SAFETY: both are in the cache, and of one size.
        unsafe { self.driver.copy(self.address(from), self.address(to), from.bytes()) };
    }

    fn scrub_steps(&mut self, used: impl Iterator<Item = (Buf, usize)>) -> (u64, Scrubbed) {
        self.graphs.abandon(&*self.driver);
        let (mut regions, mut asked) = (1, PendingScrub::default());
        for (buf, rows) in used {
            let region = buf.rows(rows);
            asked = asked.and(self.forget(self.address(region), region.bytes()));
            regions += 1;
        }
        asked = asked.and(self.forget_threads());
        (regions, self.prove(asked))
    }

    fn scrub_blocks(&mut self, blocks: &[u32]) -> Option<Scrubbed> {
        self.graphs.abandon(&*self.driver);
        let mut sum = PendingScrub::default();
        for &block in blocks {
            let region = self.kv().block(block);
            sum = sum.and(self.forget(self.address(region), region.bytes()));
        }
        (!blocks.is_empty()).then(|| self.prove(sum))
    }

    fn scrub_all(&mut self) -> Option<Scrubbed> {
        let arena = self.arena.as_ref()?;
        let (at, bytes) = (arena.memory.at(), arena.memory.bytes());
        let status = (self.address(arena.status) - at) as usize;
        self.pending.clear(); // it is part of this
        // all but the status, which tells how it went
        let before = self.forget(at, status);
        let behind = status + 16;
        let asked = before.and(self.forget(at + behind as u64, bytes - behind)).and(self.forget_threads());
        Some(self.prove(asked))
    }

    fn counters(&self) -> Counters {
        let [_, _, low, high] = if self.experts.is_empty() { [0; 4] } else { self.read_status() };
        let by_experts = u64::from(low) | u64::from(high) << 32;
        Counters { weight_bytes: self.counters.weight_bytes + by_experts, ..self.counters }
    }

    fn protection(&self) -> (u64, Vec<NotCovered>) {
        // the device's memory is not swapped, dumped or forked; but it is out of the reach of the host's ciphers
        let unsealed = self.arena.as_ref().map(|_| NotCovered::IdleCacheNotSealed);
        let arena = self.arena.as_ref().filter(|_| self.driver.failed());
        let failed = arena.map(|arena| NotCovered::DeviceFailed { bytes: arena.memory.bytes() as u64 });
        (0, failed.into_iter().chain(unsealed).collect())
    }

    fn failed(&self) -> bool {
        self.driver.failed()
    }

    fn close(mut self) -> Option<Closed> {
        let all = self.scrub_all()?;
        let arena = self.arena.as_ref()?;
        let at = arena.memory.at();
        let status = self.address(arena.status) - at;
        let (end, regions) = (arena.memory.bytes() as u64, arena.regions as u64);
        // all but the status, in pieces, so that the report says how much is zero when not all is
        const PIECE: u64 = 1 << 30;
        let pieces = [(0, status), (status + 16, end)].into_iter().flat_map(|(start, end)| {
            (start..end).step_by(PIECE as usize).map(move |piece| (piece, (end - piece).min(PIECE)))
        });
        let (mut bytes, mut verified, mut dirty) = (0, 0, all.is_dirty());
        for (start, count) in pieces {
            bytes += count;
            let args = VerifyArgs { at: at + start, bytes: count, dirty: at + status };
            let blocks = (count / (16 * 256)).clamp(1, 16 * u64::from(self.driver.processors()));
            self.launch("verify", shape([blocks as usize, 1, 1], 256, 0), &args);
            dirty |= self.finish_scrub();
            verified += if dirty { 0 } else { count };
        }
        Some(Closed { regions, scrubbed: self.proof(bytes, all.samples(), dirty), verified })
    }
}
