//! The architectures of llama.cpp that are families here, and what a file of one changes in its family's row.
//!
//! What a GGUF file has differs from the safetensors that it was made from: converters permute the rows of queries and
//! keys for pairs of neighbours, split or join matrices, and add the one of `1 + weight` to norms. Which matrices are
//! joined, which have biases and which layers have experts is seen in the tensors themselves.

use crate::backend::NormKind;
use crate::error::{Error, Result};
use crate::model::families::{
    self, Bias, Experts, Family, HeadNorm, Inner, KvHeads, MixtureLayers, Names, NormPlacement, Places, Qkv,
    Scale, Score, Shared,
};
use crate::weights::gguf::{Gguf, Value};

/// An architecture of llama.cpp.
pub struct Row {
    /// `general.architecture`.
    pub arch: &'static str,
    /// Its name in config.json.
    model_type: &'static str,
    /// Whether neighbours turn together, in the order of rows that the file has.
    interleaved: bool,
    /// Whether the one that is added to the weights of norms is in them already.
    shifted: bool,
    /// Whether the weights of the chosen experts are divided by their sum, where the file does not say.
    pub normalized: bool,
}

const fn row(arch: &'static str, model_type: &'static str) -> Row {
    Row { arch, model_type, interleaved: false, shifted: false, normalized: false }
}

/// A row whose neighbours turn together.
const fn pairs(arch: &'static str, model_type: &'static str) -> Row {
    Row { interleaved: true, ..row(arch, model_type) }
}

const ROWS: &[Row] = &[
    pairs("llama", "llama"),
    row("qwen2", "qwen2"),
    row("qwen3", "qwen3"),
    row("qwen2moe", "qwen2_moe"),
    Row { normalized: true, ..row("qwen3moe", "qwen3_moe") },
    Row { shifted: true, ..row("gemma", "gemma") },
    Row { shifted: true, ..row("gemma2", "gemma2") },
    Row { shifted: true, ..row("gemma3", "gemma3_text") },
    row("phi2", "phi"),
    row("phi3", "phi3"),
    row("phimoe", "phimoe"),
    pairs("olmo", "olmo"),
    row("olmo2", "olmo2"),
    row("olmoe", "olmoe"),
    pairs("smollm3", "smollm3"),
    pairs("granite", "granite"),
    pairs("granitemoe", "granitemoe"),
    row("starcoder2", "starcoder2"),
    row("stablelm", "stablelm"),
    row("gptneox", "gpt_neox"),
    row("falcon", "falcon"),
    pairs("command-r", "cohere"),
    pairs("cohere2", "cohere2"),
    pairs("chatglm", "glm"),
    pairs("glm4", "glm4"),
    row("glm4moe", "glm4_moe"),
    row("exaone4", "exaone4"),
    Row { shifted: true, ..row("nemotron", "nemotron") },
    pairs("arcee", "arcee"),
    pairs("ernie4_5", "ernie4_5"),
    pairs("ernie4_5-moe", "ernie4_5_moe"),
    row("seed_oss", "seed_oss"),
    row("hunyuan-dense", "hunyuan_v1_dense"),
    pairs("deepseek2", "deepseek_v3"),
    row("dots1", "dots1"),
    row("gpt-oss", "gpt_oss"),
    row("bert", "bert"),
    row("nomic-bert", "nomic_bert"),
    row("modern-bert", "modernbert"),
    row("eurobert", "eurobert"),
    Row { shifted: true, ..row("gemma-embedding", "gemma3_text") },
];

/// Names that matrices of experts are given here, whatever the family calls them.
const EXPERTS: [&str; 3] = ["gate_proj", "up_proj", "down_proj"];

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

    /// What config.json would call the model.
    pub fn model_type(&self, row: &Row) -> &'static str {
        let has = |part: &str| self.has_part(part);
        match row.arch {
            "llama" if has("ffn_gate_inp.weight") => "mixtral",
            "granite" | "granitemoe" if has("ffn_up_shexp.weight") => "granitemoeshared",
            "granite" if has("ffn_gate_inp.weight") => "granitemoe",
            "olmo2" if self.number("attention.sliding_window").is_some_and(|window| window > 0.0) => "olmo3",
            _ => row.model_type,
        }
    }

    /// The family's row as this file has it.
    ///
    /// # Errors
    /// The architecture is not known.
    pub fn family(&self) -> Result<Family> {
        let row = self.row()?;
        let model_type = self.model_type(row);
        let mut family = *families::find(model_type).expect("each row names a family");
        self.adjust(&mut family);
        Ok(family)
    }

    /// Changes a family's row to what this file has.
    pub fn adjust(&self, family: &mut Family) {
        let Ok(row) = self.row() else { return };
        family.interleaved = row.interleaved;
        family.norm.plus_one &= !row.shifted;
        if row.arch == "falcon" {
            self.falcon(family);
        }
        self.join(&mut family.names);
        self.biases(family);
        if family.head_norm != HeadNorm::Never {
            family.head_norm = match family.head_norm {
                // converters put the norms of all heads into one tensor
                HeadNorm::HeadsApart(field) => HeadNorm::Heads(field),
                other => other,
            };
        }
        if self.number("attention.scale").is_none() && matches!(family.scale, Scale::Field(_)) {
            family.scale = Scale::HeadDim;
        }
        if !matches!(family.names.qkv, Qkv::Latent { .. }) {
            family.kv_heads = KvHeads::Field("num_key_value_heads");
        }
        self.experts(row, family);
    }

    /// Which matrices are joined.
    fn join(&self, names: &mut Names) {
        if self.has_part("attn_qkv.weight") {
            let (Qkv::Joined(name) | Qkv::ByHead(name)) = names.qkv else {
                names.qkv = Qkv::Joined("self_attn.qkv_proj");
                return self.join_feed(names);
            };
            names.qkv = Qkv::Joined(name);
        } else if let Qkv::Joined(_) | Qkv::ByHead(_) = names.qkv {
            names.qkv = Qkv::Apart(["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]);
        }
        self.join_feed(names);
    }

    fn join_feed(&self, names: &mut Names) {
        match names.inner {
            Inner::Joined(_) if self.has_part("ffn_gate.weight") => {
                names.inner = Inner::Gated(["mlp.gate_proj", "mlp.up_proj"]);
            }
            _ => {}
        }
    }

    /// Which matrices and norms have biases.
    fn biases(&self, family: &mut Family) {
        let has = |part: &str| if self.has_part(part) { Bias::Always } else { Bias::Never };
        family.qkv_bias = match family.names.qkv {
            Qkv::Joined(_) | Qkv::ByHead(_) => has("attn_qkv.bias"),
            Qkv::Apart(_) => has("attn_q.bias"),
            Qkv::Latent { .. } => has("attn_kv_a_mqa.bias"),
        };
        family.o_bias = has("attn_output.bias");
        family.mlp_bias = has("ffn_down.bias");
        family.up_bias = Some(has("ffn_up.bias"));
        family.head_bias = if self.tensors.contains_key("output.bias") { Bias::Always } else { Bias::Never };
        if family.norm.kind == NormKind::Layer && family.norm.weight {
            let has = |name: &str| self.tensors.contains_key(name);
            family.norm.bias = has("output_norm.bias") || has("token_embd_norm.bias");
        }
        // DistilBERT is a BERT here, without types
        if !self.tensors.contains_key("token_types.weight") {
            family.names.position_type.types = "";
        }
    }

    /// The three shapes of Falcon, which config.json tells apart by flags.
    fn falcon(&self, family: &mut Family) {
        let two = self.has_part("attn_norm_2.weight");
        family.places =
            Places::Always(if two { NormPlacement::ParallelTwo } else { NormPlacement::Parallel });
        if two {
            family.names = Names { attention_norm: "ln_attn", mlp_norm: "ln_mlp", ..family.names };
        }
    }

    /// Experts lie in stacks, gate and up apart; here each has its matrices.
    fn experts(&self, row: &Row, family: &mut Family) {
        let Some(mut mixture) = family.mixture else { return };
        if !self.has_part("ffn_gate_inp.weight") {
            family.mixture = None;
            return;
        }
        let prefix = match mixture.weights {
            Experts::Apart { prefix, .. } => prefix,
            _ => "mlp.experts.",
        };
        mixture.weights =
            Experts::Apart { prefix, names: EXPERTS, biased: self.has_part("ffn_down_exps.bias") };
        mixture.router_bias = self.has_part("ffn_gate_inp.bias");
        mixture.layers = MixtureLayers::From("first_k_dense_replace");
        let apart = |(inner, down): (Inner, &'static str)| match inner {
            Inner::Joined(_) => (Inner::Gated(["shared_mlp.gate", "shared_mlp.up"]), down),
            _ => (inner, down),
        };
        mixture.shared = match mixture.shared {
            Shared::Field { field, names } => Shared::Field { field, names: apart(names) },
            Shared::Times { field, names } => Shared::Times { field, names: apart(names) },
            Shared::Never => Shared::Never,
        };
        if !self.has_part("exp_probs_b.bias") {
            mixture.correction = "";
        }
        let normalized = match self.metadata.get(&format!("{}.expert_weights_norm", row.arch)) {
            Some(Value::Flag(flag)) => *flag,
            _ => row.normalized,
        };
        if let Bias::If(..) = mixture.normalized {
            mixture.normalized = if normalized { Bias::Always } else { Bias::Never };
        }
        let groups = self.number("expert_group_count").is_some_and(|count| count > 1.0);
        match (self.number("expert_gating_func"), row.arch) {
            // DeepSeek-V2's files say nothing, and have no correction
            (None, "deepseek2") if mixture.correction.is_empty() => mixture.scoring = Score::Softmax,
            (Some(1.0), _) => mixture.scoring = Score::Softmax,
            (Some(2.0), _) => mixture.scoring = Score::Sigmoid,
            (Some(3.0), _) => mixture.scoring = Score::Chosen,
            _ => {}
        }
        if mixture.groups.is_some() {
            // DeepSeek-V2 takes the best expert of a group, its successors the best two
            let best = if mixture.scoring == Score::Softmax { 1 } else { 2 };
            mixture.groups = groups.then_some(best);
        }
        family.mixture = Some(mixture);
    }

    /// The shape of a tensor, if it is there.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(name).map(|info| info.shape.as_slice())
    }

    /// Whether a layer has a tensor of this name.
    pub fn has_part(&self, part: &str) -> bool {
        self.parts.contains(part)
    }

    /// A number below the architecture's name.
    pub fn number(&self, name: &str) -> Option<f64> {
        let arch = self.text("general.architecture").ok()??;
        match self.metadata.get(&format!("{arch}.{name}"))? {
            Value::Whole(number) => Some(*number as f64),
            Value::Float(number) => Some(*number),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_names_a_family() {
        for row in ROWS {
            assert!(families::find(row.model_type).is_some(), "{}", row.arch);
        }
    }
}
