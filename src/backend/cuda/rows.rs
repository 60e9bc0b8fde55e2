//! Ops on rows: embeddings, norms, what is done value by value, copies, and texts that become one row.

use std::ops::Range;

use super::args::{ActAndMulArgs, CopyArgs, EmbedArgs, NormArgs, PointArgs, PoolArgs};
use super::driver::{Address, Driver};
use super::inputs::Input;
use super::weight::Weight;
use super::{Cuda, Exact, form, shape, small, threads_for};
use crate::backend::{Activation, Buf, Norm, NormKind, Pooling};

impl<D: Driver> Cuda<D> {
    pub(super) fn lookup(
        &mut self,
        input: Input,
        ids: &[u32],
        table: &Weight<D>,
        scale: f32,
        out: Buf,
        add: bool,
    ) {
        assert!(
            out.cols == table.cols && ids.iter().all(|&id| (id as usize) < table.rows),
            "ids outside the table"
        );
        let args = EmbedArgs {
            table: table.matrix(),
            ids: self.input(input, ids.iter().copied()),
            out: self.at(out, ids.len()),
            cols: small(out.cols),
            out_stride: small(out.stride),
            scale,
            add: u32::from(add),
        };
        self.launch("embed", shape([ids.len(), 1, 1], threads_for(out.cols), 0), &args);
    }

    pub(super) fn normalise(
        &mut self,
        rows: usize,
        x: Buf,
        norm: &Norm<Weight<D>>,
        width: usize,
        out: Buf,
        add: Option<f32>,
    ) {
        let cols = x.cols;
        assert!(width > 0 && cols.is_multiple_of(width) && out.cols == cols, "norm: columns differ");
        let table = |weight: &Option<Weight<D>>| {
            weight.as_ref().map_or((0, 1), |weight| (weight.table(), weight.cols))
        };
        let ((weight, weight_len), (bias, bias_len)) = (table(&norm.weight), table(&norm.bias));
        for (table, len) in [(weight, weight_len), (bias, bias_len)] {
            assert!(table == 0 || len == cols || len == width, "norm: columns differ");
        }
        let args = NormArgs {
            x: self.at(x, rows),
            weight,
            bias,
            out: self.at(out, rows),
            x_stride: small(x.stride),
            width: small(width),
            pieces: small(cols / width),
            weight_len: small(weight_len),
            bias_len: small(bias_len),
            kind: match norm.kind {
                NormKind::Identity => 0,
                NormKind::Rms => 1,
                NormKind::Layer => 2,
            },
            eps: norm.eps,
            add: u32::from(add.is_some()),
            out_stride: small(out.row_bytes()),
            out_form: form(out.form),
            pad: u32::from(out.stride > out.cols && width == cols),
            scale: add.unwrap_or(0.0),
        };
        let threads = (width / 4).next_multiple_of(32).clamp(32, 1024);
        self.launch("norm", shape([rows, cols / width, 1], threads, 32 * 4), &args);
    }

    pub(super) fn point(
        &mut self,
        rows: usize,
        x: Buf,
        kind: u32,
        [scale, cap]: [f32; 2],
        activation: Activation,
    ) {
        let args = PointArgs {
            x: self.at(x, rows),
            cols: small(x.cols),
            stride: small(x.stride),
            kind,
            scale,
            cap,
            activation: activation.into(),
        };
        self.launch("point", shape([rows, 1, 1], threads_for(x.cols), 0), &args);
    }

    pub(super) fn copy_rows(&mut self, rows: usize, of: Address, x: Buf, (out, first): (Buf, usize)) {
        let args = CopyArgs {
            x: self.address(x.region),
            rows: of,
            out: self.at(out, rows),
            cols: small(x.cols),
            x_stride: small(x.stride),
            out_stride: small(out.stride),
            out_first: small(first),
        };
        self.launch("copy_rows", shape([rows, 1, 1], threads_for(x.cols), 0), &args);
    }

    pub(super) fn act_and_mul(
        &mut self,
        rows: usize,
        activation: Activation,
        gate: Buf,
        up: Option<Buf>,
        out: Buf,
    ) {
        assert!(gate.cols == out.cols && up.is_none_or(|up| up.cols == out.cols), "MLP: columns differ");
        let args = ActAndMulArgs {
            gate: self.at(gate, rows),
            up: up.map_or(0, |up| self.at(up, rows)),
            out: self.at(out, rows),
            cols: small(out.cols),
            gate_stride: small(gate.stride),
            up_stride: up.map_or(0, |up| small(up.stride)),
            out_stride: small(out.row_bytes()),
            out_form: form(out.form),
            activation: activation.into(),
        };
        self.launch("act_and_mul", shape([rows, 1, 1], threads_for(out.cols), 0), &args);
    }

    pub(super) fn pool_rows(&mut self, texts: &[Range<u32>], pooling: Pooling, x: Buf, out: Buf) {
        assert!(x.cols == out.cols && texts.iter().all(|text| !text.is_empty()), "pool: texts");
        for text in texts {
            let _ = self.at(x, text.end as usize);
        }
        let ends = texts.iter().flat_map(|text| [text.start, text.end]);
        let args = PoolArgs {
            x: self.address(x.region),
            texts: self.input(Input::Texts, Exact(ends, 2 * texts.len())),
            out: self.at(out, texts.len()),
            cols: small(x.cols),
            x_stride: small(x.stride),
            out_stride: small(out.stride),
            kind: match pooling {
                Pooling::First => 0,
                Pooling::Last => 1,
                Pooling::Mean => 2,
                Pooling::MeanSqrtLen => 3,
                Pooling::Max => 4,
                Pooling::Weighted { .. } => 5,
            },
            from: if let Pooling::Weighted { from } = pooling { from } else { 0 },
        };
        self.launch("pool", shape([texts.len(), 1, 1], threads_for(x.cols), 0), &args);
    }
}
