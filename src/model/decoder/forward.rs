//! A step: tokens through all layers, to logits or hidden states. Every line writes one buffer of [`super`].

use super::plan::Buffers;
use super::{Decoder, FeedForward, Forms, Layer, Mlp};
use crate::backend::{
    Attention, AttentionBias, Backend, Batch, Buf, Cap, EmbedBy, Fence, GateUp, Norm, NormKind, OperandType,
    Pointwise, Projection, Span,
};
use crate::model::arch::{HeadNormShape, NormPlacement};
use crate::model::latent::{Latent, LatentBuffers};
use crate::model::weights::Site;

impl<B: Backend> Decoder<B> {
    /// Runs one step: every token of `batch` through all layers, its keys and values into the cache, and the logits
    /// of `batch.outputs` into rows `0..` that [`Decoder::logits`] reads.
    pub fn forward(&self, backend: &mut B, batch: &Batch<'_>) -> Fence {
        backend.submit(batch, |backend| self.record(backend, batch))
    }

    fn record(&self, backend: &mut B, batch: &Batch<'_>) {
        let Buffers { x, xb, last, logits, .. } = self.buffers;
        let xb = xb.of(self.head_form);
        self.layers(backend, batch);
        if batch.outputs.is_empty() {
            return;
        }
        // logits only of the rows that somebody reads
        let outputs = batch.outputs.len();
        backend.gather(batch.outputs, x, last);
        backend.norm(outputs, last, &self.norm, last.cols, xb);
        let weight = self.head.as_ref().unwrap_or(&self.embed);
        let bias = self.head_bias.as_ref();
        backend.linear(outputs, xb, &[Projection { weight, bias, out: logits, add: None }]);
        self.adapt_logits(backend, batch, xb);
        let (scale, cap) = (self.arch.logits_scale, self.arch.logits_cap.map_or(Cap::None, Cap::Soft));
        if (scale, cap) != (1.0, Cap::None) {
            backend.pointwise(outputs, logits, Pointwise::Scale(scale, cap));
        }
    }

    /// Runs the layers without a head: what they give, normed, for every row, in the buffer that is returned, (T, hidden).
    /// The ops of a step that an encoder submits.
    pub fn hidden(&self, backend: &mut B, batch: &Batch<'_>) -> Buf {
        let x = self.buffers.x;
        self.layers(backend, batch);
        if self.norm.kind != NormKind::Identity {
            backend.norm(batch.ids.len(), x, &self.norm, x.cols, x);
        }
        x
    }

    fn layers(&self, backend: &mut B, batch: &Batch<'_>) {
        let x = self.buffers.x;
        backend.embed(batch, EmbedBy::Token, &self.embed, self.arch.embed_scale, false, x);
        self.adapt_embeddings(backend, batch);
        if let Some(table) = &self.position_type {
            backend.embed(batch, EmbedBy::PositionType, table, 1.0, true, x);
        }
        if let Some(norm) = &self.embed_norm {
            backend.norm(batch.ids.len(), x, norm, x.cols, x);
        }
        for (index, layer) in self.layers.iter().enumerate() {
            self.layer(backend, batch, if self.one_layer { 0 } else { index }, layer);
        }
    }

    /// One layer: attention, then the MLP or experts, each added to the residual stream.
    fn layer(&self, backend: &mut B, batch: &Batch<'_>, index: usize, layer: &Layer<B::Weight>) {
        let Buffers { x, xb, inner, .. } = self.buffers;
        let Forms { attention, feed, down, .. } = layer.forms;
        let (rows, parallel) = (batch.ids.len(), self.arch.place.is_parallel());

        backend.norm(rows, x, &layer.attention_norm, x.cols, xb.of(attention));
        self.qkv(backend, batch, layer, xb.of(attention));
        let att = self.attention(backend, batch, index, layer);
        if parallel {
            // The MLP reads what attention read, so that is normed before the residual stream changes.
            self.norm_feed(backend, rows, layer);
        }
        self.add(backend, batch, layer, Site::O, att);

        if !parallel {
            self.norm_feed(backend, rows, layer);
        }
        match &layer.feed {
            FeedForward::One(mlp) => {
                let inner = inner.of(down);
                self.first(backend, batch, layer, mlp, xb.of(feed), inner);
                self.add(backend, batch, layer, Site::Down, inner);
            }
            FeedForward::Moe(mixture) => self.mixture(backend, rows, layer, mixture),
        }
    }

    /// Projects normed tokens to queries, keys and values, with what adapters add.
    fn qkv(&self, backend: &mut B, batch: &Batch<'_>, layer: &Layer<B::Weight>, xb: Buf) {
        let Buffers { q, k, v, .. } = self.buffers;
        if let Some(latent) = &layer.latent {
            return self.fold(backend, batch, layer, latent, xb);
        }
        backend.linear(batch.ids.len(), xb, &[layer.q.to(q), layer.k.to(k), layer.v.to(v)]);
        for (site, buf) in [(Site::Q, q), (Site::K, k), (Site::V, v)] {
            self.adapt(backend, batch.spans, layer, site, (xb, buf), 1.0);
        }
    }

    /// Norms and turns queries and keys, stores keys and values, and attends to all that is stored. Returns the operand of
    /// the output matrix.
    fn attention(&self, backend: &mut B, batch: &Batch<'_>, index: usize, layer: &Layer<B::Weight>) -> Buf {
        let (Buffers { q, att, k, v, .. }, arch, rows) = (self.buffers, &self.arch, batch.ids.len());
        let mut rope = layer.shape.rope.map(|rope| &self.ropes[rope]);
        if !arch.family.head_norm_last {
            self.norm_heads(backend, rows, layer);
        }
        if let Some(limit) = arch.qkv_limit {
            [q, k, v]
                .into_iter()
                .for_each(|buf| backend.pointwise(rows, buf, Pointwise::Scale(1.0, Cap::Hard(limit))));
        }
        if arch.family.head_norm_last {
            // The norm is of what is turned, so keys cannot be turned on their way into the cache.
            if let Some(rope) = rope.take() {
                backend.rope(batch, q, k, rope);
            }
            self.norm_heads(backend, rows, layer);
        }
        backend.rope_store(batch, index, q, k, v, rope);
        let shape = Attention {
            layer: index,
            heads: arch.heads,
            window: layer.shape.window,
            scale: arch.attention_scale,
            softcap: arch.softcap,
        };
        let biases =
            AttentionBias { sinks: layer.sinks.as_ref(), relative_bias: self.relative_bias.as_ref() };
        match &layer.latent {
            None => {
                let att = att.of(layer.forms.o);
                backend.attention(batch, shape, biases, q, att);
                att
            }
            Some(latent) => {
                backend.attention(batch, shape, biases, q, att);
                self.expand_v(backend, rows, latent, att, layer.forms.o)
            }
        }
    }

    /// Queries in the space of latents, the latents, and keys of them and of what turns.
    fn fold(
        &self,
        backend: &mut B,
        batch: &Batch<'_>,
        layer: &Layer<B::Weight>,
        latent: &Latent<B::Weight>,
        xb: Buf,
    ) {
        let (Buffers { q, k, v, .. }, rows) = (self.buffers, batch.ids.len());
        let buffers = self.buffers.latent.expect("planned with the shape");
        let LatentBuffers { queries, k_rope, .. } = buffers;
        let (of_key, of_latent) = (layer.k.to(k_rope), layer.v.to(v));
        let asked = match (&latent.q_latent, buffers.q_latent) {
            (Some((down, norm)), Some([low, operand])) => {
                let operand = operand.of(layer.forms.q);
                backend.linear(rows, xb, &[down.to(low), of_key, of_latent]);
                backend.norm(rows, low, norm, low.cols, operand);
                backend.linear(rows, operand, &[layer.q.to(queries)]);
                operand
            }
            _ => {
                backend.linear(rows, xb, &[layer.q.to(queries), of_key, of_latent]);
                xb
            }
        };
        for (site, x, buf) in [(Site::Q, asked, queries), (Site::K, xb, k_rope), (Site::V, xb, v)] {
            self.adapt(backend, batch.spans, layer, site, (x, buf), 1.0);
        }
        backend.norm(rows, v, &latent.norm, v.cols, v);
        backend.concat(rows, [k_rope, v], k);
        let pieces = buffers.pieces.narrow(latent.shape.nope_dim).of(latent.absorb_k_form);
        backend.per_head_linear(rows, queries, self.arch.heads, &latent.absorb_k, pieces, q);
    }

    /// The values of what attention gives, as an operand.
    fn expand_v(
        &self,
        backend: &mut B,
        rows: usize,
        latent: &Latent<B::Weight>,
        att: Buf,
        form: OperandType,
    ) -> Buf {
        let LatentBuffers { pieces, values, out, .. } = self.buffers.latent.expect("planned with the shape");
        let pieces = pieces.narrow(latent.shape.rank).of(latent.expand_v_form);
        backend.per_head_linear(rows, att, self.arch.heads, &latent.expand_v, pieces, values);
        let out = out.of(form);
        backend.norm(rows, values, &Norm::identity(), values.cols, out);
        out
    }

    /// The first products of an MLP, and what adapters add to them.
    fn first(
        &self,
        backend: &mut B,
        batch: &Batch<'_>,
        layer: &Layer<B::Weight>,
        mlp: &Mlp<B::Weight>,
        x: Buf,
        out: Buf,
    ) {
        let changes =
            |span: &Span| [Site::Gate, Site::Up].iter().any(|site| layer.adapter(*span, *site).is_some());
        let rows = batch.ids.len();
        match self.buffers.products {
            // one pass over the weights for all rows: those without an adapter get the same bits as below
            Some([gate, up]) if batch.spans.iter().any(changes) => {
                let mut products = vec![mlp.up.to(up)];
                products.extend(mlp.gate.as_ref().map(|linear| linear.to(gate)));
                backend.linear(rows, x, &products);
                self.adapt(backend, batch.spans, layer, Site::Up, (x, up), 1.0);
                self.adapt(backend, batch.spans, layer, Site::Gate, (x, gate), 1.0);
                match mlp.gate {
                    Some(_) => backend.act_and_mul(rows, self.arch.activation, gate, Some(up), out),
                    None => backend.act_and_mul(rows, self.arch.activation, up, None, out),
                }
            }
            _ => self.inner(backend, rows, x, mlp, out),
        }
    }

    /// Norms of queries and keys.
    fn norm_heads(&self, backend: &mut B, rows: usize, layer: &Layer<B::Weight>) {
        let (Buffers { q, k, .. }, arch) = (self.buffers, &self.arch);
        if let Some(norms) = &layer.head_norms {
            for (norm, buf) in norms.iter().zip([q, k]) {
                let width =
                    if arch.head_norm == Some(HeadNormShape::Whole) { buf.cols } else { arch.head_dim };
                backend.norm(rows, buf, norm, width, buf);
            }
        }
    }

    /// Writes what the MLP reads, unless that is what the attention read.
    fn norm_feed(&self, backend: &mut B, rows: usize, layer: &Layer<B::Weight>) {
        let (Buffers { x, xb, mixture, .. }, Forms { attention, feed, .. }) = (self.buffers, layer.forms);
        let norm = layer.mlp_norm.as_ref().unwrap_or(&layer.attention_norm);
        if layer.mlp_norm.is_some() || attention != feed {
            backend.norm(rows, x, norm, x.cols, xb.of(feed));
        }
        if let (FeedForward::Moe(of), Some(buffers)) = (&layer.feed, mixture) {
            backend.norm(rows, x, norm, x.cols, buffers.deciding.of(of.router_form));
        }
    }

    /// The first products of an MLP.
    pub(super) fn inner(&self, backend: &mut B, rows: usize, x: Buf, mlp: &Mlp<B::Weight>, out: Buf) {
        let products = self.buffers.products.map(|products| products.map(|buf| buf.narrow(out.cols)));
        let mlp = GateUp { activation: self.arch.activation, gate: mlp.gate.as_ref(), up: &mlp.up };
        backend.gated(rows, x, mlp, products, out);
    }

    /// Adds a branch to the residual stream: `from` through its last matrix.
    fn add(&self, backend: &mut B, batch: &Batch<'_>, layer: &Layer<B::Weight>, site: Site, from: Buf) {
        let (x, scale, rows) = (self.buffers.x, self.arch.residual_scale, batch.ids.len());
        let (linear, post) = match (site, &layer.feed) {
            (Site::O, _) => (&layer.o, layer.attention_post.as_ref()),
            (_, FeedForward::One(mlp)) => (&mlp.down, layer.mlp_post.as_ref()),
            (_, FeedForward::Moe(_)) => unreachable!("experts are summed up otherwise"),
        };
        match (post, self.buffers.branch) {
            (Some(norm), Some(branch)) => {
                backend.linear(rows, from, &[linear.to(branch)]);
                self.adapt(backend, batch.spans, layer, site, (from, branch), 1.0);
                backend.add_norm(rows, branch, norm, scale, x);
            }
            _ if batch.spans.iter().any(|span| layer.scales(*span, site)) => {
                self.add_scaled(backend, batch, layer, (site, linear), from);
            }
            _ => {
                backend.linear(rows, from, &[Projection { add: Some(scale), ..linear.to(x) }]);
                self.adapt(backend, batch.spans, layer, site, (from, x), scale);
            }
        }
        if let (Some(norm), NormPlacement::After) = (post, self.arch.place) {
            backend.norm(rows, x, norm, x.cols, x);
        }
    }
}
