//! `config.json`, parsed and checked: from here on all sizes are known to be sane.
//!
//! [`shapes`] has what an [`Arch`] is made of. [`attention`], [`layers`], [`moe`], [`positions`], [`scales`] and
//! [`classifier`] read each a part of config.json; [`Arch::of`] asks them in turn, and the first problem is the error.

mod attention;
mod classifier;
mod layers;
mod moe;
mod positions;
mod scales;
mod shapes;

use std::path::Path;

use self::attention::Heads;
use self::layers::Layers;
use self::scales::number;
use super::families::{self, Bias, FAMILIES, Family, Places};
use super::rope::Rope;
use crate::backend::Activation;
use crate::error::{Error, Result};
use crate::weights::json::Json;

pub use self::shapes::{
    ClassifierShape, HeadNormShape, LatentShape, LayerShape, Moe, NormShape, PositionTypeShape,
};
pub use super::families::NormPlacement;

/// Bounds far above any model; with them no product of sizes below overflows 64 bits.
const MAX_WIDTH: usize = 1 << 20;
const MAX_LAYERS: usize = 1 << 12;
const MAX_VOCAB: usize = 1 << 24;
pub const MAX_CONTEXT: usize = 1 << 31;

/// The shape of a decoder, or of an encoder.
#[derive(Clone, Debug)]
pub struct Arch {
    /// Its row in the table of families.
    pub family: Family,
    /// Values per token between layers.
    pub hidden: usize,
    /// Values per token inside the MLP.
    pub intermediate: usize,
    /// Layers.
    pub layers: usize,
    /// Layers behind them that guess further tokens: they are not read.
    pub further_layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Numbers in a query and in a key of a head, as attention sees them; even.
    pub head_dim: usize,
    /// Numbers in a value of a head, as attention sees them.
    pub value_dim: usize,
    /// Where keys and values are those of a latent.
    pub latent: Option<LatentShape>,
    /// Tokens in the vocabulary.
    pub vocab: usize,
    /// Positions that the model was made for.
    pub context: usize,
    /// Whether rows see what is behind them only.
    pub causal: bool,
    /// The table that is added to embeddings.
    pub position_type: Option<PositionTypeShape>,
    /// Buckets of distances, which add to scores.
    pub buckets: Option<usize>,
    /// Norms of the residual stream.
    pub norm: NormShape,
    /// Where they are.
    pub place: NormPlacement,
    /// Norms of queries and keys.
    pub head_norm: Option<HeadNormShape>,
    /// The rotary embeddings that layers name.
    pub ropes: Vec<Rope>,
    /// Whether neighbours turn together, else values half of the turning ones apart.
    pub interleaved: bool,
    /// What layers differ in: (layers).
    pub shapes: Vec<LayerShape>,
    /// Factor on embeddings.
    pub embed_scale: f32,
    /// Factor on scores.
    pub attention_scale: f32,
    /// Bound on the values of queries, keys and values.
    pub qkv_limit: Option<f32>,
    /// Soft-cap of scores.
    pub softcap: Option<f32>,
    /// Factor on what a branch adds.
    pub residual_scale: f32,
    /// Factor on logits.
    pub logits_scale: f32,
    /// Soft-cap of logits.
    pub logits_cap: Option<f32>,
    /// The activation of the MLP.
    pub activation: Activation,
    /// Whether the head is the embedding table; none where config.json leaves it to what the checkpoint has.
    pub tied: Option<bool>,
    /// Whether q, k and v have biases.
    pub qkv_bias: bool,
    /// Whether o has a bias.
    pub o_bias: bool,
    /// Whether down has a bias.
    pub mlp_bias: bool,
    /// Whether gate and up have biases.
    pub up_bias: bool,
    /// Whether the head has a bias.
    pub head_bias: bool,
    /// Experts, for the layers that have them.
    pub mixture: Option<Moe>,
    /// The classifier of a checkpoint that classifies texts.
    pub classifier: Option<ClassifierShape>,
    /// Tokens that end a reply, from config.json.
    pub eos: Vec<u32>,
}

impl Arch {
    /// Reads `config.json` of a checkpoint, in the spelling of transformers 4 or 5.
    ///
    /// # Errors
    /// The file is unreadable, the `model_type` is unknown, or a field is missing, out of bounds or asks for
    /// what this library does not do; the error names it.
    pub fn open(file: &Path) -> Result<Self> {
        Self::of(Json::open(file)?, |_| ())
    }

    /// Reads an object that is parsed already; `adjust` changes the family's row.
    ///
    /// # Errors
    /// Returns the errors of [`Arch::open`].
    pub fn of(mut json: Json, adjust: impl FnOnce(&mut Family)) -> Result<Self> {
        let found = json.text("model_type")?.unwrap_or("").to_owned();
        let Some(family) = families::find(&found) else {
            let known: Vec<_> = FAMILIES.iter().map(|family| family.model_type).collect();
            return Err(Error::unknown_model_type(&json.file, &found, &known));
        };
        let mut row = *family;
        family.fields.iter().for_each(|(ours, its)| json.read_as(ours, its));
        if let Some(variant) = family.variant {
            variant(&json, &mut row)?;
        }
        adjust(&mut row);
        Self::parse(&json, &row)
    }

    fn parse(json: &Json, family: &Family) -> Result<Self> {
        check_what_we_do(json)?;
        let hidden = json.required_size("hidden_size", MAX_WIDTH)?;
        let layers = json.required_size("num_hidden_layers", MAX_LAYERS)?;
        let Heads { heads, kv_heads, head_dim, latent } = attention::heads(json, family, hidden)?;
        let rope_dim = latent.map_or(head_dim, |latent| latent.rope_dim);
        let Layers { shapes, ropes, mixture } = layers::layers(json, family, layers, rope_dim)?;
        let place = place(json, family)?;
        let causal = attention::causal(json, family)?;
        let (context, position_type) = positions::positions(json, family)?;
        Ok(Self {
            family: *family,
            hidden,
            intermediate: match family.inner {
                (field, 0) => json.required_size(field, MAX_WIDTH)?,
                (field, times) => json.size(field, MAX_WIDTH)?.unwrap_or(times * hidden),
            },
            layers,
            further_layers: json.count("num_nextn_predict_layers", MAX_LAYERS)?.unwrap_or(0),
            heads,
            kv_heads,
            head_dim,
            value_dim: latent.map_or(head_dim, |latent| latent.rank),
            vocab: json.required_size("vocab_size", MAX_VOCAB)?,
            context,
            causal,
            position_type,
            buckets: positions::buckets(json, family)?,
            norm: norm(json, family)?,
            place,
            head_norm: attention::head_norm(json, family)?,
            ropes,
            interleaved: family.interleaved,
            embed_scale: scales::embed(json, family, hidden)?,
            attention_scale: scales::attention(json, family, head_dim, latent)?,
            qkv_limit: scales::bound(json, family.qkv_limit)?,
            softcap: scales::bound(json, family.caps[0])?,
            residual_scale: scales::residual(json, family)?,
            logits_scale: scales::logits(json, family)?,
            logits_cap: scales::bound(json, family.caps[1])?,
            activation: activation(json, family)?,
            tied: match json.is_null("tie_word_embeddings") {
                true => None,
                false => json.flag("tie_word_embeddings", family.tied).map(Some)?,
            },
            qkv_bias: biased(json, family.qkv_bias)?,
            o_bias: biased(json, family.o_bias)?,
            mlp_bias: biased(json, family.mlp_bias)?,
            up_bias: biased(json, family.up_bias.unwrap_or(family.mlp_bias))?,
            head_bias: biased(json, family.head_bias)?,
            mixture,
            classifier: classifier::classifier(json, family)?,
            latent,
            shapes,
            eos: json.token_ids("eos_token_id")?,
        })
    }

    /// Values of all query heads of a token.
    pub fn q_width(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Values of all key heads of a token.
    pub fn k_width(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// Values of all value heads of a token.
    pub fn v_width(&self) -> usize {
        self.kv_heads * self.value_dim
    }

    /// What attention gives for a token.
    pub fn mixed_width(&self) -> usize {
        self.heads * self.value_dim
    }

    /// What the last matrix of the attention takes.
    pub fn o_width(&self) -> usize {
        self.heads * self.latent.map_or(self.value_dim, |latent| latent.value)
    }
}

/// Refuses by name what would otherwise be computed wrongly. The type is that of the tensors; what config.json says is only
/// looked at for types of torch that none of them can have.
fn check_what_we_do(json: &Json) -> Result<()> {
    const KNOWN: [&str; 8] = ["float32", "float16", "bfloat16", "auto", "float", "half", "float64", "double"];
    for field in ["dtype", "torch_dtype"] {
        if let Some(name) = json.text(field)?
            && !KNOWN.contains(&name.strip_prefix("torch.").unwrap_or(name))
        {
            return Err(json.wrong(field, "float32, float16, bfloat16, float64 or auto"));
        }
    }
    Ok(())
}

fn place(json: &Json, family: &Family) -> Result<NormPlacement> {
    Ok(match family.places {
        Places::Always(place) => place,
        Places::If(field, default, place) => match json.flag(field, default)? {
            true => place,
            false => NormPlacement::Pre,
        },
    })
}

fn norm(json: &Json, family: &Family) -> Result<NormShape> {
    let row = &family.norm;
    let eps = number(json, row.eps_field)?.unwrap_or(row.eps as f32);
    Ok(NormShape { kind: row.kind, eps, plus_one: row.plus_one, weight: row.weight, bias: row.bias })
}

/// In the names of transformers' `activations.py`.
fn activation(json: &Json, family: &Family) -> Result<Activation> {
    let (fields, default) = family.activation;
    for field in fields {
        if let Some(name) = json.text(field)? {
            return match name {
                "silu" | "swish" => Ok(Activation::Silu),
                "gelu" => Ok(Activation::Gelu),
                "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" => Ok(Activation::GeluTanh),
                "relu" => Ok(Activation::Relu),
                "relu2" => Ok(Activation::ReluSquared),
                _ => {
                    Err(json
                        .wrong(field, "silu, gelu, gelu_new, gelu_pytorch_tanh, gelu_fast, relu or relu2"))
                }
            };
        }
    }
    match default {
        Activation::Clamped { alpha, limit } => Ok(Activation::Clamped {
            alpha: number(json, "swiglu_alpha")?.unwrap_or(alpha),
            limit: number(json, "swiglu_limit")?.unwrap_or(limit),
        }),
        other => Ok(other),
    }
}

fn biased(json: &Json, bias: Bias) -> Result<bool> {
    match bias {
        Bias::Never => Ok(false),
        Bias::Always => Ok(true),
        Bias::If(field, default) => json.flag(field, default),
    }
}
