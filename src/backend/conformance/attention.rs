//! Rope, the cache and attention, over shuffled blocks and in any chunks.

use super::*;
use crate::backend::{Attention, AttentionBias, BLOCK, Mask, RopeTable, Span};

/// Requests with some cached positions and some new ones, over shuffled blocks.
struct Attend {
    cache: KvType,
    softcap: Option<f32>,
    /// A score of each head that takes part in the softmax alone.
    sinks: Option<Vec<f32>>,
    causal: bool,
    /// By head, what is added to scores by distance.
    relative_bias: Option<Vec<f32>>,
    /// Values of a head that turn, and whether neighbours do together.
    turns: Option<(usize, bool)>,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    value_dim: usize,
    window: Option<usize>,
    /// (cached, new) tokens of each request.
    spans: Vec<(usize, usize)>,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
}

impl Attend {
    const REACH: usize = 320;

    fn new(source: &mut Source) -> Self {
        let (kv_heads, group) = (source.size(1, 3), source.size(1, 9));
        let head_dim = match source.size(0, 9) {
            common @ 0..3 => [64, 128, 256][common],
            _ => 2 * source.size(1, 45),
        };
        // as many as keys have, or fewer or more
        let value_dim = match source.size(0, 3) {
            0 => source.size(1, 150),
            _ => head_dim,
        };
        let heads = kv_heads * group;
        let spans: Vec<_> =
            (0..source.size(1, 3)).map(|_| (source.size(0, 100), source.size(1, 70))).collect();
        let tokens: usize = spans.iter().map(|(cached, new)| cached + new).sum();
        let window = (source.unit() < 0.4).then(|| source.size(1, 100));
        let softcap = (source.unit() < 0.3).then_some(5.0);
        let turns = match source.size(0, 5) {
            0 => None,
            1 => Some((2 * source.size(1, head_dim / 2), false)),
            2 => Some((2 * source.size(1, head_dim / 2), true)),
            _ => Some((head_dim, false)),
        };
        let mut attend = Self {
            cache: [KvType::F32, KvType::F16, KvType::Bf16, KvType::Int8][source.size(0, 3)],
            softcap,
            sinks: None,
            causal: true,
            relative_bias: None,
            turns,
            heads,
            kv_heads,
            head_dim,
            value_dim,
            window,
            spans,
            q: source.values(tokens * heads * head_dim),
            k: source.values(tokens * kv_heads * head_dim),
            v: source.values(tokens * kv_heads * value_dim),
        };
        attend.q.iter_mut().for_each(|q| *q *= 0.5);
        if softcap.is_none() && source.unit() < 0.4 {
            attend.sinks = Some(source.values(heads).iter().map(|sink| 3.0 * sink).collect());
        }
        if softcap.is_none() && source.unit() < 0.3 {
            attend.relative_bias = Some(source.values(heads * 2 * Self::REACH));
        }
        attend.causal = source.unit() < 0.6;
        attend
    }

    /// bf16 queries are off by 2^-9 and so are the weights of positions.
    fn near(&self) -> Near {
        let tolerance = vec![4e-5; self.q.len() / self.head_dim * self.value_dim];
        let device = if self.cache == KvType::F32 { 0.0 } else { 0.04 };
        Near { tolerance, own_way: (self.cache == KvType::Bf16).then_some(1000.0), device }
    }

    /// Stores and attends in steps: `cut(cached, new)` gives the chunk sizes of each request.
    fn run_in<B: Testable>(&self, mut backend: B, cut: impl Fn(usize, usize) -> Vec<usize>) -> Vec<f32> {
        let (q_cols, out_cols) = (self.heads * self.head_dim, self.heads * self.value_dim);
        let [k_cols, v_cols] = [self.head_dim, self.value_dim].map(|dim| self.kv_heads * dim);
        let longest = self.spans.iter().map(|(cached, new)| cached + new).max().unwrap();
        let blocks_each = (longest + BLOCK).div_ceil(BLOCK);
        let rows = longest + BLOCK;
        let shapes =
            [(rows, q_cols, false), (rows, k_cols, false), (rows, v_cols, false), (rows, out_cols, true)];
        let dims = [self.head_dim, self.value_dim];
        let kv = (self.cache, self.kv_heads, dims, blocks_each * self.spans.len());
        let bufs = reserve(&mut backend, &shapes, kv);
        let rope = self.turns.map(|(dims, interleaved)| {
            let angles: Vec<f32> =
                (0..(longest + BLOCK) * dims / 2).map(|i| (i as f32 * 0.1).cos()).collect();
            let both = |cos: &[f32]| {
                let sin = cos.iter().map(|cos| (1.0 - cos * cos).sqrt());
                cos.iter().copied().chain(sin).collect::<Vec<_>>()
            };
            let table = backend.upload_table(angles.chunks(dims / 2).flat_map(both).collect(), dims).unwrap();
            RopeTable { table, dims, interleaved }
        });
        let sinks = self.sinks.as_ref().map(|sinks| backend.upload_table(sinks.clone(), self.heads).unwrap());
        let relative_bias =
            self.relative_bias.clone().map(|table| backend.upload_table(table, 2 * Self::REACH).unwrap());
        let mut out = Vec::new();
        let mut first = 0;
        for (request, &(cached, new)) in self.spans.iter().enumerate() {
            // every request's blocks in an order of its own
            let table: Vec<u32> = (0..blocks_each)
                .map(|i| ((blocks_each - 1 - i) * self.spans.len() + request) as u32)
                .collect();
            let step = |backend: &mut B, position: usize, rows: usize, values: [&[f32]; 3]| {
                for (buf, values) in bufs.iter().zip(values) {
                    fill(backend, *buf, values);
                }
                let positions: Vec<u32> = (position..position + rows).map(|p| p as u32).collect();
                let slots: Vec<u32> = positions
                    .iter()
                    .map(|&p| table[p as usize / BLOCK] * BLOCK as u32 + p % BLOCK as u32)
                    .collect();
                let mask = if self.causal { Mask::Causal } else { Mask::Bidirectional };
                let spans = [Span { row: 0, rows, position, table: 0, adapter: None, mask }];
                let batch = Batch {
                    ids: &positions,
                    positions: &positions,
                    slots: &slots,
                    spans: &spans,
                    blocks: &table,
                    outputs: &[],
                    position_types: &[],
                };
                // in one go, or one after the other
                match &rope {
                    Some(rope) if rows.is_multiple_of(2) => {
                        backend.rope(&batch, bufs[0], bufs[1], rope);
                        backend.rope_store(&batch, 1, bufs[0], bufs[1], bufs[2], None);
                    }
                    _ => backend.rope_store(&batch, 1, bufs[0], bufs[1], bufs[2], rope.as_ref()),
                }
                let scale = (self.head_dim as f32).sqrt().recip();
                let (heads, window, softcap) = (self.heads, self.window, self.softcap);
                let shape = Attention { layer: 1, heads, window, scale, softcap };
                let biases = AttentionBias { sinks: sinks.as_ref(), relative_bias: relative_bias.as_ref() };
                backend.attention(&batch, shape, biases, bufs[0], bufs[3]);
                (0..rows).flat_map(|row| backend.operand(bufs[3], row)).collect::<Vec<f32>>()
            };
            // infinities behind the last position: masked, so they must not matter
            let bad = |rows: usize, cols: usize| vec![f32::INFINITY; rows * cols];
            let (position, rows) =
                if self.causal { (cached + new, BLOCK) } else { (0, cached + new + BLOCK) };
            let [q, k, v] = [q_cols, k_cols, v_cols].map(|cols| bad(rows, cols));
            step(&mut backend, position, rows, [&q, &k, &v]);
            let mut position = 0;
            // who sees what is behind needs all at once
            for rows in if self.causal { cut(cached, new) } else { vec![cached + new] } {
                let at = first + position;
                let part = |values: &'_ [f32], cols: usize| values[at * cols..(at + rows) * cols].to_vec();
                let (q, k, v) = (part(&self.q, q_cols), part(&self.k, k_cols), part(&self.v, v_cols));
                out.extend(step(&mut backend, position, rows, [&q, &k, &v]));
                position += rows;
            }
            first += cached + new;
        }
        out
    }
}

impl Body for Attend {
    fn run<B: Testable>(&self, backend: B) -> Vec<f32> {
        self.run_in(backend, |cached, new| [cached, new].into_iter().filter(|&rows| rows > 0).collect())
    }
}

#[test]
fn attention_agrees_with_the_reference() {
    for seed in 0..40 {
        let body = Attend::new(&mut Source::new(seed));
        let near = body.near();
        compare(body, &near);
    }
}

/// The largest heads there are: those of latents.
#[test]
fn attention_over_latents_agrees_with_the_reference() {
    for (seed, cache) in [KvType::Bf16, KvType::F32, KvType::Int8].into_iter().enumerate() {
        let mut source = Source::new(900 + seed as u64);
        let mut body = Attend::new(&mut source);
        (body.cache, body.heads, body.kv_heads, body.spans) = (cache, 16, 1, vec![(70, 3), (0, 5)]);
        (body.head_dim, body.value_dim, body.turns) = (576, 512, Some((64, true)));
        (body.sinks, body.relative_bias) = (None, None);
        let tokens = 78;
        body.q = source.values(tokens * 16 * 576).iter().map(|q| 0.5 * q).collect();
        (body.k, body.v) = (source.values(tokens * 576), source.values(tokens * 512));
        let near = body.near();
        compare(body, &near);
    }
}

/// Attention over several splits, with few rows (a warp for each) and with many (one for all).
#[test]
fn attention_of_a_device_is_the_same_bits_in_any_chunks() {
    for (seed, cache) in [KvType::Bf16, KvType::F16, KvType::Int8, KvType::F32].into_iter().enumerate() {
        for window in [None, Some(300)] {
            let source = &mut Source::new(300 + seed as u64);
            let mut body = Attend::new(source);
            (body.cache, body.heads, body.kv_heads, body.spans) = (cache, 6, 2, vec![(580, 9)]);
            (body.head_dim, body.value_dim, body.turns) = (32, 136, Some((32, false)));
            (body.sinks, body.relative_bias, body.causal, body.window) = (None, None, true, window);
            (body.q, body.k, body.v) =
                (source.values(589 * 6 * 32), source.values(589 * 2 * 32), source.values(589 * 2 * 136));
            let bits = |values: Vec<f32>| values.into_iter().map(f32::to_bits).collect::<Vec<_>>();
            let run =
                |cut: &dyn Fn(usize, usize) -> Vec<usize>| bits(on_device!(|cuda| body.run_in(cuda, cut)));
            let whole = run(&|cached, new| vec![cached + new]);
            let ones = run(&|cached, new| [cached].into_iter().chain(vec![1; new]).collect());
            assert!(whole == ones, "{cache:?}, {window:?}: one by one");
            let chunks = run(&|cached, new| vec![cached - 7, 5, 4, new - 2]);
            assert!(whole == chunks, "{cache:?}, {window:?}: in chunks");
        }
    }
}

#[test]
fn attention_is_the_same_bits_in_any_chunks() {
    for seed in 100..130 {
        let body = Attend::new(&mut Source::new(seed));
        let cpu = || Cpu::new(2, Isa::available()[seed as usize % Isa::available().len()]).unwrap();
        let whole = body.run_in(cpu(), |cached, new| vec![cached + new]);
        let single = body.run_in(cpu(), |cached, new| vec![1; cached + new]);
        let fives = body.run_in(cpu(), |cached, new| {
            let all = cached + new;
            (0..all).step_by(5).map(|at| 5.min(all - at)).collect()
        });
        let bits = |values: Vec<f32>| values.into_iter().map(f32::to_bits).collect::<Vec<_>>();
        let (whole, single, fives) = (bits(whole), bits(single), bits(fives));
        assert!(whole == single && whole == fives, "seed {seed}");
    }
}
