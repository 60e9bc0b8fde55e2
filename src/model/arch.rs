//! `config.json`, parsed and checked: from here on all sizes are known to be sane.

use std::path::Path;

use super::families::{
    self, Bias, EmbedScale, FAMILIES, Family, HeadNorm, LogitsScale, Places, Rotates, Scale, Window,
};
use super::rope::{self, Rope};
use crate::backend::{Activation, NormKind};
use crate::error::{Error, Result};
use crate::weights::json::Json;

pub use super::families::Place;

/// Bounds far above any model; with them no product of sizes below overflows 64 bits.
const MAX_WIDTH: usize = 1 << 20;
const MAX_LAYERS: usize = 1 << 12;
const MAX_VOCAB: usize = 1 << 24;
pub const MAX_CONTEXT: usize = 1 << 31;
/// The attention kernels keep rows of a head on hand: see `backend/cpu/attention.rs`.
const MAX_HEAD_DIM: usize = 512;

/// The shape of a decoder.
#[derive(Clone, Debug)]
pub struct Arch {
    /// Its row in the table of families.
    pub family: &'static Family,
    /// Values per token between layers.
    pub hidden: usize,
    /// Values per token inside the MLP.
    pub intermediate: usize,
    /// Layers.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Values per head; even.
    pub head_dim: usize,
    /// Tokens in the vocabulary.
    pub vocab: usize,
    /// Positions that the model was made for.
    pub context: usize,
    /// Norms of the residual stream.
    pub norm: NormShape,
    /// Where they are.
    pub place: Place,
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
    /// Of the MLP.
    pub activation: Activation,
    /// Whether the head is the embedding table.
    pub tied: bool,
    /// Whether q, k and v have biases.
    pub qkv_bias: bool,
    /// Whether o has a bias.
    pub o_bias: bool,
    /// Whether gate, up and down have biases.
    pub mlp_bias: bool,
    /// Tokens that end a reply, from config.json.
    pub eos: Vec<u32>,
}

/// A norm of the residual stream.
#[derive(Clone, Copy, Debug)]
pub struct NormShape {
    /// What is divided by.
    pub kind: NormKind,
    /// Added below the root.
    pub eps: f32,
    /// Whether one is added to stored weights.
    pub plus_one: bool,
    /// Whether there are weights.
    pub weight: bool,
    /// Whether there are biases.
    pub bias: bool,
}

/// A norm of queries and keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeadNormShape {
    /// Of each head, one weight for all: (head_dim).
    Head {
        /// Whether there is a bias too.
        bias: bool,
    },
    /// Of each head, with weights of its own: (heads, head_dim).
    Heads,
    /// The same in a tensor for each head.
    HeadsApart,
    /// Of all heads together: (heads * head_dim).
    Whole,
}

/// What one layer has that others may not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerShape {
    /// How many positions it looks back over, itself included; none for all.
    pub window: Option<usize>,
    /// Which of [`Arch::ropes`] turns its queries and keys; none for none.
    pub rope: Option<usize>,
}

impl Arch {
    /// Reads `config.json` of a checkpoint, in the spelling of transformers 4 or 5.
    ///
    /// # Errors
    /// The file is unreadable, the `model_type` is unknown, or a field is missing, out of bounds or asks for
    /// what this library does not do; the error names it.
    pub fn open(file: &Path) -> Result<Self> {
        let json = Json::open(file)?;
        let found = json.text("model_type")?.unwrap_or("").to_owned();
        let Some(family) = families::find(&found) else {
            let known: Vec<_> = FAMILIES.iter().map(|family| family.model_type).collect();
            return Err(Error::unknown_model_type(file, &found, &known));
        };
        Self::parse(&json, family)
    }

    fn parse(json: &Json, family: &'static Family) -> Result<Self> {
        check_what_we_do(json)?;
        let hidden = json.required_size("hidden_size", MAX_WIDTH)?;
        let layers = json.required_size("num_hidden_layers", MAX_LAYERS)?;
        let heads = json.required_size("num_attention_heads", MAX_WIDTH)?;
        let kv_heads = json.size("num_key_value_heads", MAX_WIDTH)?.unwrap_or(heads);
        if !heads.is_multiple_of(kv_heads) {
            return Err(
                json.wrong("num_key_value_heads", format!("a divisor of num_attention_heads, {heads}"))
            );
        }
        let head_dim = match json.size("head_dim", MAX_HEAD_DIM)? {
            Some(head_dim) => head_dim,
            None if hidden.is_multiple_of(heads) => hidden / heads,
            None => return Err(json.wrong("head_dim", "given when the heads do not divide hidden_size")),
        };
        if !head_dim.is_multiple_of(2) || head_dim > MAX_HEAD_DIM {
            return Err(json.wrong("head_dim", format!("even and at most {MAX_HEAD_DIM}")));
        }
        if heads * head_dim > MAX_WIDTH {
            return Err(json.wrong("head_dim", format!("so that all heads have at most {MAX_WIDTH} values")));
        }
        let windows = windows(json, family, layers)?;
        let (ropes, of_layers) = rope::of_layers(json, family.partial, head_dim, &windows)?;
        let rotates = rotates(json, family, &windows)?;
        let shapes = windows.iter().zip(of_layers).zip(rotates);
        let shapes = shapes
            .map(|((&window, rope), rotates)| LayerShape { window, rope: rotates.then_some(rope) })
            .collect();
        let place = match family.places {
            Places::Always(place) => place,
            Places::If(field, default, place) => match json.flag(field, default)? {
                true => place,
                false => Place::Pre,
            },
        };
        let cap = |field: Option<&str>| field.map_or(Ok(None), |field| number(json, field));
        let one = |scale: Option<f32>| scale.unwrap_or(1.0);
        Ok(Self {
            family,
            hidden,
            intermediate: json.required_size("intermediate_size", MAX_WIDTH)?,
            layers,
            heads,
            kv_heads,
            head_dim,
            vocab: json.required_size("vocab_size", MAX_VOCAB)?,
            context: rope::context(json)?,
            norm: norm(json, family)?,
            place,
            head_norm: head_norm(json, family)?,
            ropes,
            interleaved: family.interleaved,
            shapes,
            embed_scale: match family.embed_scale {
                EmbedScale::One => 1.0,
                EmbedScale::RootOfHidden => (hidden as f32).sqrt(),
                EmbedScale::Field(field) => one(number(json, field)?),
            },
            attention_scale: match family.scale {
                Scale::HeadDim => (head_dim as f32).sqrt().recip(),
                Scale::RootOf(field) => number(json, field)?.unwrap_or(head_dim as f32).sqrt().recip(),
                Scale::Field(field) => one(number(json, field)?),
            },
            qkv_limit: cap(family.qkv_limit)?,
            softcap: cap(family.caps[0])?,
            residual_scale: one(cap(family.residual_scale)?),
            logits_scale: match family.logits_scale {
                LogitsScale::One => 1.0,
                LogitsScale::Times(field) => one(number(json, field)?),
                LogitsScale::Over(field) => one(number(json, field)?).recip(),
            },
            logits_cap: cap(family.caps[1])?,
            activation: activation(json, family)?,
            tied: json.flag("tie_word_embeddings", family.tied)?,
            qkv_bias: biased(json, family.qkv_bias)?,
            o_bias: biased(json, family.o_bias)?,
            mlp_bias: biased(json, family.mlp_bias)?,
            eos: json.token_ids("eos_token_id")?,
        })
    }

    /// Values of all query heads of a token.
    pub fn q_width(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Values of all key (or value) heads of a token.
    pub fn kv_width(&self) -> usize {
        self.kv_heads * self.head_dim
    }
}

/// A positive number that single precision can hold; none when absent.
fn number(json: &Json, field: &str) -> Result<Option<f32>> {
    let Some(number) = json.positive(field)? else { return Ok(None) };
    let single = number as f32;
    if single.is_normal() {
        Ok(Some(single))
    } else {
        Err(json.wrong(field, "a number that single precision can hold"))
    }
}

fn biased(json: &Json, bias: Bias) -> Result<bool> {
    match bias {
        Bias::Never => Ok(false),
        Bias::Always => Ok(true),
        Bias::If(field, default) => json.flag(field, default),
    }
}

fn norm(json: &Json, family: &Family) -> Result<NormShape> {
    let row = &family.norm;
    let eps = number(json, row.eps_field)?.unwrap_or(row.eps as f32);
    Ok(NormShape { kind: row.kind, eps, plus_one: row.plus_one, weight: row.weight, bias: row.bias })
}

fn head_norm(json: &Json, family: &Family) -> Result<Option<HeadNormShape>> {
    let (there, shape) = match family.head_norm {
        HeadNorm::Never => return Ok(None),
        HeadNorm::Head => (true, HeadNormShape::Head { bias: false }),
        HeadNorm::Heads(field) => (json.flag(field, false)?, HeadNormShape::Heads),
        HeadNorm::HeadsApart(field) => (json.flag(field, false)?, HeadNormShape::HeadsApart),
        HeadNorm::HeadBiased(field) => (json.flag(field, false)?, HeadNormShape::Head { bias: true }),
        HeadNorm::Whole => (true, HeadNormShape::Whole),
    };
    Ok(there.then_some(shape))
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
    Ok(default)
}

/// Refuses by name what would otherwise be computed wrongly.
fn check_what_we_do(json: &Json) -> Result<()> {
    for field in ["dtype", "torch_dtype"] {
        if let Some(name) = json.text(field)?
            && !["float32", "float16", "bfloat16"].contains(&name)
        {
            return Err(json.wrong(field, "float32, float16 or bfloat16"));
        }
    }
    if json.field("quantization_config").is_some() {
        return Err(json.wrong("quantization_config", "absent: quantized checkpoints are not supported yet"));
    }
    Ok(())
}

/// Per layer, from `layer_types` if given, else by the family's rule.
fn windows(json: &Json, family: &Family, layers: usize) -> Result<Vec<Option<usize>>> {
    let window = json.size("sliding_window", MAX_CONTEXT)?;
    if family.window == Window::Never || window.is_none() {
        return Ok(vec![None; layers]);
    }
    if let Some(types) = json.field("layer_types") {
        let one = |value: &serde_json::Value| match value.as_str() {
            Some("full_attention") => Some(None),
            Some("sliding_attention") => Some(window),
            _ => None,
        };
        let list: Option<Vec<_>> = types.as_array().and_then(|list| list.iter().map(one).collect());
        return list.filter(|list| list.len() == layers).ok_or_else(|| {
            json.wrong("layer_types", format!("a list of {layers}, each full_attention or sliding_attention"))
        });
    }
    let slides: Box<dyn Fn(usize) -> bool> = match family.window {
        Window::Never => Box::new(|_| false),
        Window::Always => Box::new(|_| true),
        Window::Upper => {
            let first = match json.flag("use_sliding_window", false)? {
                true => json.size("max_window_layers", MAX_LAYERS)?.unwrap_or(0),
                false => layers,
            };
            Box::new(move |layer| layer >= first)
        }
        Window::Pattern(field, default) => {
            let pattern = json.size(field, MAX_LAYERS)?.unwrap_or(default);
            Box::new(move |layer| !(layer + 1).is_multiple_of(pattern))
        }
    };
    Ok((0..layers).map(|layer| window.filter(|_| slides(layer))).collect())
}

/// Per layer: whether it rotates queries and keys.
fn rotates(json: &Json, family: &Family, windows: &[Option<usize>]) -> Result<Vec<bool>> {
    let layers = windows.len();
    match family.rotates {
        Rotates::All => Ok(vec![true; layers]),
        Rotates::Sliding if windows.iter().all(Option::is_none) => Ok(vec![true; layers]),
        Rotates::Sliding => Ok(windows.iter().map(Option::is_some).collect()),
        Rotates::Listed => {
            let Some(list) = json.field("no_rope_layers") else {
                let interval = json.size("no_rope_layer_interval", MAX_LAYERS)?.unwrap_or(4);
                return Ok((0..layers).map(|layer| !(layer + 1).is_multiple_of(interval)).collect());
            };
            let one =
                |value: &serde_json::Value| value.as_u64().filter(|&flag| flag < 2).map(|flag| flag == 1);
            let list: Option<Vec<_>> = list.as_array().and_then(|list| list.iter().map(one).collect());
            list.filter(|list| list.len() == layers)
                .ok_or_else(|| json.wrong("no_rope_layers", format!("a list of {layers}, each 0 or 1")))
        }
    }
}
