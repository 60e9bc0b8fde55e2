//! The fast CPU backend: jobs cut into fixed parts for a team, kernels of the best instruction set.
#![expect(unsafe_code, reason = "makes kernel jobs; each names the sizes it checked")]

use std::sync::Mutex;

use super::attention::{AttentionJob, scratch_len};
use super::detect::Isa;
use super::kernels::Kernels;
use super::linear::LinearJob;
use super::memory::{Memory, Weight};
use super::rows::{EmbedJob, NormJob, RopeJob, SiluJob};
use super::team::{Part, Team};
use crate::backend::{Attention, BLOCK, Backend, Batch, Buf, Counters, Kv, Projection};
use crate::error::Result;
use crate::memory::{Layout, Region, Scrubbed, arena::Closed, stack};
use crate::weights::Tensor;

/// Below this many multiply-adds or values a job stays on the caller's thread: waking the team costs more.
const ALONE: usize = 16 * 1024;

/// The CPU.
#[derive(Debug)]
pub struct Cpu {
    memory: Memory,
    team: Team,
    isa: Isa,
    kernels: Kernels,
    /// Attention scratch: one piece for each member of the team.
    scratch: Option<Region>,
    counters: Counters,
}

impl Cpu {
    /// A backend of `threads` threads, the caller's included.
    ///
    /// # Errors
    /// The system refuses a thread.
    pub fn new(threads: usize, isa: Isa) -> Result<Self> {
        let team = Team::new(threads.max(1))?;
        Ok(Self {
            memory: Memory::default(),
            team,
            kernels: isa.kernels(),
            isa,
            scratch: None,
            counters: Counters::default(),
        })
    }

    /// Runs a job of `work` operations on the team, or alone when it is small.
    fn run(&mut self, work: usize, job: &(dyn Fn(Part) + Sync)) {
        if work < ALONE { job(Part { index: 0, count: 1 }) } else { self.team.run(self.team.size(), job) }
    }

    /// The address of `rows` rows of a buffer.
    fn at(&mut self, buf: Buf, rows: usize) -> *mut f32 {
        self.memory.arena().pointer(buf.rows(rows))
    }
}

impl Backend for Cpu {
    type Weight = Weight;

    fn name(&self) -> String {
        format!("cpu ({}, {} threads)", self.isa.name, self.team.size())
    }

    fn upload(&mut self, tensor: &Tensor) -> Weight {
        Weight::from_tensor(tensor)
    }

    fn upload_table(&mut self, values: Vec<f32>, cols: usize) -> Weight {
        Weight::from_table(values, cols)
    }

    fn reserve(&mut self, mut layout: Layout, kv: Kv, heads: usize) -> Result<()> {
        let bytes = scratch_len(heads, kv.kv_heads, kv.head_dim) * self.team.size() * size_of::<f32>();
        self.scratch = layout.region(bytes);
        self.memory.reserve(&layout, kv)
    }

    fn embed(&mut self, ids: &[u32], table: &Weight, out: Buf) {
        assert!(
            out.cols == table.cols && ids.iter().all(|&id| (id as usize) < table.rows),
            "ids outside the table"
        );
        let (cols, dtype) = (table.cols, table.dtype());
        self.counters.steps += 1;
        self.counters.tokens += ids.len() as u64;
        self.counters.weight_bytes += (ids.len() * cols * dtype.bytes()) as u64;
        let job = EmbedJob { ids, table: table.row_pointer(0), dtype, cols, out: self.at(out, ids.len()) };
        let kernel = self.kernels.embed;
        // SAFETY: `self.isa` proves the instruction set; `at` checked the rows against the plan, the asserts the columns;
        // parts write disjoint rows or columns. So it is for each kernel called in this file.
        self.run(ids.len() * cols, &|part| unsafe { kernel(&job, part) });
    }

    fn rms_norm(&mut self, rows: usize, x: Buf, weight: &Weight, eps: f32, out: Buf) {
        let weight = weight.table();
        assert!(x.cols == weight.len() && out.cols == weight.len(), "norm: columns differ");
        let job = NormJob { rows, x: self.at(x, rows), weight, eps, out: self.at(out, rows) };
        let kernel = self.kernels.rms_norm;
        // SAFETY: as in `embed`.
        self.run(rows * weight.len(), &|part| unsafe { kernel(&job, part) });
    }

    fn linear(&mut self, rows: usize, x: Buf, projections: &[Projection<'_, Weight>]) {
        let mut work = 0;
        let mut jobs = [None; 3];
        assert!(projections.len() <= jobs.len(), "at most three projections at once");
        for (slot, projection) in jobs.iter_mut().zip(projections) {
            let weight = projection.weight;
            let bias = projection.bias.map(Weight::table);
            assert!(
                x.cols == weight.cols
                    && projection.out.cols == weight.rows
                    && bias.is_none_or(|bias| bias.len() == weight.rows),
                "linear: columns differ"
            );
            work += rows * weight.rows * weight.cols;
            self.counters.weight_bytes += weight.bytes();
            *slot = Some(LinearJob {
                weight: weight.row_pointer(0),
                dtype: weight.dtype(),
                outs: weight.rows,
                ins: weight.cols,
                x: self.at(x, rows),
                tokens: rows,
                bias: bias.map(<[f32]>::as_ptr),
                out: self.at(projection.out, rows),
                accumulate: projection.accumulate,
            });
        }
        let kernel = self.kernels.linear;
        // SAFETY: as in `embed`.
        self.run(work, &|part| jobs.iter().flatten().for_each(|job| unsafe { kernel(job, part) }));
    }

    fn rope_store(&mut self, batch: &Batch<'_>, layer: usize, q: Buf, k: Buf, v: Buf, rope: &Weight) {
        let (rows, kv) = (batch.positions.len(), self.memory.kv());
        let width = kv.kv_heads * kv.head_dim;
        assert!(
            k.cols == width && v.cols == width && q.cols.is_multiple_of(kv.head_dim),
            "rope: columns differ"
        );
        assert!(batch.slots.len() == rows && layer < kv.layers, "rope: rows or layer differ");
        for &slot in batch.slots {
            let _ = kv.block(slot / BLOCK as u32); // panics outside the cache
        }
        let job = RopeJob {
            positions: batch.positions,
            slots: batch.slots,
            q: self.at(q, rows),
            q_cols: q.cols,
            k: self.at(k, rows),
            v: self.at(v, rows),
            rope: rope.table(),
            kv,
            cache: self.memory.arena().pointer(kv.region),
            layer,
        };
        let kernel = self.kernels.rope_store;
        // SAFETY: as in `embed`.
        self.run(rows * q.cols, &|part| unsafe { kernel(&job, part) });
    }

    fn attention(&mut self, batch: &Batch<'_>, shape: Attention, q: Buf, out: Buf) {
        let (rows, kv) = (batch.ids.len(), self.memory.kv());
        assert!(q.cols == shape.heads * kv.head_dim && out.cols == q.cols, "attention: columns differ");
        let mut work = 0;
        for span in batch.spans {
            let last = span.position + span.rows;
            for &block in &batch.blocks[span.table..span.table + last.div_ceil(BLOCK)] {
                let _ = kv.block(block); // panics outside the cache
            }
            assert!(
                span.row + span.rows <= rows && shape.layer < kv.layers,
                "attention: rows or layer differ"
            );
            work += span.rows * last * q.cols;
        }
        let scratch = self.scratch.expect("planned with the arena");
        let job = AttentionJob {
            spans: batch.spans,
            blocks: batch.blocks,
            kv,
            cache: self.memory.arena().pointer(kv.region),
            layer: shape.layer,
            heads: shape.heads,
            window: shape.window,
            scale: shape.scale,
            q: self.at(q, rows),
            out: self.at(out, rows),
            scratch: self.memory.arena().pointer(scratch),
        };
        let kernel = self.kernels.attention;
        // SAFETY: as in `embed`.
        self.run(work, &|part| unsafe { kernel(&job, part) });
    }

    fn silu_mul(&mut self, rows: usize, gate: Buf, up: Buf) {
        assert_eq!(gate.cols, up.cols, "silu: columns differ");
        let job = SiluJob { len: rows * gate.cols, gate: self.at(gate, rows), up: self.at(up, rows) };
        let kernel = self.kernels.silu_mul;
        // SAFETY: as in `embed`.
        self.run(job.len, &|part| unsafe { kernel(&job, part) });
    }

    fn gather(&mut self, rows: &[u32], x: Buf, out: Buf) {
        self.memory.gather(rows, x, out);
    }

    fn read(&mut self, buf: Buf, row: usize) -> &[f32] {
        self.memory.arena().slice(buf.row(row))
    }

    fn scrub(&mut self, buf: Buf, rows: usize) -> Scrubbed {
        self.memory.arena().scrub(buf.rows(rows))
    }

    fn scrub_blocks(&mut self, blocks: &[u32]) -> Scrubbed {
        self.memory.scrub_blocks(blocks)
    }

    fn scrub_all(&mut self) -> Scrubbed {
        self.memory.scrub_all()
    }

    fn scrub_threads(&mut self) -> Scrubbed {
        let stacks = Mutex::new(Scrubbed::nothing());
        self.team.run_on_each(&|_| {
            let scrubbed = stack::scrub_below();
            let mut sum = stacks.lock().expect("no holder panics");
            *sum = std::mem::replace(&mut *sum, Scrubbed::nothing()).and(scrubbed);
        });
        let stacks = stacks.into_inner().expect("no holder panics");
        match self.scratch {
            Some(scratch) => stacks.and(self.memory.arena().scrub(scratch)),
            None => stacks,
        }
    }

    fn counters(&self) -> Counters {
        self.counters
    }

    fn close(self) -> Option<Closed> {
        let Self { memory, team, .. } = self;
        drop(team); // its stacks are unmapped
        memory.into_arena().map(|arena| arena.close())
    }
}
