//! What a JSON Schema must keep to before llguidance compiles it.
//!
//! Names keywords, which are ours, never values or other keys, which are the caller's. Bounds depth, size and the
//! work that compiling takes: alternatives that meet in an intersection multiply, and each string with a `pattern`
//! among them is searched for a text that matches.

use std::collections::HashMap;

use serde_json::{Map, Value};

use super::format::ResponseFormat;
use crate::error::{Error, Result};

/// Nesting of arrays and objects.
pub const MAX_DEPTH: usize = 64;
/// Values in the document, whatever they are.
const MAX_VALUES: usize = 8192;
/// Properties of one object.
const MAX_PROPERTIES: usize = 1024;
/// The limit of `minItems`, `maxLength` and the like.
const MAX_COUNT: u64 = 1_000_000;
/// The limit of `multipleOf`, of all in the document together: their least common multiple, counted in units of the
/// last decimal. llguidance multiplies two such numbers in 32 bits, and its automaton has a state for each remainder.
const MAX_MULTIPLE: u64 = u16::MAX as u64;
/// Decimals of a `multipleOf`.
const MAX_DECIMALS: u32 = 6;
/// Subschemas after all intersections.
const MAX_SIZE: usize = 100_000;
/// Strings with a pattern, and pairs of `patternProperties`, after all intersections; some 0.5 ms each at worst.
const MAX_PATTERNS: usize = 1024;
/// The cubes of the numbers of named properties beside `minProperties` or `maxProperties`, added up after all
/// intersections: the grammar spells out the object once for each property that may be the one. 64 in one object, or
/// 32 in eight.
const MAX_CHOICES: usize = 1 << 18;

const SUPPORTED: [&str; 27] = [
    "type", "enum", "const", "anyOf", "oneOf", "allOf", "$ref", "properties", "required",
    "additionalProperties", "patternProperties", "minProperties", "maxProperties", "items", "prefixItems",
    "additionalItems", "minItems", "maxItems", "minLength", "maxLength", "pattern", "format", "minimum",
    "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf",
];

/// Keywords of some draft that constrain and that llguidance does not do. Keys that are in neither list are
/// annotations, as the specification has it.
const UNSUPPORTED: [&str; 20] = [
    "not", "if", "then", "else", "contains", "minContains", "maxContains", "uniqueItems", "propertyNames",
    "dependencies", "dependentRequired", "dependentSchemas", "unevaluatedItems", "unevaluatedProperties",
    "$dynamicRef", "$dynamicAnchor", "$recursiveRef", "$recursiveAnchor", "contentSchema", "extends",
];

const TYPES: [&str; 7] = ["null", "boolean", "integer", "number", "string", "array", "object"];

const FORMATS: [&str; 10] = [
    "date-time", "date", "time", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri",
];

/// Keywords whose value is a count.
const COUNTS: [&str; 6] =
    ["minItems", "maxItems", "minLength", "maxLength", "minProperties", "maxProperties"];

/// How deep the value is nested; a number is 0 deep. No recursion.
pub fn depth(value: &Value) -> usize {
    let (mut deepest, mut left) = (0, vec![(value, 0)]);
    while let Some((value, depth)) = left.pop() {
        deepest = deepest.max(depth);
        match value {
            Value::Array(values) => left.extend(values.iter().map(|value| (value, depth + 1))),
            Value::Object(map) => left.extend(map.values().map(|value| (value, depth + 1))),
            _ => {}
        }
    }
    deepest
}

/// The error for a schema of more than [`MAX_DEPTH`].
pub fn nested_too_deep() -> Error {
    expected(format!("a JSON Schema nested at most {MAX_DEPTH} deep"))
}

/// Checks a whole document.
///
/// # Errors
/// It is no schema, uses a keyword that is not supported, or exceeds a limit.
pub fn check(document: &Value) -> Result<()> {
    if depth(document) > MAX_DEPTH {
        return Err(nested_too_deep());
    }
    if values(document) > MAX_VALUES {
        return Err(expected(format!("a JSON Schema of at most {MAX_VALUES} values")));
    }
    let mut walk = Walk { document, targets: HashMap::new(), pattern_bytes: 0, multiples: Vec::new() };
    let size = walk.schema(document)?;
    if walk.pattern_bytes > ResponseFormat::MAX_REGEX_BYTES {
        let limit = ResponseFormat::MAX_REGEX_BYTES;
        return Err(expected(format!("a JSON Schema whose patterns have at most {limit} bytes together")));
    }
    check_multiples(&walk.multiples)?;
    if size.choices > MAX_CHOICES {
        return Err(expected("a JSON Schema with fewer properties beside `minProperties` and `maxProperties`"));
    }
    if size.subschemas > MAX_SIZE || size.patterns > MAX_PATTERNS {
        return Err(expected(
            "a JSON Schema with fewer patterns and alternatives: intersections multiply them",
        ));
    }
    Ok(())
}

fn values(value: &Value) -> usize {
    match value {
        Value::Array(values) => 1 + values.iter().map(self::values).sum::<usize>(),
        Value::Object(map) => 1 + map.values().map(self::values).sum::<usize>(),
        _ => 1,
    }
}

/// What a schema grows to when it is compiled: an upper bound that saturates.
#[derive(Clone, Copy, Default)]
struct Size {
    subschemas: usize,
    /// Searches for a text that matches.
    patterns: usize,
    /// See [`MAX_CHOICES`].
    choices: usize,
    /// Properties of the object itself.
    named: usize,
    /// It has a limit of its properties.
    limited: bool,
    /// Alternatives in it, at whatever depth, beyond the first.
    forks: usize,
}

impl Size {
    /// With a subschema in it.
    fn with(self, part: Self) -> Self {
        Self {
            subschemas: self.subschemas.saturating_add(part.subschemas),
            patterns: self.patterns.saturating_add(part.patterns),
            choices: self.choices.saturating_add(part.choices),
            forks: self.forks.saturating_add(part.forks),
            ..self
        }
    }

    /// Both at once: each part of the one meets each alternative of the other.
    fn and(self, other: Self) -> Self {
        let (mine, others) = (self.forks.saturating_add(1), other.forks.saturating_add(1));
        let both = |a: usize, b: usize| a.saturating_mul(others).saturating_add(b.saturating_mul(mine));
        let (named, limited) = (self.named.saturating_add(other.named), self.limited || other.limited);
        let spelt = if limited { named.saturating_pow(3).saturating_mul(mine.saturating_mul(others)) } else { 0 };
        Self {
            subschemas: both(self.subschemas, other.subschemas),
            patterns: both(self.patterns, other.patterns),
            choices: both(self.choices, other.choices).max(spelt),
            forks: mine.saturating_mul(others) - 1,
            named,
            limited,
        }
    }
}

struct Walk<'a> {
    document: &'a Value,
    /// The sizes of what `$ref`s point to; none while it is being walked.
    targets: HashMap<&'a str, Option<Size>>,
    pattern_bytes: usize,
    multiples: Vec<f64>,
}

impl<'a> Walk<'a> {
    fn schema(&mut self, schema: &'a Value) -> Result<Size> {
        let one = Size { subschemas: 1, ..Size::default() };
        let map = match schema {
            Value::Bool(_) => return Ok(one),
            Value::Object(map) => map,
            _ => return Err(expected("a JSON Schema: an object, or true or false, at each place for one")),
        };
        if let Some(keyword) = UNSUPPORTED.iter().find(|&&keyword| map.contains_key(keyword)) {
            return Err(expected(format!("a JSON Schema without `{keyword}`, which is not supported")));
        }
        check_counts(map)?;
        let mut size = self.plain(map)?;
        for keyword in ["anyOf", "oneOf"] {
            if let Some(alternatives) = map.get(keyword) {
                let mut sum = Size { forks: list(alternatives, keyword)?.len().max(1) - 1, ..one };
                for alternative in list(alternatives, keyword)? {
                    sum = sum.with(self.schema(alternative)?);
                }
                size = size.and(sum);
            }
        }
        if let Some(parts) = map.get("allOf") {
            for part in list(parts, "allOf")? {
                size = size.and(self.schema(part)?);
            }
        }
        if let Some(values) = map.get("enum") {
            let forks = list(values, "enum")?.len().max(1) - 1;
            size = size.and(Size { subschemas: forks + 1, forks, ..Size::default() });
        }
        if let Some(reference) = map.get("$ref") {
            size = size.and(self.reference(reference)?);
        }
        for definitions in ["$defs", "definitions"] {
            if let Some(definitions) = map.get(definitions) {
                for schema in object(definitions, "$defs")?.values() {
                    self.schema(schema)?;
                }
            }
        }
        Ok(size)
    }

    /// The keywords that describe a value by its type.
    fn plain(&mut self, map: &'a Map<String, Value>) -> Result<Size> {
        let mut size = Size { subschemas: 1, ..Size::default() };
        let types = types(map)?;
        let constrained = SUPPORTED[7..].iter().any(|&keyword| map.contains_key(keyword));
        size.forks = match types {
            Some(types) => types.max(1) - 1,
            None => if constrained { TYPES.len() - 2 } else { 0 },
        };
        for properties in ["properties", "patternProperties"] {
            if let Some(value) = map.get(properties) {
                let schemas = object(value, properties)?;
                if schemas.len() > MAX_PROPERTIES {
                    let limit = format!("a JSON Schema with at most {MAX_PROPERTIES} properties in an object");
                    return Err(expected(limit));
                }
                for schema in schemas.values() {
                    size = size.with(self.schema(schema)?);
                }
            }
        }
        size.named = map.get("properties").and_then(Value::as_object).map_or(0, Map::len);
        size.limited = map.contains_key("minProperties") || map.contains_key("maxProperties");
        if size.limited {
            size.choices = size.choices.saturating_add(size.named.saturating_pow(3));
        }
        for keyword in ["additionalProperties", "additionalItems", "items", "prefixItems"] {
            match map.get(keyword) {
                Some(Value::Array(schemas)) if keyword.ends_with("tems") => {
                    for schema in schemas {
                        size = size.with(self.schema(schema)?);
                    }
                }
                Some(schema) => size = size.with(self.schema(schema)?),
                None => {}
            }
        }
        size.patterns += self.patterns(map)?;
        if let Some(multiple) = map.get("multipleOf") {
            self.multiples.push(multiple.as_f64().unwrap_or_default());
        }
        Ok(size)
    }

    /// How many searches a schema's own patterns cost.
    fn patterns(&mut self, map: &Map<String, Value>) -> Result<usize> {
        let mut searches = 0;
        if let Some(pattern) = map.get("pattern") {
            let pattern = pattern.as_str().ok_or_else(|| expected("a JSON Schema whose `pattern` is a string"))?;
            self.pattern_bytes += pattern.len();
            searches += 1;
        }
        if let Some(format) = map.get("format") {
            // On numbers it is an annotation.
            let on_strings = map.get("type").is_none_or(|types| {
                types == "string" || types.as_array().is_some_and(|types| types.iter().any(|t| t == "string"))
            });
            if on_strings && !FORMATS.iter().any(|known| format == known) {
                let known = FORMATS.join(", ");
                return Err(expected(format!("a JSON Schema whose string `format`s are among {known}")));
            }
            searches += usize::from(on_strings);
        }
        if let Some(patterns) = map.get("patternProperties") {
            let patterns = object(patterns, "patternProperties")?;
            self.pattern_bytes += patterns.keys().map(String::len).sum::<usize>();
            let named = map.get("properties").and_then(Value::as_object).map_or(0, Map::len);
            searches += patterns.len() * (patterns.len() + named);
        }
        Ok(searches)
    }

    /// What a `$ref` stands for, once it meets its neighbours.
    fn reference(&mut self, reference: &'a Value) -> Result<Size> {
        let found = reference.as_str().and_then(|text| {
            let path = text.strip_prefix('#')?;
            Some((text, self.document.pointer(path.strip_suffix('/').unwrap_or(path))?))
        });
        let Some((text, target)) = found else {
            return Err(expected(
                "a JSON Schema whose every `$ref` is `#` or `#/` and a path to a schema in it",
            ));
        };
        if let Some(known) = self.targets.get(text) {
            // Around a circle it is llguidance that counts, and refuses.
            return Ok(known.unwrap_or_default());
        }
        self.targets.insert(text, None);
        let size = self.schema(target)?;
        self.targets.insert(text, Some(size));
        Ok(size)
    }
}

/// How many types are named, if any.
fn types(map: &Map<String, Value>) -> Result<Option<usize>> {
    let Some(value) = map.get("type") else { return Ok(None) };
    let types = value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice);
    if types.is_empty() || !types.iter().all(|found| TYPES.iter().any(|known| found == known)) {
        return Err(expected(format!("a JSON Schema whose `type`s are among {}", TYPES.join(", "))));
    }
    Ok(Some(types.len()))
}

fn check_counts(map: &Map<String, Value>) -> Result<()> {
    for keyword in COUNTS {
        if map.get(keyword).is_some_and(|count| count.as_u64().is_none_or(|count| count > MAX_COUNT)) {
            let limit = format!("a JSON Schema whose `{keyword}` is a whole number from 0 to {MAX_COUNT}");
            return Err(expected(limit));
        }
    }
    Ok(())
}

/// All `multipleOf` of a document: their least common multiple must stay small.
fn check_multiples(multiples: &[f64]) -> Result<()> {
    let refused = || {
        expected(format!(
            "a JSON Schema whose `multipleOf`s are above 0, with at most {MAX_DECIMALS} decimals, and have a common \
             multiple of at most {MAX_MULTIPLE} in units of the last decimal"
        ))
    };
    let scale = 10_f64.powi(MAX_DECIMALS as i32);
    let mut units = Vec::new();
    for multiple in multiples {
        let scaled = multiple * scale;
        if !(0.5..=9e15).contains(&scaled) || (scaled - scaled.round()).abs() > 1e-6 * scaled {
            return Err(refused());
        }
        units.push(scaled.round() as u64);
    }
    // Drop the decimals that none of them has.
    for _ in 0..MAX_DECIMALS {
        if units.iter().all(|unit| unit % 10 == 0) {
            units.iter_mut().for_each(|unit| *unit /= 10);
        }
    }
    let common = units.iter().try_fold(1_u64, |common, &unit| {
        let multiple = (common / gcd(common, unit)).checked_mul(unit)?;
        (multiple <= MAX_MULTIPLE).then_some(multiple)
    });
    common.map(|_| ()).ok_or_else(refused)
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

fn list<'a>(value: &'a Value, keyword: &str) -> Result<&'a Vec<Value>> {
    value.as_array().ok_or_else(|| expected(format!("a JSON Schema whose `{keyword}` is an array")))
}

fn object<'a>(value: &'a Value, keyword: &str) -> Result<&'a Map<String, Value>> {
    value.as_object().ok_or_else(|| expected(format!("a JSON Schema whose `{keyword}` is an object")))
}

fn expected(what: impl Into<String>) -> Error {
    Error::request("response_format", what)
}
