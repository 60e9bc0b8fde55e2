//! Every kernel, on every instruction set of this machine, against the reference: random shapes with odd sizes and
//! tails, one row, one column, denormals, infinities at masked positions. And all instruction sets and team sizes must
//! give the same bits.

use std::path::Path;

use half::{bf16, f16};

use super::generic::Generic;
use super::vector::{LANES, Vector};
use super::{Cpu, Isa, Reference};
use crate::backend::{Attention, BLOCK, Backend, Batch, Buf, Kv, Projection, Span};
use crate::memory::Layout;
use crate::sample::rng::uniform;
use crate::weights::{Checkpoint, Dtype, Tensor};

/// A seeded source of shapes and values.
struct Source {
    seed: u64,
    drawn: u64,
}

impl Source {
    fn new(seed: u64) -> Self {
        Self { seed, drawn: 0 }
    }

    fn unit(&mut self) -> f64 {
        self.drawn += 1;
        uniform(self.seed, self.drawn)
    }

    /// From `low` to `high`, both included; often one of the two.
    fn size(&mut self, low: usize, high: usize) -> usize {
        match (self.unit() * 8.0) as usize {
            0 => low,
            1 => high,
            _ => low + (self.unit() * (high - low + 1) as f64) as usize,
        }
    }

    fn values(&mut self, count: usize) -> Vec<f32> {
        (0..count)
            .map(|_| match (self.unit() * 40.0) as usize {
                0 => 1e-41, // denormal
                1 => 0.0,
                _ => (self.unit() * 4.0 - 2.0) as f32,
            })
            .collect()
    }

    fn dtype(&mut self) -> Dtype {
        [Dtype::F32, Dtype::F16, Dtype::Bf16][self.size(0, 2)]
    }
}

/// Writes matrices to a file and maps them back as a checkpoint's tensors.
fn tensors(folder: &Path, matrices: &[(Dtype, Vec<usize>, Vec<f32>)]) -> Vec<Tensor> {
    let bytes: Vec<Vec<u8>> = matrices
        .iter()
        .map(|(dtype, _, values)| match dtype {
            Dtype::F32 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
            Dtype::F16 => values.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect(),
            Dtype::Bf16 => values.iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes()).collect(),
        })
        .collect();
    let views = matrices.iter().zip(&bytes).enumerate().map(|(i, ((dtype, shape, _), bytes))| {
        let dtype = match dtype {
            Dtype::F32 => safetensors::Dtype::F32,
            Dtype::F16 => safetensors::Dtype::F16,
            Dtype::Bf16 => safetensors::Dtype::BF16,
        };
        (i.to_string(), safetensors::tensor::TensorView::new(dtype, shape.clone(), bytes).unwrap())
    });
    std::fs::write(folder.join("model.safetensors"), safetensors::serialize(views, None).unwrap()).unwrap();
    let checkpoint = Checkpoint::open(folder).unwrap();
    let open = |(i, (_, shape, _)): (usize, &(Dtype, Vec<usize>, _))| {
        checkpoint.tensor(&i.to_string(), shape).unwrap()
    };
    matrices.iter().enumerate().map(open).collect()
}

/// Runs `body` on the reference, and on each instruction set with several team sizes; the latter must agree in every
/// bit and be near the former, within `tolerance[i]`. Returns how many fast runs were compared.
fn compare(body: impl Body, tolerance: &[f64]) -> usize {
    let reference = body.run(Reference::default());
    assert_eq!(reference.len(), tolerance.len());
    let mut first: Option<Vec<u32>> = None;
    let mut runs = 0;
    for isa in Isa::available() {
        for threads in [1, 2, 3] {
            let fast = body.run(Cpu::new(threads, isa).unwrap());
            for (i, (&fast, &reference)) in fast.iter().zip(&reference).enumerate() {
                let error = (f64::from(fast) - f64::from(reference)).abs();
                assert!(error <= tolerance[i], "{}: value {i}: {fast}, reference {reference}", isa.name);
            }
            let bits: Vec<u32> = fast.iter().map(|value| value.to_bits()).collect();
            let first = first.get_or_insert_with(|| bits.clone());
            assert!(*first == bits, "{} with {threads} threads gives other bits", isa.name);
            runs += 1;
        }
    }
    runs
}

/// A closure over any backend.
trait Body {
    fn run<B: Backend>(&self, backend: B) -> Vec<f32>;
}

/// Plans buffers of (rows, cols) each, and a cache.
fn reserve<B: Backend>(
    backend: &mut B,
    shapes: &[(usize, usize)],
    kv: (Dtype, usize, usize, usize),
    heads: usize,
) -> Vec<Buf> {
    let (dtype, kv_heads, head_dim, blocks) = kv;
    let mut layout = Layout::default();
    let bufs = shapes.iter().map(|&(rows, cols)| Buf::plan(&mut layout, rows, cols).unwrap()).collect();
    let region = layout.region(blocks * Kv::block_bytes(dtype, 2, kv_heads, head_dim).unwrap()).unwrap();
    backend.reserve(layout, Kv { region, dtype, layers: 2, kv_heads, head_dim }, heads).unwrap();
    bufs
}

/// Puts values into a buffer, the one way there is: as embeddings.
fn fill<B: Backend>(backend: &mut B, buf: Buf, values: &[f32]) {
    let ids: Vec<u32> = (0..(values.len() / buf.cols) as u32).collect();
    let table = backend.upload_table(values.to_vec(), buf.cols);
    backend.embed(&ids, &table, buf);
}

fn read<B: Backend>(backend: &mut B, buf: Buf, rows: usize) -> Vec<f32> {
    (0..rows).flat_map(|row| backend.read(buf, row).to_vec()).collect()
}

struct Linear {
    rows: usize,
    x: Vec<f32>,
    before: Vec<f32>,
    bias: Option<Vec<f32>>,
    weight: Tensor,
}

impl Body for Linear {
    fn run<B: Backend>(&self, mut backend: B) -> Vec<f32> {
        let [outs, ins] = self.weight.shape[..] else { unreachable!() };
        let bufs = reserve(&mut backend, &[(self.rows, ins), (self.rows, outs)], (Dtype::F32, 1, 2, 1), 1);
        fill(&mut backend, bufs[0], &self.x);
        fill(&mut backend, bufs[1], &self.before);
        let weight = backend.upload(&self.weight);
        let bias = self.bias.as_ref().map(|bias| backend.upload_table(bias.clone(), outs));
        let accumulate = self.bias.is_none();
        backend.linear(
            self.rows,
            bufs[0],
            &[Projection { weight: &weight, bias: bias.as_ref(), out: bufs[1], accumulate }],
        );
        read(&mut backend, bufs[1], self.rows)
    }
}

#[test]
fn linear_agrees_with_the_reference() {
    let mut runs = 0;
    for seed in 0..60 {
        let mut source = Source::new(seed);
        let (rows, ins, outs) = (source.size(1, 23), source.size(1, 300), source.size(1, 90));
        let folder = tempfile::tempdir().unwrap();
        let dtype = source.dtype();
        let weights = source.values(outs * ins);
        let weight = tensors(folder.path(), &[(dtype, vec![outs, ins], weights)]).remove(0);
        let (x, before) = (source.values(rows * ins), source.values(rows * outs));
        let bias = (seed % 2 == 0).then(|| source.values(outs));
        let tolerance = vec![4e-7 * 4.0 * (ins as f64 + 2.0); rows * outs];
        runs += compare(Linear { rows, x, before, bias, weight }, &tolerance);
    }
    assert_eq!(runs, 60 * 3 * Isa::available().len());
}

/// A row's products are the same bits whatever rows are beside it.
#[test]
fn linear_is_batch_invariant() {
    let mut source = Source::new(99);
    let (rows, ins, outs) = (21, 150, 70);
    let folder = tempfile::tempdir().unwrap();
    let weights = source.values(outs * ins);
    let weight = tensors(folder.path(), &[(Dtype::Bf16, vec![outs, ins], weights)]).remove(0);
    let (x, before) = (source.values(rows * ins), vec![0.0; rows * outs]);
    let run = |first: usize, rows: usize| {
        let x = x[first * ins..(first + rows) * ins].to_vec();
        let body =
            Linear { rows, x, before: before[..rows * outs].to_vec(), bias: None, weight: weight.clone() };
        body.run(Cpu::new(2, Isa::best()).unwrap())
    };
    let all = run(0, rows);
    for count in 1..=rows {
        for first in [0, rows - count] {
            assert_eq!(
                run(first, count),
                all[first * outs..(first + count) * outs],
                "{count} rows from {first}"
            );
        }
    }
}

struct Rows {
    rows: usize,
    cols: usize,
    x: Vec<f32>,
    y: Vec<f32>,
    weight: Vec<f32>,
}

struct RmsNorm(Rows);

impl Body for RmsNorm {
    fn run<B: Backend>(&self, mut backend: B) -> Vec<f32> {
        let Rows { rows, cols, x, weight, .. } = &self.0;
        let bufs = reserve(&mut backend, &[(*rows, *cols), (*rows, *cols)], (Dtype::F32, 1, 2, 1), 1);
        fill(&mut backend, bufs[0], x);
        let weight = backend.upload_table(weight.clone(), *cols);
        backend.rms_norm(*rows, bufs[0], &weight, 1e-5, bufs[1]);
        read(&mut backend, bufs[1], *rows)
    }
}

struct SiluMul(Rows);

impl Body for SiluMul {
    fn run<B: Backend>(&self, mut backend: B) -> Vec<f32> {
        let Rows { rows, cols, x, y, .. } = &self.0;
        let bufs = reserve(&mut backend, &[(*rows, *cols), (*rows, *cols)], (Dtype::F32, 1, 2, 1), 1);
        fill(&mut backend, bufs[0], x);
        fill(&mut backend, bufs[1], y);
        backend.silu_mul(*rows, bufs[0], bufs[1]);
        read(&mut backend, bufs[0], *rows)
    }
}

fn rows(source: &mut Source) -> Rows {
    let (rows, cols) = (source.size(1, 40), source.size(1, 700));
    let count = rows * cols;
    Rows { rows, cols, x: source.values(count), y: source.values(count), weight: source.values(cols) }
}

#[test]
fn rms_norm_agrees_with_the_reference() {
    for seed in 0..40 {
        let rows = rows(&mut Source::new(seed));
        // a row of zeros and denormals is scaled by up to 1 / sqrt(eps)
        let tolerance = vec![1e-5; rows.x.len()];
        compare(RmsNorm(rows), &tolerance);
    }
}

#[test]
fn silu_mul_agrees_with_the_reference_also_far_out() {
    for seed in 0..40 {
        let mut rows = rows(&mut Source::new(seed));
        for (i, x) in rows.x.iter_mut().enumerate() {
            *x *= [1.0, 10.0, 50.0, 1e4][i % 4];
        }
        let tolerance: Vec<f64> =
            rows.x.iter().zip(&rows.y).map(|(&x, &y)| 1e-6 * (1.0 + f64::from((x * y).abs()))).collect();
        compare(SiluMul(rows), &tolerance);
    }
}

/// Requests with some cached positions and some new ones, over shuffled blocks.
struct Attend {
    dtype: Dtype,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    window: Option<usize>,
    /// (cached, new) tokens of each request.
    spans: Vec<(usize, usize)>,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
}

impl Attend {
    fn new(source: &mut Source) -> Self {
        let (kv_heads, group) = (source.size(1, 3), source.size(1, 5));
        let (heads, head_dim) = (kv_heads * group, 2 * source.size(1, 37));
        let spans: Vec<_> =
            (0..source.size(1, 4)).map(|_| (source.size(0, 50), source.size(1, 40))).collect();
        let tokens: usize = spans.iter().map(|(cached, new)| cached + new).sum();
        let window = (source.unit() < 0.4).then(|| source.size(1, 40));
        Self {
            dtype: source.dtype(),
            heads,
            kv_heads,
            head_dim,
            window,
            spans,
            q: source.values(tokens * heads * head_dim),
            k: source.values(tokens * kv_heads * head_dim),
            v: source.values(tokens * kv_heads * head_dim),
        }
    }

    /// Stores and attends in steps: `cut(cached, new)` gives the chunk sizes of each request.
    fn run_in<B: Backend>(&self, mut backend: B, cut: impl Fn(usize, usize) -> Vec<usize>) -> Vec<f32> {
        let (q_cols, kv_cols) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        let longest = self.spans.iter().map(|(cached, new)| cached + new).max().unwrap();
        let blocks_each = (longest + BLOCK).div_ceil(BLOCK);
        let shapes = [
            (longest + BLOCK, q_cols),
            (longest + BLOCK, kv_cols),
            (longest + BLOCK, kv_cols),
            (longest + BLOCK, q_cols),
        ];
        let kv = (self.dtype, self.kv_heads, self.head_dim, blocks_each * self.spans.len());
        let bufs = reserve(&mut backend, &shapes, kv, self.heads);
        let rope: Vec<f32> = (0..(longest + BLOCK) * self.head_dim / 2)
            .map(|i| (i as f32 * 0.1).cos())
            .collect::<Vec<_>>()
            .chunks(self.head_dim / 2)
            .flat_map(|cos| cos.iter().copied().chain(cos.iter().map(|cos| (1.0 - cos * cos).sqrt())))
            .collect();
        let rope = backend.upload_table(rope, self.head_dim);
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
                let spans = [Span { row: 0, rows, position, table: 0 }];
                let batch = Batch {
                    ids: &positions,
                    positions: &positions,
                    slots: &slots,
                    spans: &spans,
                    blocks: &table,
                    outputs: &[],
                };
                backend.rope_store(&batch, 1, bufs[0], bufs[1], bufs[2], &rope);
                let scale = (self.head_dim as f32).sqrt().recip();
                let shape = Attention { layer: 1, heads: self.heads, window: self.window, scale };
                backend.attention(&batch, shape, bufs[0], bufs[3]);
                read(backend, bufs[3], rows)
            };
            // infinities behind the last position: masked, so they must not matter
            let bad = vec![f32::INFINITY; BLOCK * q_cols.max(kv_cols)];
            step(
                &mut backend,
                cached + new,
                BLOCK,
                [&bad[..BLOCK * q_cols], &bad[..BLOCK * kv_cols], &bad[..BLOCK * kv_cols]],
            );
            let mut position = 0;
            for rows in cut(cached, new) {
                let at = first + position;
                let part = |values: &'_ [f32], cols: usize| values[at * cols..(at + rows) * cols].to_vec();
                let (q, k, v) = (part(&self.q, q_cols), part(&self.k, kv_cols), part(&self.v, kv_cols));
                out.extend(step(&mut backend, position, rows, [&q, &k, &v]));
                position += rows;
            }
            first += cached + new;
        }
        out
    }
}

impl Body for Attend {
    fn run<B: Backend>(&self, backend: B) -> Vec<f32> {
        self.run_in(backend, |cached, new| [cached, new].into_iter().filter(|&rows| rows > 0).collect())
    }
}

#[test]
fn attention_agrees_with_the_reference() {
    for seed in 0..40 {
        let body = Attend::new(&mut Source::new(seed));
        let count = body.q.len();
        compare(body, &vec![2e-5; count]);
    }
}

#[test]
fn attention_is_the_same_bits_in_any_chunks() {
    for seed in 100..115 {
        let body = Attend::new(&mut Source::new(seed));
        let cpu = || Cpu::new(2, Isa::best()).unwrap();
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

/// Every operation of a `Vector` on three operands, in bits.
#[expect(unsafe_code, reason = "calls lanes directly; the caller has the instruction set")]
fn operations<V: Vector>(operands: [[f32; LANES]; 3]) -> Vec<[u32; LANES]> {
    let halves = operands[0].map(|value| (value.to_bits() >> 16) as u16);
    // SAFETY: the arrays have the lanes.
    unsafe {
        let [a, b, c] = operands.map(|lanes| V::load(lanes.as_ptr()));
        let results = [
            a.add(b),
            a.sub(b),
            a.mul(b),
            a.div(b),
            a.max(b),
            a.min(b),
            a.fma(b, c),
            a.round(),
            a.exp(),
            V::splat(a.sum()),
            V::load_bf16(halves.as_ptr()),
            V::load_f16(halves.as_ptr()),
        ];
        let store = |result: V| {
            let mut lanes = [0.0_f32; LANES];
            result.store(lanes.as_mut_ptr());
            // one bit pattern for all that is not a number: sign and payload are the processor's
            lanes.map(|lane| if lane.is_nan() { f32::NAN.to_bits() } else { lane.to_bits() })
        };
        results.map(store).to_vec()
    }
}

#[test]
fn every_operation_gives_the_same_bits_on_every_instruction_set() {
    const SPECIAL: [f32; 14] = [
        0.0,
        -0.0,
        1.5,
        2.5,
        -0.5,
        1e-41,
        -1e-41,
        f32::MAX,
        f32::MIN,
        f32::INFINITY,
        f32::NEG_INFINITY,
        f32::NAN,
        88.37,
        -87.5,
    ];
    type Operations = fn([[f32; LANES]; 3]) -> Vec<[u32; LANES]>;
    let mut native: Vec<(&str, Operations)> = Vec::new();
    for isa in Isa::available() {
        match isa.name {
            #[cfg(target_arch = "x86_64")]
            "avx512" => native.push((isa.name, operations::<super::x86_64::avx512::Avx512>)),
            #[cfg(target_arch = "x86_64")]
            "avx2" => native.push((isa.name, operations::<super::x86_64::avx2::Avx2>)),
            #[cfg(target_arch = "aarch64")]
            "neon" => native.push((isa.name, operations::<super::aarch64::neon::Neon>)),
            _ => {}
        }
    }
    assert_eq!(native.len(), Isa::available().len() - 1, "all but the portable one");
    let mut source = Source::new(5);
    for round in 0..4000 {
        let mut value = || match round % 3 {
            0 => (source.unit() * 200.0 - 100.0) as f32,
            1 => f32::from_bits((source.unit() * 4_294_967_296.0) as u32),
            _ => SPECIAL[(source.unit() * SPECIAL.len() as f64) as usize],
        };
        let operands = [(); 3].map(|()| [(); LANES].map(|()| value()));
        let expected = operations::<Generic>(operands);
        for (name, operations) in &native {
            for (number, (found, expected)) in operations(operands).iter().zip(&expected).enumerate() {
                assert_eq!(found, expected, "{name}, operation {number} on {operands:?}");
            }
        }
    }
}

#[test]
#[expect(unsafe_code, reason = "calls portable lanes directly")]
fn exp_is_within_two_units_in_the_last_place_and_keeps_what_is_not_a_number() {
    let exp = |value: f32| {
        let mut lanes = [0.0_f32; LANES];
        // SAFETY: portable lanes need nothing; the array has them.
        unsafe { Generic::splat(value).exp().store(lanes.as_mut_ptr()) };
        lanes[0]
    };
    for i in -87_000..88_000 {
        let x = i as f32 / 1000.0;
        let (found, exact) = (f64::from(exp(x)), f64::from(x).exp());
        let unit = f64::from(exact as f32) * f64::from(f32::EPSILON);
        assert!((found - exact).abs() <= 2.0 * unit, "exp({x}) = {found}, exactly {exact}");
    }
    assert_eq!((exp(0.0), exp(-200.0), exp(f32::NEG_INFINITY)), (1.0, 0.0, 0.0));
    assert!(exp(f32::NAN).is_nan() && exp(f32::INFINITY).is_finite());
}
