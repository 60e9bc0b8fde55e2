//! Every family of decoders on checkpoints of its own, against transformers (`tools/fixture_families.py`).
//!
//! Acceptance is that of `tests/fixtures.rs`: greedy tokens equal, errors at most twice those of the reference's own
//! low-precision run. Requests run together, so batches are ragged; and in chunks too.

mod common;

use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::Path;

use amnesic::testing::{LogitsTap, model_types};
use amnesic::{Device, Request, Session};
use common::{fixture, instruction_sets, read_f32s};
use serde::Deserialize;

#[derive(Deserialize)]
struct Expected {
    prompts: Vec<Vec<u32>>,
    greedy: Vec<Vec<u32>>,
    low_max_abs: Vec<f64>,
    low_rms: Vec<f64>,
}

/// Names of the checkpoints, sorted, with their `model_type`.
fn checkpoints() -> Vec<(String, String)> {
    let mut all: Vec<_> = std::fs::read_dir(fixture("families"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|folder| !folder.file_name().unwrap().to_str().unwrap().starts_with('.'))
        .filter(|folder| folder.join("expected.json").exists())
        .map(|folder| {
            let config = std::fs::read_to_string(folder.join("config.json")).unwrap();
            let config: serde_json::Value = serde_json::from_str(&config).unwrap();
            let name = folder.file_name().unwrap().to_str().unwrap().to_owned();
            (name, config["model_type"].as_str().unwrap().to_owned())
        })
        .collect();
    all.sort();
    all
}

/// Largest error of one checkpoint's logits, and the reference's own.
#[test]
fn only() {
    let name = std::env::var("ONLY").unwrap();
    for device in instruction_sets().into_iter().chain([Device::Reference]) {
        let r = std::panic::catch_unwind(|| hold(&name, device, 512));
        eprintln!("{name} {device:?} {:?}", r.ok());
    }
}

fn hold(name: &str, device: Device, chunk: usize) -> (f64, f64) {
    let folder = fixture("families").join(name);
    let expected = std::fs::read_to_string(folder.join("expected.json")).unwrap();
    let expected: Expected = serde_json::from_str(&expected).unwrap();
    let builder = Session::builder(&folder).device(device).context_length(256).kv_tokens(512);
    let session = builder.max_sequences(3).step_tokens(chunk).open();
    let session = session.unwrap_or_else(|error| panic!("{name}: {error}"));
    let taps: Vec<LogitsTap> = expected.prompts.iter().map(|_| LogitsTap::default()).collect();
    let requests = expected.prompts.iter().zip(&expected.greedy).zip(&taps).map(|((prompt, greedy), tap)| {
        Request::tokens(prompt.clone()).max_tokens(greedy.len()).temperature(0.0).tap_logits(tap)
    });
    let mut worst = (0.0_f64, 0.0_f64);
    for (i, reply) in session.generate_batch(requests).unwrap().iter().enumerate() {
        assert_eq!(reply.tokens(), expected.greedy[i], "{name}, {device:?}: greedy tokens of prompt {i}");
        let reference = read_f32s(&folder.join("expected.safetensors"), &format!("logits.{i}"));
        let (mine, low) = (taps[i].values(), (expected.low_max_abs[i], expected.low_rms[i]));
        assert_eq!(mine.len(), reference.len());
        let off = mine.iter().zip(&reference).map(|(&a, &b)| (f64::from(a) - f64::from(b)).abs());
        let (max, squares) = off.fold((0.0_f64, 0.0), |(max, sum), d| (max.max(d), sum + d * d));
        let rms = (squares / mine.len() as f64).sqrt();
        assert!(
            max <= 2.0 * low.0,
            "{name}, {device:?}: prompt {i}: largest error {max}, allowed 2 * {}",
            low.0
        );
        assert!(rms <= 2.0 * low.1, "{name}, {device:?}: prompt {i}: error {rms}, allowed 2 * {}", low.1);
        worst = (worst.0.max(max), worst.1.max(low.0));
    }
    worst
}

#[test]
fn every_instruction_set_holds_every_family() {
    for device in instruction_sets() {
        for (name, _) in checkpoints() {
            hold(&name, device, 512);
        }
    }
}

#[test]
fn every_instruction_set_holds_every_family_in_chunks_of_five() {
    for device in instruction_sets() {
        for (name, _) in checkpoints() {
            hold(&name, device, 5);
        }
    }
}

/// And the table in the docs names each checkpoint. `AMNESIC_WRITE_DOCS=1` writes it.
#[test]
fn the_reference_backend_holds_every_family() {
    const DOCS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/families.md");
    let mut table = String::from(
        "# Families of decoders\n\nLargest error of the logits of two prompts and 32 tokens after each against transformers \
         in f32, on tiny checkpoints with\nrandom weights (`tests/families.rs`, which writes this table). Allowed is twice \
         transformers' own error in\nthe type of the checkpoint (bf16, in some f16).\n\n\
         | `model_type` | checkpoint | reference backend | f32 kernels | transformers in low precision |\n|---|---|---|---|---|\n",
    );
    let checkpoints = checkpoints();
    for (name, model_type) in &checkpoints {
        let (dull, low) = hold(name, Device::Reference, 16);
        let (fast, _) = hold(name, Device::CpuWith("portable"), 16);
        writeln!(table, "| `{model_type}` | {name} | {dull:.4} | {fast:.4} | {low:.4} |").unwrap();
    }
    if std::env::var_os("AMNESIC_WRITE_DOCS").is_some() {
        std::fs::write(DOCS, table).unwrap();
    }
    let docs = std::fs::read_to_string(Path::new(DOCS)).unwrap();
    for (name, model_type) in &checkpoints {
        assert!(docs.contains(&format!("| `{model_type}` | {name} |")), "docs/families.md has no {name}");
    }
}

#[test]
fn every_family_has_a_checkpoint() {
    let mut known: BTreeSet<String> = checkpoints().into_iter().map(|(_, model_type)| model_type).collect();
    known.extend(["llama", "mistral", "qwen2"].map(str::to_owned)); // tests/fixtures.rs
    let without: Vec<_> = model_types().filter(|name| !known.contains(*name)).collect();
    assert!(without.is_empty(), "without a fixture: {without:?}");
}
