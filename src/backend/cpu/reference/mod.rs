//! The oracle: every op as its formula says, one value after another, sums in f64. Dull on purpose.

mod activation;
mod weight;

use std::ops::Range;

use self::activation::{activate, activate_gated};
pub use self::weight::Weight;
use self::weight::{Data, Rounded};
use super::memory::CpuMemory;
use super::route::route;
use crate::backend::packed::{PackedKv, int8_scale};
use crate::backend::{
    Activation, Attention, AttentionBias, BLOCK, Batch, Buf, Cap, Counters, DeviceMemory, EmbedBy, Expert,
    Fence, GateUp, Kv, KvShape, KvType, Linear, Mask, Norm, NormKind, OperandType, Ops, Pointwise, Pooling,
    Projection, Quantize, RopeTable, Routed, Routing, Side,
};
use crate::error::Result;
use crate::memory::ledger::NotCovered;
use crate::memory::{Layout, Scrubbed, Secret, arena::Closed, stack};
use crate::weights::{Dtype, Tensor};

/// The reference backend: one thread, no vectors, about a hundred times slower than [`super::Cpu`].
#[derive(Debug, Default)]
pub struct Reference {
    memory: CpuMemory,
    counters: Counters,
    /// Whether activations come to products as on CUDA devices, in 16 bits.
    short: bool,
}

impl Reference {
    /// A reference whose activations are multiplied as CUDA devices do: rounded to the type of the matrix, or to bf16 for whole
    /// numbers.
    #[cfg(test)]
    pub fn short() -> Self {
        Self { short: true, ..Self::default() }
    }

    fn f32(&mut self, buf: Buf, row: usize) -> &[f32] {
        self.memory.arena().slice(buf.row(row))
    }

    fn f32_mut(&mut self, buf: Buf, row: usize) -> &mut [f32] {
        self.memory.arena().slice_mut(buf.row(row))
    }

    /// One cached value.
    fn cached(
        &mut self,
        block: u32,
        layer: usize,
        side: Side,
        head: usize,
        offset: usize,
        dim: usize,
    ) -> f64 {
        let (kv, plane) = (self.memory.kv(), self.memory.kv().plane(block, layer, side, head));
        let arena = self.memory.arena();
        let read = |at: usize, bytes: usize| arena.slice::<u8>(kv.region().part(plane + at, bytes));
        let raw = read(kv.element(side, offset, dim), kv.cache.bytes());
        match kv.cache {
            KvType::F32 => f64::from(Dtype::F32.read(raw)),
            KvType::F16 => f64::from(Dtype::F16.read(raw)),
            KvType::Bf16 => f64::from(Dtype::Bf16.read(raw)),
            KvType::Int8 => {
                f64::from(raw[0] as i8) * { f64::from(Dtype::F32.read(read(kv.scale(side, offset), 4))) }
            }
        }
    }

    /// Caches one head's values of one position.
    fn cache(&mut self, slot: u32, layer: usize, side: Side, head: usize, values: &[f32]) {
        let (block, offset) = (slot / BLOCK as u32, slot as usize % BLOCK);
        let (kv, plane) = (self.memory.kv(), self.memory.kv().plane(block, layer, side, head));
        let mut write = |at: usize, raw: &[u8]| {
            self.memory.arena().slice_mut(kv.region().part(plane + at, raw.len())).copy_from_slice(raw);
        };
        let (scale, inverse) = int8_scale(values);
        for (dim, &value) in values.iter().enumerate() {
            let at = kv.element(side, offset, dim);
            match kv.cache {
                KvType::F32 => write(at, &value.to_le_bytes()),
                KvType::F16 => write(at, &half::f16::from_f32(value).to_le_bytes()),
                KvType::Bf16 => write(at, &half::bf16::from_f32(value).to_le_bytes()),
                KvType::Int8 => write(at, &[(value * inverse).round_ties_even() as i8 as u8]),
            }
        }
        if kv.cache == KvType::Int8 {
            write(kv.scale(side, offset), &scale.to_le_bytes());
        }
    }

    fn attend(
        &mut self,
        shape: Attention,
        (table, position, [first, last]): (&[u32], usize, [usize; 2]),
        q: (Buf, usize),
        out: Buf,
        (head, sink): (usize, f64),
        relative_bias: Option<&Weight>,
    ) {
        let kv = self.memory.kv();
        let (dim, value_dim) = (kv.head_dim, kv.value_dim);
        let kv_head = head / (shape.heads / kv.kv_heads);
        let cached = |this: &mut Self, side, position: usize, i: usize| {
            this.cached(table[position / BLOCK], shape.layer, side, kv_head, position % BLOCK, i)
        };
        let bias = |past: usize| {
            relative_bias.map_or(0.0, |table| {
                let reach = table.table().len() / shape.heads / 2;
                f64::from(table.table()[head * 2 * reach + reach + past - position])
            })
        };
        let score = |this: &mut Self, past: usize| {
            let dot: f64 = (0..dim)
                .map(|i| f64::from(this.f32(q.0, q.1)[head * dim + i]) * cached(this, Side::K, past, i))
                .sum();
            let score = dot * f64::from(shape.scale) + bias(past);
            shape.softcap.map_or(score, |cap| f64::from(cap) * (score / f64::from(cap)).tanh())
        };
        let scores = (first..=last).map(|past| score(self, past));
        let scores = Secret::new(scores.collect::<Vec<f64>>());
        let scores = scores.expose();
        let max = scores.iter().copied().fold(sink, f64::max);
        let sum: f64 = scores.iter().chain([&sink]).map(|score| (score - max).exp()).sum();
        for i in 0..value_dim {
            let mixed: f64 = (first..=last)
                .zip(scores)
                .map(|(past, score)| (score - max).exp() / sum * cached(self, Side::V, past, i))
                .sum();
            self.f32_mut(out, q.1)[head * value_dim + i] = mixed as f32;
        }
    }
}

/// A row, or the piece of one that begins at value `at`, normalised.
fn normalise<'a>(norm: &'a Norm<Weight>, x: &'a [f32], at: usize) -> impl Iterator<Item = f64> + 'a {
    let mean = |values: &mut dyn Iterator<Item = f64>| values.sum::<f64>() / x.len() as f64;
    let centre = match norm.kind {
        NormKind::Layer => mean(&mut x.iter().map(|&x| f64::from(x))),
        NormKind::Rms | NormKind::Identity => 0.0,
    };
    let square = mean(&mut x.iter().map(|&x| (f64::from(x) - centre).powi(2)));
    let factor = match norm.kind {
        NormKind::Identity => 1.0,
        NormKind::Rms | NormKind::Layer => 1.0 / (square + f64::from(norm.eps)).sqrt(),
    };
    let of = move |table: &Option<Weight>, i: usize, without: f64| {
        table.as_ref().map_or(without, |table| f64::from(table.table()[(at + i) % table.table().len()]))
    };
    x.iter().enumerate().map(move |(i, &x)| {
        (f64::from(x) - centre) * factor * of(&norm.weight, i, 1.0) + of(&norm.bias, i, 0.0)
    })
}

impl Reference {
    /// Cleans the stack of the thread that calls it.
    fn scrub_threads(&mut self) -> Scrubbed {
        stack::scrub_below()
    }
}

impl DeviceMemory for Reference {
    type Weight = Weight;

    fn name(&self) -> String {
        "cpu (reference)".into()
    }

    fn arithmetic(&self) -> &'static str {
        "reference"
    }

    fn weight_bytes(tensor: &Tensor, quantize: Option<Quantize>) -> u64 {
        let values = tensor.shape.iter().product::<usize>() as u64;
        if quantize.is_some() || tensor.is_quantized() { 4 * values } else { tensor.bytes() }
    }

    fn kv_block_bytes(shape: &KvShape) -> Option<usize> {
        PackedKv::block_bytes(shape)
    }

    fn upload(&mut self, tensor: &Tensor, quantize: Option<Quantize>) -> Result<Weight> {
        let weight = Weight::from_tensor(tensor, quantize)?;
        if !self.short || tensor.shape.len() != 2 {
            return Ok(weight);
        }
        let rounded = match (weight.rounded, tensor.dtype) {
            (Rounded::Groups, _) => Rounded::To(Dtype::Bf16),
            (_, Dtype::F32) => Rounded::No,
            (_, dtype) => Rounded::To(dtype),
        };
        Ok(Weight { rounded, ..weight })
    }

    fn upload_table(&mut self, values: Vec<f32>, cols: usize) -> Result<Weight> {
        Ok(Weight { rows: values.len() / cols.max(1), cols, data: Data::Table(values), rounded: Rounded::No })
    }

    fn reserve(&mut self, layout: Layout, kv: Kv, _: Option<Buf>) -> Result<()> {
        self.memory.reserve(&layout, kv)
    }

    fn submit(&mut self, batch: &Batch<'_>, record: impl FnOnce(&mut Self)) -> Fence {
        let fence = self.counters.submitted(batch);
        record(self);
        fence
    }

    fn read(&mut self, fence: &Fence, buf: Buf, row: usize) -> &[f32] {
        self.counters.check(fence);
        self.f32(buf, row)
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
        self.memory.into_arena().map(|arena| arena.close())
    }
}

impl Ops for Reference {
    const FUSES_GATED: bool = true;

    fn operand_type(&self, _: &[&Weight]) -> OperandType {
        OperandType::F32 // what whole numbers are multiplied with is rounded as it is read
    }

    fn embed(&mut self, batch: &Batch<'_>, by: EmbedBy, table: &Weight, scale: f32, add: bool, out: Buf) {
        for (row, &id) in batch.rows_of_table(by).iter().enumerate() {
            if !add {
                self.counters.weight_bytes += table.bytes() / table.rows as u64;
            }
            for (col, value) in self.f32_mut(out, row).iter_mut().enumerate() {
                let before = if add { f64::from(*value) } else { 0.0 };
                *value = (before + f64::from(table.value(id as usize, col)) * f64::from(scale)) as f32;
            }
        }
    }

    fn norm(&mut self, rows: usize, x: Buf, norm: &Norm<Weight>, width: usize, out: Buf) {
        for row in 0..rows {
            let before = Secret::new(self.f32(x, row).to_vec());
            let out = self.f32_mut(out, row).chunks_mut(width);
            for (index, (before, out)) in before.expose().chunks(width).zip(out).enumerate() {
                let values = normalise(norm, before, index * width);
                values.zip(out).for_each(|(value, out)| *out = value as f32);
            }
        }
    }

    fn add(&mut self, rows: usize, x: Buf, gate: Option<Buf>, scale: f32, out: Buf) {
        for row in 0..rows {
            let gate = gate.map_or(1.0, |gate| 1.0 / (1.0 + (-f64::from(self.f32(gate, row)[0])).exp()));
            let (x, out) = self.memory.arena().read_write::<f32, f32>(x.row(row), out.row(row));
            for (x, out) in x.iter().zip(out) {
                *out = (f64::from(*out) + f64::from(*x) * f64::from(scale) * gate) as f32;
            }
        }
    }

    fn linear(&mut self, rows: usize, x: Buf, projections: &[Projection<'_, Weight>]) {
        for Projection { weight, bias, out, add } in projections {
            self.counters.weight_bytes += weight.bytes();
            for row in 0..rows {
                let (x, out) = self.memory.arena().read_write::<f32, f32>(x.row(row), out.row(row));
                let x = weight.operand(x);
                for (col, out) in out.iter_mut().enumerate() {
                    let sum = weight.dot(col, x.expose(), *bias);
                    *out = add.map_or(sum, |scale| f64::from(*out) + sum * f64::from(scale)) as f32;
                }
            }
        }
    }

    fn per_head_linear(&mut self, rows: usize, x: Buf, heads: usize, weight: &Weight, _: Buf, out: Buf) {
        self.counters.weight_bytes += weight.bytes();
        let (ins, outs) = (weight.cols, weight.rows / heads);
        let (from, to) = (x.cols / heads, out.cols / heads);
        for (row, head) in (0..rows).flat_map(|row| (0..heads).map(move |head| (row, head))) {
            let piece = Secret::new(self.f32(x, row)[head * from..][..from].to_vec());
            let (multiplied, kept) = piece.expose().split_at(ins);
            let operand = weight.operand(multiplied);
            let piece = &mut self.f32_mut(out, row)[head * to..][..to];
            let (first, products) = piece.split_at_mut(from - ins);
            first.copy_from_slice(kept);
            for (i, product) in products.iter_mut().enumerate() {
                *product = weight.dot(head * outs + i, operand.expose(), None) as f32;
            }
        }
    }

    fn concat(&mut self, rows: usize, parts: [Buf; 2], out: Buf) {
        self.memory.concat(rows, parts, out);
    }

    fn act_and_mul(&mut self, rows: usize, activation: Activation, gate: Buf, up: Option<Buf>, out: Buf) {
        for row in 0..rows {
            for col in 0..out.cols {
                let gate = f64::from(self.f32(gate, row)[col]);
                let up = up.map(|up| f64::from(self.f32(up, row)[col]));
                let value = up
                    .map_or_else(|| activate(activation, gate), |up| activate_gated(activation, [gate, up]));
                self.f32_mut(out, row)[col] = value as f32;
            }
        }
    }

    fn pointwise(&mut self, rows: usize, x: Buf, function: Pointwise) {
        for row in 0..rows {
            for value in self.f32_mut(x, row) {
                let x = f64::from(*value);
                *value = match function {
                    Pointwise::Activate(activation) => activate(activation, x),
                    Pointwise::Scale(scale, Cap::None) => x * f64::from(scale),
                    Pointwise::Scale(scale, Cap::Soft(cap)) => {
                        f64::from(cap) * (x * f64::from(scale) / f64::from(cap)).tanh()
                    }
                    Pointwise::Scale(scale, Cap::Hard(cap)) => {
                        (x * f64::from(scale)).clamp(f64::from(-cap), f64::from(cap))
                    }
                } as f32;
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
        let starts = self.memory.arena().slice::<u32>(with.starts.row(0));
        for (expert, _) in experts.iter().zip(starts.windows(2)).filter(|(_, rows)| rows[0] < rows[1]) {
            let linears = [&expert.gate, &expert.up, &expert.down];
            self.counters.weight_bytes += linears.map(|linear| linear.weight.bytes()).iter().sum::<u64>();
        }
        for pair in 0..rows * with.experts.cols {
            let (row, slot) = (pair / with.experts.cols, pair % with.experts.cols);
            let chosen = self.memory.arena().slice::<u32>(with.experts.row(row))[slot];
            let place = self.memory.arena().slice::<u32>(with.places.row(row))[slot] as usize;
            let Expert { gate, up, down } = &experts[chosen as usize];
            let (from, inner) = self.memory.arena().read_write::<f32, f32>(x.row(row), with.inner.row(place));
            let from = gate.weight.operand(from);
            for (col, inner) in inner.iter_mut().enumerate() {
                let both =
                    [gate, up].map(|linear| linear.weight.dot(col, from.expose(), linear.bias.as_ref()));
                *inner = activate_gated(activation, both) as f32;
            }
            let (inner, out) =
                self.memory.arena().read_write::<f32, f32>(with.inner.row(place), with.out.row(place));
            let inner = down.weight.operand(inner);
            for (col, out) in out.iter_mut().enumerate() {
                *out = down.weight.dot(col, inner.expose(), down.bias.as_ref()) as f32;
            }
        }
    }

    fn moe_combine(&mut self, rows: usize, with: &Routed, add: Option<f32>, out: Buf) {
        for row in 0..rows {
            for col in 0..out.cols {
                let mut sum = 0.0;
                for slot in 0..with.experts.cols {
                    let place = self.memory.arena().slice::<u32>(with.places.row(row))[slot] as usize;
                    let weight = self.f32(with.weights, row)[slot];
                    sum += f64::from(weight) * f64::from(self.f32(with.out, place)[col]);
                }
                let value = &mut self.f32_mut(out, row)[col];
                *value = add.map_or(sum, |scale| f64::from(*value) + sum * f64::from(scale)) as f32;
            }
        }
    }

    fn rope(&mut self, batch: &Batch<'_>, q: Buf, k: Buf, rope: &RopeTable<Weight>) {
        let dim = self.memory.kv().head_dim;
        for (row, &position) in batch.positions.iter().enumerate() {
            let (dims, half) = (rope.dims, rope.dims / 2);
            let (cos, sin) = rope.table.table()[position as usize * dims..][..dims].split_at(half);
            for buf in [q, k] {
                for head in self.f32_mut(buf, row).chunks_mut(dim) {
                    for i in 0..half {
                        let (first, second) =
                            if rope.interleaved { (2 * i, 2 * i + 1) } else { (i, i + half) };
                        let (a, b) = (head[first], head[second]);
                        head[first] = a * cos[i] - b * sin[i];
                        head[second] = b * cos[i] + a * sin[i];
                    }
                }
            }
        }
    }

    fn store(&mut self, batch: &Batch<'_>, layer: usize, k: Buf, v: Buf) {
        let kv = self.memory.kv();
        for (row, &slot) in batch.slots.iter().enumerate() {
            for (side, buf) in [(Side::K, k), (Side::V, v)] {
                let values = Secret::new(self.f32(buf, row).to_vec());
                for (head, values) in values.expose().chunks(kv.dim(side)).enumerate() {
                    self.cache(slot, layer, side, head, values);
                }
            }
        }
    }

    fn attention(
        &mut self,
        batch: &Batch<'_>,
        shape: Attention,
        biases: AttentionBias<'_, Weight>,
        q: Buf,
        out: Buf,
    ) {
        let AttentionBias { sinks, relative_bias } = biases;
        for span in batch.spans {
            for i in 0..span.rows {
                for head in 0..shape.heads {
                    let sink = sinks.map_or(f64::NEG_INFINITY, |sinks| f64::from(sinks.table()[head]));
                    let table = &batch.blocks[span.table..];
                    let position = span.position + i;
                    let causal = span.mask == Mask::Causal;
                    let end = if causal { position } else { span.position + span.rows - 1 };
                    let window = shape.window.unwrap_or(usize::MAX / 2);
                    let seen = [(position + 1).saturating_sub(window), end.min(position + window - 1)];
                    let (at, from) = ((table, position, seen), (q, span.row + i));
                    self.attend(shape, at, from, out, (head, sink), relative_bias);
                }
            }
        }
    }

    fn pool(&mut self, texts: &[Range<u32>], pooling: Pooling, x: Buf, out: Buf) {
        for (text, rows) in texts.iter().enumerate() {
            let count = f64::from(rows.end - rows.start);
            for col in 0..x.cols {
                let column: Vec<f64> =
                    rows.clone().map(|row| f64::from(self.f32(x, row as usize)[col])).collect();
                let column = Secret::new(column);
                let column = column.expose();
                let sum: f64 = column.iter().sum();
                let pooled = match pooling {
                    Pooling::First => column[0],
                    Pooling::Last => column[column.len() - 1],
                    Pooling::Mean => sum / count,
                    Pooling::MeanSqrtLen => sum / count.sqrt(),
                    Pooling::Max => column.iter().copied().fold(f64::NEG_INFINITY, f64::max),
                    Pooling::Weighted { from } => {
                        let weights = (from..).map(f64::from);
                        let total: f64 = weights.clone().take(column.len()).sum();
                        column.iter().zip(weights).map(|(value, weight)| value * weight).sum::<f64>() / total
                    }
                };
                self.f32_mut(out, text)[col] = pooled as f32;
            }
        }
    }

    fn add_norm(&mut self, rows: usize, x: Buf, norm: &Norm<Weight>, scale: f32, out: Buf) {
        for row in 0..rows {
            let (x, out) = self.memory.arena().read_write::<f32, f32>(x.row(row), out.row(row));
            for (value, out) in normalise(norm, x, 0).zip(out) {
                *out = (f64::from(*out) + value * f64::from(scale)) as f32;
            }
        }
    }

    fn gated(
        &mut self,
        rows: usize,
        x: Buf,
        GateUp { activation, gate, up }: GateUp<'_, Weight>,
        _: Option<[Buf; 2]>,
        out: Buf,
    ) {
        self.counters.weight_bytes += up.weight.bytes() + gate.map_or(0, |gate| gate.weight.bytes());
        for row in 0..rows {
            let (x, out) = self.memory.arena().read_write::<f32, f32>(x.row(row), out.row(row));
            let x = up.weight.operand(x);
            let product =
                |linear: &Linear<Weight>, col| linear.weight.dot(col, x.expose(), linear.bias.as_ref());
            for (col, out) in out.iter_mut().enumerate() {
                let up = product(up, col);
                let value = match gate {
                    Some(gate) => activate_gated(activation, [product(gate, col), up]),
                    None => activate(activation, up),
                };
                *out = value as f32;
            }
        }
    }
}

/// What `forensics` looks into.
#[cfg(feature = "forensics")]
impl Reference {
    /// The cache's shape.
    pub fn kv(&self) -> PackedKv {
        self.memory.kv()
    }

    /// One head's keys or values of one slot, as they are cached.
    pub fn cached_row(
        &mut self,
        slot: u32,
        layer: usize,
        side: Side,
        head: usize,
    ) -> impl ExactSizeIterator<Item = f32> {
        let (block, offset) = (slot / BLOCK as u32, slot as usize % BLOCK);
        (0..self.kv().dim(side)).map(move |dim| self.cached(block, layer, side, head, offset, dim) as f32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stack_is_cleaned() {
        let left = stack::tests::left_after(|| drop(Reference::default().scrub_threads()));
        assert_eq!(left, 0);
        assert_ne!(stack::tests::left_after(|| ()), 0, "a mark stays where nobody cleans");
    }
}
