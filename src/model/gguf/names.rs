//! The tensors of a GGUF file by the names that the same model has in safetensors: those of the family's row.

use super::arch::Row;
use crate::error::{Error, Result};
use crate::model::families::{Experts, Family, Inner, Qkv, Shared};
use crate::weights::gguf::{Gguf, Info, Kind, LATENT_PARTS, Stored};

/// Divisors of frequencies, one for each, where a file has them.
pub const FACTORS: [&str; 3] = ["rope_freqs.weight", "rope_factors_short.weight", "rope_factors_long.weight"];

/// Tensors and matrices of experts in all, as of a checkpoint in safetensors.
const MAX_STORED: usize = 1 << 19;

/// What a tensor of a layer becomes.
enum Part {
    /// One of the same shape.
    One(String),
    /// A stack of matrices, one for each expert: names of those that lie below each other in one of them.
    Stack(Vec<String>),
    /// One with a dimension of 1 before it, which some converters leave away.
    Row(String),
}

impl Gguf {
    /// Its tensors, but for those that are a part of the configuration.
    ///
    /// # Errors
    /// The architecture is not known, or a stack of experts has no whole number of them.
    pub fn stored(&self) -> Result<Vec<Stored>> {
        let (row, family) = (self.row()?, self.family()?);
        let mut all = Vec::new();
        for (name, info) in &self.tensors {
            if FACTORS.contains(&name.as_str()) {
                continue;
            }
            match place_of(row, &family, name) {
                Part::One(stem) => all.push(info.stored(stem, info.shape.clone(), 0, 1)),
                Part::Row(stem) => {
                    let one = if info.shape.len() == 1 { &[1][..] } else { &[] };
                    all.push(info.stored(stem, [one, &info.shape[..]].concat(), 0, 1));
                }
                Part::Stack(stems) => {
                    let [experts, shape @ ..] = &info.shape[..] else {
                        unreachable!("one dimension or more")
                    };
                    let rows = shape.first().copied().unwrap_or(1);
                    if !rows.is_multiple_of(stems.len()) || shape.len() > 2 {
                        let expected = format!("have {} matrices below each other", stems.len());
                        return Err(Error::tensor(&self.file, name, expected));
                    }
                    let mut shape = shape.to_vec();
                    if let Some(rows) = shape.first_mut() {
                        *rows /= stems.len();
                    }
                    let count = experts * stems.len();
                    if count > MAX_STORED.saturating_sub(all.len()) {
                        let expected = format!("have fewer experts: there are at most {MAX_STORED} matrices");
                        return Err(Error::tensor(&self.file, name, expected));
                    }
                    for at in 0..count {
                        let stem = &stems[at % stems.len()];
                        let stem = stem.replacen("{}", &(at / stems.len()).to_string(), 1);
                        all.push(info.stored(stem, shape.clone(), at, count));
                    }
                }
            }
        }
        Ok(all)
    }
}

impl Info {
    /// Piece `at` of `count` that lie one behind another, as a checkpoint takes it.
    fn stored(&self, name: String, mut shape: Vec<usize>, at: usize, count: usize) -> Stored {
        let (values, block) = self.kind.block();
        let dtype = match self.kind {
            Kind::F32 => safetensors::Dtype::F32,
            Kind::F16 => safetensors::Dtype::F16,
            Kind::Bf16 => safetensors::Dtype::BF16,
            _ => {
                if let Some(cols) = shape.last_mut() {
                    *cols = *cols / values * block;
                }
                safetensors::Dtype::U8
            }
        };
        let bytes = self.bytes / count;
        let start = self.start + at * bytes;
        Stored { name, kind: self.kind, dtype, shape, range: start..start + bytes, map: self.map.clone() }
    }
}

/// The place of a tensor. What nobody knows keeps its name, and is listed as read by nobody.
fn place_of(row: &Row, family: &Family, name: &str) -> Part {
    let names = &family.names;
    let (stem, end) = name.rsplit_once('.').unwrap_or((name, "weight"));
    let whole = match stem {
        "token_embd" => Some(names.embed),
        "output_norm" => Some(names.norm),
        "output" => Some(names.head),
        "token_types" => Some(names.position_type.types),
        "position_embd" => Some(names.position_type.positions),
        "token_embd_norm" => Some(names.position_type.norm),
        _ => None,
    };
    if let Some(whole) = whole.filter(|whole| !whole.is_empty()) {
        return Part::One(format!("{whole}.{end}"));
    }
    let Some((layer, part)) = stem.strip_prefix("blk.").and_then(|rest| rest.split_once('.')) else {
        return Part::One(name.to_owned());
    };
    let layer = format!("{}{layer}.", names.layers);
    let one = |ours: &str| match ours {
        "" => Part::One(name.to_owned()),
        ours => Part::One(format!("{layer}{ours}.{end}")),
    };
    match attention(row, family, part).or_else(|| feed_forward(family, part)) {
        Some(ours) => return one(ours),
        None if part == "attn_sinks" && !names.sinks.is_empty() => {
            return Part::One(format!("{layer}{}", names.sinks));
        }
        None => {}
    }
    if let Qkv::Latent { kv_latent: [_, _, up], .. } = names.qkv {
        match part {
            "attn_k_b" => return Part::One(format!("{layer}{up}{}.{end}", LATENT_PARTS[0])),
            "attn_v_b" => return Part::One(format!("{layer}{up}{}.{end}", LATENT_PARTS[1])),
            _ => {}
        }
    }
    of_experts(family, part, &layer, end).unwrap_or_else(|| one(part))
}

fn attention(row: &Row, family: &Family, part: &str) -> Option<&'static str> {
    let names = &family.names;
    let ours = match part {
        // Falcon's larger ones have two, and the first is that of the MLP
        "attn_norm_2" => names.attention_norm,
        "attn_norm" if row.arch == "falcon" && names.mlp_norm == "ln_mlp" => names.mlp_norm,
        "attn_norm" => names.attention_norm,
        "ffn_norm" => names.mlp_norm,
        // some architectures call the norm before the MLP so
        "post_attention_norm" if names.attention_post.is_empty() => names.mlp_norm,
        "post_attention_norm" => names.attention_post,
        "post_ffw_norm" => names.mlp_post,
        "attn_output_norm" => names.attention_post,
        "layer_output_norm" => names.mlp_post,
        "attn_output" => names.o,
        "attn_q_norm" => names.head_norms[0],
        "attn_k_norm" => names.head_norms[1],
        _ => match (names.qkv, part) {
            (Qkv::Apart([q, ..]) | Qkv::Latent { q, .. }, "attn_q") => q,
            (Qkv::Apart([_, k, _]), "attn_k") => k,
            (Qkv::Apart([_, _, v]), "attn_v") => v,
            (Qkv::Joined(all), "attn_qkv") => all,
            (Qkv::Latent { q_latent: [down, _, _], .. }, "attn_q_a") => down,
            (Qkv::Latent { q_latent: [_, norm, _], .. }, "attn_q_a_norm") => norm,
            (Qkv::Latent { q_latent: [_, _, up], .. }, "attn_q_b") => up,
            (Qkv::Latent { kv_latent: [down, _, _], .. }, "attn_kv_a_mqa") => down,
            (Qkv::Latent { kv_latent: [_, norm, _], .. }, "attn_kv_a_norm") => norm,
            (Qkv::Latent { kv_latent: [_, _, up], .. }, "attn_kv_b") => up,
            _ => return None,
        },
    };
    Some(ours)
}

fn feed_forward(family: &Family, part: &str) -> Option<&'static str> {
    let inner = |inner: Inner, part: &str| match (inner, part) {
        (Inner::Gated([gate, _]), "gate") => Some(gate),
        (Inner::Gated([_, up]) | Inner::Joined(up) | Inner::JoinedUpFirst(up) | Inner::Plain(up), "up") => {
            Some(up)
        }
        _ => None,
    };
    let shared = family.mixture.and_then(|mixture| match mixture.shared {
        Shared::Never => None,
        Shared::Field { names, .. } | Shared::Times { names, .. } => Some(names),
    });
    match part {
        "ffn_gate" => inner(family.names.inner, "gate"),
        "ffn_up" => inner(family.names.inner, "up"),
        "ffn_down" => Some(family.names.down),
        "ffn_gate_inp" => family.mixture.map(|mixture| mixture.router),
        "ffn_gate_shexp" => inner(shared?.0, "gate"),
        "ffn_up_shexp" => inner(shared?.0, "up"),
        "ffn_down_shexp" => Some(shared?.1),
        _ => None,
    }
}

/// What only layers with experts have.
fn of_experts(family: &Family, part: &str, layer: &str, end: &str) -> Option<Part> {
    let mixture = family.mixture?;
    if part == "ffn_gate_inp_shexp" && !mixture.shared_gate.is_empty() {
        return Some(Part::Row(format!("{layer}{}.{end}", mixture.shared_gate)));
    }
    if part == "exp_probs_b" && !mixture.correction.is_empty() {
        let name = format!("{layer}{}", mixture.correction);
        return Some(if mixture.correction_in_row { Part::Row(name) } else { Part::One(name) });
    }
    let Experts::Apart { prefix, names: [gate, up, down], .. } = mixture.weights else { return None };
    let stack = |ours: &[&str]| {
        Part::Stack(ours.iter().map(|ours| format!("{layer}{prefix}{{}}.{ours}.{end}")).collect())
    };
    Some(match part {
        "ffn_gate_exps" => stack(&[gate]),
        "ffn_up_exps" => stack(&[up]),
        "ffn_down_exps" => stack(&[down]),
        "ffn_gate_up_exps" => stack(&[gate, up]),
        // as files of Mixtral were before stacks
        _ => {
            let (ours, expert) = [("ffn_gate.", gate), ("ffn_up.", up), ("ffn_down.", down)]
                .into_iter()
                .find_map(|(theirs, ours)| Some((ours, part.strip_prefix(theirs)?)))?;
            Part::One(format!("{layer}{prefix}{expert}.{ours}.{end}"))
        }
    })
}
