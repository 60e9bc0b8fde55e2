//! Structured output through a session: every format, alone and in batches, with choices, guesses and streams.

use amnesic::{
    Error, FinishReason, Reply, Request, ResponseFormat, Session, Speculation, Tool, ToolChoice, user,
};
use serde_json::{Value, json};

use crate::common::default_model;

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
    let guessed =
        session.generate_batch((0..8).map(|seed| request(seed).speculate(guess).tenant("one"))).unwrap();
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
        ResponseFormat::json_schema(json!({ "not": { "items": { "const": canary } } })),
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

#[test]
fn a_reply_says_what_of_its_schema_was_not_enforced() {
    let session = session();
    let list = json!({ "type": "array", "items": { "type": "string", "maxLength": 3, "format": "word" },
                       "uniqueItems": true, "maxItems": 2 });
    let ask = |format: ResponseFormat| ask(1).response_format(format);
    let lenient = || ask(ResponseFormat::json_schema(list.clone()).lenient());
    let reply = session.generate(lenient()).unwrap();
    assert_eq!(reply.not_enforced(), ["format", "uniqueItems"]);
    assert!(serde_json::from_str::<Value>(reply.text()).unwrap().is_array());
    let stream = session.stream(lenient()).unwrap();
    assert_eq!(stream.not_enforced(), ["format", "uniqueItems"]);
    assert_eq!(stream.finish().unwrap().not_enforced(), ["format", "uniqueItems"]);
    let refused = session.generate(ask(ResponseFormat::json_schema(list.clone()))).unwrap_err();
    assert!(refused.to_string().contains("`uniqueItems`"), "{refused}");
    let enforced = session.generate(ask(ResponseFormat::json_schema(schema()))).unwrap();
    assert!(enforced.not_enforced().is_empty());
}

/// A copy of the default model with a chat template.
fn chat_session(template: &str) -> (tempfile::TempDir, Session) {
    let folder = tempfile::tempdir().unwrap();
    for file in std::fs::read_dir(default_model()).unwrap().map(Result::unwrap) {
        std::fs::copy(file.path(), folder.path().join(file.file_name())).unwrap();
    }
    std::fs::write(folder.path().join("chat_template.jinja"), template).unwrap();
    let session = Session::builder(folder.path()).threads(2).open().unwrap();
    (folder, session)
}

#[test]
fn tools_are_called_where_that_is_asked_for() {
    let body = "{% for message in messages %}{{ message.content }}\n{% endfor %}";
    let (_folder, session) = chat_session(&format!("{body}{{# <tool_call></tool_call> #}}"));
    let parameters = json!({ "type": "object", "properties": { "zone": { "$ref": "#/$defs/Zone" } },
        "required": ["zone"], "additionalProperties": false, "$defs": { "Zone": { "enum": ["UTC", "CET"] } } });
    let tools = || ["clock", "watch"].map(|name| Tool::new(name, "tells the time", parameters.clone()));
    let ask = |seed: u64| {
        let request = Request::chat([user("How late is it?")]).tools(tools());
        request.max_tokens(120).temperature(1.0).seed(seed).parallel_tool_calls(false)
    };
    for seed in 0..4 {
        let reply = session.generate(ask(seed).tool_choice(ToolChoice::Required)).unwrap();
        let [call] = reply.choices()[0].tool_calls() else { panic!("{}", reply.text()) };
        assert_eq!((reply.finish_reason(), reply.text()), (FinishReason::ToolCalls, ""));
        assert!(["clock", "watch"].contains(&call.name()));
        let arguments: Value = serde_json::from_str(call.arguments()).unwrap();
        assert!(["UTC", "CET"].contains(&arguments["zone"].as_str().unwrap()));
        let named = session.generate(ask(seed).tool_choice(ToolChoice::function("watch"))).unwrap();
        assert_eq!(named.choices()[0].tool_calls()[0].name(), "watch");
        // Left to itself the model says something, and stays within what a strict tool allows.
        assert!(session.generate(ask(seed).strict_tools(true)).is_ok());
    }
    let field = |request: Request| match session.generate(request).unwrap_err() {
        Error::Request { field, .. } => field,
        other => panic!("{other}"),
    };
    assert_eq!(field(ask(1).tool_choice(ToolChoice::function("canary"))), "tool_choice");
    assert_eq!(field(Request::chat([user("x")]).tool_choice(ToolChoice::Required)), "tool_choice");
    let formed = ask(1).tool_choice(ToolChoice::Required).response_format(ResponseFormat::json_object());
    assert_eq!(field(formed), "response_format");
    // Of a checkpoint that does not show how it writes calls, by name.
    let (_folder, other) = chat_session(body);
    let tools = [Tool::new("clock", "", json!({ "type": "object" }))];
    let refused = other.generate(Request::chat([user("x")]).tools(tools).tool_choice(ToolChoice::Required));
    assert!(matches!(refused, Err(Error::Request { field: "tool_choice", .. })), "{refused:?}");
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
