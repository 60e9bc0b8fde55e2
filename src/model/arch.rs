//! `config.json`, parsed and checked: from here on all sizes are known to be sane.

use std::path::Path;

use super::families::{self, AttentionBias, FAMILIES, Family, Window};
use super::rope::{Rope, RopeKind};
use crate::error::{Error, Result};
use crate::weights::json::Json;

/// Bounds far above any model; with them no product of sizes below overflows 64 bits.
const MAX_WIDTH: usize = 1 << 20;
const MAX_LAYERS: usize = 1 << 12;
const MAX_VOCAB: usize = 1 << 24;
const MAX_CONTEXT: usize = 1 << 31;
/// The attention kernels keep rows of a head on hand: see `backend/cpu/attention.rs`.
const MAX_HEAD_DIM: usize = 512;

/// The shape of a decoder.
#[derive(Clone, Debug)]
pub struct Arch {
    /// Its row in the table of families.
    pub model_type: &'static str,
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
    /// Added to the mean square in norms.
    pub norm_eps: f32,
    /// Rotary embedding.
    pub rope: Rope,
    /// Whether the head is the embedding table.
    pub tied: bool,
    /// Whether q, k and v have biases.
    pub qkv_bias: bool,
    /// Whether o has a bias.
    pub o_bias: bool,
    /// Whether gate, up and down have biases.
    pub mlp_bias: bool,
    /// Per layer: how many positions it looks back over, itself included; none for all.
    pub windows: Vec<Option<usize>>,
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
        let json = Json::open(file)?;
        let found = json.text("model_type")?.unwrap_or("").to_owned();
        let Some(family) = families::find(&found) else {
            let known = FAMILIES.iter().map(|family| family.model_type).collect::<Vec<_>>().join(", ");
            return Err(Error::unknown_model_type(file, &found, known));
        };
        Self::parse(&json, family)
    }

    fn parse(json: &Json, family: &Family) -> Result<Self> {
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
        let attention_bias = match family.attention_bias {
            AttentionBias::Configured => json.flag("attention_bias", false)?,
            AttentionBias::Qkv => true,
            AttentionBias::Never => false,
        };
        Ok(Self {
            model_type: family.model_type,
            hidden,
            intermediate: json.required_size("intermediate_size", MAX_WIDTH)?,
            layers,
            heads,
            kv_heads,
            head_dim,
            vocab: json.required_size("vocab_size", MAX_VOCAB)?,
            context: json.size("max_position_embeddings", MAX_CONTEXT)?.unwrap_or(2048),
            norm_eps: norm_eps(json)?,
            rope: rope(json)?,
            tied: json.flag("tie_word_embeddings", false)?,
            qkv_bias: attention_bias,
            o_bias: attention_bias && family.attention_bias == AttentionBias::Configured,
            mlp_bias: family.mlp_bias && json.flag("mlp_bias", false)?,
            windows: windows(json, family, layers)?,
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

fn norm_eps(json: &Json) -> Result<f32> {
    let eps = json.positive("rms_norm_eps")?.unwrap_or(1e-6) as f32;
    if eps.is_normal() {
        Ok(eps)
    } else {
        Err(json.wrong("rms_norm_eps", "a number that single precision can hold"))
    }
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
    if json.text("hidden_act")?.is_some_and(|name| name != "silu") {
        return Err(json.wrong("hidden_act", "silu"));
    }
    if json.field("quantization_config").is_some() {
        return Err(json.wrong("quantization_config", "absent: quantized checkpoints are not supported yet"));
    }
    Ok(())
}

/// transformers 5 writes `rope_parameters`; transformers 4 `rope_theta` and `rope_scaling`.
fn rope(json: &Json) -> Result<Rope> {
    let nested = match json.object("rope_parameters")? {
        Some(parameters) => Some(parameters),
        None => json.object("rope_scaling")?,
    };
    let theta = match &nested {
        Some(parameters) => parameters.positive("rope_theta")?,
        None => None,
    };
    let theta = match theta {
        Some(theta) => theta,
        None => json.positive("rope_theta")?.unwrap_or(10_000.0),
    };
    let Some(parameters) = nested else { return Ok(Rope { theta, kind: RopeKind::Default }) };
    let (field, name) = match parameters.text("rope_type")? {
        Some(name) => ("rope_type", name),
        None => ("type", parameters.text("type")?.unwrap_or("default")),
    };
    let number =
        |field: &str| parameters.positive(field)?.ok_or_else(|| parameters.wrong(field, "a number above 0"));
    let kind = match name {
        "default" => RopeKind::Default,
        "llama3" => RopeKind::Llama3 {
            factor: number("factor")?,
            low_freq_factor: number("low_freq_factor")?,
            high_freq_factor: number("high_freq_factor")?,
            original: number("original_max_position_embeddings")?,
        },
        _ => return Err(parameters.wrong(field, "default or llama3")),
    };
    if let RopeKind::Llama3 { low_freq_factor: low, high_freq_factor: high, .. } = kind
        && low >= high
    {
        return Err(parameters.wrong("high_freq_factor", "above low_freq_factor"));
    }
    Ok(Rope { theta, kind })
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
    let first = match family.window {
        Window::Always => 0,
        _ if json.flag("use_sliding_window", false)? => {
            json.size("max_window_layers", MAX_LAYERS)?.unwrap_or(0)
        }
        _ => layers,
    };
    Ok((0..layers).map(|layer| window.filter(|_| layer >= first)).collect())
}
