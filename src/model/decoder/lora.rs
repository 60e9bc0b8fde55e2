//! What adapters (LoRA, Hu et al. 2021, arXiv 2106.09685; DoRA, Liu et al. 2024, arXiv 2402.09353) add to the products of
//! the model: their weights, their buffers, and the rows of a step that run with them.

use super::{Decoder, Forms, Layer, Loader, to};
use crate::backend::{Backend, Batch, Buf, Linear, Norm, OperandType, Projection, Quantize, Span};
use crate::error::Result;
use crate::memory::Layout;
use crate::model::arch::Arch;
use crate::model::weights::{AdapterNeeds, Addition, Additions, LayerWeights, Site};
use crate::weights::adapter::rounded;
use crate::weights::{Dtype, Tensor};

/// `scale * b * a`.
#[derive(Debug)]
pub(super) struct LowRank<W> {
    a: Linear<W>,
    b: Linear<W>,
    scale: f32,
    rank: usize,
    /// What b reads.
    form: OperandType,
    /// DoRA: what the sum becomes then, `factors * (sum - bias) + bias`.
    factors: Option<Norm<W>>,
}

impl<W> Layer<W> {
    /// What the adapter of a request adds.
    pub(super) fn adapter(&self, span: Span, site: Site) -> Option<&LowRank<W>> {
        self.adapters.get(span.adapter? as usize)?[site as usize].as_ref()
    }

    /// Whether it scales the sum.
    pub(super) fn scales(&self, span: Span, site: Site) -> bool {
        self.adapter(span, site).is_some_and(|low_rank| low_rank.factors.is_some())
    }
}

impl<W> LowRank<W> {
    /// Adds to `rows` rows of `out` what it makes of the operand `x`, times `factor`. DoRA scales those rows, so that there may
    /// be nothing else in them.
    fn add<B: Backend<Weight = W>>(
        &self,
        backend: &mut B,
        buffers: AdapterBuffers,
        rows: usize,
        x: Buf,
        out: Buf,
        factor: f32,
    ) {
        let (low, operand) =
            (buffers.low.narrow(self.rank), buffers.low_operand.narrow(self.rank).of(self.form));
        backend.linear(rows, x, &[to(&self.a, low)]);
        backend.norm(rows, low, &Norm::identity(), operand);
        self.add_low(backend, rows, operand, out, factor);
    }

    /// The second product, of what the first one gave.
    fn add_low<B: Backend<Weight = W>>(&self, backend: &mut B, rows: usize, low: Buf, out: Buf, factor: f32) {
        let add = Some(self.scale * factor);
        backend.linear(rows, low, &[Projection { add, ..to(&self.b, out) }]);
        if let Some(factors) = &self.factors {
            backend.group_norm_in_place(rows, out, factors, out.cols);
        }
    }
}

/// The buffers of adapters: see [`super`].
#[derive(Clone, Copy, Debug)]
pub(super) struct AdapterBuffers {
    /// The products with A: it has the columns of the largest rank.
    pub(super) low: Buf,
    pub(super) low_operand: Buf,
    /// The first products of an MLP, apart.
    pub(super) feed: Option<[Buf; 2]>,
    /// What a branch gives, before it is added.
    pub(super) scaled: Option<Buf>,
}

impl AdapterBuffers {
    /// Plans the buffers; none when the sizes overflow.
    pub(super) fn plan(layout: &mut Layout, tokens: usize, arch: &Arch, needs: AdapterNeeds) -> Option<Self> {
        Some(Self {
            low: Buf::plan(layout, tokens, needs.rank)?,
            low_operand: Buf::plan_operand(layout, tokens, needs.rank)?,
            feed: match needs.feeds {
                false => None,
                true => Some([
                    Buf::plan(layout, tokens, arch.intermediate)?,
                    Buf::plan(layout, tokens, arch.intermediate)?,
                ]),
            },
            scaled: match needs.branches {
                false => None,
                true => Some(Buf::plan(layout, tokens, arch.hidden)?),
            },
        })
    }
}

impl<B: Backend> Loader<'_, B> {
    /// What an adapter adds in a layer. Its first matrices read what the layer's own ones read, in the same form.
    pub(super) fn low_ranks(
        &mut self,
        additions: &Additions,
        forms: Forms,
        weights: &LayerWeights,
    ) -> Result<[Option<LowRank<B::Weight>>; Site::COUNT]> {
        let mut all = <[Option<LowRank<B::Weight>>; Site::COUNT]>::default();
        for site in [Site::Q, Site::K, Site::V, Site::O, Site::Gate, Site::Up, Site::Down] {
            let Some(addition) = &additions[site as usize] else { continue };
            let form = match site {
                Site::Q => forms.q,
                Site::K | Site::V => forms.attention,
                Site::O => forms.o,
                Site::Gate | Site::Up => forms.feed,
                Site::Down => forms.down,
            };
            let bias = weights.linear(site).and_then(|(_, bias)| bias.as_ref());
            all[site as usize] = Some(self.low_rank(addition, Some(form), bias)?);
        }
        Ok(all)
    }

    /// What an adapter adds to one product, which has this bias. Its first matrix reads what the model's own one reads, in this
    /// form; without a form it is a table.
    pub(super) fn low_rank(
        &mut self,
        addition: &Addition,
        form: Option<OperandType>,
        bias: Option<&Tensor>,
    ) -> Result<LowRank<B::Weight>> {
        let (a, quantize) = match form {
            None => (addition.a.clone(), None),
            Some(OperandType::F32) => (rounded(&addition.a, Dtype::F32), None),
            Some(OperandType::Bf16) => (rounded(&addition.a, Dtype::Bf16), None),
            Some(OperandType::F16) => (rounded(&addition.a, Dtype::F16), None),
            Some(OperandType::Bytes) => (addition.a.clone(), Some(Quantize::Q8)),
        };
        let a = self.linear(&(a, None), quantize)?;
        let b = self.linear(&(addition.b.clone(), None), None)?;
        let form = self.backend.form(&[&b.weight]);
        let factors = match &addition.factors {
            None => None,
            Some(factors) => Some(self.factors(factors, bias)?),
        };
        Ok(LowRank { a, b, scale: addition.scale, rank: addition.b.shape[1], form, factors })
    }

    /// `factors * (x - bias) + bias`.
    fn factors(&mut self, factors: &[f32], bias: Option<&Tensor>) -> Result<Norm<B::Weight>> {
        let rest = match bias {
            None => None,
            Some(bias) => {
                let rest = bias.finite_values()?.into_iter().zip(factors);
                let rest = rest.map(|(bias, factor)| bias * (1.0 - factor)).collect();
                Some(self.backend.upload_table(rest, factors.len())?)
            }
        };
        let weight = Some(self.backend.upload_table(factors.to_vec(), factors.len())?);
        Ok(Norm { weight, bias: rest, ..Norm::identity() })
    }
}

impl<B: Backend> Decoder<B> {
    /// Adds to `out` what adapters make of the operand `x`, times `factor`, in the rows of those who run with one.
    pub(super) fn adapt(
        &self,
        backend: &mut B,
        spans: &[Span],
        layer: &Layer<B::Weight>,
        site: Site,
        (x, out): (Buf, Buf),
        factor: f32,
    ) {
        let Some(buffers) = self.buffers.adapters else { return };
        for spans in spans.chunk_by(|a, b| a.adapter == b.adapter) {
            let Some(low_rank) = layer.adapter(spans[0], site) else { continue };
            let (first, rows) = rows_of(spans);
            low_rank.add(backend, buffers, rows, x.skip(first), out.skip(first), factor);
        }
    }

    /// Adds to embeddings what adapters have for their tokens, in the rows of those who run with one.
    pub(super) fn adapt_embeddings(&self, backend: &mut B, batch: &Batch<'_>) {
        let Some(buffers) = self.buffers.adapters else { return };
        for spans in batch.spans.chunk_by(|a, b| a.adapter == b.adapter) {
            let adapter = spans[0].adapter.and_then(|adapter| self.embed_adapters.get(adapter as usize));
            let Some(low_rank) = adapter.and_then(Option::as_ref) else { continue };
            let (first, rows) = rows_of(spans);
            let low = buffers.low.narrow(low_rank.rank);
            let operand = buffers.low_operand.narrow(low_rank.rank).of(low_rank.form);
            // of all rows: the device has the ids of the batch as they are
            backend.look_up(batch.ids, &low_rank.a.weight, low);
            backend.norm(batch.ids.len(), low, &Norm::identity(), operand);
            let (low, out) = (operand.skip(first), self.buffers.x.skip(first));
            low_rank.add_low(backend, rows, low, out, self.arch.embed_scale);
        }
    }

    /// Adds to the logits what adapters make of the last operand, in the rows of those who run with one.
    pub(super) fn adapt_logits(&self, backend: &mut B, batch: &Batch<'_>, x: Buf) {
        let Some(buffers) = self.buffers.adapters else { return };
        let adapter_of = |row: u32| {
            let span =
                batch.spans.iter().find(|span| (span.row..span.row + span.rows).contains(&(row as usize)));
            span.and_then(|span| span.adapter)
        };
        let mut first = 0;
        for outputs in batch.outputs.chunk_by(|&a, &b| adapter_of(a) == adapter_of(b)) {
            let adapter = adapter_of(outputs[0]).and_then(|adapter| self.head_adapters.get(adapter as usize));
            if let Some(low_rank) = adapter.and_then(Option::as_ref) {
                let (x, out) = (x.skip(first), self.buffers.logits.skip(first));
                low_rank.add(backend, buffers, outputs.len(), x, out, 1.0);
            }
            first += outputs.len();
        }
    }

    /// Adds a branch that adapters scale in some of the rows. Those rows are computed apart, and the others get what they get
    /// without adapters.
    pub(super) fn add_scaled(
        &self,
        backend: &mut B,
        batch: &Batch<'_>,
        layer: &Layer<B::Weight>,
        (site, linear): (Site, &Linear<B::Weight>),
        from: Buf,
    ) {
        let (x, scale) = (self.buffers.x, self.arch.residual_scale);
        let scaled = self
            .buffers
            .adapters
            .and_then(|buffers| buffers.scaled)
            .expect("planned for adapters that scale");
        for spans in batch.spans.chunk_by(|a, b| layer.scales(*a, site) == layer.scales(*b, site)) {
            let (first, rows) = rows_of(spans);
            let (of_rows, out) = (from.skip(first), x.skip(first));
            if layer.scales(spans[0], site) {
                let branch = scaled.skip(first);
                backend.linear(rows, of_rows, &[to(linear, branch)]);
                self.adapt(backend, spans, layer, site, (from, scaled), 1.0);
                backend.add_norm(rows, branch, &Norm::identity(), scale, out);
            } else {
                backend.linear(rows, of_rows, &[Projection { add: Some(scale), ..to(linear, out) }]);
                self.adapt(backend, spans, layer, site, (from, x), scale);
            }
        }
    }
}

/// The first row of requests that stand together, and how many rows they have.
fn rows_of(spans: &[Span]) -> (usize, usize) {
    let (first, last) = (spans[0].row, spans[spans.len() - 1]);
    (first, last.row + last.rows - first)
}
