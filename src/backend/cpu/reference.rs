//! The oracle: every verb as its formula says, one value after another, sums in f64. Dull on purpose.

use super::format::{GROUP, quantize4, quantize8};
use super::memory::Memory;
use super::weight::{not_finite, vector_values};
use crate::backend::{
    Attention, BLOCK, Backend, Batch, Buf, Counters, Kv, KvType, Linear, Projection, Quantize, Side,
    int8_scale,
};
use crate::error::{Error, Result};
use crate::memory::ledger::NotCovered;
use crate::memory::{Layout, Scrubbed, Secret, arena::Closed, stack};
use crate::weights::{Dtype, Tensor};

/// The reference backend: one thread, no vectors, about a hundred times slower than [`super::Cpu`].
#[derive(Debug, Default)]
pub struct Reference {
    memory: Memory,
    counters: Counters,
}

impl Reference {
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
        let read = |at: usize, bytes: usize| arena.slice::<u8>(kv.region.part(plane + at, bytes));
        let raw = read(kv.element(side, offset, dim), kv.cache.bytes());
        match kv.cache {
            KvType::F32 => f64::from(Dtype::F32.read(raw)),
            KvType::F16 => f64::from(Dtype::F16.read(raw)),
            KvType::Bf16 => f64::from(Dtype::Bf16.read(raw)),
            KvType::Int8 => f64::from(raw[0] as i8) * f64::from(Dtype::F32.read(read(kv.scale(offset), 4))),
        }
    }

    /// Caches one head's values of one position.
    fn cache(&mut self, slot: u32, layer: usize, side: Side, head: usize, values: &[f32]) {
        let (block, offset) = (slot / BLOCK as u32, slot as usize % BLOCK);
        let (kv, plane) = (self.memory.kv(), self.memory.kv().plane(block, layer, side, head));
        let mut write = |at: usize, raw: &[u8]| {
            self.memory.arena().slice_mut(kv.region.part(plane + at, raw.len())).copy_from_slice(raw);
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
            write(kv.scale(offset), &scale.to_le_bytes());
        }
    }

    fn attend(
        &mut self,
        shape: Attention,
        table: &[u32],
        position: usize,
        q: (Buf, usize),
        out: Buf,
        head: usize,
    ) {
        let kv = self.memory.kv();
        let (dim, kv_head) = (kv.head_dim, head / (shape.heads / kv.kv_heads));
        let cached = |this: &mut Self, side, position: usize, i: usize| {
            this.cached(table[position / BLOCK], shape.layer, side, kv_head, position % BLOCK, i)
        };
        let first = shape.window.map_or(0, |window| (position + 1).saturating_sub(window));
        let score = |this: &mut Self, past: usize| {
            let dot: f64 = (0..dim)
                .map(|i| f64::from(this.f32(q.0, q.1)[head * dim + i]) * cached(this, Side::K, past, i))
                .sum();
            let score = dot * f64::from(shape.scale);
            shape.softcap.map_or(score, |cap| f64::from(cap) * (score / f64::from(cap)).tanh())
        };
        let scores = (first..=position).map(|past| score(self, past));
        let scores = Secret::new(scores.collect::<Vec<f64>>());
        let scores = scores.expose();
        let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = scores.iter().map(|score| (score - max).exp()).sum();
        for i in 0..dim {
            let mixed: f64 = (first..=position)
                .zip(scores)
                .map(|(past, score)| (score - max).exp() / sum * cached(self, Side::V, past, i))
                .sum();
            self.f32_mut(out, q.1)[head * dim + i] = mixed as f32;
        }
    }
}

/// A weight of the reference: a matrix in the mapped file, or values of f32.
#[derive(Debug)]
pub struct Weight {
    data: Data,
    rows: usize,
    cols: usize,
    /// Whether x is quantized before it meets this.
    quantized: bool,
}

#[derive(Debug)]
enum Data {
    Mapped(Tensor),
    Table(Vec<f32>),
}

impl Weight {
    fn from_tensor(tensor: &Tensor, quantize: Option<Quantize>) -> Result<Self> {
        let [rows, cols] = tensor.shape[..] else {
            let values = vector_values(tensor)?;
            return Ok(Self { rows: 1, cols: values.len(), data: Data::Table(values), quantized: false });
        };
        if !tensor.dtype.all_finite(tensor.bytes()) {
            return Err(not_finite(tensor));
        }
        let Some(quantize) = quantize else {
            return Ok(Self { rows, cols, data: Data::Mapped(tensor.clone()), quantized: false });
        };
        let mut values = vec![0.0; rows * cols];
        tensor.dtype.read_all(tensor.bytes(), &mut values);
        for group in values.chunks_mut(cols).flat_map(|row| row.chunks_mut(GROUP)) {
            let mut padded = [0.0; GROUP];
            padded[..group.len()].copy_from_slice(group);
            let (scale, numbers) = match quantize {
                Quantize::Q8 => quantize8(&padded),
                Quantize::Q4 => quantize4(&padded),
            }
            .map_err(|_| Error::tensor(&tensor.file, &tensor.name, "hold values that can be quantized"))?;
            group.iter_mut().zip(numbers).for_each(|(value, n)| *value = scale.to_f32() * f32::from(n));
        }
        Ok(Self { rows, cols, data: Data::Table(values), quantized: true })
    }

    fn bytes(&self) -> u64 {
        match &self.data {
            Data::Mapped(tensor) => tensor.bytes().len() as u64,
            Data::Table(values) => (values.len() * size_of::<f32>()) as u64,
        }
    }

    fn value(&self, row: usize, col: usize) -> f32 {
        match &self.data {
            Data::Table(values) => values[row * self.cols + col],
            Data::Mapped(tensor) => {
                let bytes = tensor.dtype.bytes();
                tensor.dtype.read(&tensor.bytes()[(row * self.cols + col) * bytes..][..bytes])
            }
        }
    }

    fn table(&self) -> &[f32] {
        match &self.data {
            Data::Table(values) => values,
            Data::Mapped(tensor) => panic!("{} is a matrix", tensor.name),
        }
    }

    /// What x is for this weight: itself, or in groups of whole numbers times the largest magnitude over 127.
    fn operand(&self, x: &[f32]) -> Secret<[f64]> {
        let mut operand = Secret::<[f64]>::with_capacity(x.len());
        let values = operand.refill(x.iter().map(|&x| f64::from(x)));
        if self.quantized {
            for (x, values) in x.chunks(GROUP).zip(values.chunks_mut(GROUP)) {
                let (scale, inverse) = int8_scale(x);
                for (x, value) in x.iter().zip(values) {
                    *value = f64::from(scale) * f64::from((x * inverse).round_ties_even());
                }
            }
        }
        operand
    }

    fn dot(&self, row: usize, x: &[f64], bias: Option<&Weight>) -> f64 {
        let products = x.iter().enumerate().map(|(col, x)| x * f64::from(self.value(row, col)));
        products.sum::<f64>() + bias.map_or(0.0, |bias| f64::from(bias.table()[row]))
    }
}

impl Backend for Reference {
    type Weight = Weight;

    fn name(&self) -> String {
        "cpu (reference)".into()
    }

    fn weight_bytes(tensor: &Tensor, quantize: Option<Quantize>) -> u64 {
        let values = tensor.shape.iter().product::<usize>() as u64;
        if quantize.is_some() { 4 * values } else { tensor.bytes().len() as u64 }
    }

    fn upload(&mut self, tensor: &Tensor, quantize: Option<Quantize>) -> Result<Weight> {
        Weight::from_tensor(tensor, quantize)
    }

    fn upload_table(&mut self, values: Vec<f32>, cols: usize) -> Weight {
        Weight { rows: values.len() / cols.max(1), cols, data: Data::Table(values), quantized: false }
    }

    fn reserve(&mut self, layout: Layout, kv: Kv) -> Result<()> {
        self.memory.reserve(&layout, kv)
    }

    fn embed(&mut self, ids: &[u32], table: &Weight, out: Buf) {
        self.counters.steps += 1;
        self.counters.tokens += ids.len() as u64;
        for (row, &id) in ids.iter().enumerate() {
            self.counters.weight_bytes += table.bytes() / table.rows as u64;
            for (col, value) in self.f32_mut(out, row).iter_mut().enumerate() {
                *value = table.value(id as usize, col);
            }
        }
    }

    fn rms_norm(&mut self, rows: usize, x: Buf, weight: &Weight, eps: f32, out: Buf) {
        for row in 0..rows {
            let (x, out) = self.memory.arena().read_write::<f32, f32>(x.row(row), out.row(row));
            let mean = x.iter().map(|&v| f64::from(v) * f64::from(v)).sum::<f64>() / x.len() as f64;
            let factor = 1.0 / (mean + f64::from(eps)).sqrt();
            for ((out, &x), &weight) in out.iter_mut().zip(x).zip(weight.table()) {
                *out = (f64::from(x) * factor * f64::from(weight)) as f32;
            }
        }
    }

    fn linear(&mut self, rows: usize, x: Buf, projections: &[Projection<'_, Weight>]) {
        for Projection { weight, bias, out, accumulate } in projections {
            self.counters.weight_bytes += weight.bytes();
            for row in 0..rows {
                let (x, out) = self.memory.arena().read_write::<f32, f32>(x.row(row), out.row(row));
                let x = weight.operand(x);
                for (col, out) in out.iter_mut().enumerate() {
                    let sum = weight.dot(col, x.expose(), *bias);
                    *out = if *accumulate { (f64::from(*out) + sum) as f32 } else { sum as f32 };
                }
            }
        }
    }

    fn gated(&mut self, rows: usize, x: Buf, gate: &Linear<Weight>, up: &Linear<Weight>, out: Buf) {
        self.counters.weight_bytes += gate.weight.bytes() + up.weight.bytes();
        for row in 0..rows {
            let (x, out) = self.memory.arena().read_write::<f32, f32>(x.row(row), out.row(row));
            let x = gate.weight.operand(x);
            for (col, out) in out.iter_mut().enumerate() {
                let [gate, up] =
                    [gate, up].map(|linear| linear.weight.dot(col, x.expose(), linear.bias.as_ref()));
                *out = (gate / (1.0 + (-gate).exp()) * up) as f32;
            }
        }
    }

    fn rope_store(&mut self, batch: &Batch<'_>, layer: usize, q: Buf, k: Buf, v: Buf, rope: &Weight) {
        let kv = self.memory.kv();
        let (dim, half) = (kv.head_dim, kv.head_dim / 2);
        for (row, (&position, &slot)) in batch.positions.iter().zip(batch.slots).enumerate() {
            let (cos, sin) = rope.table()[position as usize * dim..][..dim].split_at(half);
            for buf in [q, k] {
                for head in self.f32_mut(buf, row).chunks_mut(dim) {
                    for i in 0..half {
                        let (a, b) = (head[i], head[i + half]);
                        head[i] = a * cos[i] - b * sin[i];
                        head[i + half] = b * cos[i] + a * sin[i];
                    }
                }
            }
            for (side, buf) in [(Side::K, k), (Side::V, v)] {
                let values = Secret::new(self.f32(buf, row).to_vec());
                for (head, values) in values.expose().chunks(dim).enumerate() {
                    self.cache(slot, layer, side, head, values);
                }
            }
        }
    }

    fn attention(&mut self, batch: &Batch<'_>, shape: Attention, q: Buf, out: Buf) {
        for span in batch.spans {
            for i in 0..span.rows {
                for head in 0..shape.heads {
                    let table = &batch.blocks[span.table..];
                    self.attend(shape, table, span.position + i, (q, span.row + i), out, head);
                }
            }
        }
    }

    fn gather(&mut self, rows: &[u32], x: Buf, out: Buf) {
        self.memory.gather(rows, x, out);
    }

    fn read(&mut self, buf: Buf, row: usize) -> &[f32] {
        self.f32(buf, row)
    }

    fn scrub(&mut self, buf: Buf, rows: usize) -> Scrubbed {
        self.memory.arena().scrub(buf.rows(rows))
    }

    fn copy_block(&mut self, from: u32, to: u32) {
        self.memory.copy_block(from, to);
    }

    fn scrub_blocks(&mut self, blocks: &[u32]) -> Scrubbed {
        self.memory.scrub_blocks(blocks)
    }

    fn scrub_all(&mut self) -> Scrubbed {
        self.memory.scrub_all()
    }

    fn scrub_threads(&mut self) -> Scrubbed {
        stack::scrub_below()
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

/// What `testing::forensics` looks into.
#[cfg(feature = "testing")]
impl Reference {
    /// The cache's shape.
    pub fn kv(&self) -> Kv {
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
        (0..self.kv().head_dim).map(move |dim| self.cached(block, layer, side, head, offset, dim) as f32)
    }
}

#[cfg(feature = "testing")]
impl Weight {
    /// A row of a matrix.
    pub fn row(&self, row: usize) -> impl ExactSizeIterator<Item = f32> {
        (0..self.cols).map(move |col| self.value(row, col))
    }
}
