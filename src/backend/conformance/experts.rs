//! Mixtures of experts: the choice, the experts, their sum, and one that all tokens share behind a gate.

use super::*;
use crate::backend::{Expert, Groups, Linear, Routed, Routing, Scoring};

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
        let kv = Kv::plan::<B>(&mut layout, KvShape::SMALLEST, 1).unwrap();
        backend.reserve(layout, kv, None).unwrap();
        let form = backend.operand_type(&[&experts[0].gate.weight]);
        let x = x.of(form);
        routed.x = routed.x.of(form);
        routed.inner = routed.inner.of(backend.operand_type(&[&experts[0].down.weight]));
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
        backend.add(rows, out, Some(gate), 0.7, gated);
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
