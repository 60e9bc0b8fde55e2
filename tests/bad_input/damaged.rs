//! Files with random damage: opening one gives an error, or a session that works.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::Instant;

use amnesic::{Request, Session};
use serde_json::{Value, json};
use tempfile::tempdir;

use super::common::{Random, Recipe};
use super::parts::{Parts, joined};
use super::{CONFIG, INDEX, MOST_AT_ONCE, WEIGHTS, is_one_short_line, largest};

impl Random {
    /// Flips bits, replaces, inserts, copies or cuts off bytes, once to three times.
    fn damage(&mut self, bytes: &mut Vec<u8>) {
        for _ in 0..=self.below(3) {
            let at = self.below(bytes.len().max(1)).min(bytes.len().saturating_sub(1));
            match self.below(6) {
                _ if bytes.is_empty() => return,
                0 => bytes[at] ^= 1 << self.below(8),
                1 => bytes[at] = self.below(256) as u8,
                2 => bytes[at] = b"0123456789-.eE\"{}[],:\\ntf"[self.below(25)],
                3 => bytes.insert(at, b"09-[{\"}]"[self.below(8)]),
                4 if self.below(4) == 0 => bytes.truncate(at),
                _ => drop(bytes.drain(at..(at + 1 + self.below(8)).min(bytes.len()))),
            }
        }
    }

    /// Replaces, removes, renames or doubles something somewhere in a JSON value.
    fn distort(&mut self, value: &mut Value) {
        let inner = match value {
            Value::Object(map) => map.len(),
            Value::Array(list) => list.len(),
            _ => 0,
        };
        if inner == 0 || self.below(8) == 0 {
            *value = self.odd();
            return;
        }
        let at = self.below(inner);
        let action = self.below(12);
        match value {
            Value::Object(map) => {
                let key = map.keys().nth(at).unwrap().clone();
                match action {
                    0 => drop(map.remove(&key)),
                    1 => drop(map.remove(&key).and_then(|inner| map.insert(key + "x", inner))),
                    2 => drop(map.insert("x".into(), map[&key].clone())),
                    _ => self.distort(&mut map[&key]),
                }
            }
            Value::Array(list) => match action {
                0 => drop(list.remove(at)),
                1 => list.push(list[at].clone()),
                _ => self.distort(&mut list[at]),
            },
            _ => {}
        }
    }

    fn odd(&mut self) -> Value {
        const ODD: &str = r#"[null, true, 0, 1, -1, 2, 255, 65536, 2147483648, 4294967295, 4294967296,
            9223372036854775808, 18446744073709551615, 0.5, 1e-300, 1e300, "", " ", "x", "BF16", "U8", "../x",
            "􏿿", [], [0], [[]], {}, {"type": "x"}]"#;
        let odd: Vec<Value> = serde_json::from_str(ODD).unwrap();
        odd[self.below(odd.len())].clone()
    }
}

/// Opens the folder over and over with `file` replaced by what `next` gives; runs a request where it opens.
fn fuzz(what: &str, folder: &Path, file: &str, rounds: usize, mut next: impl FnMut() -> Vec<u8>) {
    let start = Instant::now();
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    let mut wrong = Vec::new();
    for round in 0..rounds {
        let bytes = next();
        std::fs::write(folder.join(file), &bytes).unwrap();
        let attempt = || {
            let session =
                Session::builder(folder).threads(1).kv_tokens(16).max_sequences(1).step_tokens(16).open()?;
            let request = match folder.join("tokenizer.json").exists() {
                true => Request::prompt("of 12 a\u{e9}\n"),
                false => Request::tokens([1, 2]),
            };
            session.generate(request.max_tokens(1))
        };
        let result = catch_unwind(AssertUnwindSafe(attempt));
        let largest = largest();
        let kind = match &result {
            Err(_) => "panicked".to_owned(),
            _ if largest >= MOST_AT_ONCE => format!("allocated {largest} bytes at once"),
            Ok(Ok(_)) => "ran".to_owned(),
            Ok(Err(error)) => {
                is_one_short_line(&format!("{what} {round}"), &error.to_string());
                format!("{error:?}").split([' ', '(']).next().unwrap().to_owned()
            }
        };
        if result.is_err() || largest >= MOST_AT_ONCE || kind == "Poisoned" {
            wrong.push(format!("round {round}: {kind}: {}", without_vocabulary(&bytes)));
        }
        *seen.entry(kind).or_default() += 1;
    }
    println!("{what}: {rounds} in {:?}: {seen:?}", start.elapsed());
    assert!(wrong.is_empty(), "{what}: {} wrong\n{}", wrong.len(), wrong[..wrong.len().min(10)].join("\n"));
}

/// The input, short enough to read.
fn without_vocabulary(bytes: &[u8]) -> String {
    let mut value: Value = serde_json::from_slice(bytes).unwrap_or_default();
    if let Some(model) = value.get_mut("model").and_then(Value::as_object_mut) {
        model.remove("vocab");
        model.remove("merges");
    }
    let text = if value.is_null() { String::from_utf8_lossy(bytes).into_owned() } else { value.to_string() };
    text.chars().take(2000).collect()
}

/// The smallest checkpoint, so that a round is short.
fn tiny(vocab: usize) -> Recipe {
    let mut recipe = Recipe::small(vocab);
    for (field, value) in [
        ("hidden_size", 8),
        ("intermediate_size", 8),
        ("num_hidden_layers", 2),
        ("num_attention_heads", 2),
        ("num_key_value_heads", 1),
        ("head_dim", 4),
    ] {
        recipe.config[field] = value.into();
    }
    recipe
}

/// Damages a JSON text half of the time as bytes, half of the time as a value.
fn damaged(random: &mut Random, text: &str) -> Vec<u8> {
    if random.below(2) == 0 {
        let mut bytes = text.as_bytes().to_vec();
        random.damage(&mut bytes);
        return bytes;
    }
    let mut value = serde_json::from_str(text).unwrap();
    (0..=random.below(2)).for_each(|_| random.distort(&mut value));
    value.to_string().into_bytes()
}

#[test]
fn damaged_configs_never_panic() {
    let mut parts = Parts::new(&tiny(16));
    for (field, value) in [
        ("eos_token_id", json!([2, 3])),
        ("sliding_window", json!(8)),
        ("layer_types", json!(["full_attention", "sliding_attention"])),
        ("hidden_act", json!("silu")),
        ("model_type", json!("mistral")),
        (
            "rope_parameters",
            json!({"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 64}),
        ),
    ] {
        parts.config[field] = value;
    }
    let (folder, mut random) = (parts.write(), Random(1));
    let text = parts.config.to_string();
    fuzz("config.json", folder.path(), CONFIG, 1000, || damaged(&mut random, &text));
    let text = json!({"do_sample": true, "temperature": 0.7, "top_p": 0.9, "top_k": 40, "min_p": 0.1,
        "eos_token_id": [1, 2]});
    let (folder, text) = (parts.write(), text.to_string());
    fuzz("generation_config.json", folder.path(), "generation_config.json", 300, || {
        damaged(&mut random, &text)
    });
}

#[test]
fn damaged_weights_files_never_panic() {
    let parts = Parts::new(&tiny(16));
    let (folder, mut random) = (parts.write(), Random(2));
    let header = Value::Object(parts.header.clone()).to_string();
    fuzz("a header", folder.path(), WEIGHTS, 1000, || joined(&damaged(&mut random, &header), &parts.data));
    let whole = parts.weights();
    fuzz("a weights file", folder.path(), WEIGHTS, 500, || {
        let mut bytes = whole.clone();
        match random.below(3) {
            0 => bytes[random.below(8)] = random.below(256) as u8,
            1 => bytes.truncate(random.below(whole.len())),
            _ => random.damage(&mut bytes),
        }
        bytes
    });
}

#[test]
fn damaged_indexes_never_panic() {
    let shards = Parts::new(&tiny(16)).shards();
    let (folder, mut random) = (shards.write(), Random(3));
    let text = shards.index.to_string();
    fuzz("an index", folder.path(), INDEX, 500, || damaged(&mut random, &text));
}

#[test]
fn damaged_tokenizers_never_panic() {
    let mut wrong = Vec::new();
    for (name, seed) in [("byte_level", 4), ("llama2_style", 5), ("llama3_style", 6), ("metaspace", 7)] {
        let folder = tempdir().unwrap();
        tiny(1024).write(folder.path(), Some(name));
        let mut random = Random(seed);
        let text = std::fs::read_to_string(folder.path().join("tokenizer.json")).unwrap();
        let mut whole: Value = serde_json::from_str(&text).unwrap();
        whole["padding"] = json!(null);
        let next = || match random.below(3) {
            0 => damaged(&mut random, &text),
            // most of the file is the vocabulary: look for trouble in the rest
            _ => {
                let mut tokenizer = whole.clone();
                let fields =
                    ["added_tokens", "normalizer", "pre_tokenizer", "post_processor", "decoder", "model"];
                let field = fields[random.below(6)];
                random.distort(&mut tokenizer[field]);
                tokenizer.to_string().into_bytes()
            }
        };
        let fuzzing = || fuzz(name, folder.path(), "tokenizer.json", 300, next);
        if catch_unwind(AssertUnwindSafe(fuzzing)).is_err() {
            wrong.push(name);
        }
    }
    assert!(wrong.is_empty(), "{wrong:?}");
}
