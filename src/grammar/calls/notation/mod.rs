//! Arguments in notations of their own: Python's literals, and the bare keys of Gemma's.

mod containers;
mod scalars;

use std::collections::HashMap;

use serde_json::{Map, Value};

use super::function::Function;
use super::raw::{allows, constraints, refers, target, unspellable};
use super::writer::{RESOURCE, Writer, json, quoted, resource, write};
use crate::chat::{Parameter, Type};
use crate::error::Result;
use crate::memory::Secret;

/// How a format writes values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notation {
    /// `name(key="text", other=[1, True, None, {"k": 2}])`.
    Python,
    /// `name{key:<mark>text<mark>,other:[1,true,null,{k:2}]}`, with this mark.
    Gemma {
        mark: &'static str,
        /// A text within a list or an object is read as what it looks like.
        flat: bool,
    },
}

/// Objects in objects.
const MAX_DEPTH: usize = 32;

/// Writes the values of a function.
pub struct Values<'w, 'v> {
    writer: &'w mut Writer,
    notation: Notation,
    function: Function<'v>,
    /// The rules of schemas, by their places in memory; a schema may be part of itself.
    known: HashMap<(*const Value, Option<Parameter>), String>,
}

impl<'w, 'v> Values<'w, 'v> {
    pub fn new(writer: &'w mut Writer, notation: Notation, function: Function<'v>) -> Self {
        Self { writer, notation, function, known: HashMap::new() }
    }

    /// The rule of a whole call.
    ///
    /// # Errors
    /// Its names cannot be spelled, or a schema cannot hold.
    pub fn call(&mut self) -> Result<String> {
        self.function.check_root(self.writer)?;
        let (name, [open, close]) = match self.notation {
            Notation::Python => (self.function.plain_name(".")?, ["(", ")"]),
            Notation::Gemma { .. } => (self.function.plain_name(".:/")?, ["{", "}"]),
        };
        if self.notation == Notation::Python
            && name.starts_with(|char: char| !char.is_alphabetic() && char != '_')
        {
            return Err(unspellable("functions with names that begin with a letter, and are"));
        }
        let mut pairs = Vec::new();
        for (key, schema, required) in self.function.parameters() {
            let plain = |char: char| char.is_alphanumeric() || "_-".contains(char);
            if key.is_empty() || !key.chars().all(plain) {
                return Err(unspellable("parameters with names"));
            }
            let kind = self.function.kind(key);
            let value = self.parameter(key, schema, kind)?;
            let mut body = Secret::<[u8]>::default();
            quoted(&mut body, key);
            body.extend(if self.notation == Notation::Python { b"\"=\" " } else { b"\":\" " });
            body.extend(value.as_bytes());
            pairs.push((self.writer.rule(&body), required));
        }
        let mut body = Secret::<[u8]>::default();
        quoted(&mut body, name);
        quoted(&mut body, open);
        body.extend(self.sequence(&pairs).as_bytes());
        quoted(&mut body, close);
        Ok(self.writer.rule(&body))
    }

    /// A parameter's value, which a reader takes for `kind`.
    fn parameter(&mut self, key: &str, schema: &'v Value, kind: Option<Parameter>) -> Result<String> {
        let place = self.writer.place();
        let (strict, noted) = (self.writer.strict, self.writer.not_enforced.len());
        if self.notation == Notation::Python {
            // what the rules below cannot hold JSON can, which readers of literals take as well
            self.writer.strict = true;
            let value = self.value(schema, 0, None);
            self.writer.strict = strict;
            return value.or_else(|_| {
                self.writer.back_to(place);
                self.writer.not_enforced.truncate(noted);
                self.known.clear();
                let mut body = Secret::<[u8]>::default();
                json(&mut body, |out| self.by_reference(out, key, schema));
                Ok(self.writer.rule(&body))
            });
        }
        self.value(schema, 0, kind)
    }

    /// The parameter's schema, whose references stay what they are.
    fn by_reference(&self, out: &mut Secret<[u8]>, key: &str, schema: &Value) {
        out.extend(br#"{"$defs":{"arguments":"#);
        resource(out, self.function.root(), false);
        out.extend(br#"},"allOf":["#);
        match refers(schema) {
            false => write(out, schema),
            true => {
                let path = Secret::new(format!("{RESOURCE}#/properties/{key}"));
                out.extend(br#"{"$ref":"#);
                write(out, path.expose());
                out.extend(b"}");
            }
        }
        out.extend(b"]");
    }

    /// A rule for the values of a schema.
    fn value(&mut self, schema: &'v Value, depth: usize, kind: Option<Parameter>) -> Result<String> {
        if let Some(known) = self.known.get(&(std::ptr::from_ref(schema), kind)) {
            return Ok(known.clone());
        }
        let name = self.writer.reserve();
        self.known.insert((schema, kind), name.clone());
        let mut found = Vec::new();
        match schema {
            Value::Object(map) if depth <= MAX_DEPTH => self.schema(schema, map, depth, kind, &mut found)?,
            Value::Bool(true) => found.push(self.anything()?),
            Value::Object(_) => {
                self.writer.unenforced("properties")?;
                found.push(self.anything()?);
            }
            _ => self.writer.unenforced("allOf")?,
        }
        if found.is_empty() {
            self.writer.unenforced("enum")?;
            found.push(self.anything()?);
        }
        self.writer.define(&name, &Secret::new(found.join(" | ").into_bytes()));
        Ok(name)
    }

    fn schema(
        &mut self,
        schema: &'v Value,
        map: &'v Map<String, Value>,
        depth: usize,
        kind: Option<Parameter>,
        found: &mut Vec<String>,
    ) -> Result<()> {
        if constraints(map).next().is_none() {
            found.push(self.anything()?);
            return Ok(());
        }
        // schemas in the place of this one
        for keyword in ["$ref", "anyOf", "oneOf", "allOf"] {
            if !map.contains_key(keyword) {
                continue;
            }
            if constraints(map).nth(1).is_some() {
                self.writer.unenforced(keyword_of(keyword))?;
                continue;
            }
            let parts: Vec<&'v Value> = match keyword {
                "$ref" => target(map, self.function.root()).into_iter().collect(),
                _ => map[keyword].as_array().into_iter().flatten().collect(),
            };
            let apart = parts.iter().enumerate().all(|(index, part)| {
                parts[..index].iter().all(|other| differ(part, other, self.function.root()))
            });
            if parts.is_empty() || keyword == "allOf" && parts.len() > 1 || keyword == "oneOf" && !apart {
                self.writer.unenforced(keyword_of(keyword))?;
            }
            for part in parts {
                let one = self.value(part, depth + 1, kind)?;
                found.push(one);
            }
            return Ok(());
        }
        for keyword in constraints(map).map(keyword_of).collect::<Vec<_>>() {
            if !HELD.contains(&keyword) {
                self.writer.unenforced(keyword)?;
            }
        }
        if let Some(values) = map
            .get("const")
            .map(std::slice::from_ref)
            .or_else(|| map.get("enum")?.as_array().map(Vec::as_slice))
        {
            return self.values(values, schema, map, kind, found);
        }
        let taken = |of: &[Type]| kind.is_none_or(|kind| of.contains(&kind.kind));
        if allows(map, "string") && taken(&[Type::Text, Type::Untyped, Type::Any]) {
            self.string(schema, found)?;
        }
        if allows(map, "boolean") && taken(&[Type::Boolean, Type::Untyped, Type::Any]) {
            let words = if self.notation == Notation::Python {
                "\"True\" | \"False\""
            } else {
                "\"true\" | \"false\""
            };
            found.push(self.writer.rule(&Secret::new(words.as_bytes().to_vec())));
        }
        if allows(map, "null") && (map.contains_key("type") || kind.is_none_or(|kind| kind.nullable)) {
            found.push(self.null());
        }
        let whole = allows(map, "integer") && taken(&[Type::Integer, Type::Number, Type::Untyped, Type::Any]);
        let any = allows(map, "number") && taken(&[Type::Number, Type::Untyped, Type::Any]);
        if whole || any {
            found.push(self.number(map, if any { "number" } else { "integer" }));
        }
        if allows(map, "array") && taken(&[Type::Container, Type::Untyped, Type::Any]) {
            let list = self.list(map, depth)?;
            found.push(list);
        }
        if allows(map, "object") && taken(&[Type::Container, Type::Untyped, Type::Any]) {
            let object = self.object(map, depth)?;
            found.push(object);
        }
        Ok(())
    }
}

/// Keywords that hold here, beside those that stand for other schemas.
const HELD: [&str; 22] = [
    "type",
    "enum",
    "const",
    "minLength",
    "maxLength",
    "pattern",
    "format",
    "minimum",
    "maximum",
    "exclusiveMinimum",
    "exclusiveMaximum",
    "multipleOf",
    "items",
    "minItems",
    "maxItems",
    "properties",
    "required",
    "additionalProperties",
    "unevaluatedProperties",
    "unevaluatedItems",
    "additionalItems",
    "contentSchema",
];

/// The keyword among those that are known.
fn keyword_of(keyword: &str) -> &'static str {
    use super::super::schema::{SUPPORTED, UNSUPPORTED};
    SUPPORTED.iter().chain(&UNSUPPORTED).copied().find(|known| *known == keyword).unwrap_or("extends")
}

/// Whether no value is valid under both, as their types or values show.
fn differ(one: &Value, other: &Value, root: &Value) -> bool {
    fn kinds<'v>(schema: &'v Value, root: &'v Value) -> Option<Vec<&'v str>> {
        let map = schema.as_object()?;
        let map = if map.contains_key("$ref") { target(map, root)?.as_object()? } else { map };
        match map.get("type")? {
            Value::String(name) => Some(vec![name]),
            Value::Array(names) => names.iter().map(Value::as_str).collect(),
            _ => None,
        }
    }
    let (Some(these), Some(those)) = (kinds(one, root), kinds(other, root)) else { return false };
    let number = |kind: &&str| ["number", "integer"].contains(kind);
    !these.iter().any(|kind| those.contains(kind) || number(kind) && those.iter().any(number))
}
