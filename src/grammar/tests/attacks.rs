//! Formats made to cost time or memory. Each must be refused, or run within its limits; the times are guards against
//! hanging, far above what the release build takes (no format above 0.8 s, no step above 0.05 s).

use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};

use super::super::GrammarReason;
use super::{Draws, Fixture, ResponseFormat};
use crate::error::Error;
use crate::memory::Secret;

/// One compilation, and then one step, of a test build on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// Compiles the format and draws from it for a while.
fn survive(fixture: &Fixture, name: &str, format: ResponseFormat) {
    let started = Instant::now();
    let compiled = fixture.compile(&format);
    assert!(started.elapsed() < PATIENCE, "{name} took {:?} to compile", started.elapsed());
    let mut matcher = match compiled {
        Ok(matcher) => matcher,
        Err(Error::Request { field: "response_format", .. }) => return,
        Err(other) => panic!("{name}: {other}"),
    };
    let (mut mask, mut draws) = (Secret::default(), Draws(7));
    for _ in 0..300 {
        let started = Instant::now();
        let stepped = matcher.mask(&mut mask).and_then(|()| {
            let words = mask.expose();
            let is_allowed =
                |id: &u32| words[*id as usize / 32] >> (id % 32) & 1 == 1 && !fixture.ends.contains(id);
            let ids: Vec<u32> = (0..words.len() as u32 * 32).filter(is_allowed).collect();
            if ids.is_empty() {
                return Ok(false);
            }
            matcher.accept(ids[draws.below(ids.len())]).map(|()| true)
        });
        assert!(started.elapsed() < PATIENCE, "{name} took {:?} for a step", started.elapsed());
        match stepped {
            Ok(true) => {}
            Ok(false) => return,
            Err(Error::Grammar(GrammarReason::TooComplex)) => {
                assert!(matches!(matcher.mask(&mut mask), Err(Error::Grammar(GrammarReason::Failed))));
                return;
            }
            Err(other) => panic!("{name}: {other}"),
        }
    }
}

fn joined(count: usize, separator: &str, part: impl Fn(usize) -> String) -> String {
    (0..count).map(part).collect::<Vec<_>>().join(separator)
}

/// The `i`-th of many characters that are no letters: makes each class of characters a new one.
fn symbol(i: usize) -> char {
    char::from_u32(0x2200 + i as u32).unwrap()
}

#[test]
fn expressions() {
    let fixture = Fixture::by_hand();
    let cases = [
        ("nested repetitions", "((a{1,1000}){1,1000}){1,1000}".to_owned()),
        ("optional repetitions", format!("{}{}", "a?".repeat(2000), "a".repeat(2000))),
        ("overlapping alternatives", "(a|aa|aaa|aaaa)*b".into()),
        ("exponential automaton", "(a|b)*a(a|b){200}".into()),
        ("exponential automata", "(.*a.{300}){20}".into()),
        ("counters side by side", joined(400, "|", |i| format!("[a-z]{{{},}}x", i + 1))),
        ("large classes", joined(700, "", |i| format!("[{}\\p{{L}}]", symbol(i)))),
        ("large classes of either case", format!("(?i){}", r"\w".repeat(3000))),
        ("nested groups", format!("{}a{}", "(".repeat(4000), ")".repeat(4000))),
        ("huge count", "a{1000000000}".into()),
        ("huge count of ambiguous parts", "(.|..|...){1000000000}x".into()),
        ("long bounded text", r"[^\x00-\x1f]{1,4000}".into()),
    ];
    for (name, expression) in cases {
        survive(&fixture, name, ResponseFormat::regex(expression));
    }
}

/// `count` values in an array.
fn each(count: usize, value: impl Fn(usize) -> Value) -> Value {
    (0..count).map(value).collect()
}

fn properties(count: usize) -> Value {
    (0..count).map(|i| (format!("p{i}"), json!({ "type": "string" }))).collect::<Map<_, _>>().into()
}

/// An object of these properties.
fn object(properties: Value) -> Value {
    json!({ "type": "object", "properties": properties })
}

/// Objects that differ in their `kind`.
fn kinds(count: usize) -> Value {
    each(count, |i| {
        let kind = json!({ "kind": { "const": format!("v{i}") } });
        json!({ "type": "object", "properties": kind, "required": ["kind"] })
    })
}

/// An object that has at least one of `count` properties.
fn one_of_many(count: usize) -> Value {
    let mut one = object(properties(count));
    one["minProperties"] = 1.into();
    one["additionalProperties"] = false.into();
    one
}

/// `count` definitions, each made of the path of the next; the root points to the first.
fn chain(count: usize, link: impl Fn(String) -> Value, last: Value) -> Value {
    let link = |i: usize| (format!("d{i}"), link(format!("#/$defs/d{}", i + 1)));
    let all: Map<_, _> = (0..count).map(link).chain([(format!("d{count}"), last)]).collect();
    json!({ "$ref": "#/$defs/d0", "$defs": all })
}

#[test]
fn schemas_of_many_parts() {
    let fixture = Fixture::by_hand();
    let items = |list: Value| json!({ "type": "array", "prefixItems": list });
    let array = |i: usize| json!({ "type": "array", "minItems": i * 7, "maxItems": 1_000_000 - i });
    let string = |i: usize| json!({ "type": "string", "minLength": i, "maxLength": 1_000_000 });
    let range = |i: usize| json!({ "type": "integer", "minimum": -1_000_000_000_000_007_i64 - i as i64 });
    let step = |i: usize| json!({ "type": "integer", "multipleOf": 60_060, "minimum": i });
    let cases = [
        ("large enum", json!({ "type": "string", "enum": each(8000, |i| format!("value-{i}").into()) })),
        ("enum of objects", json!({ "enum": each(1500, |i| json!({ "a": i, "b": i })) })),
        ("many properties", object(properties(200))),
        ("many required", json!({ "type": "object", "required": each(7000, |i| format!("p{i}").into()) })),
        ("one of too many properties", one_of_many(1000)),
        ("one of many properties", one_of_many(28)),
        ("oneOf constants", json!({ "oneOf": each(3000, |i| json!({ "const": i })) })),
        ("oneOf objects", json!({ "oneOf": kinds(500) })),
        ("anyOf objects", json!({ "anyOf": kinds(1000) })),
        ("huge counts", items(each(1000, array))),
        ("huge lengths", items(each(2000, string))),
        ("long string", json!({ "type": "string", "minLength": 1_000_000 })),
        ("wide ranges", items(each(1500, range))),
        ("remainders", json!({ "type": "integer", "multipleOf": 65_521 })),
        ("ranges of remainders", items(each(1500, step))),
    ];
    for (name, schema) in cases {
        survive(&fixture, name, ResponseFormat::json_schema(schema));
    }
}

#[test]
fn schemas_that_multiply() {
    let fixture = Fixture::by_hand();
    let string = |pattern: &str| json!({ "type": "string", "pattern": pattern });
    let one_property = |key: String| object(json!({ key: { "type": "string" } }));
    let alternatives = |k: usize| json!({ "anyOf": each(10, |i| one_property(format!("p{k}_{i}"))) });
    let twins = |next: String| object(json!({ "x": { "$ref": next }, "y": { "$ref": next } }));
    let doubling = |depth: usize, last: Value| {
        let mut schema = chain(depth, twins, last);
        schema["allOf"] = json!([{ "$ref": "#/$defs/d0" }, { "$ref": "#/$defs/d0" }]);
        schema
    };
    let pattern = |i: usize| format!("^(a|b)*a(a|b){{{}}}$", i % 9);
    let patterns = |i: usize| json!({ "type": "string", "pattern": pattern(i), "minLength": 5 + i });
    let uris = |i: usize| json!({ "type": "string", "format": "uri", "minLength": 10 + i / 200 });
    let emails = |_| json!({ "type": "string", "format": "email", "pattern": "^a.*z$" });
    let keys = (0..31).map(|i| (format!("^{i:02}(a|b)*a(a|b){{12}}$"), json!({}))).collect::<Map<_, _>>();
    let mut required_in_turn = object(properties(45));
    required_in_turn["anyOf"] = each(45, |i| json!({ "required": [format!("p{i}")] }));
    let mut all_alike = object(properties(200));
    all_alike["anyOf"] = each(3000, |_| true.into());
    let circle = json!({ "a": { "$ref": "#/$defs/b" }, "b": { "$ref": "#/$defs/a" } });
    let endless = json!({ "a": twins("#/$defs/a".into()), "b": twins("#/$defs/b".into()) });
    let cases = [
        ("alternatives of alternatives", json!({ "allOf": each(4, alternatives) })),
        ("alternatives of properties", all_alike),
        ("required in turn", required_in_turn),
        ("doubling", doubling(14, json!({}))),
        ("doubling patterns", doubling(30, string("^a.*b"))),
        ("circle", json!({ "$ref": "#/$defs/a", "$defs": circle })),
        ("endless", json!({ "allOf": [{ "$ref": "#/$defs/a" }, { "$ref": "#/$defs/b" }], "$defs": endless })),
        ("chain", chain(4000, |next| json!({ "$ref": next }), json!({ "type": "null" }))),
        ("chain of intersections", chain(2700, |next| json!({ "type": "object", "$ref": next }), json!({}))),
        ("chain of objects", chain(1600, |next| object(json!({ "x": { "$ref": next } })), json!({}))),
        ("patterns of keys", json!({ "type": "object", "patternProperties": keys })),
        ("patterns and lengths", json!({ "type": "array", "prefixItems": each(300, patterns) })),
        ("formats and lengths", json!({ "type": "array", "prefixItems": each(1000, uris) })),
        ("formats and patterns", json!({ "type": "array", "prefixItems": each(500, emails) })),
    ];
    for (name, schema) in cases {
        survive(&fixture, name, ResponseFormat::json_schema(schema));
    }
}

/// Schemas that grow when they are written in other keywords.
#[test]
fn schemas_to_be_lowered() {
    let fixture = Fixture::by_hand();
    let kind =
        |i: usize| json!({ "properties": { "kind": { "const": format!("v{i}") } }, "required": ["kind"] });
    let nested_if =
        (0..15).fold(json!({}), |inner, i| json!({ "if": kind(i), "then": inner, "else": { "minimum": i } }));
    let conditions =
        |count| each(count, |i| json!({ "if": kind(i), "then": { "required": [format!("p{i}")] } }));
    let not = |inner: Value| json!({ "not": inner });
    let nested_not = (0..30).fold(json!({ "minLength": 3 }), |inner, _| not(json!({ "allOf": [inner, {}] })));
    let doubling_not = chain(
        30,
        |next| not(json!({ "anyOf": [{ "$ref": next }, { "$ref": next }] })),
        json!({ "const": 1 }),
    );
    let referred =
        chain(60, |next| json!({ "allOf": [{ "$ref": next }, not(json!({ "$ref": next }))] }), json!({}));
    let patterns =
        |count| each(count, |i| not(json!({ "pattern": format!("^[a-z]{{{i}}}x|{}", symbol(i)) })));
    let classes = format!("^{}$", joined(120, "", |i| format!("[{}-{}]?", symbol(i), symbol(i + 40))));
    let unique =
        json!({ "type": "array", "items": { "enum": (0..8000).collect::<Vec<_>>() }, "uniqueItems": true });
    let required = (0..200).map(|i| (format!("p{i}"), json!([format!("p{}", i + 1)]))).collect::<Map<_, _>>();
    let exclusive = each(60, |i| json!({ "required": [format!("p{i}")] }));
    let contains = json!({ "type": "array", "contains": { "contains": { "contains": { "const": 1 } } } });
    let circle = json!({ "a": { "not": { "$ref": "#/$defs/b" } }, "b": { "not": { "$ref": "#/$defs/a" } } });
    let ids = each(2000, |i| json!({ "$id": format!("https://example.com/{i}/../"), "$ref": "x" }));
    let cases = [
        ("nested conditions", nested_if),
        ("conditions", json!({ "allOf": conditions(12) })),
        ("many conditions", json!({ "type": "object", "allOf": conditions(200) })),
        ("nested negations", nested_not),
        ("doubling negations", doubling_not),
        ("references negated", referred),
        ("complements", json!({ "type": "string", "allOf": patterns(40) })),
        ("too many complements", json!({ "type": "string", "allOf": patterns(300) })),
        ("complement of many classes", json!({ "type": "string", "not": { "pattern": classes } })),
        ("complement of a counter", json!({ "type": "string", "not": { "pattern": "(a|b)*a(a|b){200}" } })),
        ("looks", json!({ "type": "string", "pattern": format!("^{}a", "(?!.*[a-c]{9})".repeat(60)) })),
        ("looks in looks", json!({ "pattern": format!("{}a{}", "(?=".repeat(2000), ")".repeat(2000)) })),
        ("unique items", unique),
        ("dependencies", json!({ "dependentRequired": required })),
        ("exclusive alternatives", json!({ "type": "object", "oneOf": exclusive })),
        ("contains", contains),
        ("circle of negations", json!({ "$ref": "#/$defs/a", "$defs": circle })),
        ("ids", json!({ "allOf": ids })),
    ];
    for (name, schema) in cases {
        survive(&fixture, name, ResponseFormat::json_schema(schema.clone()));
        survive(&fixture, name, ResponseFormat::json_schema(schema).lenient());
    }
}

#[test]
fn lark_grammars() {
    let fixture = Fixture::by_hand();
    // `count` rules from a0 on; then the last.
    let rules = |count: usize, rule: &dyn Fn(usize) -> String, last: &str| {
        format!("start: a0\n{}\na{count}: {last}", joined(count, "\n", |i| format!("a{i}: {}", rule(i + 1))))
    };
    let tokens = |count: usize, token: &dyn Fn(usize) -> String, last: &str| {
        format!("start: A0\n{}\nA{count}: {last}", joined(count, "\n", |i| format!("A{i}: {}", token(i + 1))))
    };
    let options = |count: usize, option: &dyn Fn(usize) -> String| {
        format!("start: {}", joined(count, "\n  | ", option))
    };
    let letter = |i: usize| char::from(b'a' + i as u8 % 26);
    let not = format!("{}true{}", "not(".repeat(120), ")".repeat(120));
    let cases = [
        ("chain", rules(500, &|next| format!("a{next}"), "\"x\"")),
        ("chain to nowhere", rules(500, &|next| format!("\"z\" \"z\" \"z\" a{next}"), "nowhere")),
        ("chain of tokens", tokens(500, &|next| format!("A{next}"), "\"x\"")),
        ("doubling", rules(40, &|next| format!("a{next} a{next}"), "\"x\"")),
        ("doubling tokens", tokens(40, &|next| format!("A{next} A{next}"), "\"x\"")),
        ("ambiguous", "start: x\nx: x x | \"a\" | x x x".into()),
        ("right recursive", "start: x\nx: \"a\" x | \"a\"".into()),
        ("left recursive", "start: start start | start | \"a\"".into()),
        ("empty loops", "start: a*\na: b*\nb: \"\"".into()),
        ("huge counts", "start: (a{1,1000000000}){1,1000000000}\na: \"x\" | \"y\"".into()),
        ("huge counts in a token", "start: A\nA: (B{1,1000000000}){1,1000000000}\nB: \"x\" | \"y\"".into()),
        ("nested conditions", format!("start: a::0\na::_: \"x\" %if {not}")),
        ("nested grammars", format!("start: {} \"x\" {}", "%lark {\nstart: ".repeat(40), "\n}".repeat(40))),
        ("counting", "start: a::0\na::_: \"x\" a::incr(_) | \"y\" a::incr(_) | \"z\"".into()),
        ("schemas", options(400, &|i| format!("%json {{\"type\":\"array\",\"minItems\":{i}}}"))),
        ("expressions", options(400, &|i| format!("/(a|b)*a(a|b){{{i}}}/"))),
        ("large classes", tokens(500, &|next| format!("/[{}\\p{{L}}]/ A{next}", symbol(next)), "\"x\"")),
        ("intersections", format!("start: A\nA: {}", joined(200, " & ", |i| format!("/.*{}.*/", letter(i))))),
        ("complements", "start: A\nA: ~(/(.*a.{100})/ & ~/(.*b.{100})/)".into()),
        ("substrings", format!("start: %regex {{\"substring_chars\": \"{}\"}}", "abcdefghij".repeat(5000))),
    ];
    for (name, grammar) in cases {
        survive(&fixture, name, ResponseFormat::lark(grammar));
    }
}
