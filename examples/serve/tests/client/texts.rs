//! Embeddings and scores, against what sentence-transformers gives (tests/fixtures/encoders).

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::common::{Response, Server};
use super::error;

const EMBEDDINGS: &str = "/v1/embeddings";
const RERANK: &str = "/v1/rerank";

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/encoders").join(name)
}

fn serve(name: &str) -> Server {
    // texts of up to 40 tokens, as the reference had them
    Server::start(&["--model", fixture(name).to_str().unwrap(), "--name", "default", "--context", "40"])
}

/// The inputs, the reference's numbers for them, and how far others may be from those.
fn expected(name: &str) -> (Vec<Value>, Vec<f32>, f32) {
    let json: Value =
        serde_json::from_slice(&std::fs::read(fixture(name).join("expected.json")).unwrap()).unwrap();
    let file = std::fs::read(fixture(name).join("expected.safetensors")).unwrap();
    let header = u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
    let numbers = file[8 + header..].as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes));
    let inputs = json["inputs"].as_array().unwrap().clone();
    (inputs, numbers.collect(), 2.0 * json["low_max_abs"].as_f64().unwrap() as f32)
}

fn numbers(value: &Value) -> Vec<f32> {
    value.as_array().unwrap().iter().map(|number| number.as_f64().unwrap() as f32).collect()
}

fn decoded(base64: &str) -> Vec<f32> {
    let digit = |byte: u8| match byte {
        b'A'..=b'Z' => byte - b'A',
        b'a'..=b'z' => byte - b'a' + 26,
        b'0'..=b'9' => byte - b'0' + 52,
        b'+' => 62,
        b'/' => 63,
        _ => 0,
    };
    let mut bytes = Vec::new();
    for group in base64.as_bytes().chunks(4) {
        let bits = group.iter().fold(0_u32, |bits, &byte| bits << 6 | u32::from(digit(byte)));
        bytes.extend(&bits.to_be_bytes()[1..]);
    }
    bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

fn near(found: &[f32], wanted: &[f32], error: f32) {
    assert_eq!(found.len(), wanted.len());
    for (found, wanted) in found.iter().zip(wanted) {
        assert!((found - wanted).abs() <= error, "{found} is not {wanted}");
    }
}

fn ok(response: Response) -> Value {
    assert_eq!(response.status, 200, "{}", response.body);
    response.json()
}

#[test]
fn embeddings_are_those_of_the_reference() {
    let server = serve("bert");
    let (inputs, wanted, bound) = expected("bert");
    let ask = |with: Value| {
        let mut body = json!({"model": "default"});
        body.as_object_mut().unwrap().extend(with.as_object().unwrap().clone());
        server.post(EMBEDDINGS, &body)
    };
    // the first is empty, which OpenAI does not take either
    let (inputs, width) = (&inputs[1..], wanted.len() / inputs.len());
    let json = ok(ask(json!({"input": inputs, "user": "u"})));
    assert_eq!((&json["object"], &json["model"]), (&json!("list"), &json!("default")));
    assert_eq!(json["usage"]["prompt_tokens"], json["usage"]["total_tokens"]);
    assert!(json["usage"]["prompt_tokens"].as_u64().unwrap() > 50);
    for (index, entry) in json["data"].as_array().unwrap().iter().enumerate() {
        assert_eq!((&entry["object"], &entry["index"]), (&json!("embedding"), &json!(index)));
        near(&numbers(&entry["embedding"]), &wanted[(index + 1) * width..][..width], bound);
    }
    let coded = ok(ask(json!({"input": inputs[0], "encoding_format": "base64"})));
    let alone = decoded(coded["data"][0]["embedding"].as_str().unwrap());
    assert_eq!(
        alone[..width],
        numbers(&json["data"][0]["embedding"]),
        "the same bits, however they are sent"
    );
    for (with, param) in [
        (json!({}), "input"),
        (json!({"input": []}), "input"),
        (json!({"input": ["canary", 7]}), "input"),
        (json!({"input": "canary", "dimensions": 61}), "dimensions"),
        (json!({"input": "canary", "encoding_format": "canary"}), "encoding_format"),
    ] {
        let response = ask(with);
        assert_eq!((response.status, error(&response).1.as_deref()), (400, Some(param)), "{}", response.body);
        assert!(!response.body.contains("canary"), "{}", response.body);
    }
    // it neither writes nor scores
    let chat = json!({"model": "default", "prompt": "canary"});
    let refused = error(&server.post("/v1/completions", &chat));
    assert_eq!(refused.2.as_deref(), Some("unsupported_task"));
}

#[test]
fn scores_are_those_of_the_reference() {
    let server = serve("bert_scores");
    let (pairs, wanted, bound) = expected("bert_scores");
    let of_first = pairs.iter().take_while(|pair| pair[0] == pairs[0][0]).count();
    let documents: Vec<&Value> = pairs[..of_first].iter().map(|pair| &pair[1]).collect();
    let body = json!({"model": "default", "query": pairs[0][0], "documents": documents});
    let json = ok(server.post(RERANK, &body));
    let results = json["results"].as_array().unwrap();
    let score = |result: &Value| result["relevance_score"].as_f64().unwrap() as f32;
    assert!(results.is_sorted_by(|a, b| score(a) >= score(b)) && results.len() == of_first);
    for result in results {
        near(&[score(result)], &[wanted[result["index"].as_u64().unwrap() as usize]], bound);
        assert!(result.get("document").is_none());
    }
    let mut few = body.clone();
    few["documents"] = documents.iter().map(|text| json!({"text": text})).collect();
    (few["top_n"], few["return_documents"]) = (2.into(), true.into());
    let best = ok(server.post("/rerank", &few));
    let best = best["results"].as_array().unwrap();
    assert_eq!((best.len(), score(&best[0])), (2, score(&results[0])));
    assert_eq!(best[0]["document"]["text"], *documents[best[0]["index"].as_u64().unwrap() as usize]);
    for (field, value) in
        [("documents", json!([])), ("documents[1].text", json!(["a", {}])), ("query", json!(7))]
    {
        let mut wrong = body.clone();
        wrong[field.split(['[', '.']).next().unwrap()] = value;
        let response = server.post(RERANK, &wrong);
        assert_eq!((response.status, error(&response).1.as_deref()), (400, Some(field)), "{}", response.body);
    }
}

/// In vLLM's shape. The ids are those of the library, whose tests compare them.
#[test]
fn ids_and_texts_of_a_tokenizer() {
    let server = Server::start(&[]);
    let ask = |path: &str, mut body: Value| {
        body["model"] = "default".into();
        server.post(path, &body)
    };
    let whole = ok(ask("/tokenize", json!({"prompt": "Ownership is Rust's", "add_special_tokens": false})));
    let tokens = whole["tokens"].as_array().unwrap();
    assert!(
        tokens.len() > 2 && whole["count"] == tokens.len() && whole["max_model_len"].as_u64() > Some(100)
    );
    assert_eq!(ok(ask("/detokenize", json!({"tokens": tokens})))["prompt"], "Ownership is Rust's");
    for (path, body, named) in [
        ("/tokenize", json!({"prompt": 3}), "prompt"),
        ("/tokenize", json!({}), "messages"),
        ("/detokenize", json!({"tokens": [-1]}), "tokens"),
        ("/detokenize", json!({"tokens": "12"}), "tokens"),
    ] {
        let refused = ask(path, body);
        assert_eq!(refused.status, 400, "{path}");
        assert!(refused.body.contains(named), "{path}: {}", refused.body);
    }
    assert_eq!(ask("/detokenize", json!({"tokens": [4_000_000_000_u32]})).status, 400);
}
