use super::{ConstrainFrom, Request, Speculation};
use crate::chat::Tool;
use crate::error::Error;

#[test]
fn fields_out_of_bounds_are_named() {
    let cases = [
        ("prompt", Request::prompt("")),
        ("prompt", Request::tokens([])),
        ("max_tokens", Request::prompt("x").max_tokens(0)),
        ("temperature", Request::prompt("x").temperature(-0.1)),
        ("temperature", Request::prompt("x").temperature(2.1)),
        ("temperature", Request::prompt("x").temperature(f32::NAN)),
        ("top_p", Request::prompt("x").top_p(0.0)),
        ("top_p", Request::prompt("x").top_p(1.1)),
        ("top_p", Request::prompt("x").top_p(f32::INFINITY)),
        ("min_p", Request::prompt("x").min_p(-1.0)),
        ("messages", Request::chat([])),
        ("n", Request::prompt("x").n(0)),
        ("n", Request::prompt("x").n(129)),
        ("typical_p", Request::prompt("x").typical_p(0.0)),
        ("repetition_penalty", Request::prompt("x").repetition_penalty(0.0)),
        ("presence_penalty", Request::prompt("x").presence_penalty(2.5)),
        ("frequency_penalty", Request::prompt("x").frequency_penalty(f32::NAN)),
        ("min_tokens", Request::prompt("x").max_tokens(3).min_tokens(4)),
        ("logit_bias", Request::prompt("x").logit_bias(1, 101.0)),
        ("logprobs", Request::prompt("x").logprobs(21)),
        ("prompt_logprobs", Request::prompt("x").prompt_logprobs(21)),
        ("speculate", Request::prompt("x").speculate(Speculation::Draft { tokens: 0 })),
        ("speculate", Request::prompt("x").speculate(Speculation::PromptLookup { ngram: 17, tokens: 1 })),
        ("stream_buffer", Request::prompt("x").stream_buffer(0)),
        ("tools", Request::prompt("x").tools([Tool::new("f", "", serde_json::json!({}))])),
        ("add_generation_prompt", Request::prompt("x").add_generation_prompt(true)),
        ("continue_final_message", Request::prompt("x").continue_final_message(true)),
        (
            "add_generation_prompt",
            Request::chat([crate::assistant("x")]).continue_final_message(true).add_generation_prompt(true),
        ),
        ("constrain_from", Request::prompt("x").constrain_from(ConstrainFrom::FirstToken)),
        ("stop", Request::prompt("x").stop("")),
        ("stop", Request::prompt("x").stop("y".repeat(1025))),
        ("dry_breakers", Request::prompt("x").dry_breakers([""])),
        ("stop_token", (0..1025).fold(Request::prompt("x"), Request::stop_token)),
        ("stop", (0..17).fold(Request::prompt("x"), |request, i| request.stop(i.to_string()))),
    ];
    for (expected, request) in cases {
        match request.check() {
            Err(Error::Request { field, .. }) => assert_eq!(field, expected),
            other => panic!("{expected}: {other:?}"),
        }
    }
    let all = Request::prompt("x").max_tokens(1).temperature(2.0).top_p(1.0).min_p(0.0).top_k(9).stop("y");
    assert!(all.check().is_ok());
}

#[test]
fn debug_prints_lengths_only() {
    let printed = format!("{:?}", Request::prompt("my secret prompt").stop("canary"));
    assert!(!printed.contains("secret") && !printed.contains("canary"), "{printed}");
    assert!(printed.contains("prompt_bytes: 16"), "{printed}");
}
