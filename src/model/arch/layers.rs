//! What layers differ in: windows, rotations, experts.

use super::moe::{mixture, mixture_layers};
use super::{LayerShape, MAX_CONTEXT, MAX_LAYERS, Moe};
use crate::error::Result;
use crate::model::families::{Causal, Family, RopeLayers, Window};
use crate::model::rope::{self, Rope};
use crate::weights::json::{Json, whole};

/// The fields of the same names of [`Arch`](super::Arch).
pub(super) struct Layers {
    pub(super) shapes: Vec<LayerShape>,
    pub(super) ropes: Vec<Rope>,
    pub(super) mixture: Option<Moe>,
}

/// `rope_dim`: how many values of a head may turn.
pub(super) fn layers(json: &Json, family: &Family, layers: usize, rope_dim: usize) -> Result<Layers> {
    let windows = windows(json, family, layers)?;
    let (ropes, of_layers) = rope::of_layers(json, (family.partial, family.theta), rope_dim, &windows)?;
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
    let mixture = mixture.filter(|_| shapes.iter().any(|shape| shape.mixture));
    Ok(Layers { shapes, ropes, mixture })
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
