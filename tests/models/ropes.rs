//! Positions beyond those that a model was trained on, with each kind of scaled rope, against transformers
//! (`tools/fixture_ropes.py`); and how long a text may be, as vLLM derives it.

use std::collections::BTreeMap;

use amnesic::testing::LogitsTap;
use amnesic::{Device, Error, Request, Session};
use serde::Deserialize;
use tempfile::{TempDir, tempdir};

use crate::common::{Low, fixture, hold_logits};

#[derive(Deserialize)]
struct Case {
    /// Fields of config.json that are changed.
    config: serde_json::Map<String, serde_json::Value>,
    /// The longest text.
    positions: usize,
    /// The session's, of which those scalings depend that depend on a length.
    context: usize,
    prompt: Vec<u32>,
    logits: Vec<f32>,
    low_max_abs: f64,
    low_rms: f64,
}

fn cases() -> BTreeMap<String, Case> {
    serde_json::from_str(&std::fs::read_to_string(fixture("ropes.json")).unwrap()).unwrap()
}

fn folder(case: &Case) -> TempDir {
    let (folder, weights) = (tempdir().unwrap(), fixture("families/llama_yarn"));
    let config = std::fs::read_to_string(weights.join("config.json")).unwrap();
    let mut config: serde_json::Value = serde_json::from_str(&config).unwrap();
    case.config.iter().for_each(|(field, value)| config[field] = value.clone());
    std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    std::fs::copy(weights.join("model.safetensors"), folder.path().join("model.safetensors")).unwrap();
    folder
}

#[test]
fn logits_beyond_the_original_positions() {
    let cases = cases();
    assert!(cases.len() >= 7, "{:?}", cases.keys());
    for (name, case) in cases {
        let folder = folder(&case);
        let most = case.config["max_position_embeddings"].as_u64().unwrap() as usize;
        assert!(case.prompt.len() > most.min(32), "{name}: the prompt is longer than the original positions");
        for device in [Device::Cpu, Device::Reference] {
            let builder = Session::builder(folder.path()).device(device).max_sequences(1);
            let session =
                builder.context_length(case.context).open().unwrap_or_else(|error| panic!("{name}: {error}"));
            let tap = LogitsTap::default();
            let request =
                Request::tokens(case.prompt.clone()).max_tokens(1).temperature(0.0).ignore_eos(true);
            session.generate(request.tap_logits(&tap)).unwrap();
            let low = Low { max_abs: case.low_max_abs, rms: case.low_rms };
            hold_logits(&tap.values(), &case.logits, low, 2.0, &format!("{name}, {device:?}"));
        }
    }
}

#[test]
fn a_context_is_the_factor_times_the_original_positions() {
    for (name, case) in cases() {
        let folder = folder(&case);
        let builder = || Session::builder(folder.path()).max_sequences(1);
        assert_eq!(builder().open().unwrap().context_length(), case.positions, "{name}: the default");
        let asked = builder().context_length(case.positions).open().unwrap();
        assert_eq!(asked.context_length(), case.positions, "{name}");
        match builder().context_length(case.positions + 1).open().unwrap_err() {
            Error::Request { field: "context_length", expected } => {
                assert!(expected.ends_with(&case.positions.to_string()), "{name}: {expected}")
            }
            other => panic!("{name}: {other}"),
        }
    }
}
