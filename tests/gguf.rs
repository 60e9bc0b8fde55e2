//! GGUF files: models against transformers with the weights that llama.cpp's package decodes, tokenizers against those that
//! they were made from (`tools/fixture_gguf.py`), and files that are wrong.

mod common;

use std::path::{Path, PathBuf};

use amnesic::testing::{LogitsTap, Tokenizer};
use amnesic::{Device, Error, Quantize, Request, Session};
use common::{Low, fixture, hold_logits, instruction_sets, read_f32s};
use serde::Deserialize;

amnesic::install_scrubbing_allocator!();

#[derive(Deserialize)]
struct Expected {
    prompt: Vec<u32>,
    greedy: Vec<u32>,
    low_max_abs: f64,
    low_rms: f64,
}

fn models() -> Vec<PathBuf> {
    let entries = std::fs::read_dir(fixture("gguf")).unwrap();
    let mut all: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    all.retain(|path| path.join("model.gguf").exists());
    all.sort();
    assert!(all.len() >= 6, "{all:?}");
    all
}

/// Tokens and logits: of the weights as bf16 by the rule, as they are within twice that, since activations are of eight
/// bits.
fn hold(folder: &Path, device: Device, dequantize: bool) {
    let expected = std::fs::read_to_string(folder.join("expected.json")).unwrap();
    let expected: Expected = serde_json::from_str(&expected).unwrap();
    let builder = Session::builder(folder.join("model.gguf")).device(device).context_length(128);
    let builder = if dequantize { builder.dequantize() } else { builder };
    let session = builder.open().unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let tap = LogitsTap::default();
    let request = Request::tokens(expected.prompt).max_tokens(expected.greedy.len()).temperature(0.0);
    let reply = session.generate(request.ignore_eos(true).tap_logits(&tap)).unwrap();
    let what = format!("{}, {device:?}, dequantized: {dequantize}", folder.display());
    assert_eq!(reply.tokens(), expected.greedy, "{what}");
    let reference = read_f32s(&folder.join("expected.safetensors"), "logits");
    let low = Low { max_abs: expected.low_max_abs, rms: expected.low_rms };
    hold_logits(&tap.values(), &reference, low, if dequantize { 2.0 } else { 4.0 }, &what);
}

#[test]
fn every_instruction_set_holds_every_model() {
    for device in instruction_sets() {
        for folder in models() {
            hold(&folder, device, true);
            hold(&folder, device, false);
        }
    }
}

#[test]
fn the_reference_backend_holds_every_model() {
    for folder in models() {
        hold(&folder, Device::Reference, true);
        hold(&folder, Device::Reference, false);
    }
}

#[test]
fn files_are_quantized_again_where_that_is_asked_for() {
    for folder in models() {
        for to in [Quantize::Q8, Quantize::Q4] {
            let session = Session::builder(folder.join("model.gguf")).quantize(to).open().unwrap();
            let request = Request::tokens([5, 6, 7]).max_tokens(4).ignore_eos(true);
            assert_eq!(session.generate(request).unwrap().tokens().len(), 4);
        }
    }
}

#[test]
fn tokenizers_are_those_that_they_were_made_from() {
    let texts = [
        "",
        "a",
        "Ownership is Rust's most unique feature",
        "  two  spaces\n\nlines\t\ttabs",
        "zwölf Öfen, 你好 🦀!",
        "12345 1 22 333",
        "fn main() { println!(\"{}\", x[0]); }",
        "don't WE'LL they're",
        " leading",
        "trailing ",
    ];
    for name in ["llama3_style", "llama2_style"] {
        let original = Tokenizer::open(&fixture(&format!("tokenizers/{name}")), 1000).unwrap();
        let converted = Tokenizer::open(&fixture(&format!("gguf/tokenizers/{name}.gguf")), 1000).unwrap();
        for text in texts {
            for specials in [true, false] {
                let (mine, theirs) = (converted.encode(text, specials), original.encode(text, specials));
                assert_eq!(mine, theirs, "{name}: {text:?}");
            }
            let ids = original.encode(text, false);
            assert_eq!(converted.decode(&ids), original.decode(&ids), "{name}: {text:?}");
        }
    }
}

#[test]
fn what_is_wrong_with_a_file_is_named() {
    let good = std::fs::read(fixture("gguf/qwen3/model.gguf")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("model.gguf");
    let open = |bytes: &[u8]| {
        std::fs::write(&file, bytes).unwrap();
        Session::open(&file)
    };
    assert!(open(&good).is_ok());
    let text = |bytes: &[u8]| open(bytes).unwrap_err().to_string();
    assert!(text(b"").contains("ends in its header") || text(b"").contains("model.gguf"));
    assert!(text(b"GGML....").contains("GGUF"));
    let mut bad = good.clone();
    bad[4] = 9;
    assert!(text(&bad).contains("version"));
    // cut anywhere, or with any byte of the header changed, it is an error or opens: it never panics
    for end in (0..good.len()).step_by(97) {
        assert!(open(&good[..end]).is_err(), "cut at {end}");
    }
    for at in 0..2_000.min(good.len()) {
        let mut bad = good.clone();
        bad[at] ^= 0xff;
        let _ = open(&bad);
    }
    // another architecture
    let at = good.windows(5).position(|window| window == b"qwen3").unwrap();
    let mut bad = good.clone();
    bad[at..at + 5].copy_from_slice(b"qwen9");
    assert!(matches!(open(&bad), Err(Error::UnknownModelType { .. })));
    assert!(matches!(Session::open(folder.path().join("none.gguf")), Err(Error::Read { .. })));
}
