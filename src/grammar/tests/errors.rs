//! What is refused, in which words, and that the words are never the caller's.

use std::process::Command;

use serde_json::{Value, json};

use super::{Fixture, ResponseFormat};
use crate::error::Error;

/// In every place of the formats below.
const CANARY: &str = "kumquat";

/// Compiles what must be refused; returns what the error expects.
fn refusal(fixture: &Fixture, format: &ResponseFormat) -> String {
    match fixture.compile(format) {
        Err(Error::Request { field: "response_format", expected }) => expected,
        other => panic!("{format:?} gave {other:?}"),
    }
}

#[test]
fn keywords_that_cannot_be_enforced_are_named() {
    let fixture = Fixture::by_hand();
    let cases = [
        ("not", json!({ "not": { "items": { "type": "string" } } })),
        ("uniqueItems", json!({ "type": "array", "uniqueItems": true })),
        ("if", json!({ "type": "object", "properties": { "a": { "if": { "multipleOf": 3 }, "then": {} } } })),
        ("contains", json!({ "items": { "anyOf": [{ "contains": { "items": {} }, "maxContains": 2 }] } })),
        (
            "propertyNames",
            json!({ "$defs": { "a": { "propertyNames": { "not": {} } } }, "$ref": "#/$defs/a" }),
        ),
        ("pattern", json!({ "additionalProperties": { "pattern": "(a(?=b))*" } })),
        ("patternProperties", json!({ "patternProperties": { "^(?!a)": {} } })),
        ("unevaluatedProperties", json!({ "allOf": [{ "anyOf": [{}], "unevaluatedProperties": false }] })),
        ("unevaluatedItems", json!({ "allOf": [{ "anyOf": [{}], "unevaluatedItems": false }] })),
        (
            "$dynamicRef",
            json!({ "$defs": { "a": { "$dynamicAnchor": "x" }, "b": { "$dynamicAnchor": "x" } },
                    "prefixItems": [{ "$dynamicRef": "#x" }] }),
        ),
        ("extends", json!({ "extends": {} })),
    ];
    for (keyword, schema) in cases {
        let expected = refusal(&fixture, &ResponseFormat::json_schema(schema));
        let wanted = format!("a JSON Schema without a `{keyword}` like this one, which cannot be enforced");
        assert!(expected.starts_with(&wanted), "{expected}");
    }
    // The same words as names of properties, or in values, are no keywords.
    fixture.schema(
        json!({ "properties": { "not": { "const": { "if": 1 } }, "contains": { "default": { "not": 2 } } } }),
    );
}

#[test]
fn what_is_wrong_is_said_in_words_of_our_own() {
    let fixture = Fixture::by_hand();
    let schemas = [
        (json!("string"), "at each place"),
        (json!(false), "can satisfy"),
        (json!({ "items": 3 }), "at each place"),
        (json!({ "type": "strang" }), "`type`s are among"),
        (json!({ "type": "string", "format": 7 }), "`format` is a string"),
        (json!({ "properties": [] }), "`properties` is an object"),
        (json!({ "anyOf": {} }), "`anyOf` is an array"),
        (json!({ "enum": "a" }), "`enum` is an array"),
        (json!({ "enum": [] }), "can satisfy"),
        (json!({ "minItems": -1 }), "`minItems` is a whole number"),
        (json!({ "maxLength": 1e9 as u64 }), "`maxLength` is a whole number"),
        (json!({ "minimum": 1e20 }), "`minimum` is a number from"),
        (json!({ "maximum": "7" }), "`maximum` is a number from"),
        (json!({ "enum": [{ "a": [9_007_199_254_740_993_i64] }] }), "whole numbers in `enum`"),
        (json!({ "multipleOf": 0 }), "`multipleOf`s are above 0"),
        (json!({ "multipleOf": 1e-9 }), "`multipleOf`s are above 0"),
        (
            json!({ "items": { "multipleOf": 499 }, "allOf": [{ "multipleOf": 503 }] }),
            "`multipleOf`s are above 0",
        ),
        (json!({ "pattern": 1 }), "`pattern` is a string"),
        (json!({ "type": "string", "pattern": "\\ba" }), "keeps to the supported syntax"),
        (json!({ "type": "string", "pattern": "^a$", "minLength": 3 }), "can satisfy"),
        (json!({ "$ref": "#/$defs/none" }), "`$ref` is the place"),
        (json!({ "$ref": "#nowhere" }), "`$ref` is the place"),
        (json!({ "dependentRequired": { "a": "b" } }), "`dependentRequired` has arrays"),
        (json!({ "$ref": "https://example.com/schema" }), "`$ref` is"),
        (json!({ "$ref": "#" }), "can satisfy"),
        (json!({ "properties": { "x": { "$ref": "#", "type": "object" } } }), "circle of `$ref`s"),
        (json!({ "oneOf": [{ "type": "integer" }, { "type": "number" }] }), "`oneOf` alternatives exclude"),
        (json!({ "patternProperties": { "a": {}, "b": {} } }), "`patternProperties` exclude"),
        (
            json!({ "properties": { "a": {} }, "minProperties": 1 }),
            "`minProperties` and `maxProperties` only",
        ),
        (json!({ "type": "integer", "minimum": 3, "maximum": 2 }), "can satisfy"),
        (json!({ "required": [7] }), "well-formed"),
    ];
    for (schema, words) in schemas {
        let expected = refusal(&fixture, &ResponseFormat::json_schema(schema.clone()));
        assert!(expected.starts_with("a JSON Schema") && expected.contains(words), "{schema}: {expected}");
    }
    for text in ["", "(", "a\\", "a(?=b)", r"\bx", "[a&&b]", "(?P<n>a)(?P<n>b)"] {
        assert!(
            refusal(&fixture, &ResponseFormat::regex(text)).starts_with("a regular expression"),
            "{text}"
        );
    }
    for text in [
        "",
        "start: nope",
        "start \"a\"",
        "start: \"a",
        "start: <|none|>",
        "start: <[99999]>",
        "start: A\nA: A",
        "start: %json { \"not\": { \"items\": {} } }",
        "start: /[a&&b]/",
    ] {
        let expected = refusal(&fixture, &ResponseFormat::lark(text));
        assert!(expected.starts_with("a Lark grammar") || text.contains("%json"), "{text}: {expected}");
    }
}

#[test]
fn sizes_are_limited() {
    let fixture = Fixture::by_hand();
    let deep = |depth| (0..depth).fold(json!({}), |schema, _| json!({ "items": schema }));
    fixture.schema(deep(64));
    let many = |count: usize| json!({ "enum": (0..count).collect::<Vec<_>>() });
    fixture.schema(many(8000));
    let named = |count: usize| -> Value {
        let properties = (0..count).map(|i| (i.to_string(), json!({}))).collect::<serde_json::Map<_, _>>();
        json!({ "type": "object", "properties": properties })
    };
    fixture.schema(named(200));
    let mut choice = named(100);
    choice["minProperties"] = 1.into();
    choice["additionalProperties"] = false.into();
    // Types that are shared many times over are compiled once.
    let mut shared =
        json!({ "$ref": "#/$defs/0", "$defs": { "20": { "type": "string", "format": "email" } } });
    for i in 0..20 {
        let next = json!({ "$ref": format!("#/$defs/{}", i + 1) });
        shared["$defs"][i.to_string()] = json!({ "type": "object", "properties": { "a": next, "b": next } });
    }
    fixture.schema(shared);
    let options = |count: usize| json!({ "anyOf": vec![json!({ "type": "string", "pattern": "a" }); count] });
    let cases = [
        (ResponseFormat::json_schema(deep(65)), "nested at most 64 deep"),
        (ResponseFormat::json_schema(nested_lists(50_000)), "nested at most 64 deep"),
        (ResponseFormat::json_schema(many(9000)), "at most 8192 values"),
        (ResponseFormat::json_schema(json!({ "title": "x".repeat(300_000) })), "at most 262144 bytes"),
        (
            ResponseFormat::json_schema(json!({ "pattern": "x".repeat(9000) })),
            "patterns have at most 8192 bytes",
        ),
        (ResponseFormat::json_schema(named(201)), "at most 200 properties"),
        (ResponseFormat::json_schema(choice), "fewer properties"),
        (ResponseFormat::json_schema(json!({ "allOf": [options(40), options(40)] })), "fewer patterns"),
        (ResponseFormat::regex("x".repeat(9000)), "at most 8192 bytes"),
        (ResponseFormat::lark("//".repeat(40_000)), "at most 65536 bytes"),
        (ResponseFormat::lark("\n".repeat(2000)), "at most 512 lines"),
        (ResponseFormat::lark(format!("start: {}", "(".repeat(200))), "at most 128 brackets"),
    ];
    for (format, words) in cases {
        let expected = refusal(&fixture, &format);
        assert!(expected.contains(words), "{expected}");
    }
}

/// Formats that are wrong, or go wrong, with the canary in every place; some make llguidance panic.
fn with_canaries() -> Vec<ResponseFormat> {
    let long = format!("{CANARY}{}", "é".repeat(200));
    let path = format!("#/$defs/{CANARY}");
    let schemas = [
        json!(CANARY),
        json!([CANARY]),
        json!({ "type": CANARY }),
        json!({ "type": [CANARY, 7] }),
        json!({ "enum": CANARY }),
        json!({ "const": CANARY, "type": "integer" }),
        json!({ "type": "string", "format": [CANARY] }),
        json!({ "type": "string", "pattern": format!("({CANARY}") }),
        json!({ "type": "string", "pattern": format!("({CANARY}(?=x))*") }),
        json!({ "type": "string", "pattern": format!("^(?!{CANARY})(?!.*\\b)") }),
        json!({ "$anchor": CANARY, "$ref": format!("#{CANARY}x") }),
        json!({ "$id": format!("https://{CANARY}/"), "$ref": format!("{CANARY}.json#") }),
        json!({ "dependentRequired": { CANARY: CANARY } }),
        json!({ "propertyNames": { "pattern": CANARY, "const": CANARY } }),
        json!({ "type": "string", "pattern": format!("^{CANARY}$"), "maxLength": 2 }),
        json!({ "type": "string", "const": CANARY, "maxLength": 2 }),
        json!({ "$ref": path }),
        json!({ "$ref": CANARY }),
        json!({ "$ref": format!("https://{CANARY}/") }),
        json!({ "$schema": CANARY, "$ref": format!("#/{CANARY}"), CANARY: { "type": CANARY } }),
        json!({ "$defs": { CANARY: { "not": {} } }, "$ref": path }),
        json!({ "$defs": { CANARY: { "$ref": path, "type": "object" } }, "$ref": path }),
        json!({ "properties": { CANARY: { "uniqueItems": true } } }),
        json!({ "type": "object", "properties": { CANARY: false }, "required": [CANARY] }),
        json!({ "properties": { CANARY: { "minLength": CANARY } } }),
        json!({ "properties": CANARY }),
        json!({ "required": CANARY }),
        // llguidance cuts what it quotes at byte 100, within a character, and panics.
        json!({ "required": [{ &*long: 1 }] }),
        json!({ "required": [{ CANARY: 1 }] }),
        json!({ "minimum": CANARY }),
        json!({ "multipleOf": CANARY }),
        json!({ "multipleOf": { CANARY: 1 } }),
        json!({ "patternProperties": { CANARY: {}, format!(".{CANARY}?"): {} } }),
        json!({ "patternProperties": { format!("({CANARY}"): {} } }),
        json!({ "oneOf": [{ "type": "array" }, { "items": { "pattern": CANARY } }] }),
        json!({ "anyOf": [{ "not": CANARY }] }),
        json!({ "allOf": [{ "const": CANARY }, { "const": "other" }] }),
        json!({ CANARY: 1, "if": { "items": { "const": CANARY } }, "then": {} }),
        json!({ "items": { "description": CANARY, "contains": CANARY } }),
        json!({ "description": CANARY.repeat(50_000) }),
        json!({ "x-guidance": { CANARY: 1 }, "type": CANARY }),
    ];
    let larks = [
        CANARY.to_owned(),
        format!("start: {CANARY}"),
        format!("start: \"{CANARY}"),
        format!("start: \"{CANARY}\" )"),
        format!("start: /{CANARY}(?=x)/"),
        format!("start: /({CANARY}/"),
        format!("start: /{CANARY}/ & /x/"),
        format!("start: <|{CANARY}|>"),
        format!("start: <[{CANARY}]>"),
        format!("start: @{CANARY}"),
        format!("start: A\nA: B \"{CANARY}\"\nB: A"),
        format!("start: %json {{ \"type\": \"{CANARY}\" }}"),
        format!("start: %json {{ \"{CANARY}\""),
        format!("start: %regex {{ \"{CANARY}\": 1 }}"),
        format!("%import {CANARY}\nstart: \"a\""),
        format!("%{CANARY}\nstart: \"a\""),
        format!("%llguidance {{ \"no_forcing\": \"{CANARY}\" }}\nstart: \"a\""),
        format!("start[{CANARY}=3]: \"a\""),
        format!("start[max_tokens={CANARY}]: \"a\""),
        format!("start: a\na: \"{CANARY}\"\na: \"b\""),
        format!("start::_: \"{CANARY}\" %if {CANARY}(_)"),
        format!("start: \"\\u{CANARY}\""),
        format!("start: \"\u{1f34a}{CANARY}\u{1f34a}\" {} /(/", "é".repeat(120)),
    ];
    let regexes = [
        format!("({CANARY}"),
        format!("{CANARY}\\"),
        format!("{CANARY}(?=x)"),
        format!("[{CANARY}&&[^a-z]]"),
        format!("(?<{CANARY}>a)(?<{CANARY}>b)"),
        format!("{CANARY}{{2,1}}"),
        format!("\\p{{{CANARY}}}"),
    ];
    let schemas = schemas.into_iter().map(ResponseFormat::json_schema);
    let larks = larks.into_iter().map(ResponseFormat::lark);
    schemas.chain(larks).chain(regexes.into_iter().map(ResponseFormat::regex)).collect()
}

/// Also run by the test below, in a process of its own.
#[test]
fn no_error_has_content() {
    let fixture = Fixture::by_hand();
    for (case, format) in with_canaries().into_iter().enumerate() {
        assert!(!format!("{format:?}").contains(CANARY), "case {case}");
        let Err(error) = fixture.compile(&format) else { panic!("case {case} must be refused") };
        let printed = format!("{error} {error:?} {:?}", fixture.grammars);
        assert!(!printed.contains(CANARY), "case {case}");
        assert!(matches!(error, Error::Request { field: "response_format", .. }), "case {case}");
    }
    let mut matcher =
        fixture.compile(&ResponseFormat::regex(format!("{CANARY}*(a{{0,9}}){{9,9999}}"))).unwrap();
    for id in fixture.spell(CANARY) {
        let error = matcher.accept(u32::from(b'~')).unwrap_err();
        assert!(!format!("{error} {error:?} {matcher:?}").contains(CANARY));
        matcher.accept(id).unwrap();
    }
}

#[test]
fn nothing_is_printed_even_where_llguidance_panics() {
    let path = module_path!().split_once("::").unwrap().1;
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", &format!("{path}::no_error_has_content"), "--nocapture"])
        .output()
        .unwrap();
    let printed = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap()).concat();
    assert!(output.status.success() && printed.contains("1 passed"), "{printed}");
    assert!(!printed.contains(CANARY) && !printed.contains("panicked"), "{printed}");
}

#[test]
fn a_format_prints_its_kind_and_length_only() {
    let printed = |format: ResponseFormat| format!("{format:?}");
    assert_eq!(printed(ResponseFormat::default()), "Text");
    assert_eq!(printed(ResponseFormat::text()), "Text");
    assert_eq!(printed(ResponseFormat::json_object()), "JsonObject");
    assert_eq!(printed(ResponseFormat::json_schema(json!({ "const": CANARY }))), "JsonSchema { bytes: 19 }");
    assert_eq!(printed(ResponseFormat::regex(CANARY)), "Regex { bytes: 7 }");
    assert_eq!(printed(ResponseFormat::lark(CANARY)), "Lark { bytes: 7 }");
}

#[test]
fn text_needs_no_matcher() {
    let fixture = Fixture::by_hand();
    assert!(fixture.grammars.compile(&ResponseFormat::text(), 1).unwrap().is_none());
}

#[test]
fn a_value_nested_beyond_the_stack_is_taken_apart() {
    crate::memory::json::wipe(nested_lists(200_000));
}

fn nested_lists(depth: usize) -> Value {
    (0..depth).fold(Value::Null, |inner, _| Value::Array(vec![inner]))
}
