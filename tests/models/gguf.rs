//! GGUF files: models against transformers with the weights that llama.cpp's package decodes, tokenizers against those that
//! they were made from (`tools/fixture_gguf.py`), and files that are wrong.

mod file;
mod layouts;
mod vocabularies;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use amnesic::testing::{LogitsTap, Tokenizer};
use amnesic::{Device, EmbedRequest, Error, Quantize, Request, Session};
use serde::Deserialize;

use crate::common::{Low, fixture, hold_logits, instruction_sets, read_f32s};
use crate::expected::ExpectedOne;

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
    let expected: ExpectedOne = serde_json::from_str(&expected).unwrap();
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

#[derive(Deserialize)]
struct OfFamily {
    prompts: Vec<Vec<u32>>,
    greedy: Vec<Vec<u32>>,
    low_max_abs: Vec<f64>,
    low_rms: Vec<f64>,
}

/// Holds a file to what transformers makes of the checkpoint that it was converted from.
fn hold_to(file: &Path, name: &str, times: f64) -> Result<(), String> {
    let of = fixture(name);
    let expected = std::fs::read_to_string(of.join("expected.json")).unwrap();
    let expected: OfFamily = serde_json::from_str(&expected).unwrap();
    let session = Session::builder(file).context_length(256).kv_tokens(512).max_sequences(3).open();
    let session = session.map_err(|error| format!("{name}: {error}"))?;
    for (i, prompt) in expected.prompts.iter().enumerate() {
        let tap = LogitsTap::default();
        let request = Request::tokens(prompt.clone()).max_tokens(expected.greedy[i].len()).temperature(0.0);
        let reply = session.generate(request.tap_logits(&tap)).unwrap();
        if reply.tokens() != expected.greedy[i] {
            return Err(format!("{name}: greedy tokens of prompt {i}"));
        }
        let reference = read_f32s(&of.join("expected.safetensors"), &format!("logits.{i}"));
        let low = Low { max_abs: expected.low_max_abs[i], rms: expected.low_rms[i] };
        hold_logits(&tap.values(), &reference, low, times, name);
    }
    Ok(())
}

/// What llama.cpp's converter makes of our checkpoints gives the logits that they give.
#[test]
fn converted_checkpoints_give_the_same_logits() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("model.gguf");
    let mut wrong = Vec::new();
    for (name, layout) in layouts::all() {
        layouts::file(&name, &layout).write(&file);
        wrong.extend(hold_to(&file, &format!("families/{name}"), 2.0).err());
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    // experts in blocks of MXFP4, multiplied with activations of eight bits
    hold_to(&fixture("gguf/gpt_oss.gguf"), "quantized/mxfp4", 4.0).unwrap();
}

#[derive(Deserialize)]
struct OfEncoder {
    inputs: Vec<String>,
    asked: HashMap<String, String>,
    low_max_abs: f64,
}

/// What llama.cpp's converter makes of encoders, and of decoders that embed, with their tokenizers and what is behind the
/// pooling: the embeddings of sentence-transformers, of length one.
#[test]
fn converted_encoders_give_the_same_embeddings() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("model.gguf");
    let all = layouts::of("encoders");
    assert!(all.len() >= 6, "{} encoders", all.len());
    for (name, layout) in all {
        let of = fixture(&format!("encoders/{name}"));
        layouts::file_of(&format!("encoders/{name}"), &layout).write(&file);
        let read = |name: &str| std::fs::read_to_string(of.join(name)).unwrap();
        let expected: OfEncoder = serde_json::from_str(&read("expected.json")).unwrap();
        let mut reference = read_f32s(&of.join("expected.safetensors"), "values");
        for device in [Device::Cpu, Device::Reference] {
            let session = Session::builder(&file).device(device).context_length(40).open();
            let session = session.unwrap_or_else(|error| panic!("{name}: {error}"));
            let mut request = EmbedRequest::new(&expected.inputs);
            if let Some(prompt) = expected.asked.get("prompt_name") {
                let config = read("config_sentence_transformers.json");
                let config: serde_json::Value = serde_json::from_str(&config).unwrap();
                request = request.prompt(config["prompts"][prompt].as_str().unwrap()); // a file has none
            }
            let found = session.embed_with(request).unwrap().values().to_vec();
            let width = reference.len() / expected.inputs.len();
            assert_eq!(found.len(), reference.len(), "{name}");
            for (text, (found, row)) in found.chunks(width).zip(reference.chunks_mut(width)).enumerate() {
                let length = row.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt();
                row.iter_mut().for_each(|value| *value = (f64::from(*value) / length) as f32);
                for (a, b) in found.iter().zip(&*row) {
                    let off = f64::from((a - b).abs());
                    assert!(
                        off <= 2.0 * expected.low_max_abs / length.min(1.0),
                        "{name}, {device:?}, {text}: {a}, {b}"
                    );
                }
            }
        }
    }
}

/// WordPiece as llama.cpp has it: words, accents, capitals, Chinese and what is no word.
#[test]
fn word_pieces_are_those_of_the_original() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("model.gguf");
    let (name, layout) = layouts::of("encoders").into_iter().find(|(name, _)| name == "bert").unwrap();
    let mut gguf = layouts::file_of(&format!("encoders/{name}"), &layout);
    gguf.write(&file);
    let original = Tokenizer::open_to_read(&fixture("encoders/bert"), 96).unwrap();
    let texts = [
        "",
        "a",
        "Seek: DG!",
        "zéro é",
        "漢字 a",
        "a\u{7}b\tc\u{a0}d",
        "[CLS] x [SEP]",
        "##a ▁b",
        "ſtra\u{df}e \u{1f600}",
    ];
    let same = |file: &Path| {
        let converted = Tokenizer::open_to_read(file, 96).unwrap();
        texts.iter().all(|text| {
            [true, false]
                .into_iter()
                .all(|specials| converted.encode(text, specials) == original.encode(text, specials))
        })
    };
    assert!(same(&file));
    // of a vocabulary with capitals and accents
    gguf.put("tokenizer.ggml.normalizer.lowercase", file::Value::Flag(false));
    gguf.write(&file);
    assert!(!same(&file));
    let cased = Tokenizer::open_to_read(&file, 96).unwrap();
    assert_ne!(cased.encode("A", false), cased.encode("a", false));
    gguf.put("tokenizer.ggml.normalizer.lowercase", file::Value::Flag(true));
    gguf.write(&file);
    assert!(same(&file));
    // a reranker's head is not read
    gguf.put("bert.pooling_type", file::Value::U32(4));
    gguf.write(&file);
    let error = Session::open(&file).unwrap_err().to_string();
    assert!(error.contains("bert.pooling_type") && error.contains("safetensors"), "{error}");
}

#[test]
fn checkpoints_in_several_files_are_opened_by_the_first() {
    let (name, layout) = layouts::all().into_iter().find(|(name, _)| name == "qwen3_moe").unwrap();
    let whole = layouts::file(&name, &layout);
    let folder = tempfile::tempdir().unwrap();
    let path = |number: usize| folder.path().join(format!("a-{number:05}-of-00003.gguf"));
    let parts = whole.tensors.chunks(whole.tensors.len().div_ceil(3));
    for (number, tensors) in parts.enumerate() {
        let mut part = file::File { metadata: Vec::new(), tensors: tensors.to_vec() };
        if number == 0 {
            part.metadata = whole.metadata.clone();
        }
        part.put("split.no", file::Value::U16(number as u16));
        part.put("split.count", file::Value::U16(3));
        part.put("split.tensors.count", file::Value::I32(whole.tensors.len() as i32));
        part.write(&path(number + 1));
    }
    hold_to(&path(1), "families/qwen3_moe", 2.0).unwrap();
    let error = |path: &Path| Session::open(path).unwrap_err().to_string();
    assert!(error(&path(2)).contains("a-00001-of-00003.gguf"), "{}", error(&path(2)));
    let renamed = folder.path().join("b.gguf");
    std::fs::copy(path(1), &renamed).unwrap();
    assert!(error(&renamed).contains("-00001-of-00003.gguf"), "{}", error(&renamed));
    std::fs::remove_file(path(3)).unwrap();
    assert!(error(&path(1)).contains("a-00003-of-00003.gguf"), "{}", error(&path(1)));
}

#[test]
fn types_are_named_in_errors() {
    let (name, layout) = layouts::all().into_iter().find(|(name, _)| name == "qwen3").unwrap();
    let mut file = layouts::file(&name, &layout);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    for (number, name) in [(4, "Q4_2"), (9, "Q8_1"), (31, "Q4_0_4_4"), (41, "Q1_0"), (99, "unknown (99)")] {
        file.tensors[0].kind = number;
        file.write(&path);
        let error = Session::open(&path).unwrap_err().to_string();
        assert!(error.contains(name), "{error}");
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

/// Converters permute the rows of queries and keys of some architectures, and adapters have them in the model's own order: to
/// add one to the other would be wrong in silence.
#[test]
fn adapters_are_refused_where_rows_are_in_another_order() {
    let open = |name: &str, merge: bool| {
        let builder = Session::builder(fixture(&format!("gguf/{name}/model.gguf")));
        let nowhere = fixture("adapters/nowhere");
        if merge { builder.merge_adapter(nowhere) } else { builder.adapter("one", nowhere) }
            .open()
            .unwrap_err()
    };
    for merge in [false, true] {
        let refused = open("llama", merge);
        assert!(matches!(&refused, Error::Request { field: "adapter", .. }), "{refused}");
        assert!(refused.to_string().contains("another order"), "{refused}");
        let read = open("qwen2", merge);
        assert!(!matches!(read, Error::Request { .. }), "it is looked for: {read}");
    }
}
