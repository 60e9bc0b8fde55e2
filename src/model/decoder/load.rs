//! Weights on their way from a checkpoint to a backend.

use super::{Decoder, FeedForward, Forms, Layer, Mlp, Plan};
use crate::backend::{BLOCK, Backend, Linear, Norm, OperandType, Quantize, RopeTable};
use crate::error::Result;
use crate::model::arch::{Arch, LayerShape, NormPlacement};
use crate::model::weights::{
    Additions, FeedWeights, LayerWeights, LinearWeights, MlpWeights, NormWeights, PositionTypeWeights,
    Weights,
};
use crate::weights::Tensor;

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
        let position_type = loader.position_type(&weights.position_type)?;
        let embed_norm = weights.position_type.norm.as_ref().map(|norm| loader.norm(norm)).transpose()?;
        let relative_bias = match &weights.relative_bias {
            Some(buckets) => Some(loader.relative_bias(buckets, plan.context)?),
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
            Ok(RopeTable { table, dims: rope.dims, interleaved: arch.interleaved })
        });
        let ropes = ropes.collect::<Result<_>>()?;
        let head_form = backend.operand_type(&[head.as_ref().unwrap_or(&embed)]);
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
        let one_layer = plan.kv.shape.layers == 1;
        Ok(Self {
            embed,
            position_type,
            embed_norm,
            relative_bias,
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
}

/// Takes weights in.
pub(in crate::model) struct Loader<'a, B> {
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
    fn position_type(&mut self, weights: &PositionTypeWeights) -> Result<Option<B::Weight>> {
        let mut table: Vec<f32> = Vec::new();
        let PositionTypeWeights { positions, types, .. } = weights;
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
    fn relative_bias(&mut self, buckets: &Tensor, context: usize) -> Result<B::Weight> {
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
        let attention = self.backend.operand_type(&[&asked.weight, &k.weight, &v.weight]);
        let forms = Forms {
            attention,
            q: if q_latent.is_some() { self.backend.operand_type(&[&q.weight]) } else { attention },
            o: self.backend.operand_type(&[&o.weight]),
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

    /// With the forms of its two operands.
    fn feed(&mut self, weights: &FeedWeights) -> Result<(FeedForward<B::Weight>, [OperandType; 2])> {
        match weights {
            FeedWeights::One(mlp) => {
                let first = self.together([&mlp.up].into_iter().chain(&mlp.gate));
                let mlp = self.mlp(mlp, first, self.together([&mlp.down]))?;
                let first = [&mlp.up].into_iter().chain(&mlp.gate).map(|linear| &linear.weight);
                let forms = [first.collect(), vec![&mlp.down.weight]];
                let forms = forms.map(|readers: Vec<_>| self.backend.operand_type(&readers));
                Ok((FeedForward::One(mlp), forms))
            }
            FeedWeights::Moe(mixture) => self.mixture(mixture),
        }
    }

    pub(super) fn mlp(
        &mut self,
        MlpWeights { gate, up, down }: &MlpWeights,
        first: Option<Quantize>,
        last: Option<Quantize>,
    ) -> Result<Mlp<B::Weight>> {
        let gate = gate.as_ref().map(|gate| self.linear(gate, first)).transpose()?;
        Ok(Mlp { gate, up: self.linear(up, first)?, down: self.linear(down, last)? })
    }
}

/// The embedding and the output matrix keep eight bits where others have four: every token goes through one row of the
/// one and all of the other, so their errors weigh most. Routers do too: they decide.
pub fn for_tables(quantize: Option<Quantize>) -> Option<Quantize> {
    quantize.map(|_| Quantize::Q8)
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
