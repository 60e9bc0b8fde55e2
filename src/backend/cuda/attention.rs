//! Attention and the cache: queries and keys are rotated, keys and values stored, scores summed up in splits.

use super::args::{AttentionArgs, Cache, RopeArgs};
use super::driver::Driver;
use super::inputs::Input;
use super::weight::Weight;
use super::{Cuda, form, shape, small};
use crate::backend::{Attention, AttentionBias, BLOCK, Batch, Buf, KvType, RopeTable, Side};

/// Positions of a split, as in `attention.cu`.
const SPLIT: usize = 256;
/// Queries of a warp there.
const QUERIES: usize = 16;
/// Values of a warp there.
const VALUES: usize = 128;
/// Floats of a split's result there.
pub(super) const PART: usize = VALUES * QUERIES + 2 * QUERIES;
/// Splits for each processor that have a place for their result.
pub(super) const PARTS_EACH: usize = 32;
/// Bytes of all of them, at most.
pub(super) const PARTS_BYTES: usize = 48 << 20;

/// Splits of the longest request, up to a power of two: so that steps stay alike for a while.
pub(super) fn splits_of(batch: &Batch<'_>) -> usize {
    let last = batch.spans.iter().map(|span| span.position + span.rows).max().unwrap_or(0);
    last.div_ceil(SPLIT).max(1).next_power_of_two()
}

impl<D: Driver> Cuda<D> {
    pub(super) fn cache(&self) -> Cache {
        let kv = self.kv();
        let layer_bytes = kv.layer_bytes();
        Cache {
            base: self.address(kv.region()),
            block_bytes: (kv.layers * layer_bytes) as u64,
            layer_bytes: layer_bytes as u64,
            kind: match kv.cache {
                KvType::F32 => 0,
                KvType::F16 => 1,
                KvType::Bf16 => 2,
                KvType::Int8 => 3,
            },
            kv_heads: small(kv.kv_heads),
            head_dim: small(kv.head_dim),
            value_dim: small(kv.value_dim),
            key_bytes: small(kv.bytes_of(Side::K)),
            value_bytes: small(kv.bytes_of(Side::V)),
        }
    }

    pub(super) fn rotate(
        &mut self,
        batch: &Batch<'_>,
        (q, k, v): (Option<Buf>, Buf, Option<Buf>),
        rope: Option<&RopeTable<Weight<D>>>,
        layer: usize,
    ) {
        let (rows, kv) = (batch.positions.len(), self.kv());
        assert!(
            k.cols == kv.kv_heads * kv.head_dim && q.is_none_or(|q| q.cols.is_multiple_of(kv.head_dim)),
            "rope: columns differ"
        );
        assert!(rope.is_none_or(|rope| rope.dims <= kv.head_dim), "rope: more than a head");
        if let Some(rope) = rope {
            self.graphs.limits.positions = self.graphs.limits.positions.min(rope.table.rows);
            let known = batch.positions.iter().all(|&position| (position as usize) < rope.table.rows);
            assert!(known, "rope: a position behind the table");
        }
        let slots = if v.is_some() { self.input(Input::Slots, batch.slots.iter().copied()) } else { 0 };
        let q_heads = q.map_or(0, |q| q.cols / kv.head_dim);
        let args = RopeArgs {
            cache: self.cache(),
            q: q.map_or(0, |q| self.at(q, rows)),
            k: self.at(k, rows),
            v: v.map_or(0, |v| self.at(v, rows)),
            table: rope.map_or(0, |rope| rope.table.table()),
            positions: self.input(Input::Positions, batch.positions.iter().copied()),
            slots,
            layer: small(layer),
            q_stride: q.map_or(0, |q| small(q.stride)),
            k_stride: small(k.stride),
            v_stride: v.map_or(0, |v| small(v.stride)),
            dims: rope.map_or(0, |rope| small(rope.dims)),
            interleaved: u32::from(rope.is_some_and(|rope| rope.interleaved)),
            q_heads: small(q_heads),
        };
        let heads = kv.kv_heads + if rope.is_some() { q_heads } else { 0 };
        self.launch("rope_store", shape([rows, heads, 1], 32, 0), &args);
    }

    /// Checks where keys and values go.
    pub(super) fn check_slots(&self, batch: &Batch<'_>, layer: usize, v: Buf) {
        let (rows, kv) = (batch.positions.len(), self.kv());
        assert!(
            v.cols == kv.kv_heads * kv.value_dim && batch.slots.len() == rows && layer < kv.layers,
            "rope: rows or layer differ"
        );
        for &slot in batch.slots.iter().filter(|&&slot| slot != Batch::NOWHERE) {
            let _ = kv.block(slot / BLOCK as u32); // panics outside the cache
        }
    }

    pub(super) fn attend(
        &mut self,
        batch: &Batch<'_>,
        attention: Attention,
        biases: AttentionBias<'_, Weight<D>>,
        q: Buf,
        out: Buf,
    ) {
        let (rows, kv) = (batch.ids.len(), self.kv());
        let AttentionBias { sinks, relative_bias } = biases;
        let reach =
            relative_bias.map(|relative_bias| relative_bias.rows * relative_bias.cols / attention.heads / 2);
        attention.check(batch, &kv, [q, out], sinks.map(|sinks| sinks.cols), reach);
        let longest = batch.spans.iter().map(|span| span.rows).max().unwrap_or(0);
        let group = attention.heads / kv.kv_heads;
        let each = group.min(QUERIES);
        let (sets, pieces) = (group.div_ceil(each), kv.value_dim.div_ceil(VALUES));
        let (tiles, y) = (longest.div_ceil(QUERIES / each), kv.kv_heads * sets * pieces);
        let splits = splits_of(batch);
        let places = batch.spans.len() * tiles * y * splits;
        // where there is little to do each split has a block, be it the only one
        let few = batch.spans.len() * tiles * y < 8 * self.driver.processors() as usize;
        let wanted = (splits > 1 || few) && kv.cache != KvType::F32;
        let parts = if wanted { self.parts(places * PART * size_of::<f32>()) } else { None };
        let split = parts.is_some();
        let args = AttentionArgs {
            cache: self.cache(),
            q: self.at(q, rows),
            out: self.at(out, rows),
            spans: self.put_spans(batch),
            blocks: self.input(Input::Blocks, batch.blocks.iter().copied()),
            sinks: sinks.map_or(0, Weight::table),
            relative_bias: relative_bias.map_or(0, Weight::table),
            parts: parts.unwrap_or(0),
            layer: small(attention.layer),
            heads: small(attention.heads),
            q_stride: small(q.stride),
            out_stride: small(out.row_bytes()),
            out_form: form(out.form),
            window: attention.window.map_or(1 << 31, |window| small(window.min(1 << 31))),
            reach: small(reach.unwrap_or(0)),
            scale: attention.scale,
            softcap: attention.softcap.unwrap_or(0.0),
            tiles: small(tiles),
            pieces: small(pieces),
            splits: small(splits),
        };
        let [by_warps, in_shared] = match kv.cache {
            KvType::F32 => {
                let grid = [longest, attention.heads, batch.spans.len()];
                let shared = (BLOCK + kv.value_dim) * 4;
                return self.launch("attention_plain", shape(grid, 32, shared), &args);
            }
            KvType::F16 => ["attention_f16", "attention_shared_f16"],
            KvType::Bf16 => ["attention_bf16", "attention_shared_bf16"],
            KvType::Int8 => ["attention_int8", "attention_shared_int8"],
        };
        let queries = kv.padded_dim(Side::K) / 16 * 512;
        if split {
            let grid = [tiles, y, batch.spans.len() * splits];
            // as `attention_shared` lays it out
            let keys = SPLIT * (kv.padded_dim(Side::K) * kv.cache.bytes() + 32);
            let values = SPLIT * kv.padded_dim(Side::V).min(VALUES) * kv.cache.bytes();
            let shared = queries + SPLIT / BLOCK * 32 * 32 * 4 + keys + values;
            if tiles == 1 && shared <= self.driver.shared_bytes() as usize {
                self.launch(in_shared, shape(grid, 128, shared), &args);
            } else {
                self.launch(by_warps, shape(grid, 32, queries), &args);
            }
            let grid = [tiles, y, batch.spans.len()];
            return self.launch("attention_merge", shape(grid, 32, 0), &args);
        }
        let of_warp = queries + VALUES * QUERIES * 4;
        let warps = tiles.min(4).min(self.driver.shared_bytes() as usize / of_warp).max(1);
        let grid = [tiles.div_ceil(warps), y, batch.spans.len()];
        self.launch(by_warps, shape(grid, 32 * warps, warps * of_warp), &args);
    }
}
