//! What callers of a session can rely on.

use std::time::Duration;

use amnesic::{Error, FinishReason, Progress, Request, Session};

use crate::common::{Recipe, default_model, fixture};

const VOCAB: usize = 704;

/// A small random checkpoint with a byte-level tokenizer.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let mut recipe = Recipe::small(VOCAB);
    recipe.config["tie_word_embeddings"] = false.into();
    recipe.config["max_position_embeddings"] = 32_768.into();
    recipe.write(folder.path(), Some("byte_level"));
    folder
}

fn open(folder: &std::path::Path) -> Session {
    Session::builder(folder).threads(2).kv_tokens(4096).open().unwrap()
}

#[test]
fn a_session_and_its_errors_cross_threads() {
    fn shared<T: Send + Sync>() {}
    shared::<Session>();
    shared::<Error>();
    shared::<Request>();
    shared::<amnesic::Reply>();
}

#[test]
fn a_reply_tells_what_was_used_and_why_it_ended() {
    let folder = folder();
    let session = open(folder.path());
    let reply = session.generate(Request::prompt("let x = 5;").max_tokens(7)).unwrap();
    assert_eq!(
        (reply.finish_reason(), reply.usage.completion_tokens, reply.tokens().len()),
        (FinishReason::Length, 7, 7)
    );
    assert!(reply.usage.prompt_tokens > 1 && reply.usage.total_tokens() == reply.usage.prompt_tokens + 7);
    assert!(
        reply.timing.first_token <= reply.timing.total
            && reply.timing.decode_rate(7).is_some_and(|rate| rate > 0.0)
    );
    assert_eq!(reply.timing.decode_rate(1), None);
    let second = session.generate(Request::prompt("let x = 5;").max_tokens(7)).unwrap();
    assert_ne!(reply.request_id, second.request_id);
    assert_eq!(
        (reply.text(), reply.tokens()),
        (second.text(), second.tokens()),
        "greedy is the same each time"
    );
    assert!(!format!("{reply:?}").contains(reply.text()), "Debug prints lengths only");
    let spelled: Vec<u8> = reply
        .tokens()
        .iter()
        .filter(|&&id| !session.is_special_token(id))
        .flat_map(|&id| session.token_bytes(id).unwrap().to_vec())
        .collect();
    assert_eq!(String::from_utf8_lossy(&spelled), reply.text());
    assert_eq!(session.token_bytes(VOCAB as u32), None);
    let text = reply.text().to_owned();
    assert_eq!(reply.into_text(), text);
}

#[test]
fn a_stream_gives_the_text_of_the_reply_in_pieces() {
    let folder = folder();
    let session = open(folder.path());
    let request = || Request::prompt("Ownership").max_tokens(40).temperature(1.0).seed(11);
    let whole = session.generate(request()).unwrap();
    let mut stream = session.stream(request()).unwrap();
    let pieces: Vec<String> = stream.by_ref().map(|piece| piece.unwrap().text().to_owned()).collect();
    assert!(!pieces.is_empty() && pieces.iter().all(|piece| !piece.is_empty()));
    assert_eq!(pieces.concat(), whole.text());
    let reply = stream.finish().unwrap();
    assert_eq!((reply.text(), reply.tokens(), reply.usage), (whole.text(), whole.tokens(), whole.usage));
}

#[test]
fn stop_strings_end_the_reply_before_them_wherever_tokens_fall() {
    let folder = folder();
    let session = open(folder.path());
    let request = || Request::prompt("Ownership").max_tokens(60);
    let whole = session.generate(request()).unwrap().into_text();
    let chars: Vec<usize> = whole.char_indices().map(|(at, _)| at).collect();
    for (from, to) in [(5, 8), (11, 12), (20, 29)] {
        let stop = &whole[chars[from]..chars[to]];
        let reply = session.generate(request().stop(stop)).unwrap();
        let before = whole.split(stop).next().unwrap();
        assert_eq!((reply.text(), reply.finish_reason()), (before, FinishReason::Stop));
        let streamed: String = session
            .stream(request().stop(stop))
            .unwrap()
            .map(|piece| piece.unwrap().text().to_owned())
            .collect();
        assert_eq!(streamed, before);
    }
    let unmatched = session.generate(request().stop("\u{1f980}\u{1f980}")).unwrap();
    assert_eq!((unmatched.text(), unmatched.finish_reason()), (whole.as_str(), FinishReason::Length));
}

#[test]
fn end_tokens_come_from_both_config_files_and_the_request() {
    let folder = folder();
    let config = |name: &str, eos: serde_json::Value| {
        let file = folder.path().join(name);
        let text = std::fs::read_to_string(&file).unwrap_or("{}".into());
        let mut json: serde_json::Value = serde_json::from_str(&text).unwrap();
        json["eos_token_id"] = eos;
        std::fs::write(file, json.to_string()).unwrap();
    };
    let run = |request: Request| {
        let reply = open(folder.path()).generate(request).unwrap();
        (reply.tokens().to_vec(), reply.finish_reason())
    };
    let request = || Request::prompt("Ownership").max_tokens(40);
    let (whole, _) = run(request());
    // tokens that appear for the first time at these places
    let fresh: Vec<usize> = (3..40).filter(|&i| !whole[..i].contains(&whole[i])).collect();
    let (near, far) = (fresh[0], fresh[1]);
    assert_eq!(run(request().stop_token(whole[far])), (whole[..far].to_vec(), FinishReason::Stop));
    config("config.json", whole[far].into());
    assert_eq!(run(request()), (whole[..far].to_vec(), FinishReason::Stop));
    config("generation_config.json", serde_json::json!([whole[near], 0]));
    assert_eq!(run(request()), (whole[..near].to_vec(), FinishReason::Stop));
    config("config.json", serde_json::Value::Null);
    assert_eq!(run(request()), (whole[..near].to_vec(), FinishReason::Stop));
}

#[test]
fn seeds_reproduce_and_are_told() {
    let folder = folder();
    let session = open(folder.path());
    let request = || Request::prompt("Ownership").max_tokens(20).temperature(1.0);
    let unseeded = session.generate(request()).unwrap();
    let again = session.generate(request().seed(unseeded.seed())).unwrap();
    assert_eq!(unseeded.tokens(), again.tokens());
    let other = session.generate(request().seed(unseeded.seed() ^ 1)).unwrap();
    assert_ne!(unseeded.tokens(), other.tokens());
    let narrow = session.generate(request().seed(unseeded.seed() ^ 1).top_k(1)).unwrap();
    let greedy = session.generate(request().temperature(0.0)).unwrap();
    assert_eq!(narrow.tokens(), greedy.tokens(), "top_k 1 is greedy");
}

#[test]
fn generation_config_samples_only_where_it_says_so() {
    let folder = folder();
    let file = folder.path().join("generation_config.json");
    let request = || Request::prompt("Ownership").max_tokens(20).seed(4);
    let run = |json: &str, request: Request| {
        std::fs::write(&file, json).unwrap();
        open(folder.path()).generate(request).unwrap().tokens().to_vec()
    };
    let greedy = run("{}", request());
    assert_eq!(run(r#"{"temperature": 1.5}"#, request()), greedy);
    let sampled = run(r#"{"do_sample": true, "temperature": 1.5, "top_p": 0.9, "top_k": 50}"#, request());
    assert_ne!(sampled, greedy);
    assert_eq!(run("{}", request().temperature(1.5).top_p(0.9).top_k(50)), sampled);
    assert_eq!(run(r#"{"do_sample": true, "temperature": 1.5}"#, request().temperature(0.0)), greedy);
}

#[test]
fn dropping_a_stream_cancels_within_a_step() {
    let folder = folder();
    let session = Session::builder(folder.path()).threads(1).kv_tokens(32_768).open().unwrap();
    let mut stream =
        session.stream(Request::prompt("Ownership").max_tokens(30_000).ignore_eos(true)).unwrap();
    assert!(stream.next().unwrap().is_ok());
    drop(stream);
    let steps = session.counters().steps;
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(session.counters().steps, steps, "the request went on after its stream was dropped");
    assert!(steps < 20_000);
    // its memory is free again: a request of the same size is admitted at once
    let mut again = session.stream(Request::prompt("Ownership").max_tokens(30_000).ignore_eos(true)).unwrap();
    assert!(again.next().unwrap().is_ok());
}

#[test]
fn requests_that_do_not_fit_together_wait_for_each_other() {
    let folder = folder();
    let session = Session::builder(folder.path()).kv_tokens(256).max_sequences(2).open().unwrap();
    let request = |i| Request::tokens(vec![i, 5, 6]).max_tokens(90 + i as usize).ignore_eos(true);
    let requests = (0..9).map(request);
    let replies = session.generate_batch(requests).unwrap();
    let counts: Vec<usize> = replies.iter().map(|reply| reply.tokens().len()).collect();
    assert_eq!(counts, (90..99).collect::<Vec<_>>());
}

#[test]
fn the_context_ends_a_reply_and_bounds_a_prompt() {
    let folder = folder();
    let session = Session::builder(folder.path()).context_length(20).open().unwrap();
    assert_eq!(session.context_length(), 20);
    let reply = session.generate(Request::tokens(vec![1; 15])).unwrap();
    assert_eq!((reply.tokens().len(), reply.finish_reason()), (5, FinishReason::Length));
    assert_eq!(session.generate(Request::tokens(vec![1; 15]).max_tokens(5)).unwrap().tokens().len(), 5);
    for request in [Request::tokens(vec![1; 20]), Request::tokens(vec![1; 15]).max_tokens(6)] {
        assert!(matches!(session.generate(request), Err(Error::ContextLength { context: 20, .. })));
    }
}

#[test]
fn weights_that_overflow_are_an_error_not_a_reply() {
    let folder = tempfile::tempdir().unwrap();
    Recipe::small(64).write(folder.path(), None);
    let file = folder.path().join("model.safetensors");
    let bytes = std::fs::read(&file).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let huge = half::bf16::MAX.to_le_bytes();
    for name in ["model.layers.0.mlp.down_proj.weight", "model.layers.0.self_attn.k_proj.weight"] {
        let mut damaged = bytes.clone();
        let data = tensors.tensor(name).unwrap().data();
        let start = data.as_ptr() as usize - bytes.as_ptr() as usize;
        damaged[start..start + data.len()].as_chunks_mut::<2>().0.fill(huge);
        std::fs::write(&file, damaged).unwrap();
        let session = Session::open(folder.path()).unwrap();
        for prompt in [vec![3], vec![3; 40]] {
            let result = session.generate(Request::tokens(prompt).max_tokens(4));
            assert!(matches!(result, Err(Error::NotFinite)), "{name}: {result:?}");
        }
    }
}

#[test]
fn loading_reports_progress_up_to_all_bytes() {
    let seen = std::sync::Arc::new(std::sync::Mutex::new(Vec::<Progress>::new()));
    let sink = seen.clone();
    let folder = fixture("mistral_bf16_sharded");
    let report = move |progress| sink.lock().unwrap().push(progress);
    drop(Session::builder(&folder).on_progress(report).open().unwrap());
    let seen = seen.lock().unwrap();
    let shards = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap());
    let shards = shards.filter(|entry| entry.file_name().to_string_lossy().ends_with(".safetensors"));
    let weights = shards.filter(|entry| entry.file_name().to_string_lossy().starts_with("model"));
    let files: u64 = weights.map(|entry| entry.metadata().unwrap().len()).sum();
    let total = seen[0].total_bytes;
    // the files' headers are small beside their tensors
    assert!(total < files && total > files / 10 * 9, "{total} of {files} bytes");
    assert!(seen.iter().all(|progress| progress.total_bytes == total));
    assert!(seen.is_sorted_by(|a, b| a.done_bytes < b.done_bytes));
    assert_eq!(seen.last().unwrap().done_bytes, total);
}

#[test]
fn closing_reports_what_was_scrubbed() {
    let folder = folder();
    let session = open(folder.path());
    let cache = session.memory().kv_bytes;
    session.generate(Request::prompt("Ownership").max_tokens(3)).unwrap();
    session.generate(Request::prompt("")).unwrap_err();
    session.generate(Request::tokens(vec![VOCAB as u32])).unwrap_err();
    let report = session.close().unwrap();
    assert_eq!(report.requests(), 3, "those that are refused have receipts, too");
    assert!(report.verified_bytes() > cache && report.bytes() > report.verified_bytes(), "{report}");
    assert!(report.locked_bytes() == report.verified_bytes() || !report.not_covered.is_empty(), "{report}");
}

#[test]
fn decoding_reads_the_weights_once_per_step() {
    let folder = folder();
    let session = open(folder.path());
    session.generate(Request::tokens(vec![1]).max_tokens(50)).unwrap();
    let counters = session.counters();
    assert_eq!((counters.steps, counters.tokens), (50, 50));
    // untied: all weights but the embedding table, of which one row; norms are not counted
    let per_token = counters.weight_bytes as f64 / counters.tokens as f64;
    assert!(per_token <= 1.2 * session.memory().weights_bytes as f64, "{per_token} bytes a token");
    assert!(per_token >= 0.5 * session.memory().weights_bytes as f64, "the counter misses reads");
}

#[test]
fn of_experts_those_in_use_are_read() {
    // 2 layers of 8 experts, 3 matrices of 64 by 24 in bf16 each, of which a token goes to 2
    let session = Session::builder(fixture("families/qwen3_moe")).kv_tokens(64).open().unwrap();
    session.generate(Request::tokens(vec![5]).max_tokens(20)).unwrap();
    let counters = session.counters();
    assert_eq!((counters.steps, counters.tokens), (20, 20));
    let unused = (2 * 6 * 3 * 64 * 24 * 2) as f64;
    let (per_token, all) =
        (counters.weight_bytes as f64 / counters.tokens as f64, session.memory().weights_bytes as f64);
    assert!(per_token <= all - unused, "{per_token} bytes a token of {all}");
    assert!(per_token >= 0.3 * all, "the counter misses reads");
}

#[test]
fn the_default_model_continues_as_its_reference_does() {
    let text = std::fs::read_to_string(fixture("default_model.json")).unwrap();
    let expected: serde_json::Value = serde_json::from_str(&text).unwrap();
    let prompt = expected["prompt"].as_str().unwrap();
    let session = Session::open(default_model()).unwrap();
    let reply = session.generate(Request::prompt(prompt).max_tokens(64).temperature(0.0)).unwrap();
    let greedy: Vec<u32> = serde_json::from_value(expected["greedy"].clone()).unwrap();
    assert_eq!(reply.tokens(), greedy);
    assert_eq!(reply.usage.prompt_tokens, expected["prompt_ids"].as_array().unwrap().len());
    assert_eq!(Some(reply.text()), expected["text"].as_str());
}
