//! `config.json`, parsed and checked: from here on all sizes are known to be sane.

use std::path::Path;

use super::families::{
    self, Bias, Causal, EmbedScale, FAMILIES, Family, HeadNorm, HeadStep, KvHeads, LogitsScale,
    MixtureLayers, MixtureRow, Places, Qkv, RopeLayers, Scale, Score, Shared, Window,
};
use super::rope::{self, Rope};
use crate::backend::packed::LANES;
use crate::backend::{Activation, Groups, NormKind, Pooling, Routing, Scoring};
use crate::error::{Error, Result};
use crate::weights::json::{Json, whole};

pub use super::families::NormPlacement;

/// Bounds far above any model; with them no product of sizes below overflows 64 bits.
const MAX_WIDTH: usize = 1 << 20;
const MAX_LAYERS: usize = 1 << 12;
const MAX_VOCAB: usize = 1 << 24;
pub const MAX_CONTEXT: usize = 1 << 31;
/// The attention kernels keep rows of a head on hand: see `backend/cpu/attention.rs`.
const MAX_HEAD_DIM: usize = 512;
/// The router keeps the scores of groups on hand: see `backend/cpu/route.rs`.
const MAX_EXPERTS: usize = 1 << 12;
const MAX_LABELS: usize = 1 << 16;
const MAX_BUCKETS: usize = 1 << 10;
const MAX_TYPES: usize = 16;

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
    pub lookup: Option<LookupShape>,
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

/// A mixture of experts.
#[derive(Clone, Copy, Debug)]
pub struct Moe {
    /// Its row in the table of families.
    pub row: MixtureRow,
    /// Experts.
    pub experts: usize,
    /// Values per token inside one.
    pub inner: usize,
    /// How tokens choose them.
    pub routing: Routing,
    /// Values per token inside the expert that all share.
    pub shared: Option<usize>,
}

/// Multi-head latent attention. What is cached for a position is one key for all heads, the part that turns and the latent,
/// and one value, the latent: the matrices that would make keys and values of heads of it are multiplied with queries and
/// with what attention gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LatentShape {
    /// Numbers in the latent of queries, where they have one.
    pub q_rank: Option<usize>,
    /// Numbers in the latent of keys and values.
    pub rank: usize,
    /// Values of a head's query that do not turn.
    pub still: usize,
    /// And those that do.
    pub turning: usize,
    /// Numbers in a head's value.
    pub value: usize,
}

/// What a checkpoint for classifying texts has behind its layers.
#[derive(Clone, Debug)]
pub struct ClassifierShape {
    /// Which rows count.
    pub pooling: Pooling,
    /// Scores of a text.
    pub labels: usize,
    /// Whether each step has a bias.
    pub biases: Vec<bool>,
}

/// The tables that are added to embeddings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LookupShape {
    /// Rows before that of the first position.
    pub skipped: usize,
    /// Positions; none where that table is not there.
    pub positions: Option<usize>,
    /// Parts of a pair of texts; none where that table is not there.
    pub types: Option<usize>,
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
    /// A norm of each head, with one weight for all: (head_dim).
    Head {
        /// Whether there is a bias too.
        bias: bool,
    },
    /// A norm of each head, with weights of its own: (heads, head_dim).
    Heads,
    /// A norm of each head, in a tensor for each.
    HeadsApart,
    /// One norm over all heads together: (heads * head_dim).
    Whole,
}

/// What one layer has that others may not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerShape {
    /// How many positions it looks back over, itself included; none for all.
    pub window: Option<usize>,
    /// Which of [`Arch::ropes`] turns its queries and keys; none for none.
    pub rope: Option<usize>,
    /// Whether it has experts.
    pub mixture: bool,
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
        Self::parse(&json, row)
    }

    fn parse(json: &Json, row: Family) -> Result<Self> {
        let family = &row;
        check_what_we_do(json)?;
        let hidden = json.required_size("hidden_size", MAX_WIDTH)?;
        let layers = json.required_size("num_hidden_layers", MAX_LAYERS)?;
        let heads = json.required_size("num_attention_heads", MAX_WIDTH)?;
        let kv_heads = match family.kv_heads {
            KvHeads::One => 1,
            KvHeads::All => heads,
            KvHeads::Field(field) => match json.size(field, MAX_WIDTH)? {
                None => heads,
                Some(kv_heads) if heads.is_multiple_of(kv_heads) => kv_heads,
                Some(_) => {
                    return Err(json.wrong(field, format!("a divisor of num_attention_heads, {heads}")));
                }
            },
        };
        let latent = match family.names.qkv {
            Qkv::Latent { .. } => Some(latent(json, heads)?),
            _ => None,
        };
        let head_dim = match latent {
            Some(latent) => latent.rank + latent.turning,
            None => head_dim(json, hidden, heads)?,
        };
        let windows = windows(json, family, layers)?;
        let turning = latent.map_or(head_dim, |latent| latent.turning);
        let (ropes, of_layers) = rope::of_layers(json, (family.partial, family.theta), turning, &windows)?;
        let rotates = rotates(json, family, &windows)?;
        let mixture = family.mixture.as_ref().map(|row| mixture(json, row)).transpose()?;
        let of_experts = match &family.mixture {
            Some(row) => mixture_layers(json, row, layers)?,
            None => vec![false; layers],
        };
        let shapes = windows.iter().zip(of_layers).zip(rotates).zip(of_experts);
        let shapes: Vec<_> = shapes
            .map(|(((&window, rope), rotates), mixture)| LayerShape {
                window,
                rope: rotates.then_some(rope),
                mixture,
            })
            .collect();
        let place = match family.places {
            Places::Always(place) => place,
            Places::If(field, default, place) => match json.flag(field, default)? {
                true => place,
                false => NormPlacement::Pre,
            },
        };
        let causal = causal(json, family)?;
        let mut context = rope::context(json, family.context_is_scaled)?;
        let lookup = lookup(json, family)?;
        if let Some(LookupShape { positions: Some(positions), .. }) = lookup {
            context = positions;
        }
        let cap = |field: Option<&str>| field.map_or(Ok(None), |field| number(json, field));
        // a bound of 0 is none
        let bound = |field: Option<&str>| match field {
            Some(field) if json.positive_unless_zero(field)?.is_some() => number(json, field),
            _ => Ok(None),
        };
        let one = |scale: Option<f32>| scale.unwrap_or(1.0);
        Ok(Self {
            family: row,
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
            lookup,
            buckets: match family.names.distances {
                "" => None,
                _ => Some(json.size("relative_attention_num_buckets", MAX_BUCKETS)?.unwrap_or(32)),
            },
            norm: norm(json, family)?,
            place,
            head_norm: head_norm(json, family)?,
            ropes,
            interleaved: family.interleaved,
            embed_scale: match family.embed_scale {
                EmbedScale::One => 1.0,
                EmbedScale::RootOfHidden => (hidden as f32).sqrt(),
                EmbedScale::Field(field) => one(number(json, field)?),
            },
            attention_scale: match family.scale {
                Scale::HeadDim => match latent {
                    Some(LatentShape { still, turning, .. }) => {
                        ((still + turning) as f32).sqrt().recip() * rope::scores_scale(json)?
                    }
                    None => (head_dim as f32).sqrt().recip(),
                },
                Scale::RootOf(field) => number(json, field)?.unwrap_or(head_dim as f32).sqrt().recip(),
                Scale::Field(field) => one(number(json, field)?),
            },
            qkv_limit: bound(family.qkv_limit)?,
            softcap: bound(family.caps[0])?,
            residual_scale: one(cap(family.residual_scale)?),
            logits_scale: match family.logits_scale {
                LogitsScale::One => 1.0,
                LogitsScale::Times(field) => one(number(json, field)?),
                LogitsScale::Over(field) => one(number(json, field)?).recip(),
            },
            logits_cap: bound(family.caps[1])?,
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
            mixture: mixture.filter(|_| shapes.iter().any(|shape| shape.mixture)),
            classifier: classifier(json, family)?,
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

fn head_dim(json: &Json, hidden: usize, heads: usize) -> Result<usize> {
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
    Ok(head_dim)
}

fn latent(json: &Json, heads: usize) -> Result<LatentShape> {
    let size = |field: &str| json.required_size(field, MAX_HEAD_DIM);
    // their matrices lie below each other, head by head
    let in_blocks = |field: &str| match size(field)? {
        size if size.is_multiple_of(LANES) => Ok(size),
        _ => Err(json.wrong(field, format!("a multiple of {LANES}"))),
    };
    let shape = LatentShape {
        q_rank: json.size("q_lora_rank", MAX_WIDTH)?,
        rank: in_blocks("kv_lora_rank")?,
        still: size("qk_nope_head_dim")?,
        turning: size("qk_rope_head_dim")?,
        value: in_blocks("v_head_dim")?,
    };
    if !shape.turning.is_multiple_of(2) {
        return Err(json.wrong("qk_rope_head_dim", "even"));
    }
    let widest = (shape.rank + shape.turning).max(shape.still + shape.turning).max(shape.value);
    if heads * widest > MAX_WIDTH {
        let expected = format!("so that all heads have at most {MAX_WIDTH} values");
        return Err(json.wrong("num_attention_heads", expected));
    }
    Ok(shape)
}

fn causal(json: &Json, family: &Family) -> Result<bool> {
    match family.causal {
        Causal::Always => Ok(true),
        Causal::Never => Ok(false),
        Causal::Unless(field) => Ok(!json.flag(field, false)?),
    }
}

fn lookup(json: &Json, family: &Family) -> Result<Option<LookupShape>> {
    let row = family.names.lookup;
    let types = match row.types {
        "" => None,
        _ => json.count("type_vocab_size", MAX_TYPES)?.or(Some(2)).filter(|&types| types > 0),
    };
    if row.positions.is_empty() {
        return Ok(types.map(|_| LookupShape { skipped: 0, positions: None, types }));
    }
    let field = "max_position_embeddings";
    let rows = json.required_size(field, MAX_CONTEXT)?;
    let skipped = match row.behind_pad {
        true => json.count("pad_token_id", MAX_VOCAB)?.unwrap_or(1) + 1,
        false => 0,
    };
    if rows <= skipped {
        return Err(json.wrong(field, format!("above {skipped}: the table has rows for padding first")));
    }
    Ok(Some(LookupShape { skipped, positions: Some(rows - skipped), types }))
}

/// The classifier of a checkpoint whose `architectures` say that it classifies texts.
fn classifier(json: &Json, family: &Family) -> Result<Option<ClassifierShape>> {
    let names = json.field("architectures").and_then(serde_json::Value::as_array);
    let name = names.and_then(|names| names.first()?.as_str());
    if !name.is_some_and(|name| name.ends_with("ForSequenceClassification")) {
        return Ok(None);
    }
    let Some(row) = &family.classifier else {
        let expected = format!("another: the head of this one is not supported for {}", family.model_type);
        return Err(json.wrong("architectures", expected));
    };
    let (field, pooling) = row.pooling;
    let pooling = match json.text(field)? {
        None => pooling,
        Some("cls") => Pooling::First,
        Some("mean") => Pooling::Mean,
        Some(_) => return Err(json.wrong(field, "cls or mean")),
    };
    // transformers writes names of labels, and their number only in old versions
    let labels = match json.object("id2label")? {
        Some(labels) => labels.names().count(),
        None => json.size("num_labels", MAX_LABELS)?.unwrap_or(2),
    };
    if !(1..=MAX_LABELS).contains(&labels) {
        return Err(json.wrong("id2label", format!("from 1 to {MAX_LABELS} labels")));
    }
    let bias = |step: &HeadStep| match *step {
        HeadStep::Dense { bias, .. } => biased(json, bias),
        HeadStep::Norm(_) => Ok(false),
    };
    let biases = row.steps.iter().map(bias).collect::<Result<_>>()?;
    Ok(Some(ClassifierShape { pooling, labels, biases }))
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
        HeadNorm::HeadIf(field) => (json.flag(field, false)?, HeadNormShape::Head { bias: false }),
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
    match default {
        Activation::Clamped { alpha, limit } => Ok(Activation::Clamped {
            alpha: number(json, "swiglu_alpha")?.unwrap_or(alpha),
            limit: number(json, "swiglu_limit")?.unwrap_or(limit),
        }),
        other => Ok(other),
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

/// The first of the fields that is there.
fn first_size(json: &Json, fields: &[&str], max: usize) -> Result<usize> {
    for field in fields {
        if let Some(size) = json.size(field, max)? {
            return Ok(size);
        }
    }
    json.required_size(fields[0], max)
}

fn mixture(json: &Json, row: &MixtureRow) -> Result<Moe> {
    let experts = first_size(json, row.experts, MAX_EXPERTS)?;
    let per_token = first_size(json, row.per_token, MAX_EXPERTS)?;
    if per_token > experts {
        return Err(json.wrong(row.per_token[0], format!("at most the number of experts, {experts}")));
    }
    let inner = first_size(json, row.inner, MAX_WIDTH)?;
    let groups = match row.groups {
        None => None,
        Some(best) => {
            let count = json.size("n_group", experts)?.unwrap_or(1);
            let chosen = json.size("topk_group", count)?.unwrap_or(1);
            if !experts.is_multiple_of(count) || count > Groups::MOST || experts / count < best {
                let expected = format!(
                    "at most {} and a divisor of the number of experts, {experts}, with {best} or more in each",
                    Groups::MOST
                );
                return Err(json.wrong("n_group", expected));
            }
            if chosen * (experts / count) < per_token {
                return Err(json.wrong("topk_group", format!("groups with {per_token} experts or more")));
            }
            (count > 1).then_some(Groups { count, chosen, best })
        }
    };
    let routing = Routing {
        per_token,
        scoring: match row.scoring {
            Score::Softmax => Scoring::Softmax,
            Score::Chosen => Scoring::Chosen,
            Score::Sigmoid => Scoring::Sigmoid,
            Score::Mixer(field) => Scoring::Mixer { jitter: number(json, field)?.unwrap_or(0.01) },
        },
        normalized: biased(json, row.normalized)?,
        groups,
        scale: row.scaled.map_or(Ok(None), |field| number(json, field))?.unwrap_or(1.0),
    };
    let shared = match row.shared {
        Shared::Never => None,
        Shared::Field { field, .. } => json.size(field, MAX_WIDTH)?,
        Shared::Times { field, .. } => match json.count(field, MAX_EXPERTS)?.unwrap_or(0) {
            0 => None,
            times if times * inner <= MAX_WIDTH => Some(times * inner),
            _ => return Err(json.wrong(field, format!("so that all have at most {MAX_WIDTH} values"))),
        },
    };
    Ok(Moe { row: *row, experts, inner, routing, shared })
}

/// Per layer: whether it has experts.
fn mixture_layers(json: &Json, row: &MixtureRow, layers: usize) -> Result<Vec<bool>> {
    let every = |field: &str| json.size(field, MAX_LAYERS).map(|step| step.unwrap_or(1));
    Ok(match row.layers {
        MixtureLayers::All => vec![true; layers],
        MixtureLayers::From(field) => {
            let first = json.count(field, MAX_LAYERS)?.unwrap_or(0);
            let Some(list) = json.field("mlp_layer_types") else {
                return Ok((0..layers).map(|layer| layer >= first).collect());
            };
            let one = |value: &serde_json::Value| match value.as_str()? {
                "dense" => Some(false),
                "sparse" => Some(true),
                _ => None,
            };
            let list: Option<Vec<_>> = list.as_array().and_then(|list| list.iter().map(one).collect());
            list.filter(|list| list.len() == layers).ok_or_else(|| {
                json.wrong("mlp_layer_types", format!("a list of {layers}, each dense or sparse"))
            })?
        }
        MixtureLayers::Steps => {
            let step = every("decoder_sparse_step")?;
            let single: Vec<usize> = match json.field("mlp_only_layers") {
                None => Vec::new(),
                Some(list) => {
                    let one = |value: &serde_json::Value| value.as_u64().map(|layer| layer as usize);
                    let list: Option<_> = list.as_array().and_then(|list| list.iter().map(one).collect());
                    list.ok_or_else(|| json.wrong("mlp_only_layers", "a list of layers"))?
                }
            };
            (0..layers).map(|layer| (layer + 1).is_multiple_of(step) && !single.contains(&layer)).collect()
        }
        MixtureLayers::Between => {
            let step = every("moe_layer_interval")?;
            let first = json.count("moe_layer_start_index", MAX_LAYERS)?.unwrap_or(1);
            let last = match json.field("moe_layer_end_index").and_then(serde_json::Value::as_i64) {
                Some(-1) => layers - 1,
                _ => json.count("moe_layer_end_index", MAX_LAYERS)?.unwrap_or(layers - 1),
            };
            (0..layers)
                .map(|layer| (layer + 1).is_multiple_of(step) && (first..=last).contains(&layer))
                .collect()
        }
    })
}

/// Per layer, from `layer_types` if given, else by the family's rule.
fn windows(json: &Json, family: &Family, layers: usize) -> Result<Vec<Option<usize>>> {
    let window = match family.window {
        // on both sides so far, and itself
        Window::Local { field, both_sides, .. } => match json.field(field).and_then(whole) {
            Some(window) if window < 0 => None,
            _ => Some(json.count(field, MAX_CONTEXT)?.unwrap_or(both_sides) / 2 + 1),
        },
        _ => json.count_unless_negative("sliding_window", MAX_CONTEXT)?.filter(|&window| window > 0),
    };
    let window = match family.causal {
        Causal::Unless(field) if json.flag(field, false)? => window.map(|window| window / 2 + 1),
        _ => window,
    };
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
        Window::Local { every: (field, default), .. } => {
            let every = json.size(field, MAX_LAYERS)?.unwrap_or(default);
            Box::new(move |layer| !layer.is_multiple_of(every))
        }
    };
    Ok((0..layers).map(|layer| window.filter(|_| slides(layer))).collect())
}

/// Per layer: whether it rotates queries and keys.
fn rotates(json: &Json, family: &Family, windows: &[Option<usize>]) -> Result<Vec<bool>> {
    let layers = windows.len();
    match family.rotates {
        RopeLayers::All => Ok(vec![true; layers]),
        RopeLayers::Never => Ok(vec![false; layers]),
        RopeLayers::Sliding if windows.iter().all(Option::is_none) => Ok(vec![true; layers]),
        RopeLayers::Sliding => Ok(windows.iter().map(Option::is_some).collect()),
        RopeLayers::Listed => {
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
