//! Every family of decoders on checkpoints of its own, against transformers (`tools/fixture_families.py`).
//!
//! Acceptance is that of `tests/models/fixtures.rs`: greedy tokens equal, errors at most twice those of the reference's own
//! low-precision run. Requests run together, so batches are ragged; and in chunks too.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::Path;

use amnesic::testing::{LogitsTap, model_types};
use amnesic::{Device, Request, Session};

use crate::common::{Low, fixture, hold_logits, instruction_sets, read_f32s};
use crate::expected::Expected;

/// Names of the checkpoints in a folder of fixtures, sorted, with their `model_type`.
fn checkpoints(folder: &str) -> Vec<(String, String)> {
    let mut all: Vec<_> = std::fs::read_dir(fixture(folder))
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
        .map(|(name, model_type)| (format!("{folder}/{name}"), model_type))
        .collect();
    all.sort();
    all
}

/// Of all families, and of all quantized formats.
fn all() -> Vec<(String, String)> {
    all_of(["families", "quantized"])
}

fn all_of(folders: [&str; 2]) -> Vec<(String, String)> {
    folders.map(checkpoints).concat()
}

/// Largest error of one checkpoint's logits, and the reference's own. Of a quantized one both ways are held: as bf16 to
/// the rule, and as it is to the same tokens and twice the rule, since activations of eight bits are what it costs.
fn hold(name: &str, device: Device, chunk: usize) -> (f64, f64) {
    let quantized = name.starts_with("quantized/");
    if quantized {
        hold_to(name, device, chunk, false, 4.0);
    }
    hold_to(name, device, chunk, quantized, 2.0)
}

fn hold_to(name: &str, device: Device, chunk: usize, dequantize: bool, times: f64) -> (f64, f64) {
    let folder = fixture(name);
    let expected = std::fs::read_to_string(folder.join("expected.json")).unwrap();
    let expected: Expected = serde_json::from_str(&expected).unwrap();
    let builder = Session::builder(&folder).device(device).context_length(256).kv_tokens(512);
    let builder = builder.max_sequences(3).step_tokens(chunk);
    let session = if dequantize { builder.dequantize() } else { builder }.open();
    let session = session.unwrap_or_else(|error| panic!("{name}: {error}"));
    let taps: Vec<LogitsTap> = expected.prompts.iter().map(|_| LogitsTap::default()).collect();
    let requests = expected.prompts.iter().zip(&expected.greedy).zip(&taps).map(|((prompt, greedy), tap)| {
        Request::tokens(prompt.clone()).max_tokens(greedy.len()).temperature(0.0).tap_logits(tap)
    });
    let mut worst = (0.0_f64, 0.0_f64);
    for (i, reply) in session.generate_batch(requests).unwrap().iter().enumerate() {
        assert_eq!(reply.tokens(), expected.greedy[i], "{name}, {device:?}: greedy tokens of prompt {i}");
        let reference = read_f32s(&folder.join("expected.safetensors"), &format!("logits.{i}"));
        let low = Low { max_abs: expected.low_max_abs[i], rms: expected.low_rms[i] };
        let what = format!("{name}, {device:?}: prompt {i}");
        let max = hold_logits(&taps[i].values(), &reference, low, times, &what);
        worst = (worst.0.max(max), worst.1.max(low.max_abs));
    }
    worst
}

#[test]
fn every_instruction_set_holds_every_family() {
    for device in instruction_sets() {
        for (name, _) in all() {
            hold(&name, device, 512);
        }
    }
}

#[test]
fn every_instruction_set_holds_every_family_in_chunks_of_five() {
    for device in instruction_sets() {
        for (name, _) in all() {
            hold(&name, device, 5);
        }
    }
}

/// And the table in the docs names each checkpoint. `AMNESIC_WRITE_DOCS=1` writes it.
#[test]
fn the_reference_backend_holds_every_family() {
    const DOCS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/families.md");
    const HEAD: &str = "| `model_type` | checkpoint | reference backend | f32 kernels | transformers in low precision |\n\
                        |---|---|---|---|---|\n";
    let mut docs = format!(
        "# Families of decoders\n\nLargest error of the logits of two prompts and 32 tokens after each against \
         transformers in f32, on tiny checkpoints with\nrandom weights (`tests/models/families.rs`, which writes this table). \
         Allowed is twice transformers' own error in\nthe type of the checkpoint (bf16, in some f16).\n\n{HEAD}"
    );
    let mut rows = Vec::new();
    for (name, model_type) in all() {
        if name.starts_with("quantized") && !docs.contains("Quantized") {
            write!(
                docs,
                "\n# Quantized checkpoints\n\nThe same for the formats that people publish, against transformers with the \
                 weights that the format's own decoder gives\n(`tools/fixture_quantized.py`), taken in as bf16 \
                 (`Builder::dequantize`). As they are by default,\nwhole numbers are multiplied with activations of \
                 eight bits: then tokens are the same, and errors at most twice what is allowed\nhere.\n\n{HEAD}"
            )
            .unwrap();
        }
        let (dull, low) = hold(&name, Device::Reference, 16);
        let (fast, _) = hold(&name, Device::CpuWith("portable"), 16);
        let name = name.split_once('/').unwrap().1;
        rows.push(format!("| `{model_type}` | {name} |"));
        writeln!(docs, "| `{model_type}` | {name} | {dull:.4} | {fast:.4} | {low:.4} |").unwrap();
    }
    if std::env::var_os("AMNESIC_WRITE_DOCS").is_some() {
        std::fs::write(DOCS, docs).unwrap();
    }
    let docs = std::fs::read_to_string(Path::new(DOCS)).unwrap();
    for row in rows {
        assert!(docs.contains(&row), "docs/families.md has no {row}");
    }
}

/// Model types that are others by another name, with the checkpoint that shows it.
const ALIASES: [(&str, &str); 1] = [("kimi_k2", "families/deepseek_v3")];

/// Under their other names checkpoints give the same tokens; and so they do with the layers that published ones have behind
/// the last, which guess further tokens.
#[test]
fn other_names_and_further_layers_change_nothing() {
    for (model_type, name) in ALIASES {
        let (folder, of) = (tempfile::tempdir().unwrap(), fixture(name));
        let config = std::fs::read_to_string(of.join("config.json")).unwrap();
        let mut config: serde_json::Value = serde_json::from_str(&config).unwrap();
        config["model_type"] = model_type.into();
        config["num_nextn_predict_layers"] = 1.into();
        std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
        let bytes = std::fs::read(of.join("model.safetensors")).unwrap();
        let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let mut all = tensors.tensors();
        let behind = |layer: usize| {
            let name = format!("model.layers.{layer}.eh_proj.weight");
            let first = tensors.tensors().into_iter().next().unwrap().1;
            (name, first)
        };
        let open = |all: &[(String, safetensors::tensor::TensorView<'_>)]| {
            let views = all.iter().map(|(name, view)| (name, view));
            safetensors::serialize_to_file(views, None, &folder.path().join("model.safetensors")).unwrap();
            Session::open(folder.path())
        };
        all.push(behind(2));
        let session = open(&all).unwrap();
        let expected = std::fs::read_to_string(of.join("expected.json")).unwrap();
        let expected: Expected = serde_json::from_str(&expected).unwrap();
        let request = Request::tokens(expected.prompts[0].clone()).max_tokens(expected.greedy[0].len());
        let reply = session.generate(request.temperature(0.0)).unwrap();
        assert_eq!(reply.tokens(), expected.greedy[0], "{model_type}");
        // two of them are more than the config knows
        all.push(behind(3));
        let error = open(&all).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains("model.layers.3.eh_proj"), "{error}");
    }
}

#[test]
fn every_family_has_a_checkpoint() {
    let mut known: BTreeSet<String> =
        all_of(["families", "encoders"]).into_iter().map(|(_, model_type)| model_type).collect();
    known.extend(["llama", "mistral", "qwen2"].map(str::to_owned)); // tests/models/fixtures.rs
    known.extend(ALIASES.map(|(name, _)| name.to_owned()));
    let without: Vec<_> = model_types().filter(|name| !known.contains(*name)).collect();
    assert!(without.is_empty(), "without a fixture: {without:?}");
}
