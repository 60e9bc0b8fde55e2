//! tests/fixtures/sampling.json, which tools/make_sampling_tables.py wrote with transformers.

use serde::Deserialize;

use super::*;

#[derive(Deserialize)]
struct Case {
    logits: Vec<f32>,
    settings: Settings,
    ids: Vec<u32>,
    prompt: usize,
    end_tokens: Vec<u32>,
    breakers: Vec<u32>,
    /// Ids and probabilities of what is kept; with a temperature.
    expected: Option<Vec<(u32, f64)>>,
    /// Logits after the penalties, none for a banned token; without.
    changed: Option<Vec<Option<f32>>>,
}

#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Settings {
    temperature: f32,
    top_k: usize,
    top_p: f32,
    min_p: f32,
    typical_p: f32,
    repetition_penalty: f32,
    presence_penalty: f32,
    frequency_penalty: f32,
    dry: Option<(f32, f32, usize, usize)>,
    min_tokens: usize,
}

impl Default for Settings {
    fn default() -> Self {
        let off = Sampling::default();
        Self {
            temperature: off.temperature,
            top_k: off.top_k,
            top_p: off.top_p,
            min_p: off.min_p,
            typical_p: off.typical_p,
            repetition_penalty: off.repetition_penalty,
            presence_penalty: off.presence_penalty,
            frequency_penalty: off.frequency_penalty,
            dry: None,
            min_tokens: off.min_tokens,
        }
    }
}

impl Settings {
    fn sampling(&self) -> Sampling {
        let dry = self.dry.map(|(multiplier, base, allowed_length, range)| Dry {
            multiplier,
            base,
            allowed_length,
            range,
        });
        Sampling {
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            typical_p: self.typical_p,
            repetition_penalty: self.repetition_penalty,
            presence_penalty: self.presence_penalty,
            frequency_penalty: self.frequency_penalty,
            dry,
            min_tokens: self.min_tokens,
            seed: 0,
        }
    }
}

/// What the filters keep, by rising id, with probabilities.
fn kept(logits: &[f32], sampling: &Sampling) -> Vec<(u32, f64)> {
    let mut filters = Filters::new(logits.len());
    let mut weights = match filters.keep(logits, sampling).unwrap() {
        Some((scale, keys)) => {
            keys.iter().map(|&key| (key as u32, scale.weight(logits[key as u32 as usize]))).collect()
        }
        None => {
            let (max, temperature) = (softmax::largest(logits), f64::from(sampling.temperature));
            let scale = softmax::Scale { max, temperature };
            let of = |(id, &logit): (usize, &f32)| (id as u32, scale.weight(logit));
            logits.iter().enumerate().filter(|&(_, &logit)| logit != BANNED).map(of).collect::<Vec<_>>()
        }
    };
    weights.sort_unstable_by_key(|&(id, _)| id);
    let total: f64 = weights.iter().map(|&(_, weight)| weight).sum();
    weights.into_iter().map(|(id, weight)| (id, weight / total)).collect()
}

#[test]
fn the_chain_gives_what_transformers_gives() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/sampling.json");
    let cases: Vec<Case> = serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
    assert_eq!(cases.len(), 160);
    for (number, case) in cases.iter().enumerate() {
        let sampling = case.settings.sampling();
        sampling.check().unwrap();
        let context = Context {
            ids: &case.ids,
            prompt: case.prompt,
            end_tokens: &case.end_tokens,
            breakers: &case.breakers,
            ..Context::default()
        };
        let mut logits = case.logits.clone();
        let mut tally = Tally::new(logits.len());
        change(&mut logits, &sampling, &context, &mut tally, &mut Secret::default());
        if let Some(changed) = &case.changed {
            for (id, (&mine, theirs)) in logits.iter().zip(changed).enumerate() {
                let theirs = theirs.unwrap_or(BANNED);
                let near = mine == theirs || (mine - theirs).abs() <= 1e-6 * theirs.abs().max(1.0);
                assert!(near, "case {number}, token {id}: {mine} for {theirs}");
            }
        }
        if let Some(expected) = &case.expected {
            let mine = kept(&logits, &sampling);
            let ids = |list: &[(u32, f64)]| list.iter().map(|&(id, _)| id).collect::<Vec<_>>();
            assert_eq!(ids(&mine), ids(expected), "case {number}");
            for (&(id, mine), &(_, theirs)) in mine.iter().zip(expected) {
                assert!((mine - theirs).abs() < 1e-6, "case {number}, token {id}: {mine} for {theirs}");
            }
        }
    }
}
