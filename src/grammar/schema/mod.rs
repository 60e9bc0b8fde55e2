//! What a JSON Schema must keep to before llguidance compiles it.
//!
//! Names keywords, which are ours, never values or other keys, which are the caller's. Bounds depth, size and the
//! work that compiling takes: alternatives that meet in an intersection multiply, and each string with a `pattern`
//! among them is searched for a text that matches.

mod keywords;
mod lower;
mod pattern;
mod size;
mod values;

use std::collections::{HashMap, HashSet};

use serde_json::{Map, Value};

use self::keywords::PLAIN;
pub use self::keywords::{SUPPORTED, UNSUPPORTED, constrains};
pub use self::lower::How;
pub use self::pattern::with_ascii_classes;
use self::size::Size;
use self::values::{FORMATS, TYPES, expected, list, object};
use super::format::ResponseFormat;
use crate::error::{Error, Result};
use crate::memory::json;

/// Nesting of arrays and objects.
pub const MAX_DEPTH: usize = 64;
/// Values in the document, whatever they are.
const MAX_VALUES: usize = 8192;
/// How many times as many values, and how much deeper nested, the document may be once it is lowered.
const LOWERED: usize = 4;
/// Properties of one object: four Earley items each, of [`super::compile::MAX_ITEMS_IN_ROW`].
const MAX_PROPERTIES: usize = 200;
/// Subschemas after all intersections.
const MAX_SIZE: usize = 100_000;
/// Strings with a pattern, and pairs of `patternProperties`, after all intersections; up to 0.4 ms each (`uri`).
const MAX_PATTERNS: usize = 2048;
/// The cubes of the numbers of named properties beside `minProperties` or `maxProperties`, added up after all
/// intersections: the grammar spells out the object once for each property that may be the one. 28 in one object, or
/// 14 in eight.
const MAX_CHOICES: usize = 22_000;

/// The error for a schema of more than [`MAX_DEPTH`].
pub fn nested_too_deep() -> Error {
    expected(format!("a JSON Schema nested at most {MAX_DEPTH} deep"))
}

/// A document in the keywords that llguidance does; the keywords that are not enforced are added to `missing`.
///
/// # Errors
/// It is no schema, uses a keyword that cannot be enforced, or exceeds a limit.
pub fn lowered(document: &Value, how: How, missing: &mut Vec<&'static str>) -> Result<Value> {
    if json::depth(document) > MAX_DEPTH {
        return Err(nested_too_deep());
    }
    if count(document) > MAX_VALUES {
        return Err(expected(format!("a JSON Schema of at most {MAX_VALUES} values")));
    }
    let lowered = lower::lower(document, how, missing)?;
    match check(&lowered) {
        Ok(()) => Ok(lowered),
        Err(error) => {
            json::wipe(lowered);
            Err(error)
        }
    }
}

/// Checks a whole document that was lowered.
fn check(document: &Value) -> Result<()> {
    if json::depth(document) > LOWERED * MAX_DEPTH || count(document) > LOWERED * MAX_VALUES {
        return Err(expected("a JSON Schema with fewer conditions in each other: they multiply"));
    }
    let mut walk = Walk::new(document);
    let root = walk.schema(document)?;
    let size = walk.shared.with(root);
    if walk.pattern_bytes > ResponseFormat::MAX_REGEX_BYTES {
        let limit = ResponseFormat::MAX_REGEX_BYTES;
        return Err(expected(format!("a JSON Schema whose patterns have at most {limit} bytes together")));
    }
    values::check_multiples(&walk.multiples)?;
    if size.choices > MAX_CHOICES {
        return Err(expected(
            "a JSON Schema with fewer properties beside `minProperties` and `maxProperties`",
        ));
    }
    if size.subschemas > MAX_SIZE || size.patterns > MAX_PATTERNS {
        return Err(expected(
            "a JSON Schema with fewer patterns and alternatives: intersections multiply them",
        ));
    }
    Ok(())
}

fn count(value: &Value) -> usize {
    match value {
        Value::Array(values) => 1 + values.iter().map(count).sum::<usize>(),
        Value::Object(map) => 1 + map.values().map(count).sum::<usize>(),
        _ => 1,
    }
}

struct Walk<'a> {
    document: &'a Value,
    /// The sizes of subschemas, by their place in memory; none while one is being walked.
    sizes: HashMap<*const Value, Option<Size>>,
    /// What `$ref`s point to, and all of it together: each is compiled once.
    targets: HashSet<*const Value>,
    shared: Size,
    pattern_bytes: usize,
    multiples: Vec<f64>,
}

impl<'a> Walk<'a> {
    fn new(document: &'a Value) -> Self {
        Self {
            document,
            sizes: HashMap::new(),
            targets: HashSet::new(),
            shared: Size::default(),
            pattern_bytes: 0,
            multiples: Vec::new(),
        }
    }

    /// Each subschema once, however it is reached.
    fn schema(&mut self, schema: &'a Value) -> Result<Size> {
        if let Some(known) = self.sizes.get(&std::ptr::from_ref(schema)) {
            // Around a circle it is llguidance that counts, and refuses.
            return Ok(known.unwrap_or_default());
        }
        self.sizes.insert(schema, None);
        let size = match schema {
            Value::Bool(_) => Size::one(),
            Value::Object(map) => self.keywords(map)?,
            _ => return Err(expected("a JSON Schema: an object, or true or false, at each place for one")),
        };
        self.sizes.insert(schema, Some(size));
        Ok(size)
    }

    fn keywords(&mut self, map: &'a Map<String, Value>) -> Result<Size> {
        if let Some(keyword) = UNSUPPORTED.iter().find(|&&keyword| map.contains_key(keyword)) {
            return Err(expected(format!("a JSON Schema without `{keyword}`, which is not supported")));
        }
        values::check_numbers(map)?;
        let mut parts = Vec::new();
        if SUPPORTED[PLAIN..].iter().any(|&keyword| map.contains_key(keyword)) {
            parts.push(self.plain(map)?);
        }
        for keyword in ["anyOf", "oneOf"] {
            if let Some(alternatives) = map.get(keyword) {
                let alternatives = list(alternatives, keyword)?;
                let mut sum = Size::alternatives(alternatives.len());
                for alternative in alternatives {
                    sum = sum.with(self.schema(alternative)?);
                }
                parts.push(sum);
            }
        }
        if let Some(all) = map.get("allOf") {
            for part in list(all, "allOf")? {
                parts.push(self.schema(part)?);
            }
        }
        if let Some(values) = map.get("enum") {
            let values = list(values, "enum")?.len();
            parts.push(Size { subschemas: values, ..Size::alternatives(values) });
        }
        if let Some(reference) = map.get("$ref") {
            parts.push(self.reference(reference)?);
        }
        for definitions in ["$defs", "definitions"] {
            if let Some(definitions) = map.get(definitions) {
                for schema in object(definitions, "$defs")?.values() {
                    self.schema(schema)?;
                }
            }
        }
        Ok(parts.into_iter().reduce(Size::and).unwrap_or(Size::one()))
    }

    /// The keywords that describe a value by its type.
    fn plain(&mut self, map: &'a Map<String, Value>) -> Result<Size> {
        // Without `type`, llguidance tries them all; an integer is a number.
        let mut size = Size::alternatives(values::types(map)?.unwrap_or(TYPES.len() - 1));
        for properties in ["properties", "patternProperties"] {
            if let Some(value) = map.get(properties) {
                let schemas = object(value, properties)?;
                if schemas.len() > MAX_PROPERTIES {
                    let limit =
                        format!("a JSON Schema with at most {MAX_PROPERTIES} properties in an object");
                    return Err(expected(limit));
                }
                for schema in schemas.values() {
                    size = size.with(self.schema(schema)?);
                }
            }
        }
        let named = map.get("properties").and_then(Value::as_object).map_or(0, Map::len);
        size.set_named(named, map.contains_key("minProperties") || map.contains_key("maxProperties"));
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
        size.add_patterns(self.patterns(map)?);
        if let Some(multiple) = map.get("multipleOf") {
            self.multiples.push(multiple.as_f64().unwrap_or_default());
        }
        Ok(size)
    }

    /// How many searches a schema's own patterns cost.
    fn patterns(&mut self, map: &Map<String, Value>) -> Result<usize> {
        let mut searches = 0;
        if let Some(pattern) = map.get("pattern") {
            let pattern =
                pattern.as_str().ok_or_else(|| expected("a JSON Schema whose `pattern` is a string"))?;
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
            self.document.pointer(path.strip_suffix('/').unwrap_or(path))
        });
        let Some(target) = found else {
            return Err(expected(
                "a JSON Schema whose every `$ref` is `#` or `#/` and a path to a schema in it",
            ));
        };
        let size = self.schema(target)?;
        if self.targets.insert(target) {
            self.shared = self.shared.with(size);
        }
        Ok(size.referred())
    }
}
