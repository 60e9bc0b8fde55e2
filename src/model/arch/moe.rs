//! Experts: how many, how tokens choose them, and which layers have them.

use super::scales::number;
use super::{MAX_LAYERS, MAX_WIDTH, Moe, biased};
use crate::backend::{Groups, Routing, Scoring};
use crate::error::Result;
use crate::model::families::{MixtureLayers, MixtureRow, Score, Shared};
use crate::weights::json::Json;

/// The router keeps the scores of groups on hand: see `backend/cpu/route.rs`.
const MAX_EXPERTS: usize = 1 << 12;

pub(super) fn mixture(json: &Json, row: &MixtureRow) -> Result<Moe> {
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
pub(super) fn mixture_layers(json: &Json, row: &MixtureRow, layers: usize) -> Result<Vec<bool>> {
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

/// The first of the fields that is there.
fn first_size(json: &Json, fields: &[&str], max: usize) -> Result<usize> {
    for field in fields {
        if let Some(size) = json.size(field, max)? {
            return Ok(size);
        }
    }
    json.required_size(fields[0], max)
}
