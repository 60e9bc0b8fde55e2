//! The ops of a step, by the kernels that do them.

use std::ops::Range;

use super::args::{self, CutArgs};
use super::driver::Driver;
use super::inputs::Input;
use super::products::{Multiply, Several, To, product};
use super::weight::Weight;
use super::{Cuda, bias_of, form, linear, shape, small};
use crate::backend::packed::{HeadSizes, LANES};
use crate::backend::sample_batch::SampleBatch;
use crate::backend::{
    Activation, Attention, AttentionBias, Batch, Buf, Cap, EmbedBy, Expert, Fence, GateUp, Norm, OperandType,
    Ops, Pointwise, Pooling, Projection, RopeTable, Routed, Routing,
};

impl<D: Driver> Ops for Cuda<D> {
    const FUSES_GATED: bool = true;

    fn operand_type(&self, readers: &[&Weight<D>]) -> OperandType {
        let forms = readers.iter().map(|weight| weight.form());
        forms.reduce(|a, b| if a == b { a } else { OperandType::F32 }).expect("somebody reads it")
    }

    fn embed(&mut self, batch: &Batch<'_>, by: EmbedBy, table: &Weight<D>, scale: f32, add: bool, out: Buf) {
        let ids = batch.rows_of_table(by);
        if !add {
            self.counters.weight_bytes += ids.len() as u64 * (table.bytes() / table.rows.max(1) as u64);
        }
        let (input, limit) = match by {
            EmbedBy::Token => (Input::Ids, &mut self.graphs.limits.ids),
            EmbedBy::PositionType => (Input::PositionTypes, &mut self.graphs.limits.position_types),
        };
        *limit = table.rows;
        self.lookup(input, ids, table, scale, out, add);
    }

    fn norm(&mut self, rows: usize, x: Buf, norm: &Norm<Weight<D>>, width: usize, out: Buf) {
        self.normalise(rows, x, norm, width, out, None);
    }

    fn add(&mut self, rows: usize, x: Buf, gate: Option<Buf>, scale: f32, out: Buf) {
        match gate {
            Some(gate) => self.add_gated(rows, x, gate, scale, out),
            None => self.normalise(rows, x, &Norm::identity(), x.cols, out, Some(scale)),
        }
    }

    fn linear(&mut self, rows: usize, x: Buf, projections: &[Projection<'_, Weight<D>>]) {
        // those that are alike go together: a small matrix alone would leave most of a device idle
        let alike = |a: &Projection<'_, Weight<D>>, b: &Projection<'_, Weight<D>>| {
            a.add == b.add && a.weight.format() == b.weight.format()
        };
        for projections in projections.chunk_by(alike).flat_map(|all| all.chunks(args::LinearArgs::MOST)) {
            let like = &projections[0];
            let mut products = [args::Product::NONE; args::LinearArgs::MOST];
            for (to, Projection { weight, bias, out, .. }) in products.iter_mut().zip(projections) {
                assert!(out.cols == weight.rows && x.cols == weight.cols, "linear: columns differ");
                self.counters.weight_bytes += weight.bytes();
                let linear = args::Linear { weight: weight.matrix(), bias: bias_of(weight, *bias) };
                *to = product(linear, weight.rows, (self.at(*out, rows), out.row_bytes()));
            }
            self.multiply(&Multiply {
                products: &products[..projections.len()],
                pair: false,
                format: like.weight.format(),
                cols: x.cols,
                tokens: rows,
                x: (x, self.at(x, rows)),
                out_form: OperandType::F32,
                to: like.add.map_or(To::Set, To::Add),
                several: Several::ONE,
            });
        }
    }

    fn per_head_linear(
        &mut self,
        rows: usize,
        x: Buf,
        heads: usize,
        weight: &Weight<D>,
        pieces: Buf,
        out: Buf,
    ) {
        let HeadSizes { ins, outs, from, to } =
            HeadSizes::of(heads, [weight.rows, weight.cols], x, pieces, out);
        self.counters.weight_bytes += weight.bytes();
        let args = CutArgs {
            x: self.at(x, rows),
            pieces: self.at(pieces, heads * rows),
            out: self.at(out, rows),
            rows: small(rows),
            from: small(from),
            to: small(to),
            ins: small(ins),
            x_stride: small(x.stride),
            out_stride: small(out.stride),
            pieces_stride: small(pieces.row_bytes()),
            pieces_form: form(pieces.form),
        };
        self.launch("cut", shape([rows, heads, 1], 128, 0), &args);
        let linear = args::Linear { weight: weight.matrix(), bias: 0 };
        let behind = self.at(out, rows) + ((from - ins) * size_of::<f32>()) as u64;
        self.multiply(&Multiply {
            products: &[product(linear, outs, (behind, out.row_bytes()))],
            pair: false,
            format: weight.format(),
            cols: ins,
            tokens: rows,
            x: (pieces, args.pieces),
            out_form: OperandType::F32,
            to: To::Set,
            several: Several {
                count: heads,
                x_each: rows * pieces.row_bytes(),
                out_each: to * size_of::<f32>(),
                tiles_each: outs / LANES,
                ..Several::ONE
            },
        });
    }

    fn concat(&mut self, rows: usize, parts: [Buf; 2], out: Buf) {
        assert_eq!(parts[0].cols + parts[1].cols, out.cols, "concat: columns differ");
        self.copy_rows(rows, 0, parts[0], (out, 0));
        self.copy_rows(rows, 0, parts[1], (out, parts[0].cols));
    }

    fn act_and_mul(&mut self, rows: usize, activation: Activation, gate: Buf, up: Option<Buf>, out: Buf) {
        self.act_and_mul(rows, activation, gate, up, out);
    }

    fn pointwise(&mut self, rows: usize, x: Buf, function: Pointwise) {
        let (kind, numbers, activation) = match function {
            Pointwise::Activate(activation) => (0, [0.0; 2], activation),
            Pointwise::Scale(scale, Cap::None) => (1, [scale, 0.0], Activation::Relu),
            Pointwise::Scale(scale, Cap::Soft(cap)) => (2, [scale, cap], Activation::Relu),
            Pointwise::Scale(scale, Cap::Hard(cap)) => (3, [scale, cap], Activation::Relu),
        };
        self.point(rows, x, kind, numbers, activation);
    }

    fn route(&mut self, rows: usize, routing: &Routing, correction: Option<&Weight<D>>, with: &Routed) {
        self.route_rows(rows, routing, correction, with);
    }

    fn experts(
        &mut self,
        rows: usize,
        x: Buf,
        activation: Activation,
        experts: &[Expert<Weight<D>>],
        with: &Routed,
    ) {
        self.run_experts(rows, x, activation, experts, with);
    }

    fn moe_combine(&mut self, rows: usize, with: &Routed, add: Option<f32>, out: Buf) {
        self.sum_experts(rows, with, add, out);
    }

    fn rope(&mut self, batch: &Batch<'_>, q: Buf, k: Buf, rope: &RopeTable<Weight<D>>) {
        self.rotate(batch, (Some(q), k, None), Some(rope), 0);
    }

    fn store(&mut self, batch: &Batch<'_>, layer: usize, k: Buf, v: Buf) {
        self.check_slots(batch, layer, v);
        self.rotate(batch, (None, k, Some(v)), None, layer);
    }

    fn attention(
        &mut self,
        batch: &Batch<'_>,
        shape: Attention,
        biases: AttentionBias<'_, Weight<D>>,
        q: Buf,
        out: Buf,
    ) {
        self.attend(batch, shape, biases, q, out);
    }

    fn pool(&mut self, texts: &[Range<u32>], pooling: Pooling, x: Buf, out: Buf) {
        self.pool_rows(texts, pooling, x, out);
    }

    fn add_norm(&mut self, rows: usize, x: Buf, norm: &Norm<Weight<D>>, scale: f32, out: Buf) {
        self.normalise(rows, x, norm, x.cols, out, Some(scale));
    }

    fn gated(
        &mut self,
        rows: usize,
        x: Buf,
        GateUp { activation, gate, up }: GateUp<'_, Weight<D>>,
        _: Option<[Buf; 2]>,
        out: Buf,
    ) {
        // without a gate the one product is what the activation takes
        let (gate, up) = gate.map_or((up, None), |gate| (gate, Some(up)));
        assert!(gate.weight.rows == out.cols && gate.weight.cols == x.cols, "MLP: columns differ");
        for up in up.iter().map(|up| &up.weight) {
            let same = (up.rows, up.cols) == (gate.weight.rows, gate.weight.cols);
            assert!(same && up.format() == gate.weight.format(), "MLP: gate and up differ");
        }
        self.counters.weight_bytes += gate.weight.bytes() + up.map_or(0, |up| up.weight.bytes());
        let to = (self.at(out, rows), out.row_bytes());
        let products = [gate, up.unwrap_or(gate)].map(|of| product(linear(of), out.cols, to));
        self.multiply(&Multiply {
            products: &products[..if up.is_some() { 2 } else { 1 }],
            pair: up.is_some(),
            format: gate.weight.format(),
            cols: x.cols,
            tokens: rows,
            x: (x, self.at(x, rows)),
            out_form: out.form,
            to: To::Activated(activation),
            several: Several::ONE,
        });
    }

    fn rope_store(
        &mut self,
        batch: &Batch<'_>,
        layer: usize,
        q: Buf,
        k: Buf,
        v: Buf,
        rope: Option<&RopeTable<Weight<D>>>,
    ) {
        self.check_slots(batch, layer, v);
        self.rotate(batch, (Some(q), k, Some(v)), rope, layer);
    }

    fn gather(&mut self, rows: &[u32], x: Buf, out: Buf) {
        assert_eq!(x.cols, out.cols, "gather: columns differ");
        for &row in rows {
            let _ = self.at(x, row as usize + 1);
        }
        let of = self.input(Input::Outputs, rows.iter().copied());
        self.copy_rows(rows.len(), of, x, (out, 0));
    }

    fn samples_on_device(&self) -> bool {
        self.arena().sampling.is_some()
    }

    fn sample_on_device(&mut self, fence: &Fence, logits: Buf, questions: &mut SampleBatch) {
        self.counters.check(fence);
        self.answer(logits, questions);
    }
}
