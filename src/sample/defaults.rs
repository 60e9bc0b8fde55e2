//! What a checkpoint's `generation_config.json` says of sampling: the defaults of requests.
//!
//! A number that is out of the sampler's bounds is common in published files, and engines differ in what they make of it.
//! It is taken as transformers, vLLM or llama.cpp take it, where one of them gives it a meaning, and else as the nearest
//! value that has one; a [`Note`] says so. What is no number at all is an error.

use super::settings::Sampling;
use crate::error::Result;
use crate::note::Note;
use crate::weights::json::{Json, whole};

/// Requests may ask for 2; the reference has no bound, and a checkpoint may know what it does.
const MAX_TEMPERATURE: f32 = 1000.0;
const REPETITION_PENALTIES: (f32, f32) = (0.01, 100.0);

/// The least share of probabilities: the most likely token alone reaches it.
const ONE_TOKEN: f32 = f32::MIN_POSITIVE;

/// The sampling that `json` asks for: that of `do_sample`, or greedy.
///
/// # Errors
/// A field is no number, or no flag; the error names it.
pub fn sampling(json: &Json, notes: &mut Vec<Note>) -> Result<Sampling> {
    let mut sampling = Sampling::default();
    let mut number = |name: &str, default: f32, (low, high): (f32, f32)| -> Result<f32> {
        let Some(found) = json.number(name)? else { return Ok(default) };
        let value = found as f32;
        let used = match name {
            // nobody gives it a meaning
            "repetition_penalty" if value <= 0.0 => 1.0,
            _ => value.clamp(low, high),
        };
        if used != value {
            notes.push(note(json, name, found, f64::from(used)));
        }
        Ok(used)
    };
    sampling.repetition_penalty = number("repetition_penalty", 1.0, REPETITION_PENALTIES)?;
    if !json.flag("do_sample", false)? {
        return Ok(sampling);
    }
    sampling.temperature = number("temperature", 1.0, (0.0, MAX_TEMPERATURE))?;
    sampling.top_p = number("top_p", 1.0, (ONE_TOKEN, 1.0))?;
    sampling.typical_p = number("typical_p", 1.0, (ONE_TOKEN, 1.0))?;
    sampling.min_p = number("min_p", 0.0, (0.0, 1.0))?;
    if let Some(value) = json.field("top_k") {
        let count = whole(value).ok_or_else(|| json.wrong("top_k", "a whole number"))?;
        sampling.top_k = usize::try_from(count).unwrap_or_else(|_| {
            notes.push(note(json, "top_k", count as f64, 0.0));
            0 // all, as vLLM and llama.cpp take -1
        });
    }
    Ok(sampling)
}

fn note(json: &Json, field: &str, found: f64, used: f64) -> Note {
    Note { file: json.file.clone(), field: field.to_owned(), found, used }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::{Value, json};

    use super::*;

    fn read(mut value: Value) -> (Sampling, Vec<(String, f64)>) {
        value["do_sample"] = true.into();
        let (json, mut notes) = (Json::of(Path::new("generation_config.json"), value), Vec::new());
        let sampling = sampling(&json, &mut notes).unwrap();
        (sampling, notes.into_iter().map(|note| (note.field, note.used)).collect())
    }

    #[test]
    fn values_within_the_bounds_are_taken_as_they_stand() {
        let (sampling, notes) = read(json!({"temperature": 0.0, "top_k": 50.0, "top_p": 0.9, "min_p": 0,
            "typical_p": null, "repetition_penalty": 1.1}));
        assert!(notes.is_empty(), "{notes:?}");
        assert_eq!((sampling.temperature, sampling.top_k, sampling.top_p), (0.0, 50, 0.9));
        assert_eq!((sampling.min_p, sampling.typical_p, sampling.repetition_penalty), (0.0, 1.0, 1.1));
        // above what a request may ask: transformers and vLLM divide by it all the same
        assert_eq!(read(json!({"temperature": 3.5})).0.temperature, 3.5);
        assert_eq!(read(json!({"repetition_penalty": 8})).0.repetition_penalty, 8.0);
        let greedy = Json::of(Path::new("x"), json!({"temperature": 0.7, "top_k": -1}));
        assert_eq!(super::sampling(&greedy, &mut Vec::new()).unwrap(), Sampling::default());
    }

    #[test]
    fn values_out_of_bounds_are_taken_as_references_take_them_and_noted() {
        for (field, value, used) in [
            ("temperature", json!(-1), 0.0),           // llama.cpp: greedy
            ("top_k", json!(-1), 0.0),                 // vLLM, llama.cpp: all
            ("top_p", json!(0), f64::from(ONE_TOKEN)), // transformers, llama.cpp: one token is kept
            ("top_p", json!(1.5), 1.0),                // transformers: no filter from 1 on
            ("typical_p", json!(2), 1.0),
            ("min_p", json!(-0.5), 0.0), // llama.cpp: off
            ("min_p", json!(2), 1.0),    // llama.cpp: one token is kept
            ("repetition_penalty", json!(0), 1.0),
        ] {
            let mut config = json!({});
            config[field] = value;
            let (sampling, notes) = read(config);
            assert_eq!(notes, [(field.to_owned(), used)]);
            let got = match field {
                "temperature" => sampling.temperature,
                "top_k" => sampling.top_k as f32,
                "top_p" => sampling.top_p,
                "typical_p" => sampling.typical_p,
                "min_p" => sampling.min_p,
                _ => sampling.repetition_penalty,
            };
            assert_eq!(f64::from(got), used, "{field}");
        }
    }

    #[test]
    fn what_is_no_number_is_refused() {
        for (field, value) in [
            ("temperature", json!("hot")),
            ("top_k", json!("many")),
            ("top_k", json!(1.5)),
            ("top_p", json!([1])),
            ("do_sample", json!("yes")),
        ] {
            let mut config = json!({"do_sample": true});
            config[field] = value;
            let json = Json::of(Path::new("generation_config.json"), config);
            let error = sampling(&json, &mut Vec::new()).unwrap_err().to_string();
            assert!(error.contains(field), "{error}");
        }
    }
}
