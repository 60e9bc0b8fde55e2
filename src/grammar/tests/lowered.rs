//! Schemas in keywords that llguidance lacks, with instances: what is valid is the word of the Python package `jsonschema`
//! (tools/make_schema_table.py).

use serde_json::{Value, json};

use super::generation::{parsed, reply};
use super::{Draws, Fixture, ResponseFormat};
use crate::error::Error;

struct Case {
    name: String,
    schema: Value,
    valid: Vec<String>,
    invalid: Vec<String>,
    /// The keyword that a strict format refuses.
    refused: Option<String>,
}

fn table() -> Vec<Case> {
    let cases: Vec<Value> =
        serde_json::from_str(include_str!("../../../tests/fixtures/schemas.json")).unwrap();
    let texts = |case: &Value, key: &str| {
        case[key].as_array().unwrap().iter().map(|text| text.as_str().unwrap().to_owned()).collect()
    };
    let case = |case: &Value| Case {
        name: case["name"].as_str().unwrap().into(),
        schema: case["schema"].clone(),
        valid: texts(case, "valid"),
        invalid: texts(case, "invalid"),
        refused: case.get("refused").map(|keyword| keyword.as_str().unwrap().into()),
    };
    cases.iter().map(case).collect()
}

#[test]
fn instances_are_accepted_as_they_are_valid() {
    let fixture = Fixture::by_hand();
    let (mut wrong, mut seen) = (Vec::new(), 0);
    for Case { name, schema, valid, invalid, refused } in table() {
        let strict = ResponseFormat::json_schema(schema.clone());
        let start = match (fixture.compile(&strict), &refused) {
            (Ok(start), None) => start,
            (Err(Error::Request { expected, .. }), Some(keyword)) => {
                if !expected.contains(&format!("`{keyword}`")) {
                    wrong.push(format!("{name}: {expected}"));
                }
                continue;
            }
            (other, _) => {
                wrong.push(format!("{name}: {other:?}"));
                continue;
            }
        };
        for (texts, is_valid) in [(&valid, true), (&invalid, false)] {
            for text in texts {
                seen += 1;
                if fixture.accepts(&start, text) != is_valid {
                    wrong.push(format!("{name}: {text} is valid: {is_valid}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(seen > 250, "{seen} instances");
}

#[test]
fn a_lenient_format_leaves_out_what_a_strict_one_refuses_and_says_so() {
    let fixture = Fixture::by_hand();
    for Case { name, schema, valid, refused, .. } in table() {
        let lenient = ResponseFormat::json_schema(schema).lenient();
        let begun =
            fixture.grammars.compile(&lenient, 1).unwrap_or_else(|error| panic!("{name}: {error}")).unwrap();
        let noted: Vec<&str> =
            begun.not_enforced.iter().copied().filter(|&keyword| keyword != "format").collect();
        assert_eq!(noted, Vec::from_iter(refused.as_deref()), "{name}");
        for text in valid {
            assert!(fixture.accepts(&begun.matcher, &text), "{name}: {text}");
        }
    }
    let several = json!({
        "type": "object",
        "properties": {
            "a": { "type": "array", "items": { "type": "string", "format": "phone" }, "uniqueItems": true },
            "b": { "type": "object", "properties": { "x": {}, "y": {} }, "minProperties": 1 },
            "c": { "oneOf": [{ "type": "integer" }, { "type": "number" }] },
            "d": { "type": "string", "pattern": "\\bword\\b" },
        },
        "required": ["a", "b", "c", "d"],
    });
    let begun =
        fixture.grammars.compile(&ResponseFormat::json_schema(several).lenient(), 1).unwrap().unwrap();
    let mut noted = begun.not_enforced;
    noted.sort_unstable();
    assert_eq!(noted, ["format", "minProperties", "oneOf", "pattern", "uniqueItems"]);
    assert!(fixture.accepts(&begun.matcher, r#"{"a":["x","x"],"b":{},"c":1,"d":"no"}"#));
}

/// An unknown format is an annotation for a strict format too, which names it all the same.
#[test]
fn an_unknown_format_is_an_annotation() {
    let fixture = Fixture::by_hand();
    for (format, noted) in [("phone", &["format"][..]), ("uuid", &[]), ("password", &["format"])] {
        let schema = json!({ "type": "string", "format": format });
        let begun = fixture.grammars.compile(&ResponseFormat::json_schema(schema), 1).unwrap().unwrap();
        assert_eq!(begun.not_enforced, noted, "{format}");
    }
    let number = json!({ "type": "integer", "format": "int32" });
    let begun = fixture.grammars.compile(&ResponseFormat::json_schema(number), 1).unwrap().unwrap();
    assert!(begun.not_enforced.is_empty());
}

#[test]
fn random_replies_end_and_are_json() {
    let fixture = Fixture::by_hand();
    let mut draws = Draws(47);
    for Case { schema, refused, .. } in table() {
        if refused.is_none() {
            let start = fixture.schema(schema);
            for _ in 0..3 {
                let text = reply(&fixture, start.fork(), &mut draws);
                let _ = parsed(&text);
            }
        }
    }
}
