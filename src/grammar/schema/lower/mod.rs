//! From JSON Schema as people write it to the part of it that llguidance does.
//!
//! The document is written anew: annotations go, `$ref`s of every spelling become `#/$defs/<number>`, and keywords that
//! llguidance lacks become others that say the same. What is made here allows nothing that the schema does not allow;
//! where it allows less, the keyword's function says so. What has no such form is refused by its name, or left out and
//! noted, as the application chose.

mod arrays;
mod conditions;
mod negate;
mod numbers;
mod objects;
mod refs;
mod strings;
mod write;

use std::collections::HashMap;

use serde_json::{Map, Value, json};

use self::refs::Index;
use self::write::{alone, assemble};
use super::keywords::UNSUPPORTED;
use super::values::{expected, list, numbers_are_exact, object};
use crate::error::Result;

/// Schemas that are written: alternatives and conditions multiply.
const MAX_WRITTEN: usize = 20_000;
/// Expressions whose complement is written.
const MAX_COMPLEMENTS: usize = 64;
/// Nesting of what is read, `$ref`s that are followed in place included.
const MAX_NESTING: usize = 160;

/// How a document is lowered.
#[derive(Clone, Copy, Debug, Default)]
pub struct How {
    /// What cannot be enforced is left out, not refused.
    pub lenient: bool,
    /// Each alternative of a `oneOf` is made to exclude the others: for those that llguidance does not see apart.
    pub spell_out_one_of: bool,
    /// `minProperties` and `maxProperties` are left out.
    pub without_property_counts: bool,
}

/// Lowers a document. The keywords that were left out, each once, are added to `missing`.
///
/// # Errors
/// A keyword cannot be enforced, or is malformed.
pub fn lower(document: &Value, how: How, missing: &mut Vec<&'static str>) -> Result<Value> {
    let mut lowering = Lowering {
        index: Index::new(document),
        how,
        missing,
        numbers: HashMap::new(),
        targets: Vec::new(),
        inlined: Vec::new(),
        complements: 0,
        written: 0,
        nesting: 0,
    };
    let mut root = lowering.schema(document)?;
    let mut definitions = Map::new();
    while let Some(&target) = lowering.targets.get(definitions.len()) {
        let lowered = lowering.schema(target)?;
        definitions.insert(definitions.len().to_string(), lowered);
    }
    if !definitions.is_empty()
        && let Value::Object(map) = &mut root
    {
        map.insert("$defs".into(), definitions.into());
    }
    Ok(root)
}

struct Lowering<'a, 'm> {
    index: Index<'a>,
    how: How,
    missing: &'m mut Vec<&'static str>,
    /// What `$ref`s point to, and the numbers of their definitions.
    numbers: HashMap<*const Value, usize>,
    targets: Vec<&'a Value>,
    /// Targets that are being written in place of their `$ref`s, or negated.
    inlined: Vec<*const Value>,
    /// Expressions whose complement was asked for.
    complements: usize,
    written: usize,
    nesting: usize,
}

impl<'a> Lowering<'a, '_> {
    fn schema(&mut self, schema: &'a Value) -> Result<Value> {
        self.written += 1;
        self.nesting += 1;
        if self.written > MAX_WRITTEN || self.nesting > MAX_NESTING {
            return Err(too_much());
        }
        let lowered = match schema {
            Value::Bool(truth) => Value::Bool(*truth),
            Value::Object(map) => self.keywords(schema, map)?,
            _ => return Err(expected("a JSON Schema: an object, or true or false, at each place for one")),
        };
        self.nesting -= 1;
        Ok(lowered)
    }

    fn schemas(&mut self, value: &'a Value, keyword: &str) -> Result<Value> {
        list(value, keyword)?.iter().map(|schema| self.schema(schema)).collect()
    }

    fn named(&mut self, value: &'a Value, keyword: &str) -> Result<Value> {
        let schemas = object(value, keyword)?;
        let lowered: Result<Map<_, _>> =
            schemas.iter().map(|(name, schema)| Ok((name.clone(), self.schema(schema)?))).collect();
        lowered.map(Value::Object)
    }

    /// In the order of the document: llguidance takes the order of properties from it.
    fn keywords(&mut self, whole: &'a Value, map: &'a Map<String, Value>) -> Result<Value> {
        let mut out = Map::new();
        // Schemas that must hold beside it.
        let mut also = Vec::new();
        for (keyword, value) in map {
            let lowered = match keyword.as_str() {
                "enum" | "const" if self.how.lenient && !numbers_are_exact(value) => {
                    self.unenforced(if keyword == "enum" { "enum" } else { "const" })?;
                    continue;
                }
                "type" | "enum" | "const" | "required" | "multipleOf" => value.clone(),
                "minItems" | "maxItems" | "minLength" | "maxLength" => numbers::count(value),
                "minProperties" | "maxProperties" => {
                    if self.how.without_property_counts {
                        self.note(if keyword == "minProperties" { "minProperties" } else { "maxProperties" });
                        continue;
                    }
                    numbers::count(value)
                }
                "properties" => self.named(value, "properties")?,
                "patternProperties" => match self.pattern_properties(value)? {
                    Some(lowered) => lowered,
                    None => continue,
                },
                "additionalProperties" if self.keeps_additional(map) => self.schema(value)?,
                "items" | "prefixItems" | "additionalItems" => {
                    self.items(keyword, value, map, &mut out)?;
                    continue;
                }
                "allOf" => self.schemas(value, "allOf")?,
                "anyOf" => self.schemas(value, "anyOf")?,
                "oneOf" => match self.one_of(value)? {
                    Ok(one_of) => one_of,
                    Err(spelled_out) => {
                        also.push(spelled_out);
                        continue;
                    }
                },
                "$ref" | "$dynamicRef" | "$recursiveRef" => {
                    if let Some(target) = self.target(keyword, value, whole)? {
                        also.push(self.refer(target));
                    }
                    continue;
                }
                "format" => match self.format(value, map)? {
                    Some(format) => format,
                    None => continue,
                },
                "pattern" => match self.pattern(value)? {
                    Ok(pattern) => pattern,
                    Err(conditions) => {
                        also.extend(conditions);
                        continue;
                    }
                },
                _ => continue,
            };
            out.insert(keyword.clone(), lowered);
        }
        numbers::bounds(map, &mut out)?;
        self.conditions(map, &mut also)?;
        self.more_of_objects(whole, map, &mut also)?;
        self.more_of_arrays(map, &mut out, &mut also)?;
        if map.contains_key("extends") {
            self.unenforced("extends")?;
        }
        Ok(assemble(out, also))
    }

    /// Notes a keyword that is not enforced, or refuses it.
    fn unenforced(&mut self, keyword: &'static str) -> Result<()> {
        if !self.how.lenient {
            return Err(expected(format!(
                "a JSON Schema without a `{keyword}` like this one, which cannot be enforced; a lenient format leaves it out"
            )));
        }
        self.note(keyword);
        Ok(())
    }

    fn note(&mut self, keyword: &'static str) {
        if !self.missing.contains(&keyword) {
            self.missing.push(keyword);
        }
    }

    /// What a reference points to; none if it is left out.
    fn target(&mut self, keyword: &str, value: &Value, whole: &'a Value) -> Result<Option<&'a Value>> {
        let name = value.as_str().ok_or_else(unknown_reference)?;
        let dynamic = keyword != "$ref";
        if dynamic && !self.index.is_static(name) {
            let keyword = UNSUPPORTED.into_iter().find(|known| *known == keyword).unwrap_or("$dynamicRef");
            return self.unenforced(keyword).map(|()| None);
        }
        self.index.resolve(name, whole).map(Some).ok_or_else(unknown_reference)
    }

    /// A `$ref` to a schema of the document.
    fn refer(&mut self, target: &'a Value) -> Value {
        if std::ptr::eq(target, self.index.document) {
            return json!({ "$ref": "#" });
        }
        let count = self.targets.len();
        let number = *self.numbers.entry(target).or_insert(count);
        if number == count {
            self.targets.push(target);
        }
        json!({ "$ref": format!("#/$defs/{number}") })
    }

    /// A schema; where it is a `$ref` alone, what that points to, so that llguidance sees what it is.
    fn in_place(&mut self, schema: &'a Value) -> Result<Value> {
        if let Some(Value::String(name)) = alone(schema)
            && let Some(target) = self.index.resolve(name, schema)
            && !self.inlined.contains(&std::ptr::from_ref(target))
        {
            self.inlined.push(target);
            let lowered = self.in_place(target);
            self.inlined.pop();
            return lowered;
        }
        self.schema(schema)
    }

    /// An error within is a schema instead.
    fn one_of(&mut self, value: &'a Value) -> Result<std::result::Result<Value, Value>> {
        let alternatives = list(value, "oneOf")?;
        if !self.how.spell_out_one_of {
            return alternatives.iter().map(|one| self.in_place(one)).collect::<Result<Value>>().map(Ok);
        }
        let mut spelled_out = Vec::new();
        for (place, alternative) in alternatives.iter().enumerate() {
            let mut all = vec![self.in_place(alternative)?];
            for other in
                alternatives.iter().enumerate().filter(|&(other, _)| other != place).map(|(_, other)| other)
            {
                match self.negation(other)? {
                    Some(negation) => all.push(negation),
                    None if self.how.lenient => {
                        self.note("oneOf");
                        return self.schemas(value, "oneOf").map(|any| Err(json!({ "anyOf": any })));
                    }
                    None => {
                        return Err(expected(
                            "a JSON Schema whose `oneOf` alternatives exclude each other visibly; `anyOf` needs no such thing",
                        ));
                    }
                }
            }
            spelled_out.push(json!({ "allOf": all }));
        }
        Ok(Err(json!({ "anyOf": spelled_out })))
    }
}

fn unknown_reference() -> crate::error::Error {
    expected("a JSON Schema whose every `$ref` is the place, the `$anchor` or the `$id` of a schema in it")
}

fn too_much() -> crate::error::Error {
    expected("a JSON Schema with fewer alternatives and conditions: they multiply what is written out")
}
