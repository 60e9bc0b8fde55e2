//! The one forward pass of causal language models.
//!
//! Buffers, all planned before the first request (T tokens of a step, R rows of logits):
//! ```text
//! x      (T, hidden)              the residual stream
//! xb     (T, hidden)              a normed copy inside a branch, as an operand
//! q      (T, heads * head_dim)    queries
//! att    (T, heads * value_dim)   attention output, as an operand
//! k      (T, kv_heads * head_dim) keys on their way into the cache
//! v      (T, kv_heads * value_dim) values likewise
//! inner  (T, intermediate)        the MLP's activations, as an operand
//! branch (T, hidden)              what attention or the MLP gives, where that is normed before it is added
//! deciding (T, hidden)            the normed copy once more, for the router
//! routed                          the tokens at their experts, where there are any: [`Routed`]
//! shared, gate, gated             the same as inner, (T, 1) and (T, hidden) for the expert that all share
//! low, low operand (T, rank)     what an adapter makes of the rows that run with it
//! gate_up (T, intermediate), twice  where an adapter changes what comes before the activation
//! scaled (T, hidden)              what a branch gives, where an adapter scales it before it is added
//! of latents: [`LatentBuffers`]
//! last   (R, hidden)              the rows whose logits are wanted
//! logits (R, vocab)
//! ```
//! Operands are written by one verb for the matrix product of the next, in the form that the backend's kernels want.

use super::arch::{Arch, HeadNormShape, LayerShape, LookupShape, NormPlacement};
use super::latent::{Latent, LatentBuffers};
use super::weights::{
    AdapterNeeds, Addition, Additions, FeedWeights, LayerWeights, LinearWeights, LookupWeights,
    MixtureWeights, MlpWeights, NormWeights, Site, Weights,
};
use crate::backend::sample_batch::SampleBatch;
use crate::backend::{
    Attention, AttentionBias, BLOCK, Backend, Batch, Buf, Cap, Expert, Kv, KvType, Linear, Norm, NormKind,
    OperandType, Projection, Quantize, Rope, Routed, Span,
};
use crate::error::{Error, Result};
use crate::memory::Layout;
use crate::weights::adapter::rounded;
use crate::weights::{Dtype, Tensor};

/// How large a step may be, and how much a session can hold.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Tokens in one step.
    pub step_tokens: usize,
    /// Sequences that run at once.
    pub sequences: usize,
    /// Rows of logits in one step: at least one for each sequence, and no more than tokens.
    pub outputs: usize,
    /// KV blocks in all.
    pub blocks: usize,
    /// Positions of one sequence.
    pub context: usize,
}

pub(super) fn to<W>(linear: &Linear<W>, out: Buf) -> Projection<'_, W> {
    Projection { weight: &linear.weight, bias: linear.bias.as_ref(), out, add: None }
}

#[derive(Debug)]
pub(super) struct Layer<W> {
    forms: Forms,
    attention_norm: Norm<W>,
    /// Where keys and values are those of a latent, `k` gives the part of the key that turns, `v` the latent.
    latent: Option<Latent<W>>,
    pub q: Linear<W>,
    pub k: Linear<W>,
    pub v: Linear<W>,
    /// The norms of each head of q, then of k.
    head_norms: Option<[Norm<W>; 2]>,
    o: Linear<W>,
    /// One score for each head.
    sinks: Option<W>,
    /// The norm of what attention adds.
    attention_post: Option<Norm<W>>,
    /// None where the MLP takes the input of the attention.
    mlp_norm: Option<Norm<W>>,
    feed: FeedForward<W>,
    /// The norm of what the MLP adds.
    mlp_post: Option<Norm<W>>,
    shape: LayerShape,
    /// What adapters add, by adapter and [`Site`].
    adapters: Vec<[Option<LowRank<W>>; Site::COUNT]>,
}

/// `scale * b * a`.
#[derive(Debug)]
struct LowRank<W> {
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
    fn adapter(&self, span: Span, site: Site) -> Option<&LowRank<W>> {
        self.adapters.get(span.adapter? as usize)?[site as usize].as_ref()
    }

    /// Whether it scales the sum.
    fn scales(&self, span: Span, site: Site) -> bool {
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

/// What reads the operands of a layer.
#[derive(Clone, Copy, Debug)]
struct Forms {
    /// q, k and v.
    attention: OperandType,
    /// q: of the latent of queries, where they have one.
    q: OperandType,
    o: OperandType,
    /// The first products of the MLP or of experts.
    feed: OperandType,
    /// The last ones.
    down: OperandType,
}

/// What is behind the attention.
#[derive(Debug)]
enum FeedForward<W> {
    One(Mlp<W>),
    Moe(Moe<W>),
}

#[derive(Debug)]
struct Mlp<W> {
    /// None where the MLP is not gated.
    gate: Option<Linear<W>>,
    up: Linear<W>,
    down: Linear<W>,
}

#[derive(Debug)]
struct Moe<W> {
    router: Linear<W>,
    correction: Option<W>,
    experts: Vec<Expert<W>>,
    shared: Option<Mlp<W>>,
    shared_gate: Option<Linear<W>>,
    /// What reads the operand that decides, and that of the shared expert's last product.
    router_form: OperandType,
    shared_form: OperandType,
}

#[derive(Clone, Copy, Debug)]
struct Buffers {
    x: Buf,
    xb: Buf,
    q: Buf,
    att: Buf,
    k: Buf,
    v: Buf,
    latent: Option<LatentBuffers>,
    inner: Buf,
    branch: Option<Buf>,
    mixture: Option<MixtureBuffers>,
    adapters: Option<AdapterBuffers>,
    last: Buf,
    logits: Buf,
}

#[derive(Clone, Copy, Debug)]
struct AdapterBuffers {
    /// The products with A: it has the columns of the largest rank.
    low: Buf,
    low_operand: Buf,
    /// The first products of an MLP, apart.
    feed: Option<[Buf; 2]>,
    /// What a branch gives, before it is added.
    scaled: Option<Buf>,
}

#[derive(Clone, Copy, Debug)]
struct MixtureBuffers {
    /// The operand of the router.
    deciding: Buf,
    routed: Routed,
    /// The expert that all tokens share.
    shared: Option<Buf>,
    gate: Buf,
    gated: Buf,
}

/// A decoder on a backend: weights taken in, buffers planned. See the module.
#[derive(Debug)]
pub struct Decoder<B: Backend> {
    arch: Arch,
    embed: B::Weight,
    /// What is added to embeddings: see [`Decoder::lookup_row`].
    lookup: Option<B::Weight>,
    embed_norm: Option<Norm<B::Weight>>,
    /// (heads, 2 * reach): [`crate::backend::AttentionBias`].
    distances: Option<B::Weight>,
    layers: Vec<Layer<B::Weight>>,
    norm: Norm<B::Weight>,
    head: Option<B::Weight>,
    head_bias: Option<B::Weight>,
    ropes: Vec<Rope<B::Weight>>,
    /// What reads the last operand.
    head_form: OperandType,
    /// What adapters add to embeddings: the first matrix is a table.
    embed_adapters: Vec<Option<LowRank<B::Weight>>>,
    /// What adapters add to logits.
    head_adapters: Vec<Option<LowRank<B::Weight>>>,
    buffers: Buffers,
    /// Whether all layers use the same cache, one after the other.
    one_layer: bool,
}

pub(super) fn too_large() -> Error {
    Error::Memory {
        needed: u64::MAX,
        what: "activations and KV cache",
        limit: "that does not fit the address space".into(),
    }
}

/// The planned memory of a decoder.
#[derive(Clone, Debug)]
pub struct Plan {
    pub(super) layout: Layout,
    buffers: Buffers,
    kv: Kv,
    /// Bytes of the tables of angles.
    tables: usize,
    /// Positions of one request.
    context: usize,
}

impl Plan {
    /// Plans buffers and cache for `limits`, and for what adapters need.
    ///
    /// # Errors
    /// The sizes overflow.
    pub fn new(arch: &Arch, cache: KvType, limits: Limits, adapters: AdapterNeeds) -> Result<Self> {
        Self::checked(arch, cache, limits, arch.layers, adapters).ok_or_else(too_large)
    }

    /// Plans the buffers where whole texts are computed in one step, and no logits are wanted.
    ///
    /// # Errors
    /// The sizes overflow.
    pub fn of_one_layer(arch: &Arch, cache: KvType, limits: Limits) -> Result<Self> {
        Self::checked(arch, cache, Limits { outputs: 0, ..limits }, 1, AdapterNeeds::default())
            .ok_or_else(too_large)
    }

    fn checked(
        arch: &Arch,
        cache: KvType,
        limits: Limits,
        layers: usize,
        adapters: AdapterNeeds,
    ) -> Option<Self> {
        let mut layout = Layout::default();
        let (tokens, outputs) = (limits.step_tokens, limits.outputs);
        let buffers = Buffers {
            x: Buf::plan(&mut layout, tokens, arch.hidden)?,
            xb: Buf::plan_operand(&mut layout, tokens, arch.hidden)?,
            q: Buf::plan(&mut layout, tokens, arch.q_width())?,
            att: Buf::plan_operand(&mut layout, tokens, arch.mixed_width())?,
            k: Buf::plan(&mut layout, tokens, arch.k_width())?,
            v: Buf::plan(&mut layout, tokens, arch.v_width())?,
            latent: match arch.latent {
                None => None,
                Some(shape) => Some(LatentBuffers::plan(&mut layout, tokens, arch.heads, shape)?),
            },
            inner: Buf::plan_operand(&mut layout, tokens, arch.intermediate)?,
            branch: match arch.place {
                NormPlacement::Post | NormPlacement::Both => {
                    Some(Buf::plan(&mut layout, tokens, arch.hidden)?)
                }
                _ => None,
            },
            mixture: match &arch.mixture {
                None => None,
                Some(mixture) => {
                    let (experts, per_token) = (mixture.experts, mixture.routing.per_token);
                    Some(MixtureBuffers {
                        deciding: Buf::plan_operand(&mut layout, tokens, arch.hidden)?,
                        shared: match mixture.shared {
                            Some(width) => Some(Buf::plan_operand(&mut layout, tokens, width)?),
                            None => None,
                        },
                        routed: Routed::plan(
                            &mut layout,
                            tokens,
                            experts,
                            per_token,
                            arch.hidden,
                            mixture.inner,
                        )?,
                        gate: Buf::plan(&mut layout, tokens, 1)?,
                        gated: Buf::plan(&mut layout, tokens, arch.hidden)?,
                    })
                }
            },
            adapters: match adapters.rank {
                0 => None,
                rank => Some(AdapterBuffers {
                    low: Buf::plan(&mut layout, tokens, rank)?,
                    low_operand: Buf::plan_operand(&mut layout, tokens, rank)?,
                    feed: match adapters.feeds {
                        false => None,
                        true => Some([
                            Buf::plan(&mut layout, tokens, arch.intermediate)?,
                            Buf::plan(&mut layout, tokens, arch.intermediate)?,
                        ]),
                    },
                    scaled: match adapters.branches {
                        false => None,
                        true => Some(Buf::plan(&mut layout, tokens, arch.hidden)?),
                    },
                }),
            },
            last: Buf::plan(&mut layout, outputs, arch.hidden)?,
            logits: Buf::plan(&mut layout, outputs, arch.vocab)?,
        };
        let (kv_heads, head_dim, value_dim) = (arch.kv_heads, arch.head_dim, arch.value_dim);
        let block_bytes = Kv::block_bytes(cache, layers, kv_heads, [head_dim, value_dim])?;
        let region = layout.region(block_bytes.checked_mul(limits.blocks)?)?;
        let kv = Kv { region, cache, layers, kv_heads, head_dim, value_dim };
        let angles = limits.context.checked_mul(arch.ropes.iter().map(|rope| rope.dims).sum())?;
        let tables = angles.checked_mul(size_of::<f32>())?;
        layout.bytes().checked_add(tables)?;
        Some(Self { layout, buffers, kv, tables, context: limits.context })
    }

    /// Bytes of the KV cache.
    pub fn kv_bytes(&self) -> u64 {
        self.kv.region.bytes() as u64
    }

    /// Bytes in all, with the tables of rope angles: those are on the heap, since they hold no content.
    pub fn bytes(&self) -> u64 {
        (self.layout.bytes() + self.tables) as u64
    }
}

impl<B: Backend> Decoder<B> {
    /// Takes the weights in and maps the planned memory. `loaded` is told the bytes of each tensor's file part.
    ///
    /// # Errors
    /// A weight is not finite, or too large to be quantized; the memory is not to be had.
    pub fn new(
        arch: Arch,
        weights: &Weights,
        plan: Plan,
        quantize: Option<Quantize>,
        backend: &mut B,
        mut loaded: impl FnMut(u64),
    ) -> Result<Self> {
        let mut loader = Loader { backend, loaded: &mut loaded, arch: &arch, quantize };
        let embed = loader.matrix(&weights.embed, for_tables(quantize))?;
        let lookup = loader.lookup(&weights.lookup)?;
        let embed_norm = weights.lookup.norm.as_ref().map(|norm| loader.norm(norm)).transpose()?;
        let distances = match &weights.distances {
            Some(buckets) => Some(loader.distances(buckets, plan.context)?),
            None => None,
        };
        let norm = match &weights.norm {
            Some(norm) => loader.norm(norm)?,
            None => Norm::identity(),
        };
        let head = weights.head.as_ref().map(|head| loader.matrix(head, for_tables(quantize))).transpose()?;
        let head_bias = weights.head_bias.as_ref().map(|bias| loader.matrix(bias, None)).transpose()?;
        let layers = weights.layers.iter().zip(&arch.shapes).enumerate().map(|(index, (layer, shape))| {
            let additions: Vec<&Additions> =
                weights.adapters.iter().map(|adapter| &adapter.layers[index]).collect();
            loader.layer(layer, *shape, &additions)
        });
        let layers = layers.collect::<Result<_>>()?;
        let ropes = arch.ropes.iter().map(|rope| {
            let table = backend.upload_table(rope.table(plan.context), rope.dims)?;
            Ok(Rope { table, dims: rope.dims, interleaved: arch.interleaved })
        });
        let ropes = ropes.collect::<Result<_>>()?;
        let head_form = backend.form(&[head.as_ref().unwrap_or(&embed)]);
        let mut loader = Loader { backend, loaded: &mut loaded, arch: &arch, quantize };
        let bias = weights.head_bias.as_ref();
        let heads = weights.adapters.iter().map(|adapter| {
            adapter.head.as_ref().map(|addition| loader.low_rank(addition, Some(head_form), bias)).transpose()
        });
        let head_adapters = heads.collect::<Result<_>>()?;
        let embeds = weights.adapters.iter().map(|adapter| {
            adapter.embed.as_ref().map(|addition| loader.low_rank(addition, None, None)).transpose()
        });
        let embed_adapters = embeds.collect::<Result<_>>()?;
        backend.reserve(plan.layout, plan.kv, Some(plan.buffers.logits))?;
        let buffers = plan.buffers;
        let one_layer = plan.kv.layers == 1;
        Ok(Self {
            embed,
            lookup,
            embed_norm,
            distances,
            layers,
            norm,
            head,
            head_bias,
            ropes,
            head_form,
            embed_adapters,
            head_adapters,
            buffers,
            one_layer,
            arch,
        })
    }

    /// Runs one step: every token of `batch` through all layers, its keys and values into the cache, and the logits
    /// of `batch.outputs` into rows `0..` that [`Decoder::logits`] reads.
    pub fn forward(&self, backend: &mut B, batch: &Batch<'_>) {
        if !backend.begin(batch) {
            return;
        }
        let Buffers { x, xb, last, logits, .. } = self.buffers;
        let xb = xb.of(self.head_form);
        self.layers(backend, batch, &[]);
        if batch.outputs.is_empty() {
            return backend.end();
        }
        // logits only of the rows that somebody reads
        let outputs = batch.outputs.len();
        backend.gather(batch.outputs, x, last);
        backend.norm(outputs, last, &self.norm, xb);
        let weight = self.head.as_ref().unwrap_or(&self.embed);
        let bias = self.head_bias.as_ref();
        backend.linear(outputs, xb, &[Projection { weight, bias, out: logits, add: None }]);
        self.adapt_logits(backend, batch, xb);
        let (scale, cap) = (self.arch.logits_scale, self.arch.logits_cap.map_or(Cap::None, Cap::Soft));
        if (scale, cap) != (1.0, Cap::None) {
            backend.scale(outputs, logits, scale, cap);
        }
        backend.end();
    }

    /// Runs the layers without a head: what they give, normed, for every row, in the buffer that is returned, (T, hidden).
    /// `lookup` has a row of [`Decoder::lookup_row`] for each token.
    pub fn hidden(&self, backend: &mut B, batch: &Batch<'_>, lookup: &[u32]) -> Buf {
        let x = self.buffers.x;
        self.layers(backend, batch, lookup);
        if self.norm.kind != NormKind::Identity {
            backend.group_norm_in_place(batch.ids.len(), x, &self.norm, x.cols);
        }
        x
    }

    /// Where [`Decoder::hidden`] leaves its rows.
    pub fn hidden_rows(&self) -> Buf {
        self.buffers.x
    }

    /// What is added to the embedding of a token at `position` in a `part` of a pair of texts: a row of a table that the
    /// checkpoint has in two.
    pub fn lookup_row(&self, position: usize, part: usize) -> u32 {
        let Some(LookupShape { positions, types, .. }) = self.arch.lookup else { return 0 };
        let part = part.min(types.unwrap_or(1) - 1);
        positions.map_or(part, |positions| part * positions + position) as u32
    }

    fn layers(&self, backend: &mut B, batch: &Batch<'_>, lookup: &[u32]) {
        let x = self.buffers.x;
        backend.embed(batch.ids, &self.embed, self.arch.embed_scale, x);
        self.adapt_embeddings(backend, batch);
        if let Some(table) = &self.lookup {
            backend.add_embed(lookup, table, x);
        }
        if let Some(norm) = &self.embed_norm {
            backend.group_norm_in_place(batch.ids.len(), x, norm, x.cols);
        }
        for (index, layer) in self.layers.iter().enumerate() {
            self.layer(backend, batch, if self.one_layer { 0 } else { index }, layer);
        }
    }

    fn layer(&self, backend: &mut B, batch: &Batch<'_>, index: usize, layer: &Layer<B::Weight>) {
        let Buffers { x, xb, q, att, k, v, .. } = self.buffers;
        let Forms { attention, o, feed, down, .. } = layer.forms;
        let (xb, fed) = (xb.of(attention), xb.of(feed));
        let (rows, arch) = (batch.ids.len(), &self.arch);
        backend.norm(rows, x, &layer.attention_norm, xb);
        match &layer.latent {
            None => {
                backend.linear(rows, xb, &[to(&layer.q, q), to(&layer.k, k), to(&layer.v, v)]);
                for (site, buf) in [(Site::Q, q), (Site::K, k), (Site::V, v)] {
                    self.adapt(backend, batch.spans, layer, site, (xb, buf), 1.0);
                }
            }
            Some(latent) => self.fold(backend, batch, layer, latent, xb),
        }
        if !arch.family.head_norm_last {
            self.norm_heads(backend, rows, layer);
        }
        if let Some(limit) = arch.qkv_limit {
            [q, k, v].into_iter().for_each(|buf| backend.scale(rows, buf, 1.0, Cap::Hard(limit)));
        }
        let mut rope = layer.shape.rope.map(|rope| &self.ropes[rope]);
        if arch.family.head_norm_last {
            if let Some(rope) = rope.take() {
                backend.rope(batch, q, k, rope);
            }
            self.norm_heads(backend, rows, layer);
        }
        backend.rope_store(batch, index, q, k, v, rope);
        let shape = Attention {
            layer: index,
            heads: arch.heads,
            causal: arch.causal,
            window: layer.shape.window,
            scale: arch.attention_scale,
            softcap: arch.softcap,
        };
        let biases = AttentionBias { sinks: layer.sinks.as_ref(), distances: self.distances.as_ref() };
        let att = match &layer.latent {
            None => {
                let att = att.of(o);
                backend.attention(batch, shape, biases, q, att);
                att
            }
            Some(latent) => {
                backend.attention(batch, shape, biases, q, att);
                self.expand_v(backend, rows, latent, att, o)
            }
        };
        if arch.place.is_parallel() {
            // of what the attention was given: before the residual stream changes
            self.norm_feed(backend, rows, layer);
        }
        self.add(backend, batch, layer, Site::O, att);
        if !arch.place.is_parallel() {
            self.norm_feed(backend, rows, layer);
        }
        match &layer.feed {
            FeedForward::One(mlp) => {
                let inner = self.buffers.inner.of(down);
                self.first(backend, batch, layer, mlp, fed, inner);
                self.add(backend, batch, layer, Site::Down, inner);
            }
            FeedForward::Moe(mixture) => self.mixture(backend, rows, layer, mixture),
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
        let LatentBuffers { queries, turning, .. } = buffers;
        let (of_key, of_latent) = (to(&layer.k, turning), to(&layer.v, v));
        let asked = match (&latent.q_latent, buffers.q_latent) {
            (Some((down, norm)), Some([low, operand])) => {
                let operand = operand.of(layer.forms.q);
                backend.linear(rows, xb, &[to(down, low), of_key, of_latent]);
                backend.norm(rows, low, norm, operand);
                backend.linear(rows, operand, &[to(&layer.q, queries)]);
                operand
            }
            _ => {
                backend.linear(rows, xb, &[to(&layer.q, queries), of_key, of_latent]);
                xb
            }
        };
        for (site, x, buf) in [(Site::Q, asked, queries), (Site::K, xb, turning), (Site::V, xb, v)] {
            self.adapt(backend, batch.spans, layer, site, (x, buf), 1.0);
        }
        backend.group_norm_in_place(rows, v, &latent.norm, v.cols);
        backend.concat(rows, [turning, v], k);
        let pieces = buffers.pieces.narrow(latent.shape.still).of(latent.absorb_k_form);
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
        backend.norm(rows, values, &Norm::identity(), out);
        out
    }

    /// Adds to `out` what adapters make of the operand `x`, times `factor`, in the rows of those who run with one.
    fn adapt(
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
    fn adapt_embeddings(&self, backend: &mut B, batch: &Batch<'_>) {
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
    fn adapt_logits(&self, backend: &mut B, batch: &Batch<'_>, x: Buf) {
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
        match self.buffers.adapters.and_then(|buffers| buffers.feed) {
            // one pass over the weights for all rows: those without an adapter get the same bits as below
            Some([gate, up]) if batch.spans.iter().any(changes) => {
                let mut products = vec![to(&mlp.up, up)];
                products.extend(mlp.gate.as_ref().map(|linear| to(linear, gate)));
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
                backend.group_norm_in_place(rows, buf, norm, width);
            }
        }
    }

    /// Writes what the MLP reads, unless that is what the attention read.
    fn norm_feed(&self, backend: &mut B, rows: usize, layer: &Layer<B::Weight>) {
        let (Buffers { x, xb, mixture, .. }, Forms { attention, feed, .. }) = (self.buffers, layer.forms);
        let norm = layer.mlp_norm.as_ref().unwrap_or(&layer.attention_norm);
        if layer.mlp_norm.is_some() || attention != feed {
            backend.norm(rows, x, norm, xb.of(feed));
        }
        if let (FeedForward::Moe(of), Some(buffers)) = (&layer.feed, mixture) {
            backend.norm(rows, x, norm, buffers.deciding.of(of.router_form));
        }
    }

    /// The first products of an MLP.
    fn inner(&self, backend: &mut B, rows: usize, x: Buf, mlp: &Mlp<B::Weight>, out: Buf) {
        let activation = self.arch.activation;
        match &mlp.gate {
            Some(gate) => backend.gated(rows, x, activation, gate, &mlp.up, out),
            None => backend.activated(rows, x, activation, &mlp.up, out),
        }
    }

    /// Adds what the experts give to the residual stream. Their operand is written.
    fn mixture(&self, backend: &mut B, rows: usize, layer: &Layer<B::Weight>, mixture: &Moe<B::Weight>) {
        let (Buffers { x, xb, branch, .. }, arch) = (self.buffers, &self.arch);
        let (post, Forms { feed, down, .. }) = (layer.mlp_post.as_ref(), layer.forms);
        let (buffers, shape) =
            self.buffers.mixture.as_ref().zip(arch.mixture.as_ref()).expect("planned where layers have them");
        let Routed { x: grouped, inner, .. } = buffers.routed;
        let routed = &Routed { x: grouped.of(feed), inner: inner.of(down), ..buffers.routed };
        let (xb, deciding) = (xb.of(feed), buffers.deciding.of(mixture.router_form));
        backend.linear(rows, deciding, &[to(&mixture.router, routed.scores)]);
        backend.route(rows, &shape.routing, mixture.correction.as_ref(), routed);
        backend.experts(rows, xb, arch.activation, &mixture.experts, routed);
        // what is normed is gathered first
        let branch = branch.filter(|_| post.is_some());
        let (out, scale) = branch.map_or((x, arch.residual_scale), |branch| (branch, 1.0));
        backend.moe_combine(rows, routed, branch.is_none().then_some(scale), out);
        if let (Some(shared), Some(inner)) = (&mixture.shared, buffers.shared) {
            let inner = inner.of(mixture.shared_form);
            self.inner(backend, rows, xb, shared, inner);
            match &mixture.shared_gate {
                None => {
                    backend.linear(rows, inner, &[Projection { add: Some(scale), ..to(&shared.down, out) }])
                }
                Some(gate) => {
                    backend.linear(rows, deciding, &[to(gate, buffers.gate)]);
                    backend.linear(rows, inner, &[to(&shared.down, buffers.gated)]);
                    backend.add_gated(rows, buffers.gated, buffers.gate, scale, out);
                }
            }
        }
        if let (Some(norm), Some(branch)) = (post, branch) {
            backend.add_norm(rows, branch, norm, arch.residual_scale, x);
        }
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
                backend.linear(rows, from, &[to(linear, branch)]);
                self.adapt(backend, batch.spans, layer, site, (from, branch), 1.0);
                backend.add_norm(rows, branch, norm, scale, x);
            }
            _ if batch.spans.iter().any(|span| layer.scales(*span, site)) => {
                self.add_scaled(backend, batch, layer, (site, linear), from);
            }
            _ => {
                backend.linear(rows, from, &[Projection { add: Some(scale), ..to(linear, x) }]);
                self.adapt(backend, batch.spans, layer, site, (from, x), scale);
            }
        }
        if let (Some(norm), NormPlacement::After) = (post, self.arch.place) {
            backend.group_norm_in_place(rows, x, norm, x.cols);
        }
    }

    /// Adds a branch that adapters scale in some of the rows. Those rows are computed apart, and the others get what they get
    /// without adapters.
    fn add_scaled(
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

    /// The logits of output `row` of the last step: (vocab).
    pub fn logits<'a>(&self, backend: &'a mut B, row: usize) -> &'a [f32] {
        backend.read(self.buffers.logits, row)
    }

    /// Has the device answer questions about the logits of the last step.
    pub fn sample_on_device(&self, backend: &mut B, questions: &mut SampleBatch) {
        backend.sample_on_device(self.buffers.logits, questions);
    }

    /// The embedding table.
    #[cfg(feature = "forensics")]
    pub fn embedding(&self) -> &B::Weight {
        &self.embed
    }

    /// The buffers that a step of `tokens` rows, of which `outputs` have logits, writes to, each with its rows.
    pub fn used(&self, tokens: usize, outputs: usize) -> impl Iterator<Item = (Buf, usize)> {
        let Buffers { x, xb, q, att, k, v, latent, inner, branch, mixture, adapters, last, logits } =
            &self.buffers;
        let adapters = adapters.iter().flat_map(|buffers| {
            let apart = buffers.feed.into_iter().flatten().chain(buffers.scaled);
            [buffers.low, buffers.low_operand].into_iter().chain(apart)
        });
        let rows = [*x, *xb, *q, *att, *k, *v, *inner].into_iter().chain(*branch).chain(adapters);
        let shared = mixture.iter().flat_map(|mixture| {
            [mixture.deciding, mixture.gate, mixture.gated].into_iter().chain(mixture.shared)
        });
        let routed = mixture.iter().flat_map(move |mixture| mixture.routed.used(tokens));
        let latent = latent.iter().flat_map(move |latent| latent.used(tokens, self.arch.heads));
        let rows = rows.chain(shared).map(move |buf| (buf, tokens)).chain(routed).chain(latent);
        rows.chain([(*last, outputs), (*logits, outputs)])
    }
}

/// Numbers of T5's buckets go up to this distance (Raffel et al. 2020).
const FARTHEST: f64 = 128.0;

/// The bucket of a key `distance` positions behind the query, of `buckets`: half of them for each side, a quarter for
/// single distances, the rest by their logarithm. As in transformers' MPNet, in single precision.
fn bucket(distance: isize, buckets: usize) -> usize {
    let half = buckets / 2;
    let (side, distance) = (if distance > 0 { half } else { 0 }, distance.unsigned_abs());
    let exact = half / 2;
    if distance < exact || exact == 0 {
        return side + distance.min(half.saturating_sub(1));
    }
    let steps = (distance as f32 / exact as f32).ln() / (FARTHEST / exact as f64).ln() as f32;
    side + (exact + (steps * (half - exact) as f32) as usize).min(half - 1)
}

/// The first row of requests that stand together, and how many rows they have.
fn rows_of(spans: &[Span]) -> (usize, usize) {
    let (first, last) = (spans[0].row, spans[spans.len() - 1]);
    (first, last.row + last.rows - first)
}

/// Takes weights in.
pub(super) struct Loader<'a, B> {
    pub backend: &'a mut B,
    pub loaded: &'a mut dyn FnMut(u64),
    pub arch: &'a Arch,
    pub quantize: Option<Quantize>,
}

impl<B: Backend> Loader<'_, B> {
    pub fn matrix(&mut self, tensor: &Tensor, quantize: Option<Quantize>) -> Result<B::Weight> {
        let weight = self.backend.upload(tensor, quantize)?;
        (self.loaded)(tensor.bytes());
        Ok(weight)
    }

    pub fn linear(
        &mut self,
        (weight, bias): &LinearWeights,
        quantize: Option<Quantize>,
    ) -> Result<Linear<B::Weight>> {
        let bias = bias.as_ref().map(|bias| self.matrix(bias, None)).transpose()?;
        Ok(Linear { weight: self.matrix(weight, quantize)?, bias })
    }

    /// What matrices are quantized to that are multiplied with one operand: as asked, or to eight bits if some of them
    /// are in whole numbers already.
    pub fn together<'w>(&self, weights: impl IntoIterator<Item = &'w LinearWeights>) -> Option<Quantize> {
        let quantized = weights.into_iter().any(|(weight, _)| weight.dtype.is_quantized());
        self.quantize.or(quantized.then_some(Quantize::Q8))
    }

    /// One table of both: (types * positions, hidden).
    fn lookup(&mut self, weights: &LookupWeights) -> Result<Option<B::Weight>> {
        let mut table: Vec<f32> = Vec::new();
        let LookupWeights { positions, types, .. } = weights;
        let mut values = |tensor: &Option<Tensor>| match tensor {
            Some(tensor) => {
                (self.loaded)(tensor.bytes());
                tensor.finite_values().map(Some)
            }
            None => Ok(None),
        };
        let (positions, types) = (values(positions)?, values(types)?);
        let hidden = self.arch.hidden;
        match (positions, types) {
            (None, None) => return Ok(None),
            (Some(one), None) | (None, Some(one)) => table = one,
            (Some(positions), Some(types)) => {
                for part in types.chunks(hidden) {
                    table.extend(positions.iter().zip(part.iter().cycle()).map(|(a, b)| a + b));
                }
            }
        }
        self.backend.upload_table(table, hidden).map(Some)
    }

    /// What each head adds by distance, for texts of up to `context` tokens.
    fn distances(&mut self, buckets: &Tensor, context: usize) -> Result<B::Weight> {
        let values = buckets.finite_values()?;
        (self.loaded)(buckets.bytes());
        let (heads, count) = (self.arch.heads, buckets.shape[0]);
        let reach = (context + BLOCK).next_multiple_of(BLOCK) as isize;
        let of = |head: usize, distance: isize| values[bucket(distance, count) * heads + head];
        let table = (0..heads).flat_map(|head| (-reach..reach).map(move |distance| (head, distance)));
        let table = table.map(|(head, distance)| of(head, distance)).collect();
        self.backend.upload_table(table, 2 * reach as usize)
    }

    pub fn norm(&mut self, weights: &NormWeights) -> Result<Norm<B::Weight>> {
        let mut values = Vec::new();
        for weight in &weights.weight {
            values.extend(weight.finite_values()?);
            (self.loaded)(weight.bytes());
        }
        if self.arch.norm.plus_one {
            values.iter_mut().for_each(|value| *value += 1.0);
        }
        let cols = values.len();
        let weight = (cols > 0).then(|| self.backend.upload_table(values, cols)).transpose()?;
        let bias = weights.bias.as_ref().map(|bias| self.matrix(bias, None)).transpose()?;
        Ok(Norm { kind: weights.kind, eps: self.arch.norm.eps, weight, bias })
    }

    fn layer(
        &mut self,
        weights: &LayerWeights,
        shape: LayerShape,
        additions: &[&Additions],
    ) -> Result<Layer<B::Weight>> {
        let attention_norm = weights.attention_norm.as_ref().map(|norm| self.norm(norm)).transpose()?;
        let mlp_norm = match (&weights.mlp_norm, self.arch.place) {
            (Some(norm), _) => Some(self.norm(norm)?),
            (None, NormPlacement::Parallel) => None,
            (None, _) => Some(Norm::identity()),
        };
        let head_norms = match &weights.head_norms {
            Some([q, k]) => Some([self.norm(q)?, self.norm(k)?]),
            None => None,
        };
        // who reads what the attention is given
        let q_latent = weights.latent.as_ref().and_then(|latent| latent.q_latent.as_ref());
        let first = q_latent.map_or(&weights.q, |(down, _)| down);
        let together = self.together([first, &weights.k, &weights.v]);
        let of_q = if q_latent.is_some() { self.together([&weights.q]) } else { together };
        let q = self.linear(&weights.q, of_q)?;
        let [k, v] = [&weights.k, &weights.v].map(|linear| self.linear(linear, together));
        let (k, v) = (k?, v?);
        let o = self.linear(&weights.o, self.together([&weights.o]))?;
        let latent = match &weights.latent {
            Some(latent) => Some(self.latent(latent, together)?),
            None => None,
        };
        let first = latent.as_ref().and_then(|latent| latent.q_latent.as_ref());
        let asked = first.map_or(&q, |(down, _)| down);
        let (feed, [first, last]) = self.feed(&weights.feed)?;
        let attention = self.backend.form(&[&asked.weight, &k.weight, &v.weight]);
        let forms = Forms {
            attention,
            q: if q_latent.is_some() { self.backend.form(&[&q.weight]) } else { attention },
            o: self.backend.form(&[&o.weight]),
            feed: first,
            down: last,
        };
        let mut adapters = Vec::new();
        for additions in additions {
            adapters.push(self.low_ranks(additions, forms, weights)?);
        }
        Ok(Layer {
            forms,
            adapters,
            attention_norm: attention_norm.unwrap_or_else(Norm::identity),
            latent,
            q,
            k,
            v,
            head_norms,
            o,
            sinks: weights.sinks.as_ref().map(|sinks| self.matrix(sinks, None)).transpose()?,
            attention_post: weights.attention_post.as_ref().map(|norm| self.norm(norm)).transpose()?,
            mlp_norm,
            feed,
            mlp_post: weights.mlp_post.as_ref().map(|norm| self.norm(norm)).transpose()?,
            shape,
        })
    }

    /// What an adapter adds in a layer. Its first matrices read what the layer's own ones read, in the same form.
    fn low_ranks(
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
    fn low_rank(
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

    /// With the forms of its two operands.
    fn feed(&mut self, weights: &FeedWeights) -> Result<(FeedForward<B::Weight>, [OperandType; 2])> {
        match weights {
            FeedWeights::One(mlp) => {
                let first = self.together([&mlp.up].into_iter().chain(&mlp.gate));
                let mlp = self.mlp(mlp, first, self.together([&mlp.down]))?;
                let first = [&mlp.up].into_iter().chain(&mlp.gate).map(|linear| &linear.weight);
                let forms = [first.collect(), vec![&mlp.down.weight]];
                let forms = forms.map(|readers: Vec<_>| self.backend.form(&readers));
                Ok((FeedForward::One(mlp), forms))
            }
            FeedWeights::Moe(mixture) => self.mixture(mixture),
        }
    }

    fn mlp(
        &mut self,
        MlpWeights { gate, up, down }: &MlpWeights,
        first: Option<Quantize>,
        last: Option<Quantize>,
    ) -> Result<Mlp<B::Weight>> {
        let gate = gate.as_ref().map(|gate| self.linear(gate, first)).transpose()?;
        Ok(Mlp { gate, up: self.linear(up, first)?, down: self.linear(down, last)? })
    }

    fn mixture(&mut self, weights: &MixtureWeights) -> Result<(FeedForward<B::Weight>, [OperandType; 2])> {
        let tables = for_tables(self.quantize);
        let router = self.linear(&weights.router, tables)?;
        let correction = match &weights.correction {
            Some(tensor) => {
                (self.loaded)(tensor.bytes());
                let values = tensor.finite_values()?;
                let cols = values.len();
                Some(self.backend.upload_table(values, cols)?)
            }
            None => None,
        };
        let mlps = || weights.experts.iter().chain(&weights.shared);
        let first = self.together(mlps().flat_map(|mlp| [&mlp.up].into_iter().chain(&mlp.gate)));
        let last = self.together(weights.experts.iter().map(|mlp| &mlp.down));
        let experts = weights.experts.iter().map(|expert| {
            let Mlp { gate, up, down } = self.mlp(expert, first, last)?;
            Ok(Expert { gate: gate.expect("experts are gated"), up, down })
        });
        let experts = experts.collect::<Result<Vec<_>>>()?;
        let shared = match &weights.shared {
            Some(mlp) => Some(self.mlp(mlp, first, self.together([&mlp.down]))?),
            None => None,
        };
        let shared_gate = weights.shared_gate.as_ref().map(|gate| self.linear(gate, tables)).transpose()?;
        let backend = &*self.backend;
        let mut readers: Vec<_> =
            experts.iter().flat_map(|expert| [&expert.gate.weight, &expert.up.weight]).collect();
        readers.extend(
            shared.iter().flat_map(|mlp| [&mlp.up].into_iter().chain(&mlp.gate)).map(|up| &up.weight),
        );
        let downs: Vec<_> = experts.iter().map(|expert| &expert.down.weight).collect();
        let forms = [backend.form(&readers), backend.form(&downs)];
        let deciding: Vec<_> =
            [&router].into_iter().chain(&shared_gate).map(|linear| &linear.weight).collect();
        let router_form = backend.form(&deciding);
        let shared_form = shared.as_ref().map_or(OperandType::F32, |mlp| backend.form(&[&mlp.down.weight]));
        let mixture = Moe { router, correction, experts, shared, shared_gate, router_form, shared_form };
        Ok((FeedForward::Moe(mixture), forms))
    }
}

/// The embedding and the output matrix keep eight bits where others have four: every token goes through one row of the
/// one and all of the other, so their errors weigh most. Routers do too: they decide.
pub fn for_tables(quantize: Option<Quantize>) -> Option<Quantize> {
    quantize.map(|_| Quantize::Q8)
}

/// KV blocks that `tokens` positions take.
pub fn blocks_for(tokens: usize) -> usize {
    tokens.div_ceil(BLOCK)
}
