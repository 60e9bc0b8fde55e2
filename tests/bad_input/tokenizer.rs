//! Tokenizers, and the other files beside the weights.

use std::panic::catch_unwind;

use serde_json::{Value, json};

use super::parts::{change_json, with_tokenizer};
use super::{Is, builder, refuses};

#[test]
fn tokenizers_that_cannot_be_used() {
    type Change = fn(&mut Value);
    let mut wrong = Vec::new();
    let cases: [(&str, Change, &[&str]); 15] = [
        ("a list", |t| *t = json!([]), &["Hugging Face"]),
        ("no model", |t| drop(t.as_object_mut().unwrap().remove("model")), &["Hugging Face"]),
        ("an unknown model", |t| t["model"] = json!({"type": "Sorcery"}), &["Hugging Face"]),
        ("a vocabulary of strings", |t| t["model"]["vocab"] = json!({"a": "b"}), &["Hugging Face"]),
        ("merges of unknown tokens", |t| t["model"]["merges"] = json!([["zzz", "qqq"]]), &["Hugging Face"]),
        (
            "a broken regex",
            |t| {
                t["pre_tokenizer"] = json!({"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated", "invert": false})
            },
            &["Hugging Face"],
        ),
        (
            "an id far above vocab_size",
            |t| t["model"]["vocab"]["zzz"] = json!(704 + (1 << 16)),
            &["below", "vocab_size", "704"],
        ),
        ("a huge id", |t| t["model"]["vocab"]["zzz"] = json!(u32::MAX), &["below", "704"]),
        (
            "no tokens",
            |t| {
                t["model"]["vocab"] = json!({});
                t["model"]["merges"] = json!([]);
                t["added_tokens"] = json!([]);
            },
            &["below"],
        ),
        (
            "a WordPiece decoder",
            |t| t["decoder"] = json!({"type": "WordPiece", "prefix": "##", "cleanup": true}),
            &["decoder", "WordPiece"],
        ),
        (
            "a CTC decoder",
            |t| {
                t["decoder"] =
                    json!({"type": "CTC", "pad_token": "", "word_delimiter_token": "|", "cleanup": true})
            },
            &["decoder", "CTC"],
        ),
        ("no decoder", |t| t["decoder"] = json!(null), &["decoder"]),
        // these two panic inside the `tokenizers` crate
        ("a prefix longer than a token", |t| t["model"]["continuing_subword_prefix"] = json!("#####"), &[""]),
        (
            "a post-processor of unknown tokens",
            |t| {
                t["post_processor"] = template(1, 1);
                t["post_processor"]["special_tokens"] = json!({});
            },
            &[""],
        ),
        (
            "a special token beyond the vocabulary",
            |t| t["post_processor"] = template(1 << 20, 1),
            &["below", "704"],
        ),
    ];
    for (what, change, words) in cases {
        let folder = with_tokenizer();
        change_json(&folder.path().join("tokenizer.json"), change);
        let words: Vec<&str> = words.iter().copied().chain(["tokenizer.json"]).collect();
        let refused = || refuses(what, builder(folder.path()), Is::Tokenizer, &words);
        if catch_unwind(refused).is_err() {
            wrong.push(what);
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    for text in [&b""[..], b"tokens", b"{", b"\"\"", b"null"] {
        let folder = with_tokenizer();
        std::fs::write(folder.path().join("tokenizer.json"), text).unwrap();
        refuses("no JSON object", builder(folder.path()), Is::Tokenizer, &["tokenizer.json", "Hugging Face"]);
    }
}

/// A post-processor that puts `count` special tokens with this id before a text.
fn template(id: u32, count: usize) -> Value {
    json!({"type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "x", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {"x": {"id": "x", "ids": vec![id; count], "tokens": vec!["x"; count]}}})
}

#[test]
fn configs_beside_the_weights() {
    let cases = [
        ("tokenizer_config.json", "[]", "", "a JSON object"),
        ("tokenizer_config.json", "{", "", "a JSON object"),
        ("tokenizer_config.json", r#"{"added_tokens_decoder": []}"#, "added_tokens_decoder", "an object"),
        (
            "tokenizer_config.json",
            r#"{"added_tokens_decoder": {"one": {"content": "x"}}}"#,
            "added_tokens_decoder",
            "an object",
        ),
        (
            "tokenizer_config.json",
            r#"{"added_tokens_decoder": {"1": {"content": 1}}}"#,
            "added_tokens_decoder",
            "an object",
        ),
        ("generation_config.json", "[]", "", "a JSON object"),
        ("generation_config.json", "{\"do_sample\": true,", "", "a JSON object"),
        ("generation_config.json", r#"{"do_sample": "yes"}"#, "do_sample", "true or false"),
        ("generation_config.json", r#"{"do_sample": true, "temperature": "hot"}"#, "temperature", "a number"),
        ("generation_config.json", r#"{"do_sample": true, "top_p": [1]}"#, "top_p", "a number"),
        ("generation_config.json", r#"{"do_sample": true, "min_p": "0.5"}"#, "min_p", "a number"),
        ("generation_config.json", r#"{"repetition_penalty": {}}"#, "repetition_penalty", "a number"),
        ("generation_config.json", r#"{"do_sample": true, "top_k": "many"}"#, "top_k", "whole number"),
        ("generation_config.json", r#"{"do_sample": true, "top_k": 1.5}"#, "top_k", "whole number"),
        ("generation_config.json", r#"{"eos_token_id": "</s>"}"#, "eos_token_id", "token id"),
        ("generation_config.json", r#"{"eos_token_id": [2, null]}"#, "eos_token_id", "token id"),
    ];
    let mut wrong = Vec::new();
    for (file, text, field, words) in cases {
        let folder = with_tokenizer();
        std::fs::write(folder.path().join(file), text).unwrap();
        let refused = || refuses(text, builder(folder.path()), Is::Config(field), &[file, words]);
        if catch_unwind(refused).is_err() {
            wrong.push(text);
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}
