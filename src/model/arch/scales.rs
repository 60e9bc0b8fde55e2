//! Factors and bounds.

use super::LatentShape;
use crate::error::Result;
use crate::model::families::{EmbedScale, Family, LogitsScale, Scale};
use crate::model::rope;
use crate::weights::json::Json;

pub(super) fn embed(json: &Json, family: &Family, hidden: usize) -> Result<f32> {
    match family.embed_scale {
        EmbedScale::One => Ok(1.0),
        EmbedScale::RootOfHidden => Ok((hidden as f32).sqrt()),
        EmbedScale::Field(field) => factor(json, field),
    }
}

pub(super) fn attention(
    json: &Json,
    family: &Family,
    head_dim: usize,
    latent: Option<LatentShape>,
) -> Result<f32> {
    Ok(match family.scale {
        Scale::HeadDim => match latent {
            Some(LatentShape { nope_dim, rope_dim, .. }) => {
                ((nope_dim + rope_dim) as f32).sqrt().recip() * rope::scores_scale(json)?
            }
            None => (head_dim as f32).sqrt().recip(),
        },
        Scale::RootOf(field) => number(json, field)?.unwrap_or(head_dim as f32).sqrt().recip(),
        Scale::Field(field) => factor(json, field)?,
    })
}

pub(super) fn residual(json: &Json, family: &Family) -> Result<f32> {
    family.residual_scale.map_or(Ok(1.0), |field| factor(json, field))
}

pub(super) fn logits(json: &Json, family: &Family) -> Result<f32> {
    match family.logits_scale {
        LogitsScale::One => Ok(1.0),
        LogitsScale::Times(field) => factor(json, field),
        LogitsScale::Over(field) => factor(json, field).map(f32::recip),
    }
}

/// A bound of 0 is none.
pub(super) fn bound(json: &Json, field: Option<&str>) -> Result<Option<f32>> {
    match field {
        Some(field) if json.positive_unless_zero(field)?.is_some() => number(json, field),
        _ => Ok(None),
    }
}

/// One when absent.
fn factor(json: &Json, field: &str) -> Result<f32> {
    Ok(number(json, field)?.unwrap_or(1.0))
}

/// A positive number that single precision can hold; none when absent.
pub(super) fn number(json: &Json, field: &str) -> Result<Option<f32>> {
    let Some(number) = json.positive(field)? else { return Ok(None) };
    let single = number as f32;
    if single.is_normal() {
        Ok(Some(single))
    } else {
        Err(json.wrong(field, "a number that single precision can hold"))
    }
}
