//! Heads of queries, keys and values, latents, and norms of heads.

use super::{HeadNormShape, LatentShape, MAX_WIDTH};
use crate::backend::packed::LANES;
use crate::error::Result;
use crate::model::families::{Causal, Family, HeadNorm, KvHeads, Qkv};
use crate::weights::json::Json;

/// The attention kernels keep rows of a head on hand: see `backend/cpu/attention.rs`.
const MAX_HEAD_DIM: usize = 512;

/// The fields of the same names of [`Arch`](super::Arch).
pub(super) struct Heads {
    pub(super) heads: usize,
    pub(super) kv_heads: usize,
    pub(super) head_dim: usize,
    pub(super) latent: Option<LatentShape>,
}

pub(super) fn heads(json: &Json, family: &Family, hidden: usize) -> Result<Heads> {
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
        Some(latent) => latent.rank + latent.rope_dim,
        None => head_dim(json, hidden, heads)?,
    };
    Ok(Heads { heads, kv_heads, head_dim, latent })
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
        nope_dim: size("qk_nope_head_dim")?,
        rope_dim: size("qk_rope_head_dim")?,
        value: in_blocks("v_head_dim")?,
    };
    if !shape.rope_dim.is_multiple_of(2) {
        return Err(json.wrong("qk_rope_head_dim", "even"));
    }
    let widest = (shape.rank + shape.rope_dim).max(shape.nope_dim + shape.rope_dim).max(shape.value);
    if heads * widest > MAX_WIDTH {
        let expected = format!("so that all heads have at most {MAX_WIDTH} values");
        return Err(json.wrong("num_attention_heads", expected));
    }
    Ok(shape)
}

pub(super) fn causal(json: &Json, family: &Family) -> Result<bool> {
    match family.causal {
        Causal::Always => Ok(true),
        Causal::Never => Ok(false),
        Causal::Unless(field) => Ok(!json.flag(field, false)?),
    }
}

pub(super) fn head_norm(json: &Json, family: &Family) -> Result<Option<HeadNormShape>> {
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
