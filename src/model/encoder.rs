//! Texts to embeddings or scores: the layers of a [`Decoder`], then pooling, then what the checkpoint has behind that.
//!
//! A text is computed in one step, all of its rows together, so nothing is cached between steps: one layer's worth of
//! cache serves all layers in turn. Buffers besides the decoder's (N texts of a step):
//! ```text
//! pooled (N, hidden)   one row for each text
//! x, out (N, inputs), (N, outputs)   of each matrix behind it; x is an operand
//! ```

use std::ops::Range;

use super::arch::Arch;
use super::decoder::{Decoder, Limits, Loader, Plan, too_large};
use super::sentence_transformers::SentenceTransformersConfig;
use super::weights::{LinearWeights, StepWeights, Weights};
use crate::backend::{
    Activation, Backend, Batch, Buf, Fence, KvType, Linear, Mask, Norm, OperandType, Pointwise, Pooling,
    Projection, Quantize,
};
use crate::error::{Error, Result};
use crate::memory::BufferLimits;
use crate::weights::Checkpoint;

/// What is behind the pooling.
#[derive(Debug)]
enum Step<W> {
    Dense { linear: Linear<W>, form: OperandType, x: Buf, out: Buf, activation: Option<Activation> },
    Norm(Norm<W>),
}

/// See the module.
#[derive(Debug)]
pub struct Encoder<B: Backend> {
    decoder: Decoder<B>,
    steps: Vec<Step<B::Weight>>,
    pooled: Buf,
}

/// The planned memory of an encoder.
#[derive(Clone, Debug)]
pub struct EncoderPlan {
    plan: Plan,
    pooled: Buf,
    /// What each matrix reads and what it gives.
    steps: Vec<[Buf; 2]>,
}

/// The matrices and norms behind the pooling: those of sentence-transformers, or of a checkpoint that classifies texts.
///
/// # Errors
/// A file or a tensor is missing or of another shape.
pub fn steps(
    arch: &Arch,
    weights: &mut Weights,
    checkpoint: &Checkpoint,
    sentence: &SentenceTransformersConfig,
) -> Result<Vec<StepWeights>> {
    if arch.classifier.is_some() {
        return Ok(std::mem::take(&mut weights.classifier));
    }
    let mut width = arch.hidden;
    let dense = sentence.dense.iter().map(|shape| {
        if shape.inputs != width {
            let expected = format!("{width}: what the module before gives");
            return Err(Error::config(&shape.folder.join("config.json"), "in_features", expected));
        }
        width = shape.outputs;
        if let Some(module) = shape.tensor.and_then(|tensor| tensor.strip_suffix(".weight")) {
            let weight = checkpoint.matrix(module, shape.outputs, shape.inputs)?;
            return Ok(StepWeights::Dense((weight, None), shape.activation));
        }
        let checkpoint = Checkpoint::open(&shape.folder)?;
        let weight = checkpoint.tensor("linear.weight", &[shape.outputs, shape.inputs])?;
        let bias = shape.bias.then(|| checkpoint.tensor("linear.bias", &[shape.outputs])).transpose()?;
        Ok(StepWeights::Dense((weight, bias), shape.activation))
    });
    dense.collect()
}

fn shape((weight, _): &LinearWeights) -> [usize; 2] {
    [weight.shape[1], weight.shape[0]]
}

impl EncoderPlan {
    /// Plans buffers for `limits`, of which the sequences are texts.
    ///
    /// # Errors
    /// The sizes overflow.
    pub fn new<B: Backend>(
        arch: &Arch,
        cache: KvType,
        limits: Limits,
        steps: &[StepWeights],
        device: BufferLimits,
    ) -> Result<Self> {
        let plan = Plan::of_one_layer::<B>(arch, cache, limits, device)?;
        Self::checked(plan, arch, limits, steps).ok_or_else(too_large)
    }

    fn checked(mut plan: Plan, arch: &Arch, limits: Limits, steps: &[StepWeights]) -> Option<Self> {
        let texts = limits.sequences;
        let pooled = Buf::plan(&mut plan.layout, texts, arch.hidden)?;
        let dense = steps.iter().filter_map(|step| match step {
            StepWeights::Dense(linear, _) => Some(shape(linear)),
            StepWeights::Norm(_) => None,
        });
        let steps = dense.map(|[inputs, outputs]| {
            let x = Buf::plan_operand(&mut plan.layout, texts, inputs)?;
            Some([x, Buf::plan(&mut plan.layout, texts, outputs)?])
        });
        let steps = steps.collect::<Option<_>>()?;
        Some(Self { plan, pooled, steps })
    }

    /// Bytes in all.
    pub fn bytes(&self) -> u64 {
        self.plan.bytes()
    }

    /// Bytes of the one layer's cache.
    pub fn kv_bytes(&self) -> u64 {
        self.plan.kv_bytes()
    }
}

impl<B: Backend> Encoder<B> {
    /// Takes the weights in and maps the planned memory. `loaded` is told the bytes of each tensor's file part.
    ///
    /// # Errors
    /// A weight is not finite, or too large to be quantized; the memory is not to be had.
    pub fn new(
        arch: Arch,
        (weights, steps): (&Weights, &[StepWeights]),
        plan: EncoderPlan,
        quantize: Option<Quantize>,
        backend: &mut B,
        mut loaded: impl FnMut(u64),
    ) -> Result<Self> {
        let mut loader = Loader { backend, loaded: &mut loaded, arch: &arch, quantize };
        let mut bufs = plan.steps.iter();
        let steps = steps.iter().map(|step| match step {
            StepWeights::Norm(norm) => Ok(Step::Norm(loader.norm(norm)?)),
            StepWeights::Dense(linear, activation) => {
                // as exact as tables: there is one of each
                let linear = loader.linear(linear, quantize.map(|_| Quantize::Q8))?;
                let form = loader.backend.operand_type(&[&linear.weight]);
                let &[x, out] = bufs.next().expect("planned for each");
                Ok(Step::Dense { linear, form, x, out, activation: *activation })
            }
        });
        let steps = steps.collect::<Result<_>>()?;
        let decoder = Decoder::new(arch, weights, plan.plan, quantize, backend, loaded)?;
        Ok(Self { decoder, steps, pooled: plan.pooled })
    }

    /// Runs one step. [`Batch::position_types`] has a row of [`Encoder::position_type`] for each token; `texts` are the rows that
    /// count of each text, and their results are in rows `0..` of what [`Encoder::read`] reads.
    pub fn forward(
        &self,
        backend: &mut B,
        batch: &Batch<'_>,
        texts: &[Range<u32>],
        pooling: Pooling,
    ) -> Fence {
        backend.submit(batch, |backend| self.record(backend, batch, texts, pooling))
    }

    fn record(&self, backend: &mut B, batch: &Batch<'_>, texts: &[Range<u32>], pooling: Pooling) {
        let x = self.decoder.hidden(backend, batch);
        backend.pool(texts, pooling, x, self.pooled);
        let (rows, mut at) = (texts.len(), self.pooled);
        for step in &self.steps {
            match step {
                Step::Norm(norm) => backend.norm(rows, at, norm, at.cols, at),
                Step::Dense { linear, form, x, out, activation } => {
                    let x = x.of(*form);
                    backend.norm(rows, at, &Norm::identity(), at.cols, x);
                    let (weight, bias) = (&linear.weight, linear.bias.as_ref());
                    backend.linear(rows, x, &[Projection { weight, bias, out: *out, add: None }]);
                    if let Some(activation) = activation {
                        backend.pointwise(rows, *out, Pointwise::Activate(*activation));
                    }
                    at = *out;
                }
            }
        }
    }

    /// Which positions the rows of a text see.
    pub fn mask(&self) -> Mask {
        self.decoder.mask()
    }

    /// See [`Decoder::position_type`].
    pub fn position_type(&self, position: usize, part: usize) -> u32 {
        self.decoder.position_type(position, part)
    }

    fn last(&self) -> Buf {
        let outs = self.steps.iter().filter_map(|step| match step {
            Step::Dense { out, .. } => Some(*out),
            Step::Norm(_) => None,
        });
        outs.last().unwrap_or(self.pooled)
    }

    /// Values of an embedding, or scores of a text.
    pub fn width(&self) -> usize {
        self.last().cols
    }

    /// What a step gave the text.
    pub fn read<'a>(&self, backend: &'a mut B, fence: &Fence, text: usize) -> &'a [f32] {
        backend.read(fence, self.last(), text)
    }

    /// What the layers of a step gave a token.
    pub fn read_hidden<'a>(&self, backend: &'a mut B, fence: &Fence, row: usize) -> &'a [f32] {
        backend.read(fence, self.decoder.hidden_rows(), row)
    }

    /// The buffers that a step of `tokens` rows of `texts` texts writes to, each with its rows.
    pub fn used(&self, tokens: usize, texts: usize) -> impl Iterator<Item = (Buf, usize)> {
        let bufs = self.steps.iter().flat_map(|step| match step {
            Step::Dense { x, out, .. } => [Some(*x), Some(*out)],
            Step::Norm(_) => [None, None],
        });
        let bufs = [Some(self.pooled)].into_iter().chain(bufs).flatten();
        self.decoder.used(tokens, 0).chain(bufs.map(move |buf| (buf, texts)))
    }
}
