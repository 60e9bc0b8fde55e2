//! Norms of rows and of pieces of rows, into operands, in place, and added.

use super::*;
use crate::backend::{Cap, Norm, NormKind, Pointwise};

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
            bufs[1] = bufs[1].of(backend.operand_type(&[reader]));
        }
        fill(&mut backend, bufs[0], x);
        let norm = self.norm(&mut backend);
        backend.norm(*rows, bufs[0], &norm, *cols, bufs[1]);
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
        backend.norm(rows, bufs[0], &norm, self.width, bufs[0]);
        let pieces = read(&mut backend, bufs[0], rows);
        let whole = Norm { kind: self.norm.kind, eps: 1e-5, weight: None, bias: None };
        backend.add_norm(rows, bufs[0], &whole, 0.25, bufs[1]);
        backend.pointwise(rows, bufs[1], Pointwise::Scale(1.5, self.cap));
        [pieces, read(&mut backend, bufs[1], rows)].concat()
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
