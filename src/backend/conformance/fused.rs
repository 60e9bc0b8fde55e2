//! Ops that fuse several give the bits of the required ones that they are made of.

use super::*;
use crate::backend::ops::primitive;
use crate::backend::{Attention, AttentionBias, GateUp, Linear, Mask, Norm, NormKind, RopeTable, Span};

/// Every fused op, by itself or made of required ones.
struct Fused {
    from_primitives: bool,
    activation: Activation,
    gated: bool,
    quantize: Option<Quantize>,
    gate: Tensor,
    up: Tensor,
    x: Vec<f32>,
    before: Vec<f32>,
}

const ROWS: usize = 9;
const HEADS: usize = 3;
const DIM: usize = 20;

impl Body for Fused {
    fn run<B: Testable>(&self, mut backend: B) -> Vec<f32> {
        let [inner, ins] = self.gate.shape[..] else { unreachable!() };
        let [gate, up] = [&self.gate, &self.up].map(|weight| backend.upload(weight, self.quantize).unwrap());
        let [gate, up] = [gate, up].map(|weight| Linear { weight, bias: None });
        let heads = HEADS * DIM;
        let shapes = [
            (ROWS, ins, true),
            (ROWS, inner, true),
            (ROWS, inner, false),
            (ROWS, inner, false),
            (ROWS, inner, false),
            (ROWS, heads, false),
            (ROWS, heads, false),
            (ROWS, heads, false),
            (ROWS, heads, false),
        ];
        let bufs = reserve(&mut backend, &shapes, (KvType::F32, HEADS, [DIM; 2], 1));
        let form = backend.operand_type(&[&gate.weight, &up.weight]);
        let [x, out, of_gate, of_up, sum, q, k, v, few] = bufs.try_into().unwrap();
        let (x, out, products) = (x.of(form), out.of(form), [of_gate, of_up]);
        backend.set_operand(x, &self.x);
        fill(&mut backend, sum, &self.before);
        let mut all = Vec::new();

        let mlp = GateUp { activation: self.activation, gate: self.gated.then_some(&gate), up: &up };
        match self.from_primitives {
            true => primitive::gated(&mut backend, ROWS, x, mlp, products, out),
            false => backend.gated(ROWS, x, mlp, Some(products), out),
        }
        all.extend((0..ROWS).flat_map(|row| backend.operand(out, row)));

        fill(&mut backend, of_gate, &self.before);
        let norm = Norm { kind: NormKind::Rms, eps: 1e-5, weight: None, bias: None };
        match self.from_primitives {
            true => primitive::add_norm(&mut backend, ROWS, of_gate, &norm, 0.3, sum),
            false => backend.add_norm(ROWS, of_gate, &norm, 0.3, sum),
        }
        all.extend(read(&mut backend, sum, ROWS));

        let values: Vec<f32> = (0..ROWS * heads).map(|i| (i as f32 * 0.37).sin()).collect();
        [q, k, v].into_iter().for_each(|buf| fill(&mut backend, buf, &values));
        let angles = (0..64 * DIM).map(|i| (i as f32 * 0.11).cos()).collect();
        let rope =
            RopeTable { table: backend.upload_table(angles, DIM).unwrap(), dims: DIM, interleaved: false };
        let positions: Vec<u32> = (0..ROWS as u32).map(|row| 3 * row).collect();
        let batch = Batch { positions: &positions, slots: &positions, ..Batch::default() };
        match self.from_primitives {
            true => primitive::rope_store(&mut backend, &batch, 1, q, k, v, Some(&rope)),
            false => backend.rope_store(&batch, 1, q, k, v, Some(&rope)),
        }
        // the one rotates k where it lies and the other on its way: what is read of it is in the cache
        all.extend(read(&mut backend, q, ROWS));
        all.extend(self.cached(&mut backend, [q, few]));

        match self.from_primitives {
            true => primitive::gather(&mut backend, &[4, 0, 8], q, few),
            false => backend.gather(&[4, 0, 8], q, few),
        }
        all.extend(read(&mut backend, few, 3));
        all
    }
}

impl Fused {
    /// What attention makes of the cache.
    fn cached<B: Testable>(&self, backend: &mut B, [q, out]: [Buf; 2]) -> Vec<f32> {
        let span = Span { row: 0, rows: ROWS, position: 3, table: 0, adapter: None, mask: Mask::Causal };
        let ids = [0; ROWS];
        let batch = Batch { ids: &ids, spans: &[span], blocks: &[0], ..Batch::default() };
        let shape = Attention { layer: 1, heads: HEADS, window: None, scale: 0.2, softcap: None };
        let biases = AttentionBias { sinks: None, relative_bias: None };
        backend.attention(&batch, shape, biases, q, out);
        read(backend, out, ROWS)
    }
}

#[test]
fn fused_ops_give_the_bits_of_required_ones() {
    for (seed, (dtype, quantize)) in PRECISIONS.into_iter().enumerate() {
        let mut source = Source::new(700 + seed as u64);
        let (ins, inner) = (70, 96);
        let folder = tempfile::tempdir().unwrap();
        let matrices = [(); 2].map(|()| (dtype, vec![inner, ins], source.values(inner * ins)));
        let [gate, up] = tensors(folder.path(), &matrices).try_into().unwrap();
        let (x, before) = (source.values(ROWS * ins), source.values(ROWS * inner));
        for (activation, gated) in ACTIVATIONS.into_iter().zip([true, false].into_iter().cycle()) {
            let body = |from_primitives| {
                let (gate, up, x, before) = (gate.clone(), up.clone(), x.clone(), before.clone());
                Fused { from_primitives, activation, gated, quantize, gate, up, x, before }
            };
            let bits = |values: Vec<f32>| values.into_iter().map(f32::to_bits).collect::<Vec<_>>();
            for isa in Isa::available() {
                let [fused, made] = [false, true].map(|made| bits(body(made).run(Cpu::new(2, isa).unwrap())));
                assert!(fused == made, "{}: {dtype}, {quantize:?}, {activation:?}", isa.name);
            }
            let case = next_case();
            if std::env::var("AMNESIC_DEVICE").as_deref() != Ok("none") && is_for_devices(case) {
                let [fused, made] = [false, true].map(|made| bits(on_device!(|cuda| body(made).run(cuda))));
                assert!(fused == made, "a device: {dtype}, {quantize:?}, {activation:?}");
            }
        }
    }
}
