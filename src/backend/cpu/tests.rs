//! Every kernel, on every instruction set of this machine, against the reference: random shapes with odd sizes and
//! tails, one row, one column, denormals, infinities at masked positions. And all instruction sets and team sizes must
//! give the same bits.

use std::cell::Cell;
use std::path::Path;
use std::sync::Arc;

use half::{bf16, f16};

#[cfg(target_arch = "aarch64")]
use super::aarch64::neon::Neon;
use super::generic::Generic;
use super::vector::{LANES, LINE, Vector};
#[cfg(target_arch = "x86_64")]
use super::x86_64::{avx2::Avx2, avx512::Avx512};
use super::{Cpu, Isa, Reference};
use crate::backend::cuda::Cuda;
use crate::backend::cuda::driver::Driver;
use crate::backend::cuda::emulated::{self, Emulated};
use crate::backend::cuda::native::Native;
use crate::backend::{
    Activation, Attention, AttentionBias, BLOCK, Backend, Batch, Buf, Cap, Expert, Groups, Kv, KvType,
    Linear, Norm, NormKind, Pooling, Projection, Quantize, Rope, Routed, Routing, Scoring, Span,
};
use crate::memory::Layout;
use crate::sample::rng::uniform;
use crate::weights::{Checkpoint, Dtype, Tensor};

/// Evaluates something with the kernels of CUDA devices: run on the CPU, or with `AMNESIC_DEVICE=cuda` on the first device.
macro_rules! on_device {
    (|$backend:ident| $body:expr) => {
        if is_cuda() {
            let $backend = Cuda::new(Arc::new(Native::open(0).unwrap()));
            $body
        } else {
            let $backend = Cuda::new(Arc::new(Emulated::default()));
            $body
        }
    };
}

/// Types of matrices, and what they are quantized to.
const PRECISIONS: [(Dtype, Option<Quantize>); 5] = [
    (Dtype::F32, None),
    (Dtype::F16, None),
    (Dtype::Bf16, None),
    (Dtype::Bf16, Some(Quantize::Q8)),
    (Dtype::F32, Some(Quantize::Q4)),
];

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
            Dtype::Q8 | Dtype::Q4 | Dtype::F8 => unreachable!("no safetensors type"),
        })
        .collect();
    let views = matrices.iter().zip(&bytes).enumerate().map(|(i, ((dtype, shape, _), bytes))| {
        let dtype = match dtype {
            Dtype::F32 => safetensors::Dtype::F32,
            Dtype::F16 => safetensors::Dtype::F16,
            Dtype::Bf16 => safetensors::Dtype::BF16,
            Dtype::Q8 | Dtype::Q4 | Dtype::F8 => unreachable!("no safetensors type"),
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

/// How near the fast backend must come to the reference, value by value.
struct Near {
    tolerance: Vec<f64>,
    /// Where products are of bf16 by bf16, whose rounding is the processor's own: how much farther off they may be.
    /// None where there are no such products: then all instruction sets must agree in every bit.
    own_way: Option<f64>,
    /// How much farther off, of the magnitude and one, a CUDA device may be, whose operands have 16 bits: zero where it
    /// makes none, or where the reference rounds them in the same way.
    device: f64,
}

/// Team sizes that a case is run with on an instruction set. The slow ones take fewer, in turn from case to case: the portable
/// kernels, whose fused multiplications are calls, take one, since their bits are compared with those of the others; and AMX,
/// which most machines emulate, takes two, since products of bf16 have no bits but their own to be compared with. Which rows a
/// member of the team gets does not depend on the instruction set.
fn team_sizes(isa: &Isa, case: usize) -> Vec<usize> {
    match isa.name {
        "portable" => vec![1 + case % 3],
        "amx" => vec![1, 2 + case % 2],
        _ => vec![1, 2, 3],
    }
}

/// Runs `body` on the reference, and on each instruction set with several team sizes: the latter must agree in every
/// bit and be near the former. Returns how many instruction sets were compared.
fn compare(body: impl Body, near: &Near) -> usize {
    let reference = body.run(Reference::default());
    assert_eq!(reference.len(), near.tolerance.len());
    let mut common: Option<Vec<u32>> = None;
    let mut sets = 0;
    let case = next_case();
    for isa in Isa::available() {
        let own_way = near.own_way.filter(|_| isa.rounds_its_own_way());
        let mut own = None;
        for threads in team_sizes(&isa, case) {
            let fast = body.run(Cpu::new(threads, isa).unwrap());
            for (i, (&fast, &reference)) in fast.iter().zip(&reference).enumerate() {
                let error = (f64::from(fast) - f64::from(reference)).abs();
                let allowed = near.tolerance[i] * own_way.unwrap_or(1.0);
                assert!(error <= allowed, "{}: value {i}: {fast}, reference {reference}", isa.name);
            }
            let bits: Vec<u32> = fast.iter().map(|value| value.to_bits()).collect();
            let first = if own_way.is_some() { &mut own } else { &mut common };
            let first = first.get_or_insert_with(|| bits.clone());
            assert!(*first == bits, "{} with {threads} threads gives other bits", isa.name);
        }
        sets += 1;
    }
    if std::env::var("AMNESIC_DEVICE").as_deref() == Ok("none") || !is_for_devices(case) {
        return sets;
    }
    let reference = body.run(Reference::short());
    for (i, (device, reference)) in on_device!(|cuda| body.run(cuda)).into_iter().zip(reference).enumerate() {
        let (device, reference) = (f64::from(device), f64::from(reference));
        let allowed = near.tolerance[i] + near.device * (1.0 + reference.abs());
        // what is beyond f16 is infinite, where operands are of that
        if near.device > 0.0 && device.is_infinite() && reference.abs() > 65504.0 {
            continue;
        }
        let error = (device - reference).abs();
        assert!(error <= allowed, "cuda: value {i}: {device}, reference {reference}, allowed {allowed}");
    }
    sets
}

/// The number of the next case of this test, which has a thread of its own.
fn next_case() -> usize {
    thread_local! {
        static CASES: Cell<usize> = const { Cell::new(0) };
    }
    CASES.replace(CASES.get() + 1)
}

/// Whether a device evaluates this case of a test too. A GPU evaluates every case, and so does the emulated device if
/// everything is to be done; otherwise it takes each fourth.
fn is_for_devices(case: usize) -> bool {
    const EVERY: usize = 4;
    let is_taken = is_cuda() || emulated::does_all() || case.is_multiple_of(EVERY);
    if !is_taken && case == 1 {
        emulated::skipped("three of four cases");
    }
    is_taken
}

fn is_cuda() -> bool {
    std::env::var("AMNESIC_DEVICE").as_deref() == Ok("cuda")
}

/// A backend whose operands tests write and read.
trait Testable: Backend {
    fn set_operand(&mut self, buf: Buf, values: &[f32]);
    fn operand(&mut self, buf: Buf, row: usize) -> Vec<f32>;
}

impl Testable for Cpu {
    fn set_operand(&mut self, buf: Buf, values: &[f32]) {
        Cpu::set_operand(self, buf, values);
    }
    fn operand(&mut self, buf: Buf, row: usize) -> Vec<f32> {
        self.get_operand(buf, row)
    }
}

impl<D: Driver> Testable for Cuda<D> {
    fn set_operand(&mut self, buf: Buf, values: &[f32]) {
        Cuda::set_operand(self, buf, values);
    }
    fn operand(&mut self, buf: Buf, row: usize) -> Vec<f32> {
        self.get_operand(buf, row)
    }
}

impl Testable for Reference {
    fn set_operand(&mut self, buf: Buf, values: &[f32]) {
        fill(self, buf, values);
    }
    fn operand(&mut self, buf: Buf, row: usize) -> Vec<f32> {
        self.read(buf, row).to_vec()
    }
}

/// A closure over any backend.
trait Body {
    fn run<B: Testable>(&self, backend: B) -> Vec<f32>;
}

/// A planned buffer: (rows, cols), and whether it is an operand.
type Shape = (usize, usize, bool);

/// Plans buffers, and a cache of (type, heads, values per head, blocks).
fn reserve<B: Backend>(
    backend: &mut B,
    shapes: &[Shape],
    (cache, kv_heads, dims, blocks): (KvType, usize, [usize; 2], usize),
) -> Vec<Buf> {
    let mut layout = Layout::default();
    let plan = |&(rows, cols, operand): &Shape| match operand {
        true => Buf::plan_operand(&mut layout, rows, cols).unwrap(),
        false => Buf::plan(&mut layout, rows, cols).unwrap(),
    };
    let bufs = shapes.iter().map(plan).collect();
    let region = layout.region(blocks * Kv::block_bytes(cache, 2, kv_heads, dims).unwrap()).unwrap();
    let [head_dim, value_dim] = dims;
    backend.reserve(layout, Kv { region, cache, layers: 2, kv_heads, head_dim, value_dim }, None).unwrap();
    bufs
}

/// No cache to speak of.
const NO_CACHE: (KvType, usize, [usize; 2], usize) = (KvType::F32, 1, [2; 2], 1);

/// Puts values into a buffer, the one way there is: as embeddings.
fn fill<B: Backend>(backend: &mut B, buf: Buf, values: &[f32]) {
    let ids: Vec<u32> = (0..(values.len() / buf.cols) as u32).collect();
    let table = backend.upload_table(values.to_vec(), buf.cols).unwrap();
    backend.embed(&ids, &table, 1.0, buf);
}

fn read<B: Backend>(backend: &mut B, buf: Buf, rows: usize) -> Vec<f32> {
    (0..rows).flat_map(|row| backend.read(buf, row).to_vec()).collect()
}

/// Values that bf16 holds, where weights are bf16: so that what x is rounded to does not matter.
fn as_bf16(values: &mut [f32], dtype: Dtype, quantize: Option<Quantize>) -> bool {
    let pairs = dtype == Dtype::Bf16 && quantize.is_none();
    if pairs {
        values.iter_mut().for_each(|value| *value = bf16::from_f32(*value).to_f32());
    }
    pairs
}

fn quantize(source: &mut Source) -> Option<Quantize> {
    [None, Some(Quantize::Q8), Some(Quantize::Q4)][source.size(0, 2)]
}

struct Product {
    rows: usize,
    x: Vec<f32>,
    before: Vec<f32>,
    /// Times this it is added to what was there before.
    add: Option<f32>,
    bias: Option<Vec<f32>>,
    weight: Tensor,
    quantize: Option<Quantize>,
}

impl Body for Product {
    fn run<B: Testable>(&self, mut backend: B) -> Vec<f32> {
        let [outs, ins] = self.weight.shape[..] else { unreachable!() };
        let weight = backend.upload(&self.weight, self.quantize).unwrap();
        let mut bufs = reserve(&mut backend, &[(self.rows, ins, true), (self.rows, outs, false)], NO_CACHE);
        bufs[0] = bufs[0].of(backend.form(&[&weight]));
        backend.set_operand(bufs[0], &self.x);
        fill(&mut backend, bufs[1], &self.before);
        let bias = self.bias.as_ref().map(|bias| backend.upload_table(bias.clone(), outs).unwrap());
        backend.linear(
            self.rows,
            bufs[0],
            &[Projection { weight: &weight, bias: bias.as_ref(), out: bufs[1], add: self.add }],
        );
        read(&mut backend, bufs[1], self.rows)
    }
}

#[test]
fn linear_agrees_with_the_reference() {
    let mut sets = 0;
    for seed in 0..120 {
        let mut source = Source::new(seed);
        let (rows, ins, outs) = (source.size(1, 37), source.size(1, 300), source.size(1, 150));
        let folder = tempfile::tempdir().unwrap();
        let (dtype, quantize) = (source.dtype(), quantize(&mut source));
        let weights = source.values(outs * ins);
        let weight = tensors(folder.path(), &[(dtype, vec![outs, ins], weights)]).remove(0);
        let (mut x, before) = (source.values(rows * ins), source.values(rows * outs));
        let pairs = as_bf16(&mut x, dtype, quantize);
        let bias = (seed % 2 == 0).then(|| source.values(outs));
        let add = [None, Some(1.0), Some(0.37)][seed as usize / 2 % 3];
        let tolerance = vec![4e-7 * 4.0 * (ins as f64 + 2.0); rows * outs];
        let near = Near { tolerance, own_way: pairs.then_some(2.0), device: 0.0 };
        sets += compare(Product { rows, x, before, add, bias, weight, quantize }, &near);
    }
    assert_eq!(sets, 120 * Isa::available().len());
}

/// A row's products are the same bits whatever rows are beside it.
#[test]
fn linear_is_batch_invariant() {
    for (dtype, quantize) in PRECISIONS {
        let mut source = Source::new(99);
        let (rows, ins, outs) = (35, 150, 70);
        let folder = tempfile::tempdir().unwrap();
        let weights = source.values(outs * ins);
        let weight = tensors(folder.path(), &[(dtype, vec![outs, ins], weights)]).remove(0);
        let (x, before) = (source.values(rows * ins), vec![0.0; rows * outs]);
        for isa in Isa::available() {
            let run = |first: usize, rows: usize| {
                let x = x[first * ins..(first + rows) * ins].to_vec();
                let before = before[..rows * outs].to_vec();
                let weight = weight.clone();
                let body = Product { rows, x, before, add: Some(0.37), bias: None, weight, quantize };
                body.run(Cpu::new(2, isa).unwrap())
            };
            let all = run(0, rows);
            for count in 1..=rows {
                for first in [0, rows - count] {
                    let same = run(first, count) == all[first * outs..(first + count) * outs];
                    assert!(same, "{}, {dtype}, {quantize:?}: {count} rows from {first}", isa.name);
                }
            }
        }
    }
}

/// `activation(x * gate^T) * (x * up^T)`, read back through a product with the identity.
struct Gated {
    rows: usize,
    x: Vec<f32>,
    biases: Option<[Vec<f32>; 2]>,
    gate: Tensor,
    up: Tensor,
    quantize: Option<Quantize>,
    activation: Activation,
    /// Without `up`.
    plain: bool,
}

impl Body for Gated {
    fn run<B: Testable>(&self, mut backend: B) -> Vec<f32> {
        let [inner, ins] = self.gate.shape[..] else { unreachable!() };
        let [gate, up] = [&self.gate, &self.up].map(|weight| backend.upload(weight, self.quantize).unwrap());
        let mut bufs = reserve(&mut backend, &[(self.rows, ins, true), (self.rows, inner, true)], NO_CACHE);
        let form = backend.form(&[&gate, &up]);
        bufs.iter_mut().for_each(|buf| *buf = buf.of(form));
        backend.set_operand(bufs[0], &self.x);
        let mut bias = |i: usize| {
            self.biases.as_ref().map(|biases| backend.upload_table(biases[i].clone(), inner).unwrap())
        };
        let (gate, up) = (Linear { weight: gate, bias: bias(0) }, Linear { weight: up, bias: bias(1) });
        match self.plain {
            true => backend.activated(self.rows, bufs[0], self.activation, &gate, bufs[1]),
            false => backend.gated(self.rows, bufs[0], self.activation, &gate, &up, bufs[1]),
        }
        (0..self.rows).flat_map(|row| backend.operand(bufs[1], row)).collect()
    }
}

#[test]
fn gated_agrees_with_the_reference_also_far_out() {
    const SCALES: [f32; 4] = [1.0, 10.0, 100.0, 0.1];
    for seed in 0..60 {
        let mut source = Source::new(seed);
        let (rows, ins, inner) = (source.size(1, 37), source.size(1, 100), source.size(1, 150));
        let folder = tempfile::tempdir().unwrap();
        let (dtype, quantize) = (source.dtype(), quantize(&mut source));
        let mut weights = || source.values(inner * ins);
        let matrices = [weights(), weights()].map(|values| (dtype, vec![inner, ins], values));
        let [gate, up] = tensors(folder.path(), &matrices).try_into().unwrap();
        let mut x = source.values(rows * ins);
        for (i, x) in x.iter_mut().enumerate() {
            *x *= SCALES[i / ins % 4];
        }
        as_bf16(&mut x, dtype, quantize);
        let biases = (seed % 3 == 0).then(|| [source.values(inner), source.values(inner)]);
        let activation = ACTIVATIONS[seed as usize % ACTIVATIONS.len()];
        let body = Gated { rows, x, biases, gate, up, quantize, activation, plain: seed % 4 == 3 };
        // what is written is rounded: as bf16 by 2^-9, as int8 by half a step of its group's largest magnitude
        let reference = body.run(Reference::default());
        let steps = reference.chunks(inner).flat_map(|row| {
            row.chunks(32).flat_map(|group| {
                let largest = group.iter().fold(0.0_f32, |most, value| most.max(value.abs()));
                vec![f64::from(largest) / 254.0; group.len()]
            })
        });
        let tolerance = steps.zip(&reference).enumerate().map(|(i, (step, &value))| {
            // each sum is off by its own rounding, times the other
            let scale = f64::from(SCALES[i / inner % 4]) * 4.0;
            let (off, mut most) =
                (4e-7 * scale * (ins as f64 + 2.0), scale * 3.0 * (ins as f64).sqrt() + 2.0);
            if activation == Activation::ReluSquared {
                most *= most; // times the first sum once more
            }
            let written = match quantize {
                Some(_) => step * 1.01,
                None if dtype == Dtype::Bf16 => f64::from(value.abs()) / 256.0,
                None => 0.0,
            };
            1e-5 * (1.0 + f64::from(value.abs())) + 2.0 * off * most + written
        });
        let tolerance = tolerance.collect();
        let own_way = (dtype == Dtype::Bf16 && quantize.is_none()).then_some(1.0);
        compare(body, &Near { tolerance, own_way, device: 1.0 / 256.0 });
    }
}

const ACTIVATIONS: [Activation; 7] = [
    Activation::Silu,
    Activation::Gelu,
    Activation::GeluTanh,
    Activation::Relu,
    Activation::ReluSquared,
    Activation::Tanh,
    Activation::Clamped { alpha: 1.7, limit: 1.5 },
];

struct RowNorm {
    rows: usize,
    cols: usize,
    x: Vec<f32>,
    kind: NormKind,
    weight: Option<Vec<f32>>,
    bias: Option<Vec<f32>>,
    /// A matrix that reads the operand.
    other: Option<(Tensor, Option<Quantize>)>,
}

impl RowNorm {
    fn norm<B: Backend>(&self, backend: &mut B) -> Norm<B::Weight> {
        let mut table = |values: &Option<Vec<f32>>| {
            values.as_ref().map(|values| backend.upload_table(values.clone(), values.len()).unwrap())
        };
        Norm { kind: self.kind, eps: 1e-5, weight: table(&self.weight), bias: table(&self.bias) }
    }
}

impl Body for RowNorm {
    fn run<B: Testable>(&self, mut backend: B) -> Vec<f32> {
        let Self { rows, cols, x, other, .. } = self;
        let reader = other.as_ref().map(|(tensor, quantize)| backend.upload(tensor, *quantize).unwrap());
        let mut bufs = reserve(&mut backend, &[(*rows, *cols, false), (*rows, *cols, true)], NO_CACHE);
        if let Some(reader) = &reader {
            bufs[1] = bufs[1].of(backend.form(&[reader]));
        }
        fill(&mut backend, bufs[0], x);
        let norm = self.norm(&mut backend);
        backend.norm(*rows, bufs[0], &norm, bufs[1]);
        (0..*rows).flat_map(|row| backend.operand(bufs[1], row)).collect()
    }
}

const NORMS: [NormKind; 3] = [NormKind::Rms, NormKind::Layer, NormKind::Identity];

#[test]
fn norms_agree_with_the_reference() {
    let folder = tempfile::tempdir().unwrap();
    let matrix = tensors(folder.path(), &[(Dtype::Bf16, vec![1, 2], vec![1.0; 2])]).remove(0);
    for seed in 0..90 {
        let mut source = Source::new(seed);
        let (rows, cols) = (source.size(1, 40), source.size(2, 700));
        let kind = NORMS[seed as usize / 3 % 3];
        let x = source.values(rows * cols);
        let weight = (seed % 4 != 3).then(|| source.values(cols));
        let bias = (seed % 5 == 0).then(|| source.values(cols));
        let other = [None, Some((matrix.clone(), None)), Some((matrix.clone(), Some(Quantize::Q8)))];
        let other = other[seed as usize % 3].clone();
        let pairs = seed % 3 == 1;
        let int8 = seed % 3 == 2;
        let body = RowNorm { rows, cols, x, kind, weight, bias, other };
        let reference = body.run(Reference::default());
        let largest = reference.iter().fold(0.0_f32, |most, value| most.max(value.abs()));
        let written = if int8 { f64::from(largest) / 254.0 * 1.01 } else { 0.0 };
        // a row of zeros and denormals is scaled by up to 1 / sqrt(eps); what is taken away is rounded too
        let near = if kind == NormKind::Layer { 4e-5 } else { 1e-5 };
        let tolerance = reference
            .iter()
            .map(|&value| near + written + if pairs { f64::from(value.abs()) / 256.0 } else { 0.0 });
        compare(
            body,
            &Near { tolerance: tolerance.collect(), own_way: pairs.then_some(1.0), device: 1.0 / 256.0 },
        );
    }
}

/// Norms of pieces in place, added to a buffer, and a scale with a cap.
struct Pieces {
    norm: RowNorm,
    width: usize,
    before: Vec<f32>,
    cap: Cap,
}

impl Body for Pieces {
    fn run<B: Testable>(&self, mut backend: B) -> Vec<f32> {
        let RowNorm { rows, cols, ref x, .. } = self.norm;
        let shapes = [(rows, cols, false), (rows, cols, false)];
        let bufs = reserve(&mut backend, &shapes, NO_CACHE);
        fill(&mut backend, bufs[0], x);
        fill(&mut backend, bufs[1], &self.before);
        let norm = self.norm.norm(&mut backend);
        backend.group_norm_in_place(rows, bufs[0], &norm, self.width);
        let whole = Norm { kind: self.norm.kind, eps: 1e-5, weight: None, bias: None };
        backend.add_norm(rows, bufs[0], &whole, 0.25, bufs[1]);
        backend.scale(rows, bufs[1], 1.5, self.cap);
        [read(&mut backend, bufs[0], rows), read(&mut backend, bufs[1], rows)].concat()
    }
}

#[test]
fn norms_of_pieces_agree_with_the_reference() {
    for seed in 0..60 {
        let mut source = Source::new(seed);
        let (rows, width, pieces) = (source.size(1, 20), source.size(2, 90), source.size(1, 6));
        let (cols, kind) = (width * pieces, NORMS[seed as usize % 2]);
        let x = source.values(rows * cols);
        let whole = source.unit() < 0.5;
        let weight = Some(source.values(if whole { cols } else { width }));
        let bias = (seed % 3 == 0).then(|| source.values(width));
        let norm = RowNorm { rows, cols, x, kind, weight, bias, other: None };
        let before = source.values(rows * cols);
        let cap = [Cap::None, Cap::Soft(2.0), Cap::Hard(1.3)][seed as usize / 2 % 3];
        let near = Near { tolerance: vec![1e-4; 2 * rows * cols], own_way: None, device: 0.0 };
        compare(Pieces { norm, width, before, cap }, &near);
    }
}

/// Requests with some cached positions and some new ones, over shuffled blocks.
struct Attend {
    cache: KvType,
    softcap: Option<f32>,
    /// A score of each head that takes part in the softmax alone.
    sinks: Option<Vec<f32>>,
    causal: bool,
    /// By head, what is added to scores by distance.
    distances: Option<Vec<f32>>,
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
            distances: None,
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
            attend.distances = Some(source.values(heads * 2 * Self::REACH));
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
            Rope { table, dims, interleaved }
        });
        let sinks = self.sinks.as_ref().map(|sinks| backend.upload_table(sinks.clone(), self.heads).unwrap());
        let distances =
            self.distances.clone().map(|table| backend.upload_table(table, 2 * Self::REACH).unwrap());
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
                let spans = [Span { row: 0, rows, position, table: 0, adapter: None }];
                let batch = Batch {
                    ids: &positions,
                    positions: &positions,
                    slots: &slots,
                    spans: &spans,
                    blocks: &table,
                    outputs: &[],
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
                let shape = Attention { layer: 1, heads, causal: self.causal, window, scale, softcap };
                let biases = AttentionBias { sinks: sinks.as_ref(), distances: distances.as_ref() };
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
        (body.sinks, body.distances) = (None, None);
        let tokens = 78;
        body.q = source.values(tokens * 16 * 576).iter().map(|q| 0.5 * q).collect();
        (body.k, body.v) = (source.values(tokens * 576), source.values(tokens * 512));
        let near = body.near();
        compare(body, &near);
    }
}

/// Pieces of rows, each through its head's matrix; and two parts of rows joined.
struct ByHead {
    rows: usize,
    heads: usize,
    x: Vec<f32>,
    weight: Tensor,
    quantize: Option<Quantize>,
}

impl Body for ByHead {
    fn run<B: Testable>(&self, mut backend: B) -> Vec<f32> {
        let (rows, heads, ins) = (self.rows, self.heads, self.weight.shape[1]);
        let weight = backend.upload(&self.weight, self.quantize).unwrap();
        let (from, outs) = (self.x.len() / rows / heads, self.weight.shape[0] / heads);
        let to = from - ins + outs;
        let shapes = [
            (rows, heads * from, false),
            (heads * rows, ins, true),
            (rows, heads * to, false),
            (rows, heads * (from + to), false),
        ];
        let bufs = reserve(&mut backend, &shapes, NO_CACHE);
        let pieces = bufs[1].of(backend.form(&[&weight]));
        fill(&mut backend, bufs[0], &self.x);
        backend.per_head_linear(rows, bufs[0], heads, &weight, pieces, bufs[2]);
        backend.concat(rows, [bufs[2], bufs[0]], bufs[3]);
        read(&mut backend, bufs[3], rows)
    }
}

#[test]
fn products_by_head_agree_with_the_reference() {
    let mut sets = 0;
    for seed in 0..60 {
        let mut source = Source::new(seed);
        let (rows, heads, ins) = (source.size(1, 29), source.size(1, 9), source.size(1, 140));
        let (kept, outs) = (source.size(0, 20), 16 * source.size(1, 12));
        let folder = tempfile::tempdir().unwrap();
        let (dtype, quantize) = (source.dtype(), quantize(&mut source));
        let weights = source.values(heads * outs * ins);
        let weight = tensors(folder.path(), &[(dtype, vec![heads * outs, ins], weights)]).remove(0);
        let mut x = source.values(rows * heads * (ins + kept));
        let pairs = as_bf16(&mut x, dtype, quantize);
        let outputs = rows * heads * (outs + kept + ins + kept);
        let tolerance = vec![4e-7 * 4.0 * (ins as f64 + 2.0); outputs];
        let near = Near { tolerance, own_way: pairs.then_some(2.0), device: 0.0 };
        sets += compare(ByHead { rows, heads, x, weight, quantize }, &near);
    }
    assert_eq!(sets, 60 * Isa::available().len());
}

/// On a CUDA device few rows and many go through different kernels.
#[test]
fn products_of_a_device_are_batch_invariant() {
    let slices = [(0, 1), (3, 8), (5, 65), (139, 1), (70, 9), (9, 17), (100, 33), (60, 64), (10, 129)];
    let slices = match is_cuda() || emulated::does_all() {
        true => &slices[..],
        false => {
            emulated::skipped("six of nine slices");
            &slices[..3]
        }
    };
    for (dtype, quantize) in PRECISIONS {
        let mut source = Source::new(77);
        let (rows, ins, outs) = (140, 390, 150);
        let folder = tempfile::tempdir().unwrap();
        let matrices = [(); 2].map(|()| (dtype, vec![outs, ins], source.values(outs * ins)));
        let [gate, up] = tensors(folder.path(), &matrices).try_into().unwrap();
        let (x, before) = (source.values(rows * ins), source.values(rows * outs));
        let product = |first: usize, count: usize| {
            let x = x[first * ins..(first + count) * ins].to_vec();
            let before = before[first * outs..(first + count) * outs].to_vec();
            let weight = gate.clone();
            let body = Product { rows: count, x, before, add: Some(0.37), bias: None, weight, quantize };
            on_device!(|cuda| body.run(cuda))
        };
        let gated = |first: usize, count: usize| {
            let x = x[first * ins..(first + count) * ins].to_vec();
            let (gate, up, activation) = (gate.clone(), up.clone(), Activation::Silu);
            let body = Gated { rows: count, x, biases: None, gate, up, quantize, activation, plain: false };
            on_device!(|cuda| body.run(cuda))
        };
        let (all, all_gated) = (product(0, rows), gated(0, rows));
        for &(first, count) in slices {
            let of = first * outs..(first + count) * outs;
            let case = format!("{dtype}, {quantize:?}: {count} rows from {first}");
            assert!(product(first, count) == all[of.clone()], "{case}");
            assert!(gated(first, count) == all_gated[of], "{case}, gated");
        }
    }
}

/// With wgmma a device gives the same bits as with mma.
#[test]
fn wgmma_of_a_device_gives_the_same_bits() {
    for (case, (dtype, rows, ins, outs)) in
        [(Dtype::Bf16, 70, 256, 200), (Dtype::F16, 130, 640, 130), (Dtype::Bf16, 200, 1408, 520)]
            .into_iter()
            .enumerate()
    {
        let mut source = Source::new(400 + case as u64);
        let folder = tempfile::tempdir().unwrap();
        let matrices = [(); 2].map(|()| (dtype, vec![outs, ins], source.values(outs * ins)));
        let [gate, up] = tensors(folder.path(), &matrices).try_into().unwrap();
        let (add, quantize) = (Some(0.37), None);
        let bias = Some(source.values(outs));
        let (x, before, weight) = (source.values(rows * ins), source.values(rows * outs), gate.clone());
        let product = Product { rows, x: x.clone(), before, add, bias, weight, quantize };
        let (activation, biases) = (Activation::Silu, None);
        let gated = Gated { rows, x, biases, gate, up, quantize, activation, plain: false };
        if is_cuda() {
            let cuda = || Arc::new(Native::open(0).unwrap());
            assert!(product.run(Cuda::new(cuda())) == product.run(Cuda::plain(cuda())), "{case}");
            assert!(gated.run(Cuda::new(cuda())) == gated.run(Cuda::plain(cuda())), "{case}, gated");
            continue;
        }
        let run = |body: &dyn Fn(Cuda<Emulated>) -> Vec<f32>, kernel: &'static str| {
            let hopper = Arc::new(Emulated::hopper());
            let with = body(Cuda::new(hopper.clone()));
            assert!(with == body(Cuda::new(Arc::new(Emulated::default()))), "{case}: {kernel}");
            // where there are few blocks slices have their own, and no wgmma; where it gives other bits it is not used
            let is_pair = kernel.contains("pair");
            assert_eq!(hopper.asked(kernel), usize::from(case > 0 || is_pair), "{case}: {kernel}");
            if !is_pair {
                let broken = Arc::new(Emulated::hopper_without(kernel));
                assert!(
                    with == body(Cuda::new(broken.clone())) && broken.asked(kernel) == 0,
                    "{case}: {kernel}"
                );
            }
        };
        let half = dtype == Dtype::F16;
        run(&|cuda| product.run(cuda), if half { "hopper_f16" } else { "hopper_bf16" });
        run(&|cuda| gated.run(cuda), if half { "hopper_pair_f16" } else { "hopper_pair_bf16" });
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
            (body.sinks, body.distances, body.causal, body.window) = (None, None, true, window);
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

/// Tokens to their experts and back, and an expert behind a gate.
struct Moe {
    rows: usize,
    x: Vec<f32>,
    scores: Vec<f32>,
    gates: Vec<f32>,
    before: Vec<f32>,
    routing: Routing,
    correction: Option<Vec<f32>>,
    /// Gate, up and down of each.
    experts: Vec<[Tensor; 3]>,
    biases: bool,
    quantize: Option<Quantize>,
    activation: Activation,
    add: Option<f32>,
}

impl Body for Moe {
    fn run<B: Testable>(&self, mut backend: B) -> Vec<f32> {
        let [inner, hidden] = self.experts[0][0].shape[..] else { unreachable!() };
        let (rows, count) = (self.rows, self.routing.per_token);
        let mut linear = |tensor: &Tensor| {
            let bias = (0..tensor.shape[0]).map(|i| (i as f32).sin()).collect();
            let bias = self.biases.then(|| backend.upload_table(bias, tensor.shape[0]).unwrap());
            Linear { weight: backend.upload(tensor, self.quantize).unwrap(), bias }
        };
        let experts: Vec<_> = self
            .experts
            .iter()
            .map(|[gate, up, down]| Expert { gate: linear(gate), up: linear(up), down: linear(down) })
            .collect();
        let mut layout = Layout::default();
        let x = Buf::plan_operand(&mut layout, rows, hidden).unwrap();
        let mut routed = Routed::plan(&mut layout, rows, experts.len(), count, hidden, inner).unwrap();
        let [gate, out, gated] = [1, hidden, hidden].map(|cols| Buf::plan(&mut layout, rows, cols).unwrap());
        let region = layout.region(Kv::block_bytes(KvType::F32, 1, 1, [2; 2]).unwrap()).unwrap();
        let kv = Kv { region, cache: KvType::F32, layers: 1, kv_heads: 1, head_dim: 2, value_dim: 2 };
        backend.reserve(layout, kv, None).unwrap();
        let form = backend.form(&[&experts[0].gate.weight]);
        let x = x.of(form);
        routed.x = routed.x.of(form);
        routed.inner = routed.inner.of(backend.form(&[&experts[0].down.weight]));
        backend.set_operand(x, &self.x);
        fill(&mut backend, routed.scores, &self.scores);
        fill(&mut backend, gate, &self.gates);
        fill(&mut backend, out, &self.before);
        let correction = self
            .correction
            .as_ref()
            .map(|values| backend.upload_table(values.clone(), values.len()).unwrap());
        let before = backend.counters().weight_bytes;
        backend.route(rows, &self.routing, correction.as_ref(), &routed);
        backend.experts(rows, x, self.activation, &experts, &routed);
        // of the experts that nobody chose nothing is read
        let read_bytes = backend.counters().weight_bytes - before;
        let of_one: u64 = self.experts[0].iter().map(|tensor| B::weight_bytes(tensor, self.quantize)).sum();
        let read_experts = read_bytes / of_one;
        assert!(read_bytes.is_multiple_of(of_one), "parts of experts are read");
        assert!(
            (count..=experts.len().min(rows * count)).contains(&(read_experts as usize)),
            "{read_experts}"
        );
        backend.moe_combine(rows, &routed, self.add, out);
        fill(&mut backend, gated, &self.before);
        backend.add_gated(rows, out, gate, 0.7, gated);
        let mut all = read(&mut backend, gated, rows);
        all.extend(read(&mut backend, routed.weights, rows));
        all
    }
}

#[test]
fn experts_agree_with_the_reference() {
    for seed in 0..48 {
        let mut source = Source::new(seed);
        let (rows, hidden, inner) = (source.size(1, 23), source.size(1, 90), source.size(1, 80));
        let (groups, of_group) = ([1, 2, 4][seed as usize % 3], source.size(2, 5));
        let all = groups * of_group;
        let per_token = source.size(1, all.min(2 * of_group).min(6));
        let folder = tempfile::tempdir().unwrap();
        let (dtype, quantize) = (source.dtype(), quantize(&mut source));
        let matrices: Vec<_> = (0..all)
            .flat_map(|_| [vec![inner, hidden], vec![inner, hidden], vec![hidden, inner]])
            .map(|shape| {
                let values = source.values(shape[0] * shape[1]);
                (dtype, shape, values)
            })
            .collect();
        let tensors = tensors(folder.path(), &matrices);
        let mut x = source.values(rows * hidden);
        let pairs = as_bf16(&mut x, dtype, quantize);
        let scoring = [Scoring::Softmax, Scoring::Sigmoid, Scoring::Chosen, Scoring::Mixer { jitter: 0.2 }];
        let body = Moe {
            rows,
            x,
            scores: source.values(rows * all),
            gates: source.values(rows),
            before: source.values(rows * hidden),
            routing: Routing {
                per_token,
                scoring: scoring[seed as usize / 3 % 4],
                normalized: seed % 2 == 0,
                groups: (groups > 1).then_some(Groups {
                    count: groups,
                    chosen: 2,
                    best: 1 + seed as usize % 2,
                }),
                scale: 1.3,
            },
            correction: (seed % 5 == 0).then(|| source.values(all)),
            experts: tensors.chunks_exact(3).map(|three| three.to_vec().try_into().unwrap()).collect(),
            biases: seed % 4 == 1,
            quantize,
            activation: ACTIVATIONS[seed as usize % ACTIVATIONS.len()],
            add: [None, Some(0.6)][seed as usize % 2],
        };
        // inside, values are rounded for the last product: as bf16, or as int8
        let step = match (quantize, dtype) {
            (Some(_), _) => 0.03,
            (None, Dtype::Bf16) => 0.01,
            _ => 1e-5,
        };
        let reference = body.run(Reference::default());
        let most = reference.iter().fold(1.0_f32, |most, value| most.max(value.abs()));
        let tolerance = vec![f64::from(most) * step; reference.len()];
        let device = if dtype == Dtype::F16 { f64::from(most) * 2e-4 } else { 0.0 };
        compare(body, &Near { tolerance, own_way: pairs.then_some(2.0), device });
    }
}

/// Every operation of a `Vector` on three operands, in bits.
#[expect(unsafe_code, reason = "calls lanes directly; the caller has the instruction set")]
fn operations<V: Vector>(operands: [[f32; LANES]; 3]) -> Vec<[u32; LANES]> {
    let bytes: Vec<u8> = operands.iter().flatten().flat_map(|value| value.to_le_bytes()).collect();
    let small = operands[1].map(|value| (value.to_bits() >> 8) as i8 as f32);
    let mut stored = [0_u8; 2 * LINE];
    // SAFETY: the arrays have the lanes, the bytes are three lines.
    unsafe {
        let [a, b, c] = operands.map(|lanes| V::load(lanes.as_ptr()));
        // a denormal may be stored as zero: leave them out
        let normal = operands[0].map(|value| if value.is_subnormal() { 0.0 } else { value });
        V::load(normal.as_ptr()).store_bf16(stored.as_mut_ptr());
        let bounded = V::load(small.as_ptr()).max(V::splat(-127.0));
        let sum = V::store_bytes([bounded, V::splat(0.0).sub(bounded)], stored.as_mut_ptr().add(LINE));
        let falling = V::splat(0.0).sub(a.max(V::splat(0.0).sub(a))).exp2_falling();
        let (line, x) = (bytes.as_ptr(), V::line(bytes.as_ptr().add(LINE)));
        let spread = V::spread(bytes.as_ptr().add(2 * LINE));
        let [even, odd] = V::pairs(V::line(line));
        let [q0, q1, q2, q3] = V::quads(V::line(line));
        let [low, high] = V::nibbles(line);
        let dot = V::from_ints(V::dot_bytes(V::ints(7), low, x));
        let dot_high = V::from_ints(V::dot_bytes(V::ints(-7), high, spread));
        // the stored zero is taken off, whoever takes it off
        let byte_sum = |x: V::Line| {
            let one = [1_u8; LINE];
            V::from_ints(V::dot_bytes(V::ints(0), V::line(one.as_ptr()), x))
        };
        let bias = V::splat(V::ZERO as f32).mul(byte_sum(x));
        let dot_weights = V::from_ints(V::dot_bytes(V::ints(0), V::weights(line), x)).sub(bias);
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
            V::splat(a.max_lane()),
            V::splat(V::magnitude([a, b])),
            falling,
            V::load_f16(line),
            even,
            odd,
            q0,
            q1,
            q2,
            q3,
            dot,
            dot_high,
            dot_weights,
            V::splat(sum as f32),
        ];
        let store = |result: V| {
            let mut lanes = [0.0_f32; LANES];
            result.store(lanes.as_mut_ptr());
            // one bit pattern for all that is not a number: sign and payload are the processor's
            lanes.map(|lane| if lane.is_nan() { f32::NAN.to_bits() } else { lane.to_bits() })
        };
        let halves = stored[..2 * LANES].chunks(2).map(|half| {
            let half = bf16::from_le_bytes([half[0], half[1]]);
            if half.is_nan() { u32::MAX } else { u32::from(half.to_bits()) }
        });
        let halves: Vec<u32> = halves.collect();
        let [small, opposite] =
            [0, LANES].map(|at| std::array::from_fn(|i| u32::from(stored[LINE + at + i])));
        let stored = [std::array::from_fn(|i| halves[i]), small, opposite];
        results.map(store).into_iter().chain(stored).collect()
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
            "avx512bf16" => native.push((isa.name, operations::<Avx512<true, true>>)),
            #[cfg(target_arch = "x86_64")]
            "avx512vnni" => native.push((isa.name, operations::<Avx512<true, false>>)),
            #[cfg(target_arch = "x86_64")]
            "avx512" => native.push((isa.name, operations::<Avx512<false, false>>)),
            #[cfg(target_arch = "x86_64")]
            "avxvnni" => native.push((isa.name, operations::<Avx2<true>>)),
            #[cfg(target_arch = "x86_64")]
            "avx2" => native.push((isa.name, operations::<Avx2<false>>)),
            #[cfg(target_arch = "aarch64")]
            "neonbf16" => native.push((isa.name, operations::<Neon<true, true>>)),
            #[cfg(target_arch = "aarch64")]
            "neondot" => native.push((isa.name, operations::<Neon<true, false>>)),
            #[cfg(target_arch = "aarch64")]
            "neon" => native.push((isa.name, operations::<Neon<false, false>>)),
            _ => {}
        }
    }
    let lanes = Isa::available().into_iter().filter(|isa| isa.name != "amx").count();
    assert_eq!(native.len(), lanes - 1, "all but the portable one");
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
fn powers_are_within_two_units_in_the_last_place_and_keep_what_is_not_a_number() {
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
    let exp2 = |value: f32| {
        let mut lanes = [0.0_f32; LANES];
        // SAFETY: as above.
        unsafe { Generic::splat(value).exp2_falling().store(lanes.as_mut_ptr()) };
        lanes[0]
    };
    for i in 0..126_000 {
        let x = -(i as f32) / 1000.0;
        let (found, exact) = (f64::from(exp2(x)), f64::from(x).exp2());
        let unit = f64::from(exact as f32) * f64::from(f32::EPSILON);
        assert!((found - exact).abs() <= 2.0 * unit, "exp2({x}) = {found}, exactly {exact}");
    }
    assert_eq!((exp2(0.0), exp2(-127.0), exp2(f32::NEG_INFINITY)), (1.0, 0.0, 0.0));
    assert!(exp2(f32::NAN).is_nan());
    assert_eq!((exp(0.0), exp(-200.0), exp(f32::NEG_INFINITY)), (1.0, 0.0, 0.0));
    assert!(exp(f32::NAN).is_nan() && exp(f32::INFINITY).is_finite());
}

/// Rows added to rows, activated, and pooled.
struct Pool {
    rows: usize,
    x: Vec<f32>,
    table: Vec<f32>,
    texts: Vec<std::ops::Range<u32>>,
    activation: Activation,
    pooling: Pooling,
}

impl Body for Pool {
    fn run<B: Testable>(&self, mut backend: B) -> Vec<f32> {
        let cols = self.x.len() / self.rows;
        let shapes = [(self.rows, cols, false), (self.texts.len(), cols, false)];
        let bufs = reserve(&mut backend, &shapes, NO_CACHE);
        fill(&mut backend, bufs[0], &self.x);
        let table = backend.upload_table(self.table.clone(), cols).unwrap();
        let rows = self.table.len() / cols;
        let ids: Vec<u32> = (0..self.rows).map(|row| ((row * 7 + 3) % rows) as u32).collect();
        backend.add_embed(&ids, &table, bufs[0]);
        backend.activate(self.rows, bufs[0], self.activation);
        backend.pool(&self.texts, self.pooling, bufs[0], bufs[1]);
        read(&mut backend, bufs[1], self.texts.len())
    }
}

#[test]
fn pooling_agrees_with_the_reference() {
    let poolings = [
        Pooling::First,
        Pooling::Last,
        Pooling::Mean,
        Pooling::MeanSqrtLen,
        Pooling::Max,
        Pooling::Weighted { from: 1 },
        Pooling::Weighted { from: 5 },
    ];
    for seed in 0..42 {
        let source = &mut Source::new(seed);
        let (texts, cols) = (source.size(1, 5), source.size(1, 70));
        let mut rows = 0;
        let texts: Vec<_> = (0..texts)
            .map(|_| {
                let first = rows + source.size(0, 2) as u32; // what is between belongs to nobody
                rows = first + source.size(1, 40) as u32;
                first..rows
            })
            .collect();
        let rows = rows as usize;
        let tolerance = vec![1e-5; texts.len() * cols];
        let body = Pool {
            rows,
            x: source.values(rows * cols),
            table: source.values(9 * cols),
            activation: ACTIVATIONS[seed as usize % ACTIVATIONS.len()],
            pooling: poolings[seed as usize % poolings.len()],
            texts,
        };
        compare(body, &Near { tolerance, own_way: None, device: 0.0 });
    }
}
