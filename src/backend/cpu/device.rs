//! What the CPU holds: packed weights, the arena, and what its threads leave behind.

use std::sync::Mutex;

use super::attention::scratch_bytes;
use super::fast::Cpu;
use super::weight::Weight;
use crate::backend::packed::PackedKv;
use crate::backend::{Batch, Buf, Counters, DeviceMemory, Fence, Kv, KvShape, Quantize};
use crate::error::Result;
use crate::memory::ledger::NotCovered;
use crate::memory::{Layout, Scrubbed, arena::Closed, stack};
use crate::weights::Tensor;

impl Cpu {
    /// Cleans the stacks of its threads, and the scratch that they keep.
    fn scrub_threads(&mut self) -> Scrubbed {
        let stacks = Mutex::new(None);
        self.team.run_on_each(&|_| {
            let scrubbed = stack::scrub_below();
            let mut sum = stacks.lock().expect("no holder panics");
            *sum = Scrubbed::sum(sum.take().into_iter().chain([scrubbed]));
        });
        let stacks = stacks.into_inner().expect("no holder panics").expect("a team has a thread");
        match self.scratch {
            Some(scratch) => stacks.and(self.memory.arena().scrub(scratch)),
            None => stacks,
        }
    }
}

impl DeviceMemory for Cpu {
    type Weight = Weight;

    fn name(&self) -> String {
        format!("cpu ({}, {} threads)", self.isa.name, self.team.size())
    }

    fn arithmetic(&self) -> &'static str {
        self.isa.arithmetic()
    }

    fn weight_bytes(tensor: &Tensor, quantize: Option<Quantize>) -> u64 {
        Weight::bytes_for(tensor, quantize)
    }

    fn kv_block_bytes(shape: &KvShape) -> Option<usize> {
        PackedKv::block_bytes(shape)
    }

    fn upload(&mut self, tensor: &Tensor, quantize: Option<Quantize>) -> Result<Weight> {
        Weight::from_tensor(tensor, quantize, &self.kernels, &mut self.team)
    }

    fn upload_table(&mut self, values: Vec<f32>, cols: usize) -> Result<Weight> {
        Ok(Weight::from_table(values, cols))
    }

    fn reserve(&mut self, mut layout: Layout, kv: Kv, _: Option<Buf>) -> Result<()> {
        self.scratch = layout.region(scratch_bytes(&PackedKv::of(kv)) * self.team.size());
        self.memory.reserve(&layout, kv)
    }

    fn submit(&mut self, batch: &Batch<'_>, record: impl FnOnce(&mut Self)) -> Fence {
        let fence = self.counters.submitted(batch);
        record(self);
        fence
    }

    fn read(&mut self, fence: &Fence, buf: Buf, row: usize) -> &[f32] {
        self.counters.check(fence);
        self.memory.arena().slice(buf.row(row))
    }

    fn copy_block(&mut self, from: u32, to: u32) {
        self.memory.copy_block(from, to);
    }

    fn with_block(&mut self, block: u32, act: &mut dyn FnMut(&mut [u8])) {
        self.memory.with_block(block, act);
    }

    fn scrub_steps(&mut self, used: impl Iterator<Item = (Buf, usize)>) -> (u64, Scrubbed) {
        let (regions, rows) = self.memory.scrub_rows(used);
        let threads = self.scrub_threads();
        (regions + 1, rows.into_iter().fold(threads, Scrubbed::and))
    }

    fn scrub_blocks(&mut self, blocks: &[u32]) -> Option<Scrubbed> {
        self.memory.scrub_blocks(blocks)
    }

    fn scrub_all(&mut self) -> Option<Scrubbed> {
        self.memory.scrub_all()
    }

    fn counters(&self) -> Counters {
        self.counters
    }

    fn protection(&self) -> (u64, Vec<NotCovered>) {
        self.memory.protection()
    }

    fn close(self) -> Option<Closed> {
        let Self { memory, team, .. } = self;
        drop(team); // its stacks are unmapped
        memory.into_arena().map(|arena| arena.close())
    }
}
