//! Replies that call tools, where the marks of a call are text and where they are special tokens.

use serde_json::{Value, json};

use super::super::calls::Mark;
use super::super::{Calls, ReplyForm, ToolChoice};
use super::generation::reply;
use super::{Draws, Fixture, Matcher};
use crate::chat::ToolCallParser;
use crate::error::{Error, Result};

fn definitions() -> Vec<String> {
    let zone = json!({ "$ref": "#/$defs/Zone" });
    let zones = json!({ "Zone": { "enum": ["UTC", "CET"] } });
    let parameters = json!({ "type": "object", "properties": { "zone": zone }, "required": ["zone"],
                "additionalProperties": false, "$defs": zones });
    let node =
        json!({ "type": "object", "properties": { "next": { "$ref": "#" } }, "additionalProperties": false });
    let tool = |name: &str, parameters: &Value| {
        json!({ "type": "function", "function": { "name": name, "parameters": parameters } }).to_string()
    };
    let open = json!({ "type": "object", "properties": { "a": {} } });
    vec![tool("clock", &parameters), tool("chain", &node), tool("none", &json!({})), tool("open", &open)]
}

fn start(fixture: &Fixture, calls: &Calls, special: bool) -> Result<Matcher> {
    let definitions = definitions();
    let mark = |mark: &str| if special { fixture.grammars.mark(mark) } else { Mark::Text };
    let format = calls.format(definitions.iter().map(String::as_str), &hermes(&mark))?;
    fixture.compile(&format)
}

/// Calls in the form of Hermes.
fn hermes(mark: &dyn Fn(&str) -> Mark) -> ReplyForm<'_> {
    ReplyForm {
        parser: ToolCallParser::Hermes,
        mark,
        answer: &[],
        reasoning: None,
        thinks: false,
        inside: false,
        answers: false,
    }
}

/// Whether a reply is allowed. Marks are one token where they are `special`, and bytes where they are not.
fn allows(fixture: &Fixture, start: &Matcher, text: &str, special: bool) -> bool {
    let mut ids = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let mark = ["<tool_call>", "</tool_call>"].into_iter().find(|mark| special && rest.starts_with(mark));
        let len = mark.map_or(1, str::len);
        let found = |id: &u32| {
            let bytes = fixture.pieces.bytes(*id);
            bytes == &rest.as_bytes()[..len] && fixture.pieces.is_special(*id) == mark.is_some()
        };
        ids.push((0..fixture.vocab as u32).find(found).unwrap());
        rest = rest.get(len..).expect("texts of these tests are ASCII");
    }
    let mut matcher = start.fork();
    ids.into_iter().all(|id| matcher.accept(id).is_ok()) && matcher.is_complete().unwrap()
}

fn call(name: &str, arguments: &str) -> String {
    format!("<tool_call>\n{{\"name\": \"{name}\", \"arguments\": {arguments}}}\n</tool_call>")
}

#[test]
fn a_reply_that_must_call_calls() {
    let fixture = Fixture::by_hand();
    for special in [false, true] {
        let calls = Calls { choice: ToolChoice::Required, strict: true, single: true };
        let one = start(&fixture, &calls, special).unwrap();
        let several = start(&fixture, &Calls { single: false, ..calls }, special).unwrap();
        let clock = call("clock", r#"{"zone": "UTC"}"#);
        let two = format!("{clock}\n{}", call("none", "{}"));
        for (text, in_one, in_several) in [
            (clock.clone(), true, true),
            (call("chain", r#"{"next": {"next": {}}}"#), true, true),
            (call("none", r#"{"anything": [1]}"#), true, true),
            (call("open", r#"{"a": 1}"#), true, true),
            (call("open", r#"{"b": 1}"#), false, false),
            (two, false, true),
            (String::new(), false, false),
            ("It is noon.".into(), false, false),
            (format!("Well. {clock}"), false, false),
            (call("clock", r#"{"zone": "EST"}"#), false, false),
            (call("clock", "{}"), false, false),
            (call("clock", r#""UTC""#), false, false),
            (call("watch", "{}"), false, false),
        ] {
            assert_eq!(allows(&fixture, &one, &text, special), in_one, "{special} {text}");
            assert_eq!(allows(&fixture, &several, &text, special), in_several, "{special} {text}");
        }
        let named = Calls { choice: ToolChoice::function("clock"), ..Calls::default() };
        let named = start(&fixture, &named, special).unwrap();
        assert!(allows(&fixture, &named, &clock, special));
        assert!(!allows(&fixture, &named, &call("none", "{}"), special));
        let mut draws = Draws(3);
        let text = String::from_utf8(reply(&fixture, one, &mut draws)).unwrap();
        assert!(text.starts_with("<tool_call>") && text.ends_with("</tool_call>"), "{text}");
    }
}

#[test]
fn a_reply_that_may_call_keeps_calls_to_their_schemas() {
    let fixture = Fixture::by_hand();
    for special in [false, true] {
        let calls = Calls { strict: true, ..Calls::default() };
        let free = start(&fixture, &calls, special).unwrap();
        let once = start(&fixture, &Calls { single: true, ..calls }, special).unwrap();
        let clock = call("clock", r#"{"zone": "UTC"}"#);
        let two = format!("Well. {clock}\n{clock}");
        for (text, in_free, in_once) in [
            (String::new(), true, true),
            ("It is < noon, and a <tool is not called.".into(), true, true),
            (clock.clone(), true, true),
            (format!("Well. {clock}"), true, true),
            (two, true, false),
            (format!("Well. {}", call("clock", "{}")), false, false),
            ("Well. <tool_call>".into(), false, false),
        ] {
            assert_eq!(allows(&fixture, &free, &text, special), in_free, "{special} {text}");
            assert_eq!(allows(&fixture, &once, &text, special), in_once, "{special} {text}");
        }
    }
}

#[test]
fn what_cannot_be_called_is_refused() {
    let fixture = Fixture::by_hand();
    let other = Calls { choice: ToolChoice::function("canary"), ..Calls::default() };
    let error = start(&fixture, &other, false).unwrap_err();
    assert!(
        matches!(error, Error::Request { field: "tool_choice", .. }) && !error.to_string().contains("canary")
    );
    let unique = json!({ "type": "array", "items": { "type": "string" }, "uniqueItems": true });
    let tool =
        json!({ "function": { "name": "f", "parameters": { "properties": { "a": unique } } } }).to_string();
    let format = |strict| {
        let calls = Calls { choice: ToolChoice::Required, strict, single: true };
        calls.format([tool.as_str()], &hermes(&|_| Mark::Text)).unwrap()
    };
    assert!(fixture.compile(&format(true)).is_err());
    let begun = fixture.grammars.compile(&format(false), 1).unwrap().unwrap();
    assert_eq!(begun.not_enforced, ["uniqueItems"]);
    assert_eq!(format!("{:?} {:?}", other, ToolChoice::function("canary")).matches("canary").count(), 0);
}
