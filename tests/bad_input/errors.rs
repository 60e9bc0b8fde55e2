//! How errors read: one short line, whatever a checkpoint calls things.

use std::panic::catch_unwind;
use std::path::PathBuf;

use amnesic::{DeviceReason, Error, FinishReason, GrammarReason, PoisonReason};
use serde_json::json;
use tempfile::TempDir;

use super::parts::{Parts, change_json, with_tokenizer};
use super::{Q, SHARDS, builder, is_one_short_line};

/// Names in a checkpoint are a stranger's text: in messages they are cut short, and what would move a terminal's
/// cursor or forge a line of a log is escaped.
#[test]
fn errors_stay_one_short_line_whatever_a_checkpoint_calls_things() {
    let nasty =
        ["x".repeat(100_000), "a\nERROR forged line".to_owned(), "\u{1b}[2J\u{1b}[31mred\r\u{7}".to_owned()];
    let mut wrong = Vec::new();
    let mut check = |what: &str, folder: &TempDir| {
        let shown =
            builder(folder.path()).open().err().unwrap_or_else(|| panic!("{what}: it opened")).to_string();
        if catch_unwind(|| is_one_short_line(what, &shown)).is_err() {
            wrong.push(format!("{what}: {} bytes, {:?}", shown.len(), &shown[..shown.len().min(160)]));
        }
    };
    for name in &nasty {
        let mut parts = Parts::small();
        parts.config["model_type"] = json!(name);
        check("model_type", &parts.write());
        let mut parts = Parts::small();
        parts.header.insert(name.clone(), json!(1));
        check("a tensor's name in the header", &parts.write());
        let mut shards = Parts::small().shards();
        shards.index["weight_map"][name] = json!(SHARDS[0]);
        check("a tensor's name in the index", &shards.write());
        let mut shards = Parts::small().shards();
        shards.index["weight_map"][Q] = json!(name);
        check("a shard's name", &shards.write());
        let folder = with_tokenizer();
        change_json(&folder.path().join("tokenizer.json"), |tokenizer| {
            tokenizer["pre_tokenizer"] = json!({"type": "Split", "pattern": {"Regex": format!("({name}")},
                "behavior": "Isolated", "invert": false});
        });
        check("a regex", &folder);
        let folder = with_tokenizer();
        change_json(&folder.path().join("tokenizer.json"), |tokenizer| {
            tokenizer["model"]["merges"] = json!([[name, name]]);
        });
        check("a merge", &folder);
    }
    let mut parts = Parts::small();
    parts.header[Q]["shape"] = json!([vec![1; 50_000], vec![8192]].concat());
    check("a shape of 50,001 dimensions", &parts.write());
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn every_error_is_one_readable_line() {
    let file = || PathBuf::from("models/tiny/config.json");
    let weights = || PathBuf::from("models/tiny/model.safetensors");
    let io = std::io::Error::from_raw_os_error;
    let expected = "a whole number from 1 to 4096".to_owned();
    let errors = [
        Error::Request { field: "temperature", expected: "from 0 to 2".into() },
        Error::ContextLength { prompt_tokens: 4000, max_tokens: 512, context: 4096 },
        Error::InBatch {
            index: 3,
            source: Box::new(Error::Request { field: "stop", expected: "at most 16 strings".into() }),
        },
        Error::NoTokenizer { file: PathBuf::from("models/tiny/tokenizer.json") },
        Error::Read { file: file(), source: io(2) },
        Error::Config { file: file(), field: "num_hidden_layers".into(), expected },
        Error::Config { file: file(), field: String::new(), expected: "a JSON object".into() },
        Error::UnknownModelType {
            file: file(),
            found: "gpt2".into(),
            known: 3,
            nearest: "llama, mistral, qwen2".into(),
        },
        Error::WeightsFile { file: weights(), reason: "must be a regular file that is not empty".into() },
        Error::Tensor { file: weights(), tensor: Q.into(), expected: "hold finite values only".into() },
        Error::Tokenizer { file: PathBuf::from("tokenizer.json"), reason: "must encode a plain text".into() },
        Error::Memory {
            needed: 9 << 30,
            what: "weights, KV cache, workspace",
            limit: "the budget is 1000".into(),
        },
        Error::Thread(io(11)),
        Error::Poisoned(PoisonReason::Panic),
        Error::Poisoned(PoisonReason::ScrubFailed),
        Error::Poisoned(PoisonReason::DeviceFailed),
        Error::DeviceUnavailable { device: 0, reason: DeviceReason::NoDriver },
        Error::Closed,
        Error::NotFinite,
        Error::NoToken,
        Error::Logged { target: "tokenizers::tokenizer::normalizer" },
        Error::NoChatTemplate { folder: PathBuf::from("models/tiny") },
        Error::Busy { waiting: 65_536, limit: 65_536, requests: Default::default() },
        Error::Incomplete { finish_reason: FinishReason::Length },
        Error::Grammar(GrammarReason::TooComplex),
        Error::Grammar(GrammarReason::DeadEnd),
        Error::Grammar(GrammarReason::Rejected),
        Error::Grammar(GrammarReason::Failed),
    ];
    for error in &errors {
        let shown = error.to_string();
        println!("{shown}");
        is_one_short_line("an error", &shown);
        assert!(shown.len() < 300 && !shown.contains("``") && !shown.ends_with('.'), "{shown}");
    }
}
