//! The fast CPU backend: jobs cut into fixed parts for a team, kernels of the best instruction set.
#![expect(unsafe_code, reason = "makes kernel jobs; each names the sizes it checked")]

use std::ops::Range;

use super::attention::{AttentionJob, writes};
use super::detect::Isa;
use super::experts::ExpertsJob;
use super::heads::HeadsJob;
use super::kernels::Kernels;
use super::linear::{GatedJob, Input, LinearJob};
use super::memory::CpuMemory;
use super::pool::pool;
use super::route::route;
use super::rows::{ActAndMulJob, ActivateJob, ConvertJob, MoeCombineJob, NormJob, NormTo, RopeJob, ScaleJob};
use super::team::{Part, Team};
use super::weight::{Weight, bias_of};
use crate::backend::packed::HeadSizes;
use crate::backend::{
    Activation, Attention, AttentionBias, BLOCK, Batch, Buf, Counters, EmbedBy, Expert, GateUp, Linear, Norm,
    OperandType, Ops, Pointwise, Pooling, Projection, RopeTable, Routed, Routing,
};
use crate::error::Result;
use crate::memory::Region;

/// Below this many multiply-adds or values a job stays on the caller's thread: waking the team costs more.
const ALONE: usize = 16 * 1024;

/// The CPU.
#[derive(Debug)]
pub struct Cpu {
    pub(super) memory: CpuMemory,
    pub(super) team: Team,
    pub(super) isa: Isa,
    pub(super) kernels: Kernels,
    /// Attention scratch: one piece for each member of the team.
    pub(super) scratch: Option<Region>,
    pub(super) counters: Counters,
}

impl Cpu {
    /// A backend of `threads` threads, the caller's included.
    ///
    /// # Errors
    /// The system refuses a thread.
    pub fn new(threads: usize, isa: Isa) -> Result<Self> {
        let team = Team::new(threads.max(1))?;
        Ok(Self {
            memory: CpuMemory::default(),
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

    /// Runs a job that multiplies tiles.
    fn run_tiles(&mut self, work: usize, job: &(dyn Fn(Part) + Sync)) {
        let Some((before, after)) = self.kernels.around else {
            return self.run(work, job);
        };
        // SAFETY: `self.isa` proves the instruction set.
        self.run(work, &|part| unsafe {
            before();
            job(part);
            after();
        });
    }

    /// The address of `rows` rows of a buffer.
    fn at(&mut self, buf: Buf, rows: usize) -> *mut f32 {
        self.memory.arena().pointer(buf.rows(rows))
    }

    /// `rows` rows of the operand `x`, for a product with `weight`.
    fn input(&mut self, rows: usize, x: Buf, weight: &Weight) -> Input {
        let operand = x.form;
        let format = weight.format().expect("products are with matrices");
        assert_eq!(x.cols, weight.cols, "columns differ");
        Input {
            x: self.at(x, rows).cast(),
            x_stride: operand.row_bytes(x.cols),
            tokens: rows,
            tile: self.kernels.tile(format, operand),
            at_once: self.kernels.tokens,
        }
    }

    fn normalise(&mut self, rows: usize, x: Buf, norm: &Norm<Weight>, width: usize, to: NormTo) {
        let cols = x.cols;
        let table = |weight: &'_ Option<Weight>| weight.as_ref().map(|weight| weight.cols);
        assert!(width > 0 && cols.is_multiple_of(width), "norm: {width} values do not divide {cols}");
        for len in [table(&norm.weight), table(&norm.bias)].into_iter().flatten() {
            assert!(len == cols || len == width, "norm: columns differ");
        }
        let job = NormJob {
            rows,
            cols,
            width,
            x: self.at(x, rows),
            x_stride: cols,
            kind: norm.kind,
            eps: norm.eps,
            weight: norm.weight.as_ref().map(Weight::table),
            bias: norm.bias.as_ref().map(Weight::table),
            to,
        };
        let kernel = self.kernels.norm;
        // SAFETY: `self.isa` proves the instruction set; `at` checked the rows against the plan, the asserts the columns;
        // parts write disjoint rows or columns. So it is for each kernel called in this file.
        self.run(rows * cols, &|part| unsafe { kernel(&job, part) });
    }

    /// The job that rotates queries and keys, without values and the cache.
    fn rope_job<'a>(
        &mut self,
        batch: &Batch<'a>,
        q: Option<Buf>,
        k: Buf,
        rope: Option<&'a RopeTable<Weight>>,
    ) -> RopeJob<'a> {
        let (rows, kv) = (batch.positions.len(), self.memory.kv());
        assert!(
            k.cols == kv.kv_heads * kv.head_dim && q.is_none_or(|q| q.cols.is_multiple_of(kv.head_dim)),
            "rope: columns differ"
        );
        assert!(rope.is_none_or(|rope| rope.dims <= kv.head_dim), "rope: more than a head");
        RopeJob {
            positions: batch.positions,
            slots: batch.slots,
            q: q.map_or(std::ptr::NonNull::dangling().as_ptr(), |q| self.at(q, rows)),
            q_cols: q.map_or(0, |q| q.cols),
            k: self.at(k, rows),
            v: std::ptr::null(),
            rope: rope.map(|rope| rope.table.table()),
            dims: rope.map_or(0, |rope| rope.dims),
            interleaved: rope.is_some_and(|rope| rope.interleaved),
            kv,
            cache: None,
            layer: 0,
        }
    }

    /// That job, with the values and where keys and values go.
    fn store_job<'a>(&mut self, job: RopeJob<'a>, batch: &Batch<'_>, layer: usize, v: Buf) -> RopeJob<'a> {
        let (rows, kv) = (batch.positions.len(), self.memory.kv());
        assert!(
            v.cols == kv.kv_heads * kv.value_dim && batch.slots.len() == rows && layer < kv.layers,
            "rope: rows or layer differ"
        );
        for &slot in batch.slots {
            let _ = kv.block(slot / BLOCK as u32); // panics outside the cache
        }
        RopeJob { layer, v: self.at(v, rows), cache: Some(self.memory.arena().pointer(kv.region())), ..job }
    }

    fn rotate(&mut self, job: RopeJob<'_>) {
        let kernel = self.kernels.rope_store;
        let cols = job.q_cols.max(job.kv.kv_heads * job.kv.head_dim);
        // SAFETY: as in `normalise`.
        self.run(job.positions.len() * cols, &|part| unsafe { kernel(&job, part) });
    }
}

impl Ops for Cpu {
    const FUSES_GATED: bool = true;

    fn operand_type(&self, readers: &[&Weight]) -> OperandType {
        let of =
            |weight: &&Weight| self.kernels.operand(weight.format().expect("products are with matrices"));
        let form = readers.iter().map(of).reduce(|a, b| if a == b { a } else { OperandType::F32 });
        form.expect("somebody reads it")
    }

    fn embed(&mut self, batch: &Batch<'_>, by: EmbedBy, table: &Weight, scale: f32, add: bool, out: Buf) {
        let ids = batch.rows_of_table(by);
        assert!(
            out.cols == table.cols && ids.iter().all(|&id| (id as usize) < table.rows),
            "ids outside the table"
        );
        for (row, &id) in ids.iter().enumerate() {
            let out: &mut [f32] = self.memory.arena().slice_mut(out.row(row));
            if add {
                let values = &table.table()[id as usize * table.cols..][..table.cols];
                out.iter_mut().zip(values).for_each(|(out, value)| *out += value * scale);
                continue;
            }
            self.counters.weight_bytes += table.read_row(id as usize, out);
            if scale != 1.0 {
                out.iter_mut().for_each(|value| *value *= scale);
            }
        }
    }

    fn norm(&mut self, rows: usize, x: Buf, norm: &Norm<Weight>, width: usize, out: Buf) {
        assert_eq!(x.cols, out.cols, "norm: columns differ");
        let to = if x.region == out.region {
            NormTo::Rows { out: self.at(x, rows) }
        } else {
            assert_eq!(width, x.cols, "norm: an operand of pieces of rows");
            let operand = out.form;
            NormTo::Operand { operand, out: self.at(out, rows).cast(), stride: operand.row_bytes(out.cols) }
        };
        self.normalise(rows, x, norm, width, to);
    }

    fn add(&mut self, rows: usize, x: Buf, gate: Option<Buf>, scale: f32, out: Buf) {
        let Some(gate) = gate else {
            return self.add_norm(rows, x, &Norm::identity(), scale, out);
        };
        assert!(x.cols == out.cols && gate.cols == 1, "gate: columns differ");
        let job = MoeCombineJob {
            rows,
            cols: out.cols,
            count: 1,
            from: self.at(x, rows),
            places: None,
            weights: self.at(gate, rows),
            sigmoid: true,
            add: Some(scale),
            out: self.at(out, rows),
        };
        let kernel = self.kernels.moe_combine;
        // SAFETY: as in `normalise`.
        self.run(rows * out.cols, &|part| unsafe { kernel(&job, part) });
    }

    fn linear(&mut self, rows: usize, x: Buf, projections: &[Projection<'_, Weight>]) {
        let mut work = 0;
        let mut jobs = [None; 3];
        assert!(projections.len() <= jobs.len(), "at most three projections at once");
        for (slot, projection) in jobs.iter_mut().zip(projections) {
            let weight = projection.weight;
            assert_eq!(projection.out.cols, weight.rows, "linear: columns differ");
            work += rows * weight.rows * weight.cols;
            self.counters.weight_bytes += weight.bytes();
            *slot = Some(LinearJob {
                input: self.input(rows, x, weight),
                weight: weight.matrix(bias_of(weight, projection.bias)),
                out: self.at(projection.out, rows),
                out_stride: weight.rows,
                add: projection.add,
            });
        }
        let kernel = self.kernels.linear;
        // SAFETY: as in `normalise`.
        self.run_tiles(work, &|part| jobs.iter().flatten().for_each(|job| unsafe { kernel(job, part) }));
    }

    fn per_head_linear(&mut self, rows: usize, x: Buf, heads: usize, weight: &Weight, pieces: Buf, out: Buf) {
        let HeadSizes { ins, outs, from, to } =
            HeadSizes::of(heads, [weight.rows, weight.cols], x, pieces, out);
        self.counters.weight_bytes += weight.bytes();
        let job = HeadsJob {
            rows,
            heads,
            x: self.at(x, rows),
            x_stride: x.stride(),
            from,
            input: self.input(heads * rows, pieces, weight),
            operand: pieces.form,
            pieces: self.at(pieces, heads * rows).cast(),
            ins,
            weight: weight.matrix(None),
            outs,
            out: self.at(out, rows),
            out_stride: out.stride(),
            to,
            kernels: self.kernels,
        };
        // SAFETY: as in `normalise`.
        self.run(rows * x.cols, &|part| unsafe { job.cut(part) });
        // SAFETY: as in `normalise`.
        self.run_tiles(rows * heads * ins * outs, &|part| unsafe { job.multiply(part) });
    }

    fn concat(&mut self, rows: usize, parts: [Buf; 2], out: Buf) {
        self.memory.concat(rows, parts, out);
    }

    fn act_and_mul(&mut self, rows: usize, activation: Activation, gate: Buf, up: Option<Buf>, out: Buf) {
        let operand = out.form;
        assert!(gate.cols == out.cols && up.is_none_or(|up| up.cols == out.cols), "MLP: columns differ");
        let job = ActAndMulJob {
            rows,
            cols: out.cols,
            gate: self.at(gate, rows),
            up: up.map(|up| self.at(up, rows).cast_const()),
            activation,
            operand,
            out: self.at(out, rows).cast(),
            out_stride: operand.row_bytes(out.cols),
        };
        let kernel = self.kernels.act_and_mul;
        // SAFETY: as in `normalise`.
        self.run(rows * out.cols, &|part| unsafe { kernel(&job, part) });
    }

    fn pointwise(&mut self, rows: usize, x: Buf, function: Pointwise) {
        let (cols, at) = (x.cols, self.at(x, rows));
        match function {
            Pointwise::Scale(scale, cap) => {
                let (kernel, job) = (self.kernels.scale, ScaleJob { rows, cols, x: at, scale, cap });
                // SAFETY: as in `normalise`.
                self.run(rows * cols, &|part| unsafe { kernel(&job, part) });
            }
            Pointwise::Activate(activation) => {
                let (kernel, job) = (self.kernels.activate, ActivateJob { rows, cols, x: at, activation });
                // SAFETY: as in `normalise`.
                self.run(rows * cols, &|part| unsafe { kernel(&job, part) });
            }
        }
    }

    fn route(&mut self, rows: usize, routing: &Routing, correction: Option<&Weight>, with: &Routed) {
        route(&mut self.memory, rows, routing, correction.map(Weight::table), with);
    }

    fn experts(
        &mut self,
        rows: usize,
        x: Buf,
        activation: Activation,
        experts: &[Expert<Weight>],
        with: &Routed,
    ) {
        let (pairs, count) = (rows * with.experts.cols, with.experts.cols);
        let (row_bytes, inner_bytes) = (x.form.row_bytes(x.cols), with.inner.form.row_bytes(with.inner.cols));
        assert!(x.form == with.x.form, "experts: forms differ");
        assert!(
            x.cols == with.x.cols && x.cols == with.out.cols && experts.len() + 1 == with.starts.cols,
            "experts: columns differ"
        );
        let (work, mut bytes) = (pairs * x.cols * with.inner.cols, 0);
        let starts = self.memory.arena().slice::<u32>(with.starts.row(0));
        for (expert, _) in experts.iter().zip(starts.windows(2)).filter(|(_, rows)| rows[0] < rows[1]) {
            let [gate, up, down] = [&expert.gate, &expert.up, &expert.down].map(|linear| &linear.weight);
            let same = gate.rows == with.inner.cols && gate.cols == x.cols && gate.format() == up.format();
            let same = same && (up.rows, up.cols) == (gate.rows, gate.cols);
            assert!(same && down.rows == x.cols && down.cols == gate.rows, "experts: columns differ");
            bytes += gate.bytes() + up.bytes() + down.bytes();
        }
        self.counters.weight_bytes += bytes;
        let job = ExpertsJob {
            experts,
            count,
            places: self.at(with.places, rows).cast(),
            tokens: self.at(x, rows).cast(),
            starts: self.at(with.starts, 1).cast(),
            kernels: self.kernels,
            forms: [x.form, with.inner.form],
            activation,
            x: self.at(with.x, pairs).cast(),
            x_stride: row_bytes,
            inner: self.at(with.inner, pairs).cast(),
            inner_stride: inner_bytes,
            out: self.at(with.out, pairs),
        };
        // SAFETY: as in `normalise`; `route` wrote places, each row of `with.x` once.
        self.run(pairs * x.cols, &|part| unsafe { job.order(pairs, part) });
        // SAFETY: as in `normalise`; `route` wrote starts that end with `pairs`.
        self.run_tiles(2 * work, &|part| unsafe { job.first(part) });
        // SAFETY: as above.
        self.run_tiles(work, &|part| unsafe { job.second(part) });
    }

    fn moe_combine(&mut self, rows: usize, with: &Routed, add: Option<f32>, out: Buf) {
        assert_eq!(with.out.cols, out.cols, "mix: columns differ");
        let count = with.experts.cols;
        let job = MoeCombineJob {
            rows,
            cols: out.cols,
            count,
            from: self.at(with.out, rows * count),
            places: Some(self.at(with.places, rows).cast::<u32>().cast_const()),
            weights: self.at(with.weights, rows),
            sigmoid: false,
            add,
            out: self.at(out, rows),
        };
        let kernel = self.kernels.moe_combine;
        // SAFETY: as in `normalise`.
        self.run(rows * count * out.cols, &|part| unsafe { kernel(&job, part) });
    }

    fn rope(&mut self, batch: &Batch<'_>, q: Buf, k: Buf, rope: &RopeTable<Weight>) {
        let job = self.rope_job(batch, Some(q), k, Some(rope));
        self.rotate(job);
    }

    fn store(&mut self, batch: &Batch<'_>, layer: usize, k: Buf, v: Buf) {
        let job = self.rope_job(batch, None, k, None);
        let job = self.store_job(job, batch, layer, v);
        self.rotate(job);
    }

    fn attention(
        &mut self,
        batch: &Batch<'_>,
        shape: Attention,
        biases: AttentionBias<'_, Weight>,
        q: Buf,
        out: Buf,
    ) {
        let (rows, kv) = (batch.ids.len(), self.memory.kv());
        let [sinks, relative_bias] = [biases.sinks, biases.relative_bias].map(|bias| bias.map(Weight::table));
        let reach = relative_bias.map(|relative_bias| relative_bias.len() / shape.heads / 2);
        shape.check(batch, &kv, [q, out], sinks.map(<[f32]>::len), reach);
        let work = batch.spans.iter().map(|span| span.rows * (span.position + span.rows) * q.cols).sum();
        let operand = out.form;
        // a group of int8 that spans two heads is written once both are there
        let written = if writes(operand, kv.value_dim) { operand } else { OperandType::F32 };
        let (tile, tile_operand) = self.kernels.cache_tile(kv.cache);
        let scratch = self.scratch.expect("planned with the arena");
        let job = AttentionJob {
            spans: batch.spans,
            blocks: batch.blocks,
            kv,
            cache: self.memory.arena().pointer(kv.region()),
            shape,
            sinks,
            relative_bias,
            q: self.at(q, rows),
            operand: written,
            out: self.at(out, rows).cast(),
            out_stride: written.row_bytes(out.cols),
            tile,
            tile_operand,
            at_once: self.kernels.tokens,
            scratch: self.memory.arena().pointer(scratch),
        };
        let kernel = self.kernels.attention;
        // SAFETY: as in `normalise`.
        self.run_tiles(work, &|part| unsafe { kernel(&job, part) });
        if written != operand {
            let job = ConvertJob { rows, cols: out.cols, at: self.at(out, rows).cast(), operand };
            // SAFETY: as in `normalise`.
            unsafe { (self.kernels.convert)(&job) };
        }
    }

    fn pool(&mut self, texts: &[Range<u32>], pooling: Pooling, x: Buf, out: Buf) {
        pool(&mut self.memory, texts, pooling, x, out);
    }

    fn add_norm(&mut self, rows: usize, x: Buf, norm: &Norm<Weight>, scale: f32, out: Buf) {
        assert_eq!(x.cols, out.cols, "norm: columns differ");
        let to = NormTo::Sum { out: self.at(out, rows), scale };
        self.normalise(rows, x, norm, x.cols, to);
    }

    fn gated(
        &mut self,
        rows: usize,
        x: Buf,
        GateUp { activation, gate, up }: GateUp<'_, Weight>,
        _: Option<[Buf; 2]>,
        out: Buf,
    ) {
        // without a gate the one product is what the activation takes
        let (gate, up) = gate.map_or((up, None), |gate| (gate, Some(up)));
        let (inner, operand) = (gate.weight.rows, out.form);
        assert_eq!(inner, out.cols, "MLP: columns differ");
        for up in up.iter().map(|up| &up.weight) {
            let same = up.rows == inner && up.cols == gate.weight.cols && up.format() == gate.weight.format();
            assert!(same, "MLP: gate and up differ");
        }
        let matrix = |linear: &'_ Linear<Weight>| linear.weight.bytes();
        let bytes = matrix(gate) + up.map_or(0, matrix);
        self.counters.weight_bytes += bytes;
        let job = GatedJob {
            input: self.input(rows, x, &gate.weight),
            activation,
            gate: gate.weight.matrix(bias_of(&gate.weight, gate.bias.as_ref())),
            up: up.map(|up| up.weight.matrix(bias_of(&up.weight, up.bias.as_ref()))),
            operand,
            out: self.at(out, rows).cast(),
            out_stride: operand.row_bytes(out.cols),
        };
        let kernel = self.kernels.gated;
        let products = rows * inner * gate.weight.cols;
        // SAFETY: as in `normalise`.
        self.run_tiles(if up.is_some() { 2 * products } else { products }, &|part| unsafe {
            kernel(&job, part)
        });
    }

    fn rope_store(
        &mut self,
        batch: &Batch<'_>,
        layer: usize,
        q: Buf,
        k: Buf,
        v: Buf,
        rope: Option<&RopeTable<Weight>>,
    ) {
        let job = self.rope_job(batch, Some(q), k, rope);
        let job = self.store_job(job, batch, layer, v);
        self.rotate(job);
    }

    fn gather(&mut self, rows: &[u32], x: Buf, out: Buf) {
        self.memory.gather(rows, x, out);
    }
}

#[cfg(test)]
impl Cpu {
    /// Whether all that it reserved is zeros.
    pub fn is_zero(&mut self) -> bool {
        self.memory.arena().is_zero()
    }

    /// Writes rows of an operand.
    pub fn set_operand(&mut self, buf: Buf, values: &[f32]) {
        let (operand, rows) = (buf.form, values.len() / buf.cols);
        for (row, values) in values.chunks(buf.cols).enumerate() {
            self.memory.arena().slice_mut(buf.row(row)).copy_from_slice(values);
        }
        let job = ConvertJob { rows, cols: buf.cols, at: self.at(buf, rows).cast(), operand };
        // SAFETY: as in `normalise`.
        unsafe { (self.kernels.convert)(&job) };
    }

    /// One row of an operand.
    pub fn get_operand(&mut self, buf: Buf, row: usize) -> Vec<f32> {
        let operand = buf.form;
        let bytes = operand.row_bytes(buf.cols);
        let region = buf.rows(row + 1);
        let all: &[u8] = self.memory.arena().slice(region);
        (0..buf.cols).map(|col| super::operand::value(operand, &all[row * bytes..][..bytes], col)).collect()
    }
}
