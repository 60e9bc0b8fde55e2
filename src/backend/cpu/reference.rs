//! The oracle: every verb as its formula says, one value after another, sums in f64. Dull on purpose.

use super::memory::{Memory, Weight};
use crate::backend::{Attention, BLOCK, Backend, Batch, Buf, Counters, Kv, Projection, Side};
use crate::error::Result;
use crate::memory::{Layout, Scrubbed, arena::Closed, stack};
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

    /// One cached value: `element` as [`Kv::at`] counts.
    fn cached(&mut self, element: usize) -> f64 {
        let kv = self.memory.kv();
        let bytes = kv.dtype.bytes();
        let raw: &[u8] = self.memory.arena().slice(kv.region.part(element * bytes, bytes));
        f64::from(kv.dtype.read(raw))
    }

    fn cache(&mut self, element: usize, value: f32) {
        let kv = self.memory.kv();
        let bytes = kv.dtype.bytes();
        let raw: &mut [u8] = self.memory.arena().slice_mut(kv.region.part(element * bytes, bytes));
        match kv.dtype {
            Dtype::F32 => raw.copy_from_slice(&value.to_le_bytes()),
            Dtype::F16 => raw.copy_from_slice(&half::f16::from_f32(value).to_le_bytes()),
            Dtype::Bf16 => raw.copy_from_slice(&half::bf16::from_f32(value).to_le_bytes()),
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
        let at = |side, position: usize| {
            kv.at(table[position / BLOCK], shape.layer, side, kv_head) + position % BLOCK * dim
        };
        let first = shape.window.map_or(0, |window| (position + 1).saturating_sub(window));
        let score = |this: &mut Self, past: usize| {
            let dot: f64 = (0..dim)
                .map(|i| f64::from(this.f32(q.0, q.1)[head * dim + i]) * this.cached(at(Side::K, past) + i))
                .sum();
            dot * f64::from(shape.scale)
        };
        let max = (first..=position).map(|past| score(self, past)).fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = (first..=position).map(|past| (score(self, past) - max).exp()).sum();
        for i in 0..dim {
            let mixed: f64 = (first..=position)
                .map(|past| (score(self, past) - max).exp() / sum * self.cached(at(Side::V, past) + i))
                .sum();
            self.f32_mut(out, q.1)[head * dim + i] = mixed as f32;
        }
    }
}

impl Backend for Reference {
    type Weight = Weight;

    fn name(&self) -> String {
        "cpu (reference)".into()
    }

    fn upload(&mut self, tensor: &Tensor) -> Weight {
        Weight::from_tensor(tensor)
    }

    fn upload_table(&mut self, values: Vec<f32>, cols: usize) -> Weight {
        Weight::from_table(values, cols)
    }

    fn reserve(&mut self, layout: Layout, kv: Kv, _heads: usize) -> Result<()> {
        self.memory.reserve(&layout, kv)
    }

    fn embed(&mut self, ids: &[u32], table: &Weight, out: Buf) {
        self.counters.steps += 1;
        self.counters.tokens += ids.len() as u64;
        for (row, &id) in ids.iter().enumerate() {
            self.counters.weight_bytes += (table.cols * table.dtype().bytes()) as u64;
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
                for (col, out) in out.iter_mut().enumerate() {
                    let dot =
                        x.iter().enumerate().map(|(i, &x)| f64::from(x) * f64::from(weight.value(col, i)));
                    let sum = dot.sum::<f64>() + bias.map_or(0.0, |bias| f64::from(bias.table()[col]));
                    *out = if *accumulate { (f64::from(*out) + sum) as f32 } else { sum as f32 };
                }
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
            let (block, offset) = (slot / BLOCK as u32, slot as usize % BLOCK);
            for (side, buf) in [(Side::K, k), (Side::V, v)] {
                for i in 0..kv.kv_heads * dim {
                    let value = self.f32(buf, row)[i];
                    self.cache(kv.at(block, layer, side, i / dim) + offset * dim + i % dim, value);
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

    fn silu_mul(&mut self, rows: usize, gate: Buf, up: Buf) {
        let (up, gate) = self.memory.arena().read_write::<f32, f32>(up.rows(rows), gate.rows(rows));
        for (gate, &up) in gate.iter_mut().zip(up) {
            let x = f64::from(*gate);
            *gate = (x / (1.0 + (-x).exp()) * f64::from(up)) as f32;
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

    fn close(self) -> Option<Closed> {
        self.memory.into_arena().map(|arena| arena.close())
    }
}
