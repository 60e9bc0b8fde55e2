//! Rotary position embedding: which there are in a checkpoint, and their tables of angles.
//!
//! Formulas: RoFormer (Su et al. 2021), in the half-split layout of Hugging Face checkpoints or with neighbours as pairs;
//! scalings as in transformers' `modeling_rope_utils.py`: linear and dynamic NTK interpolation, YaRN (Peng et al. 2023),
//! LongRoPE (Ding et al. 2024), Llama 3.1. Angles are single-precision products, as there.
//!
//! Where a scaling depends on the length of the text (dynamic, LongRoPE), the length that counts is the session's context
//! length: keys are cached, and a request's tokens must not depend on how far others, or it itself later, may go.

use super::arch::MAX_CONTEXT;
use crate::error::Result;
use crate::weights::json::Json;

/// How frequencies are scaled.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeKind {
    /// `theta^(-2i/d)`.
    Default,
    /// Positions are divided.
    Linear {
        /// By this.
        factor: f64,
    },
    /// For contexts above `original` theta grows with them.
    Dynamic {
        /// How strongly.
        factor: f64,
        /// Context length before the stretch.
        original: f64,
    },
    /// Long wavelengths are stretched by `factor`, short ones kept, those between interpolated linearly.
    Yarn {
        /// Stretch of the long wavelengths.
        factor: f64,
        /// First and last of the frequencies between.
        ramp: [f64; 2],
    },
    /// Each frequency has a stretch of its own.
    Long {
        /// In contexts up to `original`: (dims / 2).
        short: Vec<f64>,
        /// In longer ones: (dims / 2).
        long: Vec<f64>,
        /// Context length before the stretch.
        original: f64,
    },
    /// Llama 3.1: long wavelengths are stretched by `factor`, short ones kept, those between interpolated.
    Llama3 {
        /// Stretch of the long wavelengths.
        factor: f64,
        /// Wavelengths above `original / low_freq_factor` are long.
        low_freq_factor: f64,
        /// Wavelengths below `original / high_freq_factor` are short.
        high_freq_factor: f64,
        /// Context length before the stretch.
        original: f64,
    },
}

/// The parameters of a checkpoint's rope.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// Base of the frequencies.
    pub theta: f64,
    /// Values of a head that turn, the first ones; even.
    pub dims: usize,
    /// Scaling.
    pub kind: RopeKind,
    /// Factor on cosines and sines.
    pub magnitude: f64,
}

impl Rope {
    /// The frequencies in a session of `context` positions: dims / 2 of them.
    pub fn frequencies(&self, context: usize) -> Vec<f32> {
        let (dims, context) = (self.dims as f64, context as f64);
        let theta = match self.kind {
            RopeKind::Dynamic { factor, original } if context > original => {
                self.theta * (factor * context / original - (factor - 1.0)).powf(dims / (dims - 2.0))
            }
            _ => self.theta,
        };
        let unscaled = (0..self.dims / 2).map(|i| 1.0 / theta.powf(2.0 * i as f64 / dims));
        unscaled.enumerate().map(|(i, frequency)| self.scaled(i, frequency, context) as f32).collect()
    }

    fn scaled(&self, index: usize, frequency: f64, context: f64) -> f64 {
        match &self.kind {
            RopeKind::Default | RopeKind::Dynamic { .. } => frequency,
            RopeKind::Linear { factor } => frequency / factor,
            RopeKind::Yarn { factor, ramp: [low, high] } => {
                let stretched = ((index as f64 - low) / (high - low)).clamp(0.0, 1.0);
                frequency / factor * stretched + frequency * (1.0 - stretched)
            }
            RopeKind::Long { short, long, original } => {
                frequency / if context > *original { long[index] } else { short[index] }
            }
            &RopeKind::Llama3 { factor, low_freq_factor, high_freq_factor, original } => {
                let wavelength = std::f64::consts::TAU / frequency;
                if wavelength < original / high_freq_factor {
                    return frequency;
                }
                if wavelength > original / low_freq_factor {
                    return frequency / factor;
                }
                let smooth = (original / wavelength - low_freq_factor) / (high_freq_factor - low_freq_factor);
                (1.0 - smooth) * frequency / factor + smooth * frequency
            }
        }
    }

    /// Cosines and sines for positions `0..context`: (context, 2, dims / 2), cosines first.
    pub fn table(&self, context: usize) -> Vec<f32> {
        let (frequencies, magnitude) = (self.frequencies(context), self.magnitude as f32);
        let mut table = Vec::with_capacity(context * self.dims);
        for position in 0..context {
            let angle = |frequency: &f32| position as f32 * frequency;
            table.extend(frequencies.iter().map(|frequency| angle(frequency).cos() * magnitude));
            table.extend(frequencies.iter().map(|frequency| angle(frequency).sin() * magnitude));
        }
        table
    }

    /// Reads parameters: of `rope_parameters`, or of the whole config with its `rope_scaling`.
    fn parse(whole: &Json, parameters: Option<&Json>, theta: f64, dims: usize) -> Result<Self> {
        let plain = |kind| Self { theta, dims, kind, magnitude: 1.0 };
        let Some(json) = parameters else { return Ok(plain(RopeKind::Default)) };
        let (field, name) = match json.text("rope_type")? {
            Some(name) => ("rope_type", name),
            None => ("type", json.text("type")?.unwrap_or("default")),
        };
        let number = |field: &str| json.positive(field)?.ok_or_else(|| json.wrong(field, "a number above 0"));
        let positions =
            || -> Result<f64> { Ok(whole.required_size("max_position_embeddings", MAX_CONTEXT)? as f64) };
        match name {
            "default" => Ok(plain(RopeKind::Default)),
            "linear" => Ok(plain(RopeKind::Linear { factor: number("factor")? })),
            "dynamic" if dims < 4 => Err(json.wrong(field, "another kind where only two values turn")),
            // HunYuan's: stretched in any context
            "dynamic" if json.positive("alpha")?.is_some() => {
                let dims_of = dims as f64;
                let stretch = number("alpha")?.powf(dims_of / (dims_of - 2.0));
                Ok(Self { theta: theta * stretch, ..plain(RopeKind::Default) })
            }
            "dynamic" => Ok(plain(RopeKind::Dynamic { factor: number("factor")?, original: positions()? })),
            "yarn" => {
                let original = original(whole, json)?.map_or_else(positions, Ok)?;
                yarn(whole, json, theta, dims, original)
            }
            "longrope" | "su" => long(whole, json, theta, dims, positions()?),
            "llama3" => {
                let (low, high) = (number("low_freq_factor")?, number("high_freq_factor")?);
                if low >= high {
                    return Err(json.wrong("high_freq_factor", "above low_freq_factor"));
                }
                Ok(plain(RopeKind::Llama3 {
                    factor: number("factor")?,
                    low_freq_factor: low,
                    high_freq_factor: high,
                    original: match original(whole, json)? {
                        Some(original) => original,
                        None => number(ORIGINAL)?,
                    },
                }))
            }
            _ => Err(json.wrong(field, "default, linear, dynamic, yarn, longrope or llama3")),
        }
    }
}

/// Positions before the stretch.
const ORIGINAL: &str = "original_max_position_embeddings";

/// Positions before the stretch; config.json's own field, which some models have beside the rope's, comes first.
fn original(whole: &Json, json: &Json) -> Result<Option<f64>> {
    match whole.positive(ORIGINAL)? {
        Some(original) => Ok(Some(original)),
        None => json.positive(ORIGINAL),
    }
}

/// YaRN's factor: where it is null, that from the original positions to the model's.
fn yarn_factor(whole: &Json, json: &Json, original: f64) -> Result<f64> {
    if json.is_null("factor") {
        return Ok(whole.required_size("max_position_embeddings", MAX_CONTEXT)? as f64 / original);
    }
    json.positive("factor")?.ok_or_else(|| json.wrong("factor", "a number above 0"))
}

fn yarn(whole: &Json, json: &Json, theta: f64, dims: usize, original: f64) -> Result<Rope> {
    let factor = yarn_factor(whole, json, original)?;
    let mscale = |scale: f64| mscale(factor, scale);
    // both or none: a zero is none
    let mscales = (json.positive_unless_zero("mscale")?, json.positive_unless_zero("mscale_all_dim")?);
    let magnitude = match (json.positive("attention_factor")?, mscales) {
        (Some(factor), _) => factor,
        (None, (Some(one), Some(all))) => mscale(one) / mscale(all),
        (None, _) => mscale(1.0),
    };
    // the index of the frequency that turns so often within the original context
    let index =
        |turns: f64| dims as f64 * (original / (turns * std::f64::consts::TAU)).ln() / (2.0 * theta.ln());
    let fast = json.positive_unless_zero("beta_fast")?.unwrap_or(32.0);
    let slow = json.positive_unless_zero("beta_slow")?.unwrap_or(1.0);
    let (mut low, mut high) = (index(fast), index(slow));
    if json.flag("truncate", true)? {
        (low, high) = (low.floor(), high.ceil());
    }
    (low, high) = (low.max(0.0), high.min(dims as f64 - 1.0));
    if low == high {
        high += 0.001; // as there
    }
    if !(low.is_finite() && high.is_finite() && low < high) {
        return Err(json.wrong("beta_fast", "so far above beta_slow that frequencies lie between"));
    }
    Ok(Rope { theta, dims, kind: RopeKind::Yarn { factor, ramp: [low, high] }, magnitude })
}

fn long(whole: &Json, json: &Json, theta: f64, dims: usize, positions: f64) -> Result<Rope> {
    let original = original(whole, json)?.unwrap_or(positions);
    let factor = json.positive("factor")?.unwrap_or(positions / original);
    let magnitude = match json.positive("attention_factor")? {
        Some(factor) => factor,
        None if factor <= 1.0 => 1.0,
        None => (1.0 + factor.ln() / original.ln()).sqrt(),
    };
    let factors = |name: &str| {
        let list = json.field(name).and_then(|list| list.as_array()).filter(|list| list.len() == dims / 2);
        let numbers =
            list.and_then(|list| list.iter().map(serde_json::Value::as_f64).collect::<Option<Vec<_>>>());
        let positive = numbers.filter(|numbers| numbers.iter().all(|number| *number > 0.0));
        positive.ok_or_else(|| json.wrong(name, format!("a list of {} numbers above 0", dims / 2)))
    };
    let kind = RopeKind::Long { short: factors("short_factor")?, long: factors("long_factor")?, original };
    Ok(Rope { theta, dims, kind, magnitude })
}

/// The ropes of a checkpoint, in the spelling of transformers 4 (`rope_theta`, `rope_scaling`) or 5 (`rope_parameters`,
/// perhaps by the type of layer), and which of them each layer has.
///
/// # Errors
/// A field is wrong; the error names it.
pub fn of_layers(
    json: &Json,
    (partial, (usual, local)): (f64, (f64, Option<f64>)),
    head_dim: usize,
    windows: &[Option<usize>],
) -> Result<(Vec<Rope>, Vec<usize>)> {
    let nested = parameters(json)?;
    let by_type = match &nested {
        Some(nested) => (nested.object("full_attention")?, nested.object("sliding_attention")?),
        None => (None, None),
    };
    let one = |parameters: Option<&Json>, theta: Option<f64>| {
        let theta =
            match parameters.map(|parameters| parameters.positive("rope_theta")).transpose()?.flatten() {
                Some(theta) => theta,
                None => theta.unwrap_or(usual),
            };
        Rope::parse(json, parameters, theta, dims(json, parameters, partial, head_dim)?)
    };
    let theta = match json.positive("rope_theta")? {
        Some(theta) => Some(theta),
        None => json.positive("rotary_emb_base")?,
    };
    let local = json.positive("rope_local_base_freq")?.or(local);
    let sliding = match (&by_type, local) {
        ((Some(full), Some(sliding)), _) => [one(Some(full), None)?, one(Some(sliding), None)?],
        (_, Some(local)) => [one(nested.as_ref(), theta)?, one(None, Some(local))?],
        _ => return Ok((vec![one(nested.as_ref(), theta)?], vec![0; windows.len()])),
    };
    Ok((sliding.into(), windows.iter().map(|window| usize::from(window.is_some())).collect()))
}

/// The factor that YaRN puts on scores where `mscale_all_dim` says so, as DeepSeek's models have it.
///
/// # Errors
/// A field is wrong; the error names it.
pub fn scores_scale(json: &Json) -> Result<f32> {
    let Some(parameters) = parameters(json)? else { return Ok(1.0) };
    let scaled = kind(&parameters)?.is_some_and(|kind| kind != "default");
    match parameters.positive_unless_zero("mscale_all_dim")? {
        Some(all) if scaled => {
            let factor = parameters.positive("factor")?.unwrap_or(1.0);
            Ok(mscale(factor, all).powi(2) as f32)
        }
        _ => Ok(1.0),
    }
}

/// The object with the parameters, in either spelling.
fn parameters(json: &Json) -> Result<Option<Json>> {
    match json.object("rope_parameters")? {
        Some(parameters) => Ok(Some(parameters)),
        None => json.object("rope_scaling"),
    }
}

/// How those say that frequencies are scaled.
fn kind(parameters: &Json) -> Result<Option<&str>> {
    Ok(parameters.text("rope_type")?.or(parameters.text("type")?))
}

/// YaRN's magnitude.
fn mscale(factor: f64, scale: f64) -> f64 {
    if factor <= 1.0 { 1.0 } else { 0.1 * scale * factor.ln() + 1.0 }
}

/// Values of a head that turn.
fn dims(json: &Json, parameters: Option<&Json>, partial: f64, head_dim: usize) -> Result<usize> {
    let mut given = None;
    if let Some(parameters) = parameters {
        given = parameters.positive("partial_rotary_factor")?;
    }
    for field in ["partial_rotary_factor", "rotary_pct"] {
        if given.is_none() {
            given = json.positive(field)?;
        }
    }
    let dims = (head_dim as f64 * given.unwrap_or(partial)) as usize;
    if dims == 0 || dims > head_dim || !dims.is_multiple_of(2) {
        let expected = format!("such that an even number of a head's {head_dim} values turns");
        return Err(json.wrong("partial_rotary_factor", expected));
    }
    Ok(dims)
}

/// Positions that the model was made for, as vLLM counts them (`_get_and_verify_max_len`): what `max_position_embeddings`
/// says, times the factor of the rope; YaRN's factor counts from the original positions. Llama 3's and LongRoPE's
/// stretches are in `max_position_embeddings` already, and so is any where `is_scaled` says so.
///
/// # Errors
/// A field is wrong; the error names it.
pub fn context(json: &Json, is_scaled: bool) -> Result<usize> {
    let positions = json.size("max_position_embeddings", MAX_CONTEXT)?.unwrap_or(2048);
    let Some(parameters) = parameters(json)?.filter(|_| !is_scaled) else { return Ok(positions) };
    let mut by_type = Vec::new();
    for layers in ["full_attention", "sliding_attention"] {
        by_type.extend(parameters.object(layers)?);
    }
    if by_type.is_empty() {
        by_type.push(parameters);
    }
    let mut derived = (positions as f64, 1.0);
    for parameters in by_type {
        derived = match kind(&parameters)?.unwrap_or("default") {
            "longrope" | "su" | "llama3" => derived,
            "yarn" => {
                let original = original(json, &parameters)?.unwrap_or(positions as f64);
                (original, yarn_factor(json, &parameters, original)?)
            }
            _ => (derived.0, parameters.positive("factor")?.unwrap_or(derived.1)),
        };
    }
    Ok(((derived.0 * derived.1) as usize).clamp(1, MAX_CONTEXT))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(theta: f64, dims: usize, kind: RopeKind) -> Rope {
        Rope { theta, dims, kind, magnitude: 1.0 }
    }

    #[test]
    fn llama3_keeps_short_wavelengths_and_stretches_long_ones() {
        let kind =
            RopeKind::Llama3 { factor: 8.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original: 8192.0 };
        let unscaled = plain(5e5, 128, RopeKind::Default).frequencies(1);
        let scaled = plain(5e5, 128, kind).frequencies(1);
        assert_eq!(unscaled[0], scaled[0]);
        assert_eq!(unscaled[63] / 8.0, scaled[63]);
        let between = (0..64).filter(|&i| scaled[i] < unscaled[i] && scaled[i] > unscaled[i] / 8.0).count();
        assert!(between > 0, "no frequency is interpolated");
    }

    #[test]
    fn position_zero_turns_nothing() {
        let table = plain(1e4, 6, RopeKind::Default).table(2);
        assert_eq!(table[..6], [1.0, 1.0, 1.0, 0.0, 0.0, 0.0]);
        assert_eq!((table[6], table[9]), (1_f32.cos(), 1_f32.sin()));
    }

    /// Values that vLLM's `_get_and_verify_max_len` derives.
    #[test]
    fn a_context_is_the_factor_times_the_original_positions() {
        use serde_json::json;
        let yarn = json!({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768});
        let linear = json!({"rope_type": "linear", "factor": 8.0});
        for (config, is_scaled, expected) in [
            (json!({"max_position_embeddings": 40960, "rope_scaling": yarn}), false, 131_072),
            (json!({"max_position_embeddings": 131_072, "rope_parameters": yarn}), false, 131_072),
            (
                json!({"max_position_embeddings": 4096, "rope_scaling": {"type": "linear", "factor": 4}}),
                false,
                16384,
            ),
            (
                json!({"max_position_embeddings": 4096, "rope_scaling": {"type": "dynamic", "factor": 2.0}}),
                false,
                8192,
            ),
            (
                json!({"max_position_embeddings": 4096, "rope_scaling": {"type": "yarn", "factor": 16.0}}),
                false,
                65536,
            ),
            (json!({"max_position_embeddings": 131_072, "rope_scaling": linear}), true, 131_072),
            (
                json!({"max_position_embeddings": 131_072, "rope_scaling": {"rope_type": "llama3", "factor": 8.0}}),
                false,
                131_072,
            ),
            (
                json!({"max_position_embeddings": 131_072, "original_max_position_embeddings": 4096,
                    "rope_scaling": {"type": "longrope"}}),
                false,
                131_072,
            ),
            (
                json!({"max_position_embeddings": 512, "rope_parameters": {"full_attention": linear,
                    "sliding_attention": {"rope_type": "default"}}}),
                false,
                4096,
            ),
            (json!({"rope_parameters": {"rope_type": "default"}}), false, 2048),
        ] {
            let json = Json::of(std::path::Path::new("config.json"), config.clone());
            assert_eq!(context(&json, is_scaled).unwrap(), expected, "{config}");
        }
    }

    /// Not for the text's own length: keys are cached.
    #[test]
    fn long_and_dynamic_go_by_the_session_s_context() {
        let kind = RopeKind::Long { short: vec![1.0; 3], long: vec![2.0, 3.0, 4.0], original: 100.0 };
        let rope = plain(1e4, 6, kind);
        let unscaled = plain(1e4, 6, RopeKind::Default).frequencies(1);
        assert_eq!(rope.frequencies(100), unscaled);
        assert_eq!(rope.frequencies(101)[0], unscaled[0] / 2.0);
        let dynamic = plain(1e4, 6, RopeKind::Dynamic { factor: 2.0, original: 100.0 });
        assert_eq!(dynamic.frequencies(100), unscaled);
        assert!(dynamic.frequencies(200)[2] < unscaled[2]);
    }
}
