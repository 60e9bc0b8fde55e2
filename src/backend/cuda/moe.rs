//! Mixtures of experts: tokens choose, are ordered by their experts, go through those and are summed up.

use super::args::{self, MoeCombineArgs, OrderArgs, PlaceArgs, RouteArgs};
use super::driver::{Address, Driver};
use super::products::{Multiply, Several, To, product};
use super::weight::{Staging, Weight};
use super::{Cuda, linear, shape, small, threads_for};
use crate::backend::{Activation, Buf, Expert, Groups, OperandType, Routed, Routing, Scoring};
use crate::error::Result;

impl<D: Driver> Cuda<D> {
    /// The table of the experts' matrices and biases, made when it is first asked for.
    pub(super) fn table(&mut self, experts: &[Expert<Weight<D>>]) -> Result<Address> {
        let key = (experts.as_ptr() as usize, experts.len());
        if !self.experts.contains_key(&key) {
            let all = experts.iter().flat_map(|expert| [&expert.gate, &expert.up, &expert.down]);
            let linears: Vec<args::Linear> = all.map(linear).collect();
            let words = linears.iter().flat_map(|of| {
                let m = of.weight;
                let halves = |value: u64| [value as u32, (value >> 32) as u32];
                let [a, b] = [m.data, m.scales].map(halves);
                let [c, d] = halves(of.bias);
                [a[0], a[1], b[0], b[1], m.rows, m.cols, m.format, m.stride, c, d]
            });
            let words: Vec<f32> = words.map(f32::from_bits).collect();
            let table = Weight::from_table(&self.driver, &mut self.staging, &words, 30)?;
            self.staging = Staging::default();
            self.experts.insert(key, table);
        }
        Ok(self.experts[&key].table())
    }

    pub(super) fn route_rows(
        &mut self,
        rows: usize,
        routing: &Routing,
        correction: Option<&Weight<D>>,
        with: &Routed,
    ) {
        let (all, per_token) = (with.scores.cols, with.experts.cols);
        assert!(routing.per_token == per_token && per_token <= all, "route: more choices than experts");
        assert!(correction.is_none_or(|correction| correction.cols == all), "route: columns differ");
        let groups = routing.groups.unwrap_or(Groups { count: 1, chosen: 1, best: 1 });
        let args = RouteArgs {
            scores: self.at(with.scores, rows),
            correction: correction.map_or(0, Weight::table),
            experts: self.at(with.experts, rows),
            weights: self.at(with.weights, rows),
            all: small(all),
            per_token: small(per_token),
            scoring: match routing.scoring {
                Scoring::Softmax => 0,
                Scoring::Chosen => 1,
                Scoring::Sigmoid => 2,
                Scoring::Mixer { .. } => 3,
            },
            normalized: u32::from(routing.normalized),
            groups: small(groups.count),
            chosen_groups: small(groups.chosen),
            best_of_group: small(groups.best),
            scale: routing.scale,
            jitter: if let Scoring::Mixer { jitter } = routing.scoring { jitter } else { 0.0 },
        };
        let shared = (2 * all + groups.count) * 4;
        self.launch("route", shape([rows, 1, 1], 32, shared), &args);
        let args = PlaceArgs {
            experts: args.experts,
            places: self.at(with.places, rows),
            starts: self.at(with.starts, 1),
            pairs: small(rows * per_token),
            all: small(all),
        };
        self.launch("place", shape([1, 1, 1], all.next_multiple_of(32).min(1024), 0), &args);
    }

    pub(super) fn run_experts(
        &mut self,
        rows: usize,
        x: Buf,
        activation: Activation,
        experts: &[Expert<Weight<D>>],
        with: &Routed,
    ) {
        let (pairs, count) = (rows * with.experts.cols, with.experts.cols);
        assert!(x.form == with.x.form, "experts: forms differ");
        assert!(
            x.cols == with.x.cols && x.cols == with.out.cols && experts.len() + 1 == with.starts.cols,
            "experts: columns differ"
        );
        let like = &experts[0];
        for Expert { gate, up, down } in experts {
            let [gate, up, down] = [gate, up, down].map(|linear| &linear.weight);
            let same = (gate.rows, gate.cols) == (with.inner.cols, x.cols)
                && (up.rows, up.cols, up.format()) == (gate.rows, gate.cols, gate.format())
                && (down.rows, down.cols) == (x.cols, gate.rows)
                && gate.format() == like.gate.weight.format()
                && down.format() == like.down.weight.format();
            assert!(same, "experts: they differ");
        }
        let Ok(table) = self.table(experts) else {
            return self.driver.fail(); // no memory for a few kilobytes
        };
        let of_one = [&like.gate, &like.up, &like.down].map(|linear| linear.weight.bytes());
        let args = OrderArgs {
            x: self.at(x, rows),
            places: self.at(with.places, rows),
            starts: self.at(with.starts, 1),
            out: self.at(with.x, pairs),
            read_bytes: self.address(self.arena().status) + 8,
            bytes_each: of_one.iter().sum(),
            row_bytes: small(x.row_bytes()),
            count: small(count),
            places_stride: small(count),
            experts: small(experts.len()),
        };
        self.launch("order", shape([rows, count, 1], 128, 0), &args);
        let several = Several { count: experts.len(), table, starts: args.starts, ..Several::ONE };
        let to = (self.at(with.inner, pairs), with.inner.row_bytes());
        self.multiply(&Multiply {
            products: &[product(args::Linear::NONE, with.inner.cols, to)],
            pair: true,
            format: like.gate.weight.format(),
            cols: x.cols,
            tokens: rows,
            x: (with.x, args.out),
            out_form: with.inner.form,
            to: To::Activated(activation),
            several,
        });
        let to = (self.at(with.out, pairs), with.out.row_bytes());
        self.multiply(&Multiply {
            products: &[product(args::Linear::NONE, x.cols, to)],
            pair: false,
            format: like.down.weight.format(),
            cols: with.inner.cols,
            tokens: rows,
            x: (with.inner, self.at(with.inner, pairs)),
            out_form: OperandType::F32,
            to: To::Set,
            several: Several { from_table: 2, ..several },
        });
    }

    pub(super) fn sum_experts(&mut self, rows: usize, with: &Routed, add: Option<f32>, out: Buf) {
        assert_eq!(with.out.cols, out.cols, "moe_combine: columns differ");
        let count = with.experts.cols;
        let args = MoeCombineArgs {
            from: self.at(with.out, rows * count),
            places: self.at(with.places, rows),
            weights: self.at(with.weights, rows),
            out: self.at(out, rows),
            cols: small(out.cols),
            from_stride: small(with.out.stride),
            out_stride: small(out.stride),
            count: small(count),
            weights_stride: small(with.weights.stride),
            places_stride: small(with.places.stride),
            sigmoid: 0,
            add: u32::from(add.is_some()),
            scale: add.unwrap_or(0.0),
        };
        self.launch("moe_combine", shape([rows, 1, 1], threads_for(out.cols), 0), &args);
    }

    pub(super) fn add_gated(&mut self, rows: usize, x: Buf, gate: Buf, scale: f32, out: Buf) {
        assert!(x.cols == out.cols && gate.cols == 1, "gate: columns differ");
        let args = MoeCombineArgs {
            from: self.at(x, rows),
            places: 0,
            weights: self.at(gate, rows),
            out: self.at(out, rows),
            cols: small(out.cols),
            from_stride: small(x.stride),
            out_stride: small(out.stride),
            count: 1,
            weights_stride: small(gate.stride),
            places_stride: 0,
            sigmoid: 1,
            add: 1,
            scale,
        };
        self.launch("moe_combine", shape([rows, 1, 1], threads_for(out.cols), 0), &args);
    }
}
