//! What a GGUF file's metadata says, in the fields of config.json; and its tensors by the names that they have there.

use serde_json::{Map as Fields, Value as Json, json};

use super::names::FACTORS;
use crate::error::{Error, Result};
use crate::model::families::{
    EmbedScale, Family, HeadNorm, KvHeads, LogitsScale, Places, Qkv, Scale, Shared,
};
use crate::weights::gguf::{Gguf, Kind, Value};
use crate::weights::json::MAX_BYTES;

/// Fields below the architecture's name, and what config.json calls them.
const FIELDS: &[(&str, &str)] = &[
    ("embedding_length", "hidden_size"),
    ("attention.head_count", "num_attention_heads"),
    ("attention.key_length", "head_dim"),
    ("attention.sliding_window", "sliding_window"),
    ("context_length", "max_position_embeddings"),
    ("rope.freq_base", "rope_theta"),
    ("rope.freq_base_swa", "rope_local_base_freq"),
    ("attention.q_lora_rank", "q_lora_rank"),
    ("attention.kv_lora_rank", "kv_lora_rank"),
    ("expert_group_count", "n_group"),
    ("expert_group_used_count", "topk_group"),
];

/// Layers at most, as in config.json: lists of them are made.
const MAX_LAYERS: usize = 1 << 12;

/// Values of a tensor of [`FACTORS`]: half of the widest head has fewer.
const MAX_FACTORS: usize = 1 << 10;

impl Gguf {
    /// Its metadata as config.json.
    ///
    /// # Errors
    /// The architecture is not known, or a value is of another type than it must be.
    pub fn config(&self) -> Result<Json> {
        let (row, family) = (self.row()?, self.family()?);
        let mut fields = Fields::new();
        for (theirs, ours) in FIELDS {
            self.copy(theirs, ours, &mut fields)?;
        }
        fields.insert("model_type".into(), self.model_type(row).into());
        let embed = self.tensors.get("token_embd.weight").filter(|info| info.shape.len() == 2);
        let Some(embed) = embed else {
            return Err(Error::tensor(&self.file, "token_embd.weight", "be there, a matrix"));
        };
        let rows = embed.shape[0];
        fields.insert("vocab_size".into(), rows.into());
        fields.insert("tie_word_embeddings".into(), (!self.tensors.contains_key("output.weight")).into());
        fields.insert("eos_token_id".into(), self.ends(rows)?.into());
        let layers = self.layers(&mut fields)?;
        self.of_family(&family, &mut fields)?;
        self.experts_config(&family, layers, &mut fields)?;
        match row.arch {
            "modern-bert" => self.local_windows(&mut fields)?,
            _ => self.windows(row.arch, layers, &mut fields)?,
        }
        if let Some(types) = self.tensors.get("token_types.weight") {
            fields.insert("type_vocab_size".into(), types.shape[0].into());
        }
        match family.names.qkv {
            Qkv::Latent { .. } => self.latent(&mut fields),
            _ => self.rope_dim(&mut fields)?,
        }
        self.rope(row.arch, &mut fields)?;
        if row.arch.starts_with("gemma") && row.arch != "gemma" {
            self.gemma(row.arch, &mut fields);
        }
        Ok(Json::Object(fields))
    }

    /// A value below the architecture's name, by its name in config.json; nothing where it is absent.
    fn copy(&self, theirs: &str, ours: &str, fields: &mut Fields<String, Json>) -> Result<()> {
        let key = format!("{}.{theirs}", self.row()?.arch);
        if let Some(value) = self.metadata.get(&key)
            && !ours.is_empty()
        {
            fields.insert(ours.to_owned(), self.plain(&key, value)?);
        }
        Ok(())
    }

    /// The layers: those that guess further tokens stand behind the others, and are counted with them.
    fn layers(&self, fields: &mut Fields<String, Json>) -> Result<usize> {
        self.copy("block_count", "num_hidden_layers", fields)?;
        let count = fields.get("num_hidden_layers").and_then(Json::as_u64).unwrap_or(0);
        let count = usize::try_from(count).ok().filter(|count| (1..=MAX_LAYERS).contains(count));
        let key = format!("{}.block_count", self.row()?.arch);
        let Some(count) = count else {
            return Err(self.wrong(&key, &format!("a whole number from 1 to {MAX_LAYERS}")));
        };
        let guesses = self.number("nextn_predict_layers").map_or(0, |guesses| guesses.max(0.0) as usize);
        let layers = count.saturating_sub(guesses).max(1);
        fields.insert("num_hidden_layers".into(), layers.into());
        fields.insert("num_nextn_predict_layers".into(), (count - layers).into());
        Ok(layers)
    }

    /// What goes by names that families choose.
    fn of_family(&self, family: &Family, fields: &mut Fields<String, Json>) -> Result<()> {
        for theirs in ["attention.layer_norm_epsilon", "attention.layer_norm_rms_epsilon"] {
            self.copy(theirs, family.norm.eps_field, fields)?;
        }
        self.copy("feed_forward_length", family.inner.0, fields)?;
        if let KvHeads::Field(field) = family.kv_heads {
            self.copy("attention.head_count_kv", field, fields)?;
        }
        for (theirs, ours) in [
            ("attention.clamp_kqv", family.qkv_limit),
            ("attn_logit_softcapping", family.caps[0]),
            ("final_logit_softcapping", family.caps[1]),
            ("residual_scale", family.residual_scale),
        ] {
            self.copy(theirs, ours.unwrap_or(""), fields)?;
        }
        if let EmbedScale::Field(field) = family.embed_scale {
            self.copy("embedding_scale", field, fields)?;
        }
        if let LogitsScale::Times(field) | LogitsScale::Over(field) = family.logits_scale {
            self.copy("logit_scale", field, fields)?;
        }
        if let Scale::Field(field) = family.scale {
            self.copy("attention.scale", field, fields)?;
        }
        // there 0 says that there is none
        for field in family.caps.iter().chain([&family.qkv_limit, &family.residual_scale]).flatten() {
            if fields.get(*field).and_then(Json::as_f64) == Some(0.0) {
                fields.remove(*field);
            }
        }
        if let HeadNorm::HeadIf(field) | HeadNorm::Heads(field) | HeadNorm::HeadBiased(field) =
            family.head_norm
        {
            fields.insert(field.to_owned(), self.has_part("attn_q_norm.weight").into());
        }
        if let Places::If(field, ..) = family.places {
            self.copy("use_parallel_residual", field, fields)?;
            // StableLM's files may say so, and yet have a norm before the MLP
            if family.model_type == "stablelm" {
                fields.insert(field.to_owned(), (!self.has_part("ffn_norm.weight")).into());
            }
        }
        Ok(())
    }

    /// How many experts there are, how wide they and the one that all share are, and which layers have them.
    fn experts_config(
        &self,
        family: &Family,
        layers: usize,
        fields: &mut Fields<String, Json>,
    ) -> Result<()> {
        let Some(mixture) = &family.mixture else { return Ok(()) };
        self.copy("expert_count", mixture.experts[0], fields)?;
        self.copy("expert_used_count", mixture.per_token[0], fields)?;
        if let Some(field) = mixture.scaled {
            self.copy("expert_weights_scale", field, fields)?;
            if fields.get(field).and_then(Json::as_f64) == Some(0.0) {
                fields.remove(field);
            }
        }
        let last = |part: &str| {
            let mut all = (0..layers).filter_map(|layer| self.tensors.get(&format!("blk.{layer}.{part}")));
            all.find_map(|info| info.shape.last().copied())
        };
        let inner = last("ffn_down_exps.weight").or_else(|| last("ffn_down.0.weight"));
        if let Some(inner) = inner {
            fields.insert(mixture.inner[0].to_owned(), inner.into());
            let (field, times) = family.inner;
            let has = fields.get(field).and_then(Json::as_u64).is_some_and(|width| width > 0);
            if times == 0 && !has {
                fields.insert(field.to_owned(), inner.into());
            }
        }
        let shared = last("ffn_down_shexp.weight");
        match (mixture.shared, shared, inner) {
            (Shared::Field { field, .. }, Some(width), _) => {
                fields.insert(field.to_owned(), width.into());
            }
            (Shared::Times { field, .. }, Some(width), Some(inner)) if inner > 0 => {
                fields.insert(field.to_owned(), (width / inner).into());
            }
            (Shared::Times { field, .. }, None, _) => {
                fields.insert(field.to_owned(), 0.into());
            }
            _ => {}
        }
        let kind = |layer| match self.tensors.contains_key(&format!("blk.{layer}.ffn_gate_inp.weight")) {
            true => "sparse",
            false => "dense",
        };
        fields.insert("mlp_layer_types".into(), (0..layers).map(kind).collect());
        Ok(())
    }

    /// Which layers look back over a window only, where the file says so: by a list, or all but each last of so many.
    fn windows(&self, arch: &str, layers: usize, fields: &mut Fields<String, Json>) -> Result<()> {
        let key = format!("{arch}.attention.sliding_window_pattern");
        let wrong = || self.wrong(&key, "a number, or a list with true or false for each layer");
        let slides: Vec<bool> = match self.metadata.get(&key) {
            None => return Ok(()),
            Some(Value::Whole(each)) => {
                let each = usize::try_from(*each).map_err(|_| wrong())?;
                (0..layers).map(|layer| each == 0 || (layer + 1) % each != 0).collect()
            }
            Some(Value::List(list)) if list.count >= layers => {
                let slides = self.elements(list).take(layers).map(|value| match value {
                    Value::Flag(flag) => Some(flag),
                    Value::Whole(number) => Some(number != 0),
                    _ => None,
                });
                slides.collect::<Option<_>>().ok_or_else(wrong)?
            }
            Some(_) => return Err(wrong()),
        };
        let kind = |slides: bool| if slides { "sliding_attention" } else { "full_attention" };
        fields.insert("layer_types".into(), slides.into_iter().map(kind).collect());
        Ok(())
    }

    /// ModernBERT's: all layers but each first of so many look at their neighbours only.
    fn local_windows(&self, fields: &mut Fields<String, Json>) -> Result<()> {
        self.copy("attention.sliding_window", "local_attention", fields)?;
        let key = "attention.sliding_window_pattern";
        match self.metadata.get(&format!("modern-bert.{key}")) {
            None | Some(Value::Whole(_)) => self.copy(key, "global_attn_every_n_layers", fields),
            Some(_) => Err(self.wrong(&format!("modern-bert.{key}"), "a number")),
        }
    }

    /// The sizes of MLA: keys and values of heads, which newer files name apart from those of the latent.
    fn latent(&self, fields: &mut Fields<String, Json>) {
        let size = |names: [&str; 2]| names.into_iter().find_map(|name| self.number(name));
        let (rope_dim, key, value) = (
            self.number("rope.dimension_count"),
            size(["attention.key_length_mla", "attention.key_length"]),
            size(["attention.value_length_mla", "attention.value_length"]),
        );
        fields.remove("head_dim");
        let mut put = |name: &str, size: Option<f64>| {
            if let Some(size) = size.filter(|size| *size >= 0.0) {
                fields.insert(name.to_owned(), (size as u64).into());
            }
        };
        put("qk_rope_head_dim", rope_dim);
        put("v_head_dim", value);
        put("qk_nope_head_dim", rope_dim.zip(key).map(|(rope_dim, key)| key - rope_dim));
    }

    /// The part of a head that turns: all of it where the file does not say.
    fn rope_dim(&self, fields: &mut Fields<String, Json>) -> Result<()> {
        let size = |name: &str| fields.get(name).and_then(Json::as_u64);
        let head = match (size("head_dim"), size("hidden_size"), size("num_attention_heads")) {
            (Some(head), ..) => head,
            (None, Some(hidden), Some(heads)) if heads > 0 => hidden / heads,
            _ => return Ok(()), // the error is that these are missing
        };
        let key = format!("{}.rope.dimension_count", self.row()?.arch);
        let rope_dim = match self.metadata.get(&key) {
            None => head,
            Some(&Value::Whole(dims)) => match u64::try_from(dims) {
                Ok(dims) if (1..=head).contains(&dims) && dims.is_multiple_of(2) => dims,
                _ => return Err(self.wrong(&key, &format!("an even number up to a head's {head} values"))),
            },
            Some(_) => return Err(self.wrong(&key, "a whole number")),
        };
        // a little more, since it is rounded down to whole values
        let part = if rope_dim == head { 1.0 } else { (rope_dim as f64 + 0.25) / head as f64 };
        fields.insert("partial_rotary_factor".into(), json!(part));
        Ok(())
    }

    /// Scalings of the rotary embedding: from metadata, or one divisor for each frequency.
    fn rope(&self, arch: &str, fields: &mut Fields<String, Json>) -> Result<()> {
        let key = |name: &str| format!("{arch}.rope.{name}");
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
            let bytes = &info.map.bytes()[info.start..][..info.bytes];
            match info.kind {
                Kind::F32 => {
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
                let mut scaling =
                    json!({ "type": kind, "factor": factor, "original_max_position_embeddings": original });
                for (theirs, ours) in [
                    ("scaling.yarn_attn_factor", "attention_factor"),
                    ("scaling.yarn_beta_fast", "beta_fast"),
                    ("scaling.yarn_beta_slow", "beta_slow"),
                ] {
                    if let Some(value) = number(theirs)? {
                        scaling[ours] = value;
                    }
                }
                // the factor of 0.1 in it is that of the formula
                if let Some(log) = self.number("rope.scaling.yarn_log_multiplier") {
                    scaling["mscale"] = json!(log * 10.0);
                    scaling["mscale_all_dim"] = json!(log * 10.0);
                }
                if arch == "gpt-oss" {
                    scaling["truncate"] = false.into();
                }
                fields.insert("rope_scaling".into(), scaling);
            }
            (Some(_), _) => return Err(self.wrong(&key("scaling.type"), "none, linear or yarn")),
        }
        // llama.cpp stretches only the layers that look back over everything
        if self.number("attention.sliding_window").is_some() && arch == "olmo2" {
            let theta = fields.get("rope_theta").cloned().unwrap_or(json!(10_000.0));
            fields.entry("rope_local_base_freq").or_insert(theta);
        }
        Ok(())
    }

    /// What llama.cpp knows of Gemma without being told.
    fn gemma(&self, arch: &str, fields: &mut Fields<String, Json>) {
        let size = |name: &str| fields.get(name).and_then(Json::as_u64);
        // Gemma 2 and 3 27B: of the width of the model, not of the head
        let large = matches!((arch, size("num_hidden_layers")), ("gemma2", Some(46)) | ("gemma3", Some(62)));
        let scale = match (large, size("hidden_size"), size("num_attention_heads")) {
            (true, Some(hidden), Some(heads)) if heads > 0 => Some(hidden / heads),
            _ => size("head_dim"),
        };
        if let Some(scale) = scale {
            fields.insert("query_pre_attn_scalar".into(), scale.into());
        }
        if arch != "gemma2" {
            fields.entry("rope_local_base_freq").or_insert(json!(10_000.0));
            fields.insert("sliding_window_pattern".into(), 6.into());
        }
        if arch == "gemma-embedding" {
            fields.insert("use_bidirectional_attention".into(), true.into());
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

    /// A number or a flag, or a list of the same number for each layer: layers that differ so are not supported.
    fn plain(&self, key: &str, value: &Value) -> Result<Json> {
        match value {
            Value::Whole(number) => {
                u64::try_from(*number).map(Json::from).map_err(|_| self.wrong(key, "from 0"))
            }
            Value::Float(number) => serde_json::Number::from_f64(*number)
                .map(Json::Number)
                .ok_or_else(|| self.wrong(key, "finite")),
            Value::Flag(flag) => Ok((*flag).into()),
            Value::List(list) if !list.is_of_texts() && (1..=MAX_LAYERS).contains(&list.count) => {
                let mut elements = self.elements(list);
                match elements.next() {
                    Some(first) if elements.all(|other| other == first) => self.plain(key, &first),
                    _ => Err(self.wrong(key, "the same number for each layer")),
                }
            }
            Value::Text(_) | Value::List(_) => Err(self.wrong(key, "one number")),
        }
    }
}
