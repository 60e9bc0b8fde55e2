//! Matrix products: plain, gated, by head; whatever rows are beside a row.

use std::sync::Arc;

use super::*;
use crate::backend::cuda::emulated::Emulated;
use crate::backend::cuda::native::Native;
use crate::backend::{GateUp, Linear, Projection};

pub(super) struct Product {
    pub(super) rows: usize,
    pub(super) x: Vec<f32>,
    pub(super) before: Vec<f32>,
    /// Times this it is added to what was there before.
    pub(super) add: Option<f32>,
    pub(super) bias: Option<Vec<f32>>,
    pub(super) weight: Tensor,
    pub(super) quantize: Option<Quantize>,
}

impl Body for Product {
    fn run<B: Testable>(&self, mut backend: B) -> Vec<f32> {
        let [outs, ins] = self.weight.shape[..] else { unreachable!() };
        let weight = backend.upload(&self.weight, self.quantize).unwrap();
        let mut bufs = reserve(&mut backend, &[(self.rows, ins, true), (self.rows, outs, false)], NO_CACHE);
        bufs[0] = bufs[0].of(backend.operand_type(&[&weight]));
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
pub(super) struct Gated {
    pub(super) rows: usize,
    pub(super) x: Vec<f32>,
    pub(super) biases: Option<[Vec<f32>; 2]>,
    pub(super) gate: Tensor,
    pub(super) up: Tensor,
    pub(super) quantize: Option<Quantize>,
    pub(super) activation: Activation,
    /// Without `up`.
    pub(super) plain: bool,
}

impl Body for Gated {
    fn run<B: Testable>(&self, mut backend: B) -> Vec<f32> {
        let [inner, ins] = self.gate.shape[..] else { unreachable!() };
        let [gate, up] = [&self.gate, &self.up].map(|weight| backend.upload(weight, self.quantize).unwrap());
        let (x, out, product) = ((self.rows, ins, true), (self.rows, inner, true), (self.rows, inner, false));
        let mut bufs = reserve(&mut backend, &[x, out, product, product], NO_CACHE);
        let form = backend.operand_type(&[&gate, &up]);
        bufs[..2].iter_mut().for_each(|buf| *buf = buf.of(form));
        let products = Some([bufs[2], bufs[3]]);
        backend.set_operand(bufs[0], &self.x);
        let mut bias = |i: usize| {
            self.biases.as_ref().map(|biases| backend.upload_table(biases[i].clone(), inner).unwrap())
        };
        let (gate, up) = (Linear { weight: gate, bias: bias(0) }, Linear { weight: up, bias: bias(1) });
        let (gate, up) = if self.plain { (None, &gate) } else { (Some(&gate), &up) };
        let mlp = GateUp { activation: self.activation, gate, up };
        backend.gated(self.rows, bufs[0], mlp, products, bufs[1]);
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

/// Pieces of rows, each through its head's matrix; and two parts of rows joined.
pub(super) struct ByHead {
    pub(super) rows: usize,
    heads: usize,
    pub(super) x: Vec<f32>,
    pub(super) weight: Tensor,
    pub(super) quantize: Option<Quantize>,
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
        let pieces = bufs[1].of(backend.operand_type(&[&weight]));
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
