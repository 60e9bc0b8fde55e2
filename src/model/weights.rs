//! The tensors of a checkpoint, found under their family's names and of the right shapes, before a backend takes them in.

use super::arch::{Arch, HeadNormShape, Place};
use super::decoder::for_tables;
use super::families::{Inner, Qkv};
use crate::backend::{Backend, NormKind, Quantize};
use crate::error::Result;
use crate::weights::{Checkpoint, Dtype, Tensor};

/// See the module.
#[derive(Debug)]
pub struct Weights {
    pub embed: Tensor,
    pub layers: Vec<LayerWeights>,
    pub norm: NormWeights,
    pub head: Option<Tensor>,
    pub head_bias: Option<Tensor>,
}

/// A matrix and its bias.
pub type LinearWeights = (Tensor, Option<Tensor>);

/// What a norm has.
#[derive(Debug)]
pub struct NormWeights {
    pub kind: NormKind,
    /// One, or one for each head; none where there are no weights.
    pub weight: Vec<Tensor>,
    pub bias: Option<Tensor>,
}

impl NormWeights {
    fn iter(&self) -> impl Iterator<Item = &Tensor> {
        self.weight.iter().chain(&self.bias)
    }
}

/// The tensors of a layer.
#[derive(Debug)]
pub struct LayerWeights {
    pub attention_norm: Option<NormWeights>,
    pub attention_post: Option<NormWeights>,
    pub mlp_norm: Option<NormWeights>,
    pub mlp_post: Option<NormWeights>,
    pub head_norms: Option<[NormWeights; 2]>,
    pub q: LinearWeights,
    pub k: LinearWeights,
    pub v: LinearWeights,
    pub o: LinearWeights,
    pub gate: Option<LinearWeights>,
    pub up: LinearWeights,
    pub down: LinearWeights,
}

impl Weights {
    /// Finds every tensor that `arch` asks for.
    ///
    /// # Errors
    /// One is missing, or of another shape or type; the error names it.
    pub fn find(arch: &Arch, checkpoint: &Checkpoint) -> Result<Self> {
        let (finder, names) = (Finder { arch, checkpoint, layer: String::new() }, &arch.family.names);
        let table = [arch.vocab, arch.hidden];
        let embed = checkpoint.tensor(&format!("{}.weight", names.embed), &table)?;
        let head = match arch.tied {
            true => None,
            false => Some(checkpoint.tensor(&format!("{}.weight", names.head), &table)?),
        };
        let head_bias = match arch.family.head_bias {
            true => Some(checkpoint.tensor(&format!("{}.bias", names.head), &[arch.vocab])?),
            false => None,
        };
        let norm = finder.norm(names.norm)?;
        let layers = (0..arch.layers)
            .map(|layer| Finder { layer: format!("{}{layer}.", names.layers), ..finder }.layer());
        Ok(Self { embed, layers: layers.collect::<Result<_>>()?, norm, head, head_bias })
    }

    /// All tensors.
    pub fn iter(&self) -> impl Iterator<Item = &Tensor> {
        let layers = self.layers.iter().flat_map(LayerWeights::iter);
        let tables = [&self.embed].into_iter().chain(&self.head).chain(&self.head_bias);
        tables.chain(self.norm.iter()).chain(layers)
    }

    /// Bytes of all tensors in their files.
    pub fn file_bytes(&self) -> u64 {
        self.iter().map(Tensor::bytes).sum()
    }

    /// Bytes of memory that `B` takes for all tensors.
    pub fn bytes<B: Backend>(&self, quantize: Option<Quantize>) -> u64 {
        let tables = [&self.embed].into_iter().chain(&self.head);
        let tables: u64 = tables.map(|tensor| B::weight_bytes(tensor, for_tables(quantize))).sum();
        let layers = self.layers.iter().flat_map(LayerWeights::iter);
        let others = layers.chain(self.norm.iter()).chain(&self.head_bias);
        tables + others.map(|tensor| B::weight_bytes(tensor, quantize)).sum::<u64>()
    }

    /// The type of the embedding table: that of activations in the checkpoint's own framework, and of the cache.
    pub fn dtype(&self) -> Dtype {
        self.embed.dtype
    }
}

impl LayerWeights {
    fn iter(&self) -> impl Iterator<Item = &Tensor> {
        let Self { attention_norm, attention_post, mlp_norm, mlp_post, head_norms, .. } = self;
        let norms = [attention_norm, attention_post, mlp_norm, mlp_post].into_iter().flatten();
        let norms = norms.chain(head_norms.iter().flatten()).flat_map(NormWeights::iter);
        let linears =
            [&self.q, &self.k, &self.v, &self.o, &self.up, &self.down].into_iter().chain(&self.gate);
        norms.chain(linears.flat_map(|(weight, bias)| std::iter::once(weight).chain(bias)))
    }
}

/// Finds tensors below a prefix.
struct Finder<'a> {
    arch: &'a Arch,
    checkpoint: &'a Checkpoint,
    layer: String,
}

impl Finder<'_> {
    fn layer(&self) -> Result<LayerWeights> {
        let (arch, names) = (self.arch, &self.arch.family.names);
        let (hidden, inner) = (arch.hidden, arch.intermediate);
        let [q, k, v] = self.qkv()?;
        let (gate, up) = match names.inner {
            Inner::Gated([gate, up]) => {
                let [gate, up] = [gate, up].map(|name| self.linear(name, inner, hidden, arch.mlp_bias));
                (Some(gate?), up?)
            }
            Inner::Joined(name) => {
                let both = self.linear(name, 2 * inner, hidden, arch.mlp_bias)?;
                (Some(part(&both, 0, inner, inner, inner)), part(&both, inner, inner, inner, inner))
            }
            Inner::Plain(name) => (None, self.linear(name, inner, hidden, arch.mlp_bias)?),
        };
        Ok(LayerWeights {
            attention_norm: self.norm_if(names.attention_norm)?,
            attention_post: self.norm_if(names.attention_post)?,
            mlp_norm: match arch.place {
                Place::Parallel => None,
                _ => self.norm_if(names.mlp_norm)?,
            },
            mlp_post: self.norm_if(names.mlp_post)?,
            head_norms: self.head_norms()?,
            q,
            k,
            v,
            o: self.linear(names.o, hidden, arch.q_width(), arch.o_bias)?,
            gate,
            up,
            down: self.linear(names.down, hidden, inner, arch.mlp_bias)?,
        })
    }

    fn qkv(&self) -> Result<[LinearWeights; 3]> {
        let (hidden, bias) = (self.arch.hidden, self.arch.qkv_bias);
        let (q, kv) = (self.arch.q_width(), self.arch.kv_width());
        match self.arch.family.names.qkv {
            Qkv::Apart([a, b, c]) => Ok([
                self.linear(a, q, hidden, bias)?,
                self.linear(b, kv, hidden, bias)?,
                self.linear(c, kv, hidden, bias)?,
            ]),
            Qkv::Joined(name) => {
                let all = self.linear(name, q + 2 * kv, hidden, bias)?;
                Ok([(0, q), (q, kv), (q + kv, kv)].map(|(first, rows)| part(&all, first, rows, rows, rows)))
            }
            Qkv::ByHead(name) => {
                let all = self.linear(name, q + 2 * kv, hidden, bias)?;
                let (queries, dim) = (q / self.arch.kv_heads, self.arch.head_dim);
                let stride = queries + 2 * dim;
                Ok([
                    part(&all, 0, queries, stride, q),
                    part(&all, queries, dim, stride, kv),
                    part(&all, queries + dim, dim, stride, kv),
                ])
            }
        }
    }

    fn head_norms(&self) -> Result<Option<[NormWeights; 2]>> {
        let Some(shape) = self.arch.head_norm else { return Ok(None) };
        let (arch, names) = (self.arch, self.arch.family.names.head_norms);
        let one = |name: &str, heads: usize| -> Result<NormWeights> {
            let dims = match shape {
                HeadNormShape::Head { .. } | HeadNormShape::HeadsApart => vec![arch.head_dim],
                HeadNormShape::Heads => vec![heads, arch.head_dim],
                HeadNormShape::Whole => vec![heads * arch.head_dim],
            };
            let name = format!("{}{name}", self.layer);
            let bias = match shape {
                HeadNormShape::Head { bias: true } => {
                    Some(self.checkpoint.tensor(&format!("{name}.bias"), &dims)?)
                }
                _ => None,
            };
            let names = match shape {
                HeadNormShape::HeadsApart => {
                    (0..heads).map(|head| format!("{name}.norms.{head}.weight")).collect()
                }
                _ => vec![format!("{name}.weight")],
            };
            let weight =
                names.iter().map(|name| self.checkpoint.tensor(name, &dims)).collect::<Result<_>>()?;
            Ok(NormWeights { kind: arch.norm.kind, weight, bias })
        };
        Ok(Some([one(names[0], arch.heads)?, one(names[1], arch.kv_heads)?]))
    }

    /// A norm of the residual stream; none without a name.
    fn norm_if(&self, name: &str) -> Result<Option<NormWeights>> {
        if name.is_empty() { Ok(None) } else { self.norm(name).map(Some) }
    }

    fn norm(&self, name: &str) -> Result<NormWeights> {
        let norm = self.arch.norm;
        let find = |suffix: &str, there: bool| match there {
            true => self
                .checkpoint
                .tensor(&format!("{}{name}.{suffix}", self.layer), &[self.arch.hidden])
                .map(Some),
            false => Ok(None),
        };
        Ok(NormWeights {
            kind: norm.kind,
            weight: find("weight", norm.weight)?.into_iter().collect(),
            bias: find("bias", norm.bias)?,
        })
    }

    fn linear(&self, name: &str, rows: usize, cols: usize, bias: bool) -> Result<LinearWeights> {
        let name = format!("{}{name}", self.layer);
        let weight = self.checkpoint.tensor(&format!("{name}.weight"), &[rows, cols])?;
        let bias = match bias {
            true => Some(self.checkpoint.tensor(&format!("{name}.bias"), &[rows])?),
            false => None,
        };
        Ok((weight, bias))
    }
}

/// As [`Tensor::part`], of a matrix and its bias.
fn part(
    (weight, bias): &LinearWeights,
    first: usize,
    group: usize,
    stride: usize,
    rows: usize,
) -> LinearWeights {
    let part = |tensor: &Tensor| tensor.part(first, group, stride, rows);
    (part(weight), bias.as_ref().map(part))
}
