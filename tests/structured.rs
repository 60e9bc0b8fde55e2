//! Structured output through a session: every format, alone and in batches, with choices, guesses and streams.

mod common;

use amnesic::{Error, FinishReason, Reply, Request, ResponseFormat, Session, Speculation};
use common::default_model;
use serde_json::{Value, json};

amnesic::install_scrubbing_allocator!();

fn session() -> Session {
    Session::builder(default_model()).threads(2).open().unwrap()
}

fn ask(seed: u64) -> Request {
    Request::prompt("The struct is").max_tokens(200).temperature(0.9).seed(seed)
}

fn schema() -> Value {
    json!({
        "type": "object",
        "properties": {
            "name": { "type": "string", "maxLength": 12 },
            "kind": { "enum": ["struct", "trait", "crate"] },
            "size": { "type": "integer", "minimum": 0, "maximum": 4096 },
            "tags": { "type": "array", "items": { "type": "string", "maxLength": 6 }, "maxItems": 3 }
        },
        "required": ["name", "kind", "size", "tags"],
        "additionalProperties": false
    })
}

/// Whether a reply is what `schema` says.
fn fits(reply: &Reply) {
    for choice in reply.choices() {
        assert_eq!(choice.finish_reason, FinishReason::Stop, "{} bytes", choice.text().len());
        let value: Value = serde_json::from_str(choice.text()).unwrap();
        let object = value.as_object().unwrap();
        assert_eq!(object.len(), 4);
        assert!(object["name"].as_str().unwrap().chars().count() <= 12);
        assert!(["struct", "trait", "crate"].contains(&object["kind"].as_str().unwrap()));
        assert!(object["size"].as_u64().unwrap() <= 4096);
        assert!(
            object["tags"].as_array().unwrap().iter().all(|tag| tag.as_str().unwrap().chars().count() <= 6)
        );
    }
}

#[test]
fn replies_have_the_form_that_was_asked_for() {
    let session = session();
    for seed in 0..6 {
        fits(&session.generate(ask(seed).response_format(ResponseFormat::json_schema(schema()))).unwrap());
        let word =
            session.generate(ask(seed).response_format(ResponseFormat::regex("(yes|no|maybe)!"))).unwrap();
        assert!(["yes!", "no!", "maybe!"].contains(&word.text()), "{}", word.text());
        assert_eq!(word.finish_reason(), FinishReason::Stop);
        let lark = "start: sum\nsum: NUMBER (\"+\" NUMBER)~1..3\nNUMBER: /[1-9][0-9]?/";
        let sum = session.generate(ask(seed).response_format(ResponseFormat::lark(lark))).unwrap();
        let parts: Vec<u32> = sum.text().split('+').map(|part| part.parse().unwrap()).collect();
        assert!((2..=4).contains(&parts.len()), "{}", sum.text());
        let greedy = ask(seed).temperature(0.0).max_tokens(60).response_format(ResponseFormat::json_object());
        let object = session.generate(greedy).unwrap();
        assert!(object.text().trim_start().starts_with('{'));
        if object.finish_reason() == FinishReason::Stop {
            assert!(serde_json::from_str::<Value>(object.text()).unwrap().is_object());
        }
    }
}

#[test]
fn batches_choices_and_guesses_change_no_token() {
    let session = session();
    let request = |seed: u64| ask(seed).response_format(ResponseFormat::json_schema(schema()));
    let alone: Vec<Reply> = (0..8).map(|seed| session.generate(request(seed)).unwrap()).collect();
    let plain: Vec<Reply> = (0..8).map(|seed| session.generate(ask(seed)).unwrap()).collect();
    let mixed = (0..8).flat_map(|seed| [request(seed), ask(seed)]);
    let together = session.generate_batch(mixed).unwrap();
    for (pair, (form, free)) in together.chunks(2).zip(alone.iter().zip(&plain)) {
        assert_eq!((pair[0].tokens(), pair[1].tokens()), (form.tokens(), free.tokens()));
    }
    let guess = Speculation::PromptLookup { ngram: 2, tokens: 5 };
    let guessed = session.generate_batch((0..8).map(|seed| request(seed).speculate(guess))).unwrap();
    assert!(guessed.iter().zip(&alone).all(|(guessed, alone)| guessed.tokens() == alone.tokens()));
    assert!(guessed.iter().map(|reply| reply.usage.drafted_tokens).sum::<usize>() > 0);
    let choices = session.generate(request(0).n(4)).unwrap();
    fits(&choices);
    for (choice, alone) in choices.choices().iter().zip(&alone) {
        assert_eq!(choice.tokens(), alone.tokens(), "choice i has the seed plus i");
    }
    let mut text = String::new();
    for piece in session.stream(request(3)).unwrap() {
        text.push_str(piece.unwrap().text());
    }
    assert_eq!(text, alone[3].text());
}

#[test]
fn memory_pressure_keeps_the_form() {
    let session =
        Session::builder(default_model()).context_length(384).kv_tokens(384).max_sequences(6).open().unwrap();
    let form = || ResponseFormat::regex("([a-z]{1,9} ){110,120}end");
    let request =
        |seed| Request::prompt("It is").max_tokens(380).temperature(0.8).seed(seed).response_format(form());
    let replies = session.generate_batch((0..12).map(request)).unwrap();
    for (seed, reply) in (0..).zip(&replies) {
        assert_eq!(reply.finish_reason(), FinishReason::Stop);
        let words = reply.text().strip_suffix(" end").unwrap().split(' ');
        let fits =
            |word: &str| (1..=9).contains(&word.len()) && word.bytes().all(|byte| byte.is_ascii_lowercase());
        assert!(words.clone().all(fits) && (110..=120).contains(&words.count()));
        assert_eq!(session.generate(request(seed)).unwrap().tokens(), reply.tokens());
    }
    assert!(session.load().preemptions > 0, "memory was never short: a lame test");
    assert_eq!(session.load().kv_blocks_used, 0);
}

#[test]
fn what_cannot_be_asked_for_is_an_error_before_any_token() {
    let session = session();
    let canary = "Quartzwick";
    let bad = [
        ResponseFormat::json_schema(json!({ "type": canary })),
        ResponseFormat::json_schema(json!({ "not": { "const": canary } })),
        ResponseFormat::regex(format!("({canary}")),
        ResponseFormat::lark(format!("start: {canary} unclosed \"")),
    ];
    for format in bad {
        let error = session.generate(ask(1).response_format(format)).unwrap_err();
        assert!(matches!(error, Error::Request { .. } | Error::Grammar(_)), "{error}");
        assert!(!format!("{error} {error:?}").contains(canary), "{error}");
    }
    assert_eq!(session.counters().steps, 0);
    let banned = ask(1).response_format(ResponseFormat::regex("[0-9]+")).min_tokens(2).max_tokens(3);
    assert!(session.generate(banned).is_ok());
}

#[cfg(feature = "schema")]
#[test]
fn a_type_comes_back_as_itself() {
    #[derive(Debug, serde::Deserialize, schemars::JsonSchema)]
    struct Item {
        kind: Kind,
        count: u8,
        note: Option<bool>,
        inner: Vec<Point>,
    }
    #[derive(Debug, serde::Deserialize, schemars::JsonSchema)]
    #[serde(rename_all = "lowercase")]
    enum Kind {
        Trait,
        Crate,
    }
    #[derive(Debug, serde::Deserialize, schemars::JsonSchema)]
    struct Point {
        x: bool,
    }
    let session = session();
    let mut complete = 0;
    for seed in 0..6 {
        match session.generate_as::<Item>(ask(seed)) {
            Ok(item) => {
                complete += 1;
                let _ = (item.count, item.note, matches!(item.kind, Kind::Trait | Kind::Crate));
                let _ = item.inner.iter().filter(|point| point.x).count();
            }
            // a list without an end may fill the reply
            Err(Error::Incomplete { finish_reason }) => assert_eq!(finish_reason, FinishReason::Length),
            Err(error) => panic!("{error}"),
        }
    }
    assert!(complete >= 3, "{complete} of 6");
    let short = session.generate_as::<Item>(ask(1).max_tokens(2));
    assert!(matches!(short, Err(Error::Incomplete { finish_reason: FinishReason::Length })), "{short:?}");
}
