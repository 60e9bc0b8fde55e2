//! What a GGUF file's metadata says, in the fields of config.json; and its tensors by the names that they have there.

use serde_json::{Map as Fields, Value as Json, json};

use super::{Gguf, Value};
use crate::error::{Error, Result};
use crate::weights::json::MAX_BYTES;

/// An architecture of llama.cpp.
pub struct Row {
    /// `general.architecture`.
    arch: &'static str,
    /// The same in config.json.
    model_type: &'static str,
    /// Tensors of a layer that go by other names than [`COMMON`] says.
    names: &'static [(&'static str, &'static str)],
    /// Whether rows of q and k are in the order in which neighbours turn together.
    pub interleaved: bool,
    /// Whether the one that is added to the weights of norms is in them already.
    pub shifted: bool,
}

const LLAMA: Row = Row { arch: "llama", model_type: "llama", names: &[], interleaved: true, shifted: false };
const GEMMA2_NAMES: &[(&str, &str)] = &[
    ("ffn_norm", "pre_feedforward_layernorm"),
    ("post_attention_norm", "post_attention_layernorm"),
    ("post_ffw_norm", "post_feedforward_layernorm"),
];

const ROWS: &[Row] = &[
    LLAMA,
    Row { arch: "qwen2", model_type: "qwen2", interleaved: false, ..LLAMA },
    Row { arch: "qwen3", model_type: "qwen3", interleaved: false, ..LLAMA },
    Row { arch: "gemma", model_type: "gemma", interleaved: false, shifted: true, ..LLAMA },
    Row { arch: "gemma2", model_type: "gemma2", names: GEMMA2_NAMES, interleaved: false, shifted: true },
    Row { arch: "gemma3", model_type: "gemma3_text", names: GEMMA2_NAMES, interleaved: false, shifted: true },
    Row {
        arch: "phi3",
        model_type: "phi3",
        names: &[("ffn_up", "mlp.gate_up_proj")],
        interleaved: false,
        ..LLAMA
    },
    Row {
        arch: "starcoder2",
        model_type: "starcoder2",
        names: &[("ffn_up", "mlp.c_fc"), ("ffn_down", "mlp.c_proj")],
        interleaved: false,
        ..LLAMA
    },
];

/// Tensors of a layer.
const COMMON: &[(&str, &str)] = &[
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_qkv", "self_attn.qkv_proj"),
    ("attn_q_norm", "self_attn.q_norm"),
    ("attn_k_norm", "self_attn.k_norm"),
    ("attn_output", "self_attn.o_proj"),
    ("ffn_norm", "post_attention_layernorm"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
];

/// Fields below the architecture's name, and what config.json calls them.
const FIELDS: &[(&str, &str)] = &[
    ("embedding_length", "hidden_size"),
    ("block_count", "num_hidden_layers"),
    ("feed_forward_length", "intermediate_size"),
    ("attention.head_count", "num_attention_heads"),
    ("attention.head_count_kv", "num_key_value_heads"),
    ("attention.key_length", "head_dim"),
    ("attention.layer_norm_rms_epsilon", "rms_norm_eps"),
    ("attention.layer_norm_epsilon", "norm_epsilon"),
    ("attention.sliding_window", "sliding_window"),
    ("attn_logit_softcapping", "attn_logit_softcapping"),
    ("final_logit_softcapping", "final_logit_softcapping"),
    ("context_length", "max_position_embeddings"),
    ("rope.freq_base", "rope_theta"),
];

/// Divisors of frequencies, one for each, where a file has them.
const FACTORS: [&str; 3] = ["rope_freqs.weight", "rope_factors_short.weight", "rope_factors_long.weight"];

/// Values of one of those: half of the widest head has fewer.
const MAX_FACTORS: usize = 1 << 10;

impl Gguf {
    /// Its architecture.
    ///
    /// # Errors
    /// It is not known; the error names those that are.
    pub fn row(&self) -> Result<&'static Row> {
        let found = self.text("general.architecture")?.unwrap_or("");
        ROWS.iter().find(|row| row.arch == found).ok_or_else(|| {
            let known: Vec<&str> = ROWS.iter().map(|row| row.arch).collect();
            Error::unknown_model_type(&self.file, found, &known)
        })
    }

    /// The name in safetensors of a tensor; none for one that is not of the model's matrices.
    pub fn name_of(&self, name: &str) -> Result<Option<String>> {
        let row = self.row()?;
        if FACTORS.contains(&name) {
            return Ok(None);
        }
        let (stem, end) = name.rsplit_once('.').unwrap_or((name, "weight"));
        let whole = match stem {
            "token_embd" => Some("model.embed_tokens".to_owned()),
            "output_norm" => Some("model.norm".to_owned()),
            "output" => Some("lm_head".to_owned()),
            _ => stem.strip_prefix("blk.").and_then(|rest| rest.split_once('.')).map(|(layer, part)| {
                let ours = row.names.iter().chain(COMMON).find(|(theirs, _)| *theirs == part);
                format!("model.layers.{layer}.{}", ours.map_or(part, |(_, ours)| ours))
            }),
        };
        // what we do not know is listed as read by nobody
        Ok(Some(whole.map_or_else(|| name.to_owned(), |stem| format!("{stem}.{end}"))))
    }

    /// Its metadata as config.json.
    ///
    /// # Errors
    /// The architecture is not known, or a value is of another type than it must be.
    pub fn config(&self) -> Result<Json> {
        let row = self.row()?;
        let key = |name: &str| format!("{}.{name}", row.arch);
        let mut fields = Fields::new();
        for (theirs, ours) in FIELDS {
            if let Some(value) = self.metadata.get(&key(theirs)) {
                fields.insert((*ours).to_owned(), self.plain(&key(theirs), value)?);
            }
        }
        if self.metadata.contains_key(&key("expert_count")) {
            return Err(self.wrong(&key("expert_count"), "left out: experts are read from safetensors only"));
        }
        fields.insert("model_type".into(), row.model_type.into());
        if let Some(eps) = fields.get("norm_epsilon").cloned() {
            fields.insert("layer_norm_eps".into(), eps);
        }
        let embed = self.tensors.get("token_embd.weight").filter(|info| info.shape.len() == 2);
        let Some(embed) = embed else {
            return Err(Error::tensor(&self.file, "token_embd.weight", "be there, a matrix"));
        };
        fields.insert("vocab_size".into(), embed.shape[0].into());
        fields.insert("tie_word_embeddings".into(), (!self.tensors.contains_key("output.weight")).into());
        fields.insert("attention_bias".into(), self.tensors.contains_key("blk.0.attn_q.bias").into());
        fields.insert("mlp_bias".into(), self.tensors.contains_key("blk.0.ffn_down.bias").into());
        let mut ends = Vec::new();
        for key in
            ["tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"]
        {
            if let Some(value) = self.metadata.get(key) {
                ends.push(self.plain(key, value)?);
            }
        }
        fields.insert("eos_token_id".into(), Json::Array(ends));
        self.rope(row, &mut fields)?;
        if row.arch.starts_with("gemma") && row.arch != "gemma" {
            self.gemma(row, &mut fields);
        }
        Ok(Json::Object(fields))
    }

    /// Scalings of the rotary embedding: from metadata, or one divisor for each frequency.
    fn rope(&self, row: &Row, fields: &mut Fields<String, Json>) -> Result<()> {
        let key = |name: &str| format!("{}.rope.{name}", row.arch);
        let number = |name: &str| match self.metadata.get(&key(name)) {
            None => Ok(None),
            Some(value) => self.plain(&key(name), value).map(Some),
        };
        let context = fields.get("max_position_embeddings").cloned().unwrap_or(json!(2048));
        let original = number("scaling.original_context_length")?.unwrap_or(context);
        let factors = |name: &str| -> Result<Option<Json>> {
            let Some(info) = self.tensors.get(name) else { return Ok(None) };
            if info.bytes > 4 * MAX_FACTORS {
                return Err(Error::tensor(&self.file, name, format!("have at most {MAX_FACTORS} values")));
            }
            let bytes = &self.map.bytes()[info.start..][..info.bytes];
            match info.kind {
                super::Kind::F32 => {
                    let values =
                        bytes.as_chunks().0.iter().map(|value| f64::from(f32::from_le_bytes(*value)));
                    Ok(Some(values.collect()))
                }
                _ => Err(Error::tensor(&self.file, name, "be of f32")),
            }
        };
        let [every, short, long] = [factors(FACTORS[0])?, factors(FACTORS[1])?, factors(FACTORS[2])?];
        if let (Some(short), Some(long)) = (short.or(every.clone()), long.or(every)) {
            let attention = number("scaling.attn_factor")?.unwrap_or(json!(1.0));
            let scaling = json!({
                "type": "longrope", "short_factor": short, "long_factor": long, "attention_factor": attention,
                "original_max_position_embeddings": original,
            });
            fields.insert("rope_scaling".into(), scaling);
            return Ok(());
        }
        let factor = number("scaling.factor")?;
        match (self.text(&key("scaling.type"))?, factor) {
            (None | Some("none"), _) | (_, None) => {}
            (Some(kind @ ("linear" | "yarn")), Some(factor)) => {
                let scaling =
                    json!({ "type": kind, "factor": factor, "original_max_position_embeddings": original });
                fields.insert("rope_scaling".into(), scaling);
            }
            (Some(_), _) => return Err(self.wrong(&key("scaling.type"), "none, linear or yarn")),
        }
        Ok(())
    }

    /// What llama.cpp knows of Gemma without being told.
    fn gemma(&self, row: &Row, fields: &mut Fields<String, Json>) {
        let size = |name: &str| fields.get(name).and_then(Json::as_u64);
        // Gemma 2 and 3 27B: of the width of the model, not of the head
        let large =
            matches!((row.arch, size("num_hidden_layers")), ("gemma2", Some(46)) | ("gemma3", Some(62)));
        let scale = match (large, size("hidden_size"), size("num_attention_heads")) {
            (true, Some(hidden), Some(heads)) if heads > 0 => Some(hidden / heads),
            _ => size("head_dim"),
        };
        if let Some(scale) = scale {
            fields.insert("query_pre_attn_scalar".into(), scale.into());
        }
        if row.arch == "gemma3" {
            fields.insert("rope_local_base_freq".into(), json!(10_000.0));
            fields.insert("sliding_window_pattern".into(), 6.into());
        }
    }

    /// A text of the metadata.
    pub fn text(&self, key: &str) -> Result<Option<&str>> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Value::Text(range)) if range.len() as u64 > MAX_BYTES => {
                Err(self.wrong(key, &format!("a text of at most {MAX_BYTES} bytes")))
            }
            Some(Value::Text(range)) => self.text_at(key, range).map(Some),
            Some(_) => Err(self.wrong(key, "a text")),
        }
    }

    /// The error that a value of the metadata must be `expected`.
    pub fn wrong(&self, key: &str, expected: &str) -> Error {
        Error::config(&self.file, key, expected)
    }

    /// A number or a flag; lists are refused: layers that differ so are not supported.
    fn plain(&self, key: &str, value: &Value) -> Result<Json> {
        match value {
            Value::Whole(number) => {
                u64::try_from(*number).map(Json::from).map_err(|_| self.wrong(key, "from 0"))
            }
            Value::Float(number) => serde_json::Number::from_f64(*number)
                .map(Json::Number)
                .ok_or_else(|| self.wrong(key, "finite")),
            Value::Flag(flag) => Ok((*flag).into()),
            Value::Text(_) | Value::List(_) => Err(self.wrong(key, "one number")),
        }
    }
}
