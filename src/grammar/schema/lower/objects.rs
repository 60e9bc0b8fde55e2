//! Names of properties: `patternProperties`, `propertyNames`, `unevaluatedProperties`.

use serde_json::{Map, Value, json};

use super::super::keywords::constrains;
use super::super::pattern::is_plain;
use super::super::values::{FORMATS, object};
use super::write::alone;
use super::{Lowering, negate};
use crate::error::Result;

/// Keywords by which it depends on the value which properties are evaluated.
const BY_VALUE: [&str; 8] =
    ["$dynamicRef", "$recursiveRef", "anyOf", "oneOf", "if", "dependentSchemas", "dependencies", "extends"];

impl<'a> Lowering<'a, '_> {
    /// None if a name's pattern cannot be held, and all of them are left out.
    pub fn pattern_properties(&mut self, value: &'a Value) -> Result<Option<Value>> {
        let patterns = object(value, "patternProperties")?;
        if !holds_patterns(patterns) {
            self.unenforced("patternProperties")?;
            return Ok(None);
        }
        self.named(value, "patternProperties").map(Some)
    }

    /// `additionalProperties` goes with the `patternProperties` that are left out: it would refuse what they name.
    pub fn keeps_additional(&self, map: &Map<String, Value>) -> bool {
        let patterns = map.get("patternProperties").and_then(Value::as_object);
        !self.how.lenient || patterns.is_none_or(holds_patterns)
    }

    pub fn more_of_objects(
        &mut self,
        whole: &'a Value,
        map: &'a Map<String, Value>,
        also: &mut Vec<Value>,
    ) -> Result<()> {
        if let Some(names) = map.get("propertyNames") {
            match self.names(names) {
                Some(names) => also.extend(names),
                None => self.unenforced("propertyNames")?,
            }
        }
        let Some(rest) = map.get("unevaluatedProperties") else { return Ok(()) };
        if *rest == true || map.contains_key("additionalProperties") {
            return Ok(());
        }
        let mut named = Map::new();
        let mut patterns = Map::new();
        match self.evaluated(whole, map, (&mut named, &mut patterns)) {
            Some(true) => Ok(()),
            Some(false) => {
                let rest = self.schema(rest)?;
                also.push(json!({ "properties": named, "patternProperties": patterns, "additionalProperties": rest }));
                Ok(())
            }
            None => self.unenforced("unevaluatedProperties"),
        }
    }

    /// Collects the properties that a schema names, those of its `allOf` and `$ref` included, and says whether it
    /// evaluates all others too. None where that depends on the value.
    fn evaluated(
        &mut self,
        whole: &'a Value,
        map: &'a Map<String, Value>,
        (named, patterns): (&mut Map<String, Value>, &mut Map<String, Value>),
    ) -> Option<bool> {
        if BY_VALUE.iter().any(|keyword| map.contains_key(*keyword)) {
            return None;
        }
        let keys =
            |keyword: &str| map.get(keyword).and_then(Value::as_object).into_iter().flat_map(Map::keys);
        named.extend(keys("properties").map(|name| (name.clone(), true.into())));
        patterns.extend(keys("patternProperties").map(|name| (name.clone(), true.into())));
        let mut all = map.contains_key("additionalProperties");
        let parts = map.get("allOf").and_then(Value::as_array).into_iter().flatten();
        let reference = map.get("$ref").and_then(Value::as_str);
        let target = match reference {
            Some(name) => Some(self.index.resolve(name, whole)?),
            None => None,
        };
        for part in parts.chain(target) {
            let Value::Object(part_map) = part else { continue };
            if self.inlined.contains(&std::ptr::from_ref(part)) {
                return None;
            }
            self.inlined.push(part);
            let evaluated = self.evaluated(part, part_map, (&mut *named, &mut *patterns));
            self.inlined.pop();
            all |= evaluated? || part_map.get("unevaluatedProperties").is_some();
        }
        Some(all)
    }

    /// What holds of an object whose names are valid under this schema; none if that cannot be said. Nothing within if
    /// all names are.
    fn names(&mut self, schema: &'a Value) -> Option<Option<Value>> {
        let map = match schema {
            Value::Bool(true) => return Some(None),
            Value::Bool(false) => return Some(Some(json!({ "maxProperties": 0 }))),
            Value::Object(map) => map,
            _ => return None,
        };
        if let Some(name) = alone(schema) {
            let target = self.index.resolve(name.as_str()?, schema)?;
            if self.inlined.contains(&std::ptr::from_ref(target)) {
                return None;
            }
            self.inlined.push(target);
            let names = self.names(target);
            self.inlined.pop();
            return names;
        }
        let count = |keyword: &str| map.get(keyword).map(|value| super::numbers::count(value).as_u64());
        let mut expressions = Vec::new();
        let mut lengths = None;
        for (keyword, value) in map.iter().filter(|(keyword, _)| constrains(keyword)) {
            match keyword.as_str() {
                "type" if value == "string" => {}
                "pattern" => expressions.push(value.as_str().filter(|pattern| is_plain(pattern))?.to_owned()),
                "const" => expressions.push(negate::literal(&[value.as_str()?])),
                "enum" => {
                    let names: Vec<&str> = value.as_array()?.iter().filter_map(Value::as_str).collect();
                    if names.is_empty() {
                        return Some(Some(json!({ "maxProperties": 0 })));
                    }
                    expressions.push(negate::literal(&names));
                }
                "minLength" | "maxLength" => {
                    let (min, max) = (count("minLength").unwrap_or(Some(0))?, count("maxLength"));
                    let max = max.map_or(Some(String::new()), |max| Some(max?.to_string()))?;
                    lengths = Some(format!("^(?s:.{{{min},{max}}})$"));
                }
                "format" if !value.as_str().is_some_and(|format| FORMATS.contains(&format)) => {
                    self.note("format")
                }
                _ => return None,
            }
        }
        expressions.extend(lengths);
        match expressions.len() {
            0 => Some(None),
            1 => Some(Some(
                json!({ "patternProperties": { expressions.remove(0): true }, "additionalProperties": false }),
            )),
            _ => None,
        }
    }
}

fn holds_patterns(patterns: &Map<String, Value>) -> bool {
    patterns.keys().all(|pattern| is_plain(pattern))
}
