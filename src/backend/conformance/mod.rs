//! What every backend has to do, against the reference: random shapes with odd sizes and tails, one row, one column, denormals,
//! infinities at masked positions. All instruction sets and team sizes of the CPU must give the same bits; a device may round
//! operands in its own way, and must give the same bits whatever rows are beside a row.
//!
//! A backend joins by being a [`Testable`] that `compare` runs. What only one kind of device can break is tested beside it.

use std::cell::Cell;
use std::path::Path;

use half::{bf16, f16};

use crate::backend::cpu::{Cpu, Isa, Reference};
use crate::backend::cuda::Cuda;
use crate::backend::cuda::driver::Driver;
use crate::backend::cuda::emulated;
use crate::backend::{
    Activation, Backend, Batch, Buf, DeviceMemory, EmbedBy, Fence, Kv, KvShape, KvType, Quantize,
};
use crate::memory::Layout;
use crate::sample::rng::uniform;
use crate::weights::{Checkpoint, Dtype, Tensor};

/// Evaluates something with the kernels of CUDA devices: run on the CPU, or with `AMNESIC_DEVICE=cuda` on the first device.
macro_rules! on_device {
    (|$backend:ident| $body:expr) => {
        if $crate::backend::conformance::is_cuda() {
            let $backend = $crate::backend::cuda::Cuda::new(std::sync::Arc::new(
                $crate::backend::cuda::native::Native::open(0).unwrap(),
            ));
            $body
        } else {
            let $backend = $crate::backend::cuda::Cuda::new(std::sync::Arc::new(
                $crate::backend::cuda::emulated::Emulated::default(),
            ));
            $body
        }
    };
}

mod attention;
mod experts;
mod fused;
mod norms;
mod pooling;
mod products;

/// Types of matrices, and what they are quantized to.
pub(super) const PRECISIONS: [(Dtype, Option<Quantize>); 5] = [
    (Dtype::F32, None),
    (Dtype::F16, None),
    (Dtype::Bf16, None),
    (Dtype::Bf16, Some(Quantize::Q8)),
    (Dtype::F32, Some(Quantize::Q4)),
];

/// A seeded source of shapes and values.
pub(super) struct Source {
    seed: u64,
    drawn: u64,
}

impl Source {
    pub(super) fn new(seed: u64) -> Self {
        Self { seed, drawn: 0 }
    }

    pub(super) fn unit(&mut self) -> f64 {
        self.drawn += 1;
        uniform(self.seed, self.drawn)
    }

    /// From `low` to `high`, both included; often one of the two.
    pub(super) fn size(&mut self, low: usize, high: usize) -> usize {
        match (self.unit() * 8.0) as usize {
            0 => low,
            1 => high,
            _ => low + (self.unit() * (high - low + 1) as f64) as usize,
        }
    }

    pub(super) fn values(&mut self, count: usize) -> Vec<f32> {
        (0..count)
            .map(|_| match (self.unit() * 40.0) as usize {
                0 => 1e-41, // denormal
                1 => 0.0,
                _ => (self.unit() * 4.0 - 2.0) as f32,
            })
            .collect()
    }

    pub(super) fn dtype(&mut self) -> Dtype {
        [Dtype::F32, Dtype::F16, Dtype::Bf16][self.size(0, 2)]
    }
}

/// Writes matrices to a file and maps them back as a checkpoint's tensors.
pub(super) fn tensors(folder: &Path, matrices: &[(Dtype, Vec<usize>, Vec<f32>)]) -> Vec<Tensor> {
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
pub(super) struct Near {
    pub(super) tolerance: Vec<f64>,
    /// Where products are of bf16 by bf16, whose rounding is the processor's own: how much farther off they may be.
    /// None where there are no such products: then all instruction sets must agree in every bit.
    pub(super) own_way: Option<f64>,
    /// How much farther off, of the magnitude and one, a CUDA device may be, whose operands have 16 bits: zero where it
    /// makes none, or where the reference rounds them in the same way.
    pub(super) device: f64,
}

/// Team sizes that a case is run with on an instruction set. The slow ones take fewer, in turn from case to case: the portable
/// kernels, whose fused multiplications are calls, take one, since their bits are compared with those of the others; and AMX,
/// which most machines emulate, takes two, since products of bf16 have no bits but their own to be compared with. Which rows a
/// member of the team gets does not depend on the instruction set.
fn team_sizes(isa: Isa, case: usize) -> Vec<usize> {
    match isa.name {
        "portable" => vec![1 + case % 3],
        "amx" => vec![1, 2 + case % 2],
        _ => vec![1, 2, 3],
    }
}

/// Runs `body` on the reference, and on each instruction set with several team sizes: the latter must agree in every
/// bit and be near the former. Returns how many instruction sets were compared.
pub(super) fn compare(body: impl Body, near: &Near) -> usize {
    let reference = body.run(Reference::default());
    assert_eq!(reference.len(), near.tolerance.len());
    let mut common: Option<Vec<u32>> = None;
    let mut sets = 0;
    let case = next_case();
    for isa in Isa::available() {
        let own_way = near.own_way.filter(|_| isa.rounds_its_own_way());
        let mut own = None;
        for threads in team_sizes(isa, case) {
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
pub(super) fn next_case() -> usize {
    thread_local! {
        static CASES: Cell<usize> = const { Cell::new(0) };
    }
    CASES.replace(CASES.get() + 1)
}

/// Whether a device evaluates this case of a test too. A GPU evaluates every case, and so does the emulated device if
/// everything is to be done; otherwise it takes each fourth.
pub(super) fn is_for_devices(case: usize) -> bool {
    const EVERY: usize = 4;
    let is_taken = is_cuda() || emulated::does_all() || case.is_multiple_of(EVERY);
    if !is_taken && case == 1 {
        emulated::skipped("three of four cases");
    }
    is_taken
}

pub(super) fn is_cuda() -> bool {
    std::env::var("AMNESIC_DEVICE").as_deref() == Ok("cuda")
}

/// A backend whose operands tests write and read.
pub(super) trait Testable: Backend {
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
        let fence = submitted(self);
        self.read(&fence, buf, row).to_vec()
    }
}

/// A closure over any backend.
pub(super) trait Body {
    fn run<B: Testable>(&self, backend: B) -> Vec<f32>;
}

/// A planned buffer: (rows, cols), and whether it is an operand.
pub(super) type Shape = (usize, usize, bool);

/// Plans buffers, and a cache of (type, heads, values per head, blocks).
pub(super) fn reserve<B: Backend>(
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
    let [head_dim, value_dim] = dims;
    let shape = KvShape { cache, layers: 2, kv_heads, head_dim, value_dim };
    let kv = Kv::plan::<B>(&mut layout, shape, blocks).unwrap();
    backend.reserve(layout, kv, None).unwrap();
    bufs
}

/// No cache to speak of.
pub(super) const NO_CACHE: (KvType, usize, [usize; 2], usize) = (KvType::F32, 1, [2; 2], 1);

/// Puts values into a buffer, the one way there is: as embeddings.
pub(super) fn fill<B: Backend>(backend: &mut B, buf: Buf, values: &[f32]) {
    let ids: Vec<u32> = (0..(values.len() / buf.cols) as u32).collect();
    let table = backend.upload_table(values.to_vec(), buf.cols).unwrap();
    let batch = Batch { ids: &ids, ..Batch::default() };
    backend.embed(&batch, EmbedBy::Token, &table, 1.0, false, buf);
}

pub(super) fn read<B: Backend>(backend: &mut B, buf: Buf, rows: usize) -> Vec<f32> {
    let fence = submitted(backend);
    (0..rows).flat_map(|row| backend.read(&fence, buf, row).to_vec()).collect()
}

/// A fence behind all ops so far: a step without ops of its own.
pub(super) fn submitted<B: Backend>(backend: &mut B) -> Fence {
    backend.submit(&Batch::default(), |_| ())
}

/// Values that bf16 holds, where weights are bf16: so that what x is rounded to does not matter.
pub(super) fn as_bf16(values: &mut [f32], dtype: Dtype, quantize: Option<Quantize>) -> bool {
    let pairs = dtype == Dtype::Bf16 && quantize.is_none();
    if pairs {
        values.iter_mut().for_each(|value| *value = bf16::from_f32(*value).to_f32());
    }
    pairs
}

pub(super) fn quantize(source: &mut Source) -> Option<Quantize> {
    [None, Some(Quantize::Q8), Some(Quantize::Q4)][source.size(0, 2)]
}

pub(super) const ACTIVATIONS: [Activation; 7] = [
    Activation::Silu,
    Activation::Gelu,
    Activation::GeluTanh,
    Activation::Relu,
    Activation::ReluSquared,
    Activation::Tanh,
    Activation::Clamped { alpha: 1.7, limit: 1.5 },
];
