//! The one forward pass of causal language models.
//!
//! Buffers, all planned before the first request (T tokens of a step, R rows of logits):
//! ```text
//! x      (T, hidden)              the residual stream
//! xb     (T, hidden)              a normed copy inside a branch, as an operand
//! q      (T, heads * head_dim)    queries
//! att    (T, heads * head_dim)    attention output, as an operand
//! k, v   (T, kv_heads * head_dim) keys and values on their way into the cache
//! inner  (T, intermediate)        the MLP's gated activations, as an operand
//! last   (R, hidden)              the rows whose logits are wanted
//! logits (R, vocab)
//! ```
//! Operands are written by one verb for the matrix product of the next, in the form that the backend's kernels want.

use super::arch::Arch;
use super::families::names;
use crate::backend::{Attention, BLOCK, Backend, Batch, Buf, Kv, KvType, Linear, Projection, Quantize};
use crate::error::{Error, Result};
use crate::memory::{Layout, Scrubbed};
use crate::weights::{Checkpoint, Dtype, Tensor};

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

fn to<W>(linear: &Linear<W>, out: Buf) -> Projection<'_, W> {
    Projection { weight: &linear.weight, bias: linear.bias.as_ref(), out, accumulate: false }
}

fn add_to<W>(linear: &Linear<W>, out: Buf) -> Projection<'_, W> {
    Projection { accumulate: true, ..to(linear, out) }
}

#[derive(Debug)]
struct Layer<W> {
    attention_norm: W,
    q: Linear<W>,
    k: Linear<W>,
    v: Linear<W>,
    o: Linear<W>,
    mlp_norm: W,
    gate: Linear<W>,
    up: Linear<W>,
    down: Linear<W>,
    window: Option<usize>,
}

#[derive(Clone, Copy, Debug)]
struct Buffers {
    x: Buf,
    xb: Buf,
    q: Buf,
    att: Buf,
    k: Buf,
    v: Buf,
    inner: Buf,
    last: Buf,
    logits: Buf,
}

/// The tensors of a checkpoint, found and of the right shapes, before a backend takes them in.
#[derive(Debug)]
pub struct Weights {
    embed: Tensor,
    layers: Vec<LayerWeights>,
    norm: Tensor,
    head: Option<Tensor>,
}

type LinearWeights = (Tensor, Option<Tensor>);

#[derive(Debug)]
struct LayerWeights {
    norms: [Tensor; 2],
    /// q, k, v, o, gate, up, down.
    linears: [LinearWeights; 7],
}

impl Weights {
    /// Finds every tensor that `arch` asks for.
    ///
    /// # Errors
    /// One is missing, or of another shape or type; the error names it.
    pub fn find(arch: &Arch, checkpoint: &Checkpoint) -> Result<Self> {
        let embed = checkpoint.tensor(names::EMBED, &[arch.vocab, arch.hidden])?;
        let head = match arch.tied {
            true => None,
            false => Some(checkpoint.tensor(names::HEAD, &[arch.vocab, arch.hidden])?),
        };
        let norm = checkpoint.tensor(names::NORM, &[arch.hidden])?;
        let layers = (0..arch.layers)
            .map(|layer| LayerWeights::find(arch, checkpoint, layer))
            .collect::<Result<_>>()?;
        Ok(Self { embed, layers, norm, head })
    }

    /// All tensors.
    pub fn iter(&self) -> impl Iterator<Item = &Tensor> {
        let layers = self.layers.iter().flat_map(LayerWeights::iter);
        [&self.embed, &self.norm].into_iter().chain(&self.head).chain(layers)
    }

    /// Bytes of all tensors in their files.
    pub fn file_bytes(&self) -> u64 {
        self.iter().map(|tensor| tensor.bytes().len() as u64).sum()
    }

    /// Bytes of memory that `B` takes for all tensors.
    pub fn bytes<B: Backend>(&self, quantize: Option<Quantize>) -> u64 {
        let tables = [&self.embed].into_iter().chain(&self.head);
        let tables: u64 = tables.map(|tensor| B::weight_bytes(tensor, for_tables(quantize))).sum();
        let layers = self.layers.iter().flat_map(LayerWeights::iter).chain([&self.norm]);
        tables + layers.map(|tensor| B::weight_bytes(tensor, quantize)).sum::<u64>()
    }

    /// The type of the embedding table: that of activations in the checkpoint's own framework, and of the cache.
    pub fn dtype(&self) -> Dtype {
        self.embed.dtype
    }
}

/// The embedding and the output matrix keep eight bits where others have four: every token goes through one row of the
/// one and all of the other, so their errors weigh most.
fn for_tables(quantize: Option<Quantize>) -> Option<Quantize> {
    quantize.map(|_| Quantize::Q8)
}

impl LayerWeights {
    fn iter(&self) -> impl Iterator<Item = &Tensor> {
        let linears = self.linears.iter().flat_map(|(weight, bias)| std::iter::once(weight).chain(bias));
        self.norms.iter().chain(linears)
    }

    fn find(arch: &Arch, checkpoint: &Checkpoint, layer: usize) -> Result<Self> {
        let path = |name: &str| format!("model.layers.{layer}.{name}");
        let norm = |name| checkpoint.tensor(&path(name), &[arch.hidden]);
        let linear = |name: &str, rows, cols, biased| -> Result<LinearWeights> {
            let weight = checkpoint.tensor(&format!("{}.weight", path(name)), &[rows, cols])?;
            let bias = match biased {
                true => Some(checkpoint.tensor(&format!("{}.bias", path(name)), &[rows])?),
                false => None,
            };
            Ok((weight, bias))
        };
        let (hidden, inner, q, kv) = (arch.hidden, arch.intermediate, arch.q_width(), arch.kv_width());
        Ok(Self {
            norms: [norm(names::ATTENTION_NORM)?, norm(names::MLP_NORM)?],
            linears: [
                linear(names::Q, q, hidden, arch.qkv_bias)?,
                linear(names::K, kv, hidden, arch.qkv_bias)?,
                linear(names::V, kv, hidden, arch.qkv_bias)?,
                linear(names::O, hidden, q, arch.o_bias)?,
                linear(names::GATE, inner, hidden, arch.mlp_bias)?,
                linear(names::UP, inner, hidden, arch.mlp_bias)?,
                linear(names::DOWN, hidden, inner, arch.mlp_bias)?,
            ],
        })
    }
}

/// A decoder on a backend: weights taken in, buffers planned. See the module.
#[derive(Debug)]
pub struct Decoder<B: Backend> {
    arch: Arch,
    embed: B::Weight,
    layers: Vec<Layer<B::Weight>>,
    norm: B::Weight,
    head: Option<B::Weight>,
    rope: B::Weight,
    buffers: Buffers,
}

/// The planned memory of a decoder.
#[derive(Clone, Debug)]
pub struct Plan {
    layout: Layout,
    buffers: Buffers,
    kv: Kv,
    /// Positions of one request.
    context: usize,
}

impl Plan {
    /// Plans buffers and cache for `limits`.
    ///
    /// # Errors
    /// The sizes overflow.
    pub fn new(arch: &Arch, cache: KvType, limits: Limits) -> Result<Self> {
        Self::checked(arch, cache, limits).ok_or_else(|| Error::Memory {
            needed: u64::MAX,
            what: "activations and KV cache",
            limit: "that does not fit the address space".into(),
        })
    }

    fn checked(arch: &Arch, cache: KvType, limits: Limits) -> Option<Self> {
        let mut layout = Layout::default();
        let (tokens, outputs) = (limits.step_tokens, limits.outputs);
        let buffers = Buffers {
            x: Buf::plan(&mut layout, tokens, arch.hidden)?,
            xb: Buf::plan_operand(&mut layout, tokens, arch.hidden)?,
            q: Buf::plan(&mut layout, tokens, arch.q_width())?,
            att: Buf::plan_operand(&mut layout, tokens, arch.q_width())?,
            k: Buf::plan(&mut layout, tokens, arch.kv_width())?,
            v: Buf::plan(&mut layout, tokens, arch.kv_width())?,
            inner: Buf::plan_operand(&mut layout, tokens, arch.intermediate)?,
            last: Buf::plan(&mut layout, outputs, arch.hidden)?,
            logits: Buf::plan(&mut layout, outputs, arch.vocab)?,
        };
        let block_bytes = Kv::block_bytes(cache, arch.layers, arch.kv_heads, arch.head_dim)?;
        let region = layout.region(block_bytes.checked_mul(limits.blocks)?)?;
        let kv = Kv { region, cache, layers: arch.layers, kv_heads: arch.kv_heads, head_dim: arch.head_dim };
        let rope_bytes = limits.context.checked_mul(arch.head_dim)?.checked_mul(size_of::<f32>())?;
        layout.bytes().checked_add(rope_bytes)?;
        Some(Self { layout, buffers, kv, context: limits.context })
    }

    /// Bytes of the KV cache.
    pub fn kv_bytes(&self) -> u64 {
        self.kv.region.bytes() as u64
    }

    /// Bytes in all, with the table of rope angles: that is on the heap, since it holds no content.
    pub fn bytes(&self) -> u64 {
        (self.layout.bytes() + self.context * self.kv.head_dim * size_of::<f32>()) as u64
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
        let mut upload = |tensor: &Tensor, quantize| {
            let weight = backend.upload(tensor, quantize)?;
            loaded(tensor.bytes().len() as u64);
            Ok::<_, Error>(weight)
        };
        let embed = upload(&weights.embed, for_tables(quantize))?;
        let norm = upload(&weights.norm, None)?;
        let head = weights.head.as_ref().map(|head| upload(head, for_tables(quantize))).transpose()?;
        let mut layers = Vec::with_capacity(arch.layers);
        for (weights, &window) in weights.layers.iter().zip(&arch.windows) {
            let [attention_norm, mlp_norm] = &weights.norms;
            let (attention_norm, mlp_norm) = (upload(attention_norm, None)?, upload(mlp_norm, None)?);
            let mut linear = |index: usize| {
                let (weight, bias) = &weights.linears[index];
                let bias = bias.as_ref().map(|bias| upload(bias, None)).transpose()?;
                Ok::<_, Error>(Linear { weight: upload(weight, quantize)?, bias })
            };
            let [q, k, v, o] = [linear(0)?, linear(1)?, linear(2)?, linear(3)?];
            let [gate, up, down] = [linear(4)?, linear(5)?, linear(6)?];
            layers.push(Layer { attention_norm, q, k, v, o, mlp_norm, gate, up, down, window });
        }
        let rope = backend.upload_table(arch.rope.table(arch.head_dim, plan.context), arch.head_dim);
        backend.reserve(plan.layout, plan.kv)?;
        Ok(Self { arch, embed, layers, norm, head, rope, buffers: plan.buffers })
    }

    /// Runs one step: every token of `batch` through all layers, its keys and values into the cache, and the logits
    /// of `batch.outputs` into rows `0..` that [`Decoder::logits`] reads.
    pub fn forward(&self, backend: &mut B, batch: &Batch<'_>) {
        let Buffers { x, xb, q, att, k, v, inner, last, logits } = self.buffers;
        let (rows, eps) = (batch.ids.len(), self.arch.norm_eps);
        let scale = (self.arch.head_dim as f32).sqrt().recip();

        backend.embed(batch.ids, &self.embed, x);
        for (index, layer) in self.layers.iter().enumerate() {
            // attention, added to the residual stream
            backend.rms_norm(rows, x, &layer.attention_norm, eps, xb);
            backend.linear(rows, xb, &[to(&layer.q, q), to(&layer.k, k), to(&layer.v, v)]);
            backend.rope_store(batch, index, q, k, v, &self.rope);
            let (heads, window) = (self.arch.heads, layer.window);
            let shape = Attention { layer: index, heads, window, scale, softcap: None };
            backend.attention(batch, shape, q, att);
            backend.linear(rows, att, &[add_to(&layer.o, x)]);
            // gated MLP, added to the residual stream
            backend.rms_norm(rows, x, &layer.mlp_norm, eps, xb);
            backend.gated(rows, xb, &layer.gate, &layer.up, inner);
            backend.linear(rows, inner, &[add_to(&layer.down, x)]);
        }
        if batch.outputs.is_empty() {
            return;
        }
        // logits only of the rows that somebody reads
        let outputs = batch.outputs.len();
        backend.gather(batch.outputs, x, last);
        backend.rms_norm(outputs, last, &self.norm, eps, xb);
        let head = self.head.as_ref().unwrap_or(&self.embed);
        backend.linear(
            outputs,
            xb,
            &[Projection { weight: head, bias: None, out: logits, accumulate: false }],
        );
    }

    /// The logits of output `row` of the last step: (vocab).
    pub fn logits<'a>(&self, backend: &'a mut B, row: usize) -> &'a [f32] {
        backend.read(self.buffers.logits, row)
    }

    /// The embedding table.
    #[cfg(feature = "testing")]
    pub fn embedding(&self) -> &B::Weight {
        &self.embed
    }

    /// Overwrites the activations of `tokens` rows and the logits of `outputs` rows. Returns how many regions too.
    pub fn scrub(&self, backend: &mut B, tokens: usize, outputs: usize) -> (u64, Scrubbed) {
        let Buffers { x, xb, q, att, k, v, inner, last, logits } = self.buffers;
        let rows = [x, xb, q, att, k, v, inner].map(|buf| (buf, tokens)).into_iter();
        let rows = rows.chain([(last, outputs), (logits, outputs)]);
        rows.fold((0, Scrubbed::nothing()), |(regions, sum), (buf, rows)| {
            (regions + 1, sum.and(backend.scrub(buf, rows)))
        })
    }
}

/// KV blocks that `tokens` positions take.
pub fn blocks_for(tokens: usize) -> usize {
    tokens.div_ceil(BLOCK)
}
