//! Random replies under each format: whatever is drawn, the finished reply has the form.

use serde_json::{Value, json};

use super::validator::valid;
use super::{Draws, Fixture, Matcher, ResponseFormat, allowed, default_model};

/// Draws allowed tokens until an end token; half of the time, and later always, among those that lead to an end.
pub fn reply(fixture: &Fixture, mut matcher: Matcher, draws: &mut Draws) -> Vec<u8> {
    let mut text = Vec::new();
    for step in 0..4000 {
        let ids = allowed(&mut matcher);
        let hasty = step > 200 || draws.below(2) == 0;
        let rank = |&id: &u32| if hasty { remoteness(fixture, id) } else { 0 };
        let nearest = ids.iter().map(rank).min().unwrap();
        let among: Vec<u32> = ids.iter().copied().filter(|id| rank(id) == nearest).collect();
        let id = among[draws.below(among.len())];
        matcher.accept(id).unwrap();
        if fixture.ends.contains(&id) {
            return text;
        }
        text.extend(fixture.pieces.bytes(id));
    }
    panic!("no end in 4000 tokens: {}", String::from_utf8_lossy(&text));
}

/// How far a token leads from the end of a JSON text, roughly.
fn remoteness(fixture: &Fixture, id: u32) -> usize {
    let bytes = fixture.pieces.bytes(id);
    let has = |set: &[u8]| bytes.iter().any(|byte| set.contains(byte));
    match () {
        _ if fixture.ends.contains(&id) => 0,
        _ if has(b"{[") => 3,
        _ if has(b"}]") || bytes.ends_with(b"\"") => 1,
        _ if bytes.iter().all(|byte| b"nultrefas0123456789".contains(byte)) => 2,
        _ => 4,
    }
}

/// The drawn text as JSON; none where a number is beyond what `f64` holds.
pub fn parsed(text: &[u8]) -> Option<Value> {
    match serde_json::from_slice(text) {
        Ok(value) => Some(value),
        Err(error) if error.to_string().contains("number out of range") => None,
        Err(error) => panic!("{error}: {}", String::from_utf8_lossy(text)),
    }
}

fn table() -> Vec<Value> {
    vec![
        json!(true),
        json!({}),
        json!({ "type": "boolean" }),
        json!({ "type": ["null", "integer"], "minimum": -3, "maximum": 210 }),
        json!({ "type": "number", "exclusiveMinimum": 0, "maximum": 2.5 }),
        json!({ "type": "number", "multipleOf": 0.25, "minimum": 0, "maximum": 100 }),
        json!({ "type": "string", "minLength": 2, "maxLength": 5 }),
        json!({
            "enum": ["a", "日本", "\"quoted\" \\ and\nbroken", 12, -0.5, null, true, [1, "x"], { "a": { "b": [] } }],
        }),
        json!({ "const": { "kind": "point", "at": [0, 1] } }),
        json!({ "type": "array", "items": { "type": "integer", "maximum": 9 }, "minItems": 2, "maxItems": 4 }),
        json!({ "type": "array", "prefixItems": [{ "type": "string" }, {}], "items": false, "minItems": 2 }),
        json!({ "type": "object", "additionalProperties": { "type": "null" }, "maxProperties": 2 }),
        json!({
            "type": "object",
            "properties": {
                "name": { "type": "string" },
                "kind": { "enum": ["a", "an"] },
                "tags": { "type": "array", "items": { "type": "string", "maxLength": 3 }, "maxItems": 2 },
                "inner": {
                    "type": "object",
                    "properties": { "x": { "type": "number" }, "y": { "type": "number" } },
                    "required": ["y"],
                    "additionalProperties": false,
                },
            },
            "required": ["kind", "inner", "extra"],
        }),
        json!({
            "$ref": "#/$defs/tree",
            "$defs": {
                "tree": {
                    "type": "object",
                    "properties": {
                        "value": { "$ref": "#/$defs/value" },
                        "children": { "type": "array", "items": { "$ref": "#/$defs/tree" }, "maxItems": 2 },
                    },
                    "required": ["value"],
                    "additionalProperties": false,
                },
                "value": { "anyOf": [{ "type": "integer" }, { "type": "string", "maxLength": 4 }] },
            },
        }),
        json!({
            "oneOf": [
                { "type": "object", "properties": { "kind": { "const": "circle" }, "r": { "type": "number" } },
                  "required": ["kind", "r"], "additionalProperties": false },
                { "type": "object", "properties": { "kind": { "const": "square" }, "side": { "type": "number" } },
                  "required": ["kind", "side"], "additionalProperties": false },
            ],
        }),
        json!({
            "allOf": [
                { "type": "object", "properties": { "a": { "type": "integer", "minimum": 3 } }, "required": ["a"] },
                { "properties": { "a": { "maximum": 12 }, "b": { "type": "null" } }, "additionalProperties": false },
            ],
        }),
        json!({
            "type": "object",
            "properties": { "next": { "anyOf": [{ "$ref": "#" }, { "type": "null" }] } },
            "required": ["next"],
            "additionalProperties": false,
        }),
    ]
}

#[test]
fn replies_are_valid_under_their_schema() {
    for fixture in [Fixture::by_hand(), default_model()] {
        let mut draws = Draws(23);
        for schema in table() {
            let start = fixture.schema(schema.clone());
            let mut seen = 0;
            for _ in 0..30 {
                let text = reply(&fixture, start.fork(), &mut draws);
                let Some(value) = parsed(&text) else { continue };
                assert!(valid(&schema, &schema, &value), "{value} under {schema}");
                seen += 1;
            }
            assert!(seen > 20, "{schema}: {seen} replies");
        }
    }
}

#[test]
fn values_that_are_valid_can_be_spelled() {
    let fixture = Fixture::by_hand();
    let cases = [
        (json!({ "type": "string" }), vec!["\"\"", "\"日本 é\"", "\"\\n\\\"\\\\\"", "\"😀\""]),
        (json!({ "type": "number" }), vec!["0", "-0.5", "1e10", "12.25E-3"]),
        (
            table()[7].clone(),
            vec!["\"\\\"quoted\\\" \\\\ and\\nbroken\"", "[1,\"x\"]", "{\"a\":{\"b\":[]}}", "12"],
        ),
        (
            table()[12].clone(),
            vec![
                "{\"kind\":\"an\",\"inner\":{\"y\":1},\"extra\":[]}",
                "{ \"kind\" :\n\t\"a\", \"inner\": {\"x\":2,\"y\":1.5}, \"extra\": null, \"more\": {} }",
            ],
        ),
    ];
    for (schema, texts) in cases {
        let start = fixture.schema(schema);
        for text in texts {
            assert!(fixture.accepts(&start, text), "{text}");
        }
    }
}

#[test]
fn a_key_spelled_otherwise_is_no_other_key() {
    let fixture = Fixture::by_hand();
    let start = fixture.schema(json!({
        "type": "object",
        "properties": { "age": { "type": "integer" }, "a\u{1}\n/": { "type": "integer" } },
        "patternProperties": { "^x": { "type": "integer" } },
        "additionalProperties": { "type": "string" },
    }));
    for text in [r#"{"age":1,"a\u0001\n/":2}"#, r#"{"b":"\t"}"#, r#"{"x":1,"y":""}"#] {
        assert!(fixture.accepts(&start, text), "{text}");
    }
    let spelled_otherwise = [
        r#"{"age":""}"#,
        r#"{"\u0061ge":""}"#,
        r#"{"a\u0001\n/":""}"#,
        r#"{"a\u0001\n\/":""}"#,
        r#"{"a\u0001\u000a/":""}"#,
        r#"{"\u0078":""}"#,
        r#"{"\ud83d\ude00":1}"#,
    ];
    for text in spelled_otherwise {
        assert!(!fixture.accepts(&start, text), "{text}");
    }
}

#[test]
fn any_object_is_a_json_object() {
    for fixture in [Fixture::by_hand(), default_model()] {
        let mut draws = Draws(29);
        let start = fixture.compile(&ResponseFormat::json_object()).unwrap();
        for _ in 0..50 {
            let text = reply(&fixture, start.fork(), &mut draws);
            assert!(parsed(&text).is_none_or(|value| value.is_object()));
        }
        assert!(fixture.accepts(&start, "{}"));
        assert!(fixture.accepts(&start, "{ \"a\": [1, {\"b\": null}],\n  \"é\": -1.5e3 }"));
        assert!(!fixture.accepts(&start, "[]") && !fixture.accepts(&start, "{\"a\":}"));
    }
}

#[test]
fn strings_keep_to_their_pattern_and_format() {
    let fixture = default_model();
    let mut draws = Draws(31);
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    let date = |text: &str| {
        let parts: Vec<&str> = text.split('-').collect();
        parts.len() == 3
            && parts.iter().all(|part| digits(part))
            && (1..=12).contains(&parts[1].parse().unwrap())
            && (1..=31).contains(&parts[2].parse().unwrap())
            && text.len() == 10
    };
    let uuid = |text: &str| {
        let lens: Vec<usize> = text.split('-').map(str::len).collect();
        lens == [8, 4, 4, 4, 12] && text.bytes().all(|byte| byte == b'-' || byte.is_ascii_hexdigit())
    };
    let ipv4 = |text: &str| text.parse::<std::net::Ipv4Addr>().is_ok();
    let ipv6 = |text: &str| text.parse::<std::net::Ipv6Addr>().is_ok();
    let email =
        |text: &str| text.split_once('@').is_some_and(|(name, host)| !name.is_empty() && !host.is_empty());
    let plate = |text: &str| {
        let (letters, number) = text.split_once('-').unwrap();
        (1..=3).contains(&letters.len())
            && letters.bytes().all(|byte| byte.is_ascii_uppercase())
            && number.len() == 4
            && digits(number)
    };
    let inside = |text: &str| text.contains("ab") || text.contains("ba");
    type Check<'a> = &'a dyn Fn(&str) -> bool;
    let cases: [(Value, Check); 9] = [
        (json!({ "format": "date" }), &date),
        (json!({ "format": "uuid" }), &uuid),
        (json!({ "format": "ipv4" }), &ipv4),
        (json!({ "format": "ipv6" }), &ipv6),
        (json!({ "format": "email", "maxLength": 40 }), &email),
        (json!({ "format": "date-time" }), &|text| {
            date(&text[..10]) && text[10..11].eq_ignore_ascii_case("t")
        }),
        (json!({ "pattern": "^[A-Z]{1,3}-\\d{4}$" }), &plate),
        (json!({ "pattern": "ab|ba", "maxLength": 9 }), &inside),
        (json!({ "pattern": "^(日本|é)+$", "maxLength": 6 }), &|text| {
            text.chars().all(|c| "日本é".contains(c)) && !text.is_empty()
        }),
    ];
    for (mut schema, check) in cases {
        schema["type"] = "string".into();
        let start = fixture.schema(schema.clone());
        for _ in 0..20 {
            let value = parsed(&reply(&fixture, start.fork(), &mut draws)).unwrap();
            assert!(check(value.as_str().unwrap()), "{value} under {schema}");
        }
    }
}
