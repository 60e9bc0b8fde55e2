//! Types of arguments, for formats that carry nothing but text: by the schema of the tool, as vLLM converts them.

use std::io::Write;

use serde_json::Value;
use serde_json::value::RawValue;

use super::python;
use crate::chat::Tool;
use crate::memory::json;
use crate::memory::secret::{Growing, Secret};

/// What a parameter takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Type {
    Text,
    Integer,
    Number,
    Boolean,
    /// An object or an array.
    Container,
    /// A type without a name here.
    Any,
    /// The schema names none.
    Untyped,
}

/// A parameter's type, and whether it may be null.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Parameter {
    pub kind: Type,
    pub nullable: bool,
}

/// The parameters of a request's tools.
#[derive(Debug, Default)]
pub struct Schemas(Vec<Schema>);

/// A tool's name, the names and types of its parameters, and their schema as JSON.
type Schema = (Secret<str>, Vec<(Secret<str>, Parameter)>, Secret<[u8]>);

impl Schemas {
    /// Reads what the tools say.
    pub fn of(tools: &[Tool]) -> Self {
        Self(tools.iter().filter_map(|tool| schema(tool.definition())).collect())
    }

    /// The type of a tool's parameter; none for one that the schema does not have.
    pub fn parameter(&self, tool: &str, name: &str) -> Option<Parameter> {
        let (_, parameters, _) = self.0.iter().find(|(known, ..)| known.expose() == tool)?;
        let found = parameters.iter().find(|(known, _)| known.expose() == name)?;
        Some(found.1)
    }

    /// What `read` makes of the schema of a tool's parameters, or of null.
    pub fn with_schema<T>(&self, tool: &str, read: impl FnOnce(&Value) -> T) -> T {
        let found = self.0.iter().find(|(known, ..)| known.expose() == tool);
        let value = found.and_then(|(.., schema)| serde_json::from_slice(schema.expose()).ok());
        let value = value.unwrap_or(Value::Null);
        let result = read(&value);
        json::wipe(value);
        result
    }
}

fn schema(definition: &str) -> Option<Schema> {
    let value: Value = serde_json::from_str(definition).ok()?;
    let function = value.get("function").unwrap_or(&value);
    let name = function.get("name").and_then(Value::as_str).map(Secret::<str>::copy);
    let root = function.get("parameters").unwrap_or(&Value::Null);
    let properties = root.get("properties").and_then(Value::as_object);
    let parameters = properties.into_iter().flatten();
    let parameters = parameters.map(|(name, of)| (Secret::<str>::copy(name), parameter(of, root)));
    let parameters = parameters.collect();
    let mut text = Secret::<[u8]>::with_capacity(definition.len());
    serde_json::to_writer(Growing(&mut text), root)
        .expect("a value's keys are strings, and a buffer takes all");
    let schema = name.map(|name| (name, parameters, text));
    json::wipe(value);
    schema
}

/// References in references are followed no further.
const MAX_REFERENCES: usize = 8;

/// What a schema of the document `root` takes.
pub fn parameter(of: &Value, root: &Value) -> Parameter {
    followed(of, root, 0)
}

fn followed(of: &Value, root: &Value, depth: usize) -> Parameter {
    let mut nullable = of.get("nullable").and_then(Value::as_bool).unwrap_or(false);
    let mut kind = None;
    let mut take = |name: &str| match type_of(name) {
        None => nullable = true,
        Some(found) => kind = kind.or(Some(found)),
    };
    match of.get("type") {
        Some(Value::String(name)) => take(name),
        Some(Value::Array(names)) => names.iter().filter_map(Value::as_str).for_each(take),
        _ => {
            let reference = of.get("$ref").and_then(Value::as_str).and_then(|path| path.strip_prefix('#'));
            if let Some(found) = reference.and_then(|path| root.pointer(path))
                && depth < MAX_REFERENCES
            {
                return followed(found, root, depth + 1);
            }
            let options = ["anyOf", "oneOf", "allOf"].iter().filter_map(|key| of.get(*key)?.as_array());
            if depth < MAX_REFERENCES {
                for option in options.flatten() {
                    let found = followed(option, root, depth + 1);
                    nullable |= found.nullable;
                    kind = kind.or(Some(found.kind).filter(|kind| *kind != Type::Untyped));
                }
            }
            let values = of.get("enum").and_then(Value::as_array);
            let all_texts = values.is_some_and(|values| values.iter().all(Value::is_string));
            kind = kind.or(all_texts.then_some(Type::Text));
        }
    }
    Parameter { kind: kind.unwrap_or(Type::Untyped), nullable }
}

/// The type of a name, in the spellings that vLLM knows; none for `null`.
fn type_of(name: &str) -> Option<Type> {
    let name = Secret::new(name.trim().to_ascii_lowercase());
    let name = name.expose();
    let begins = |starts: &[&str]| starts.iter().any(|start| name.starts_with(start));
    Some(match name {
        "null" => return None,
        "string" | "str" | "text" | "varchar" | "char" | "enum" => Type::Text,
        "boolean" | "bool" | "binary" => Type::Boolean,
        "object" | "array" | "arr" => Type::Container,
        _ if begins(&["int", "uint", "long", "short", "unsigned"]) => Type::Integer,
        _ if begins(&["num", "float"]) => Type::Number,
        _ if begins(&["dict", "list"]) => Type::Container,
        _ => Type::Any,
    })
}

/// How a format reads its texts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reading {
    /// Qwen3-Coder: what has no type is text.
    Text,
    /// GLM: what has no type is JSON, or a Python literal, or else text.
    Value,
}

/// Writes a value's text as JSON.
pub fn convert(value: &str, parameter: Option<Parameter>, reading: Reading, out: &mut Secret<[u8]>) {
    let Some(Parameter { kind, nullable }) = parameter else {
        return match reading {
            Reading::Text => quote(value, out),
            Reading::Value => any(value.trim(), value, out),
        };
    };
    let trimmed = value.trim();
    let is_null = trimmed.eq_ignore_ascii_case("null") || trimmed.eq_ignore_ascii_case("none");
    let text = kind == Type::Text || (kind == Type::Untyped && reading == Reading::Text);
    if is_null && (nullable || !text) {
        return out.extend(b"null");
    }
    match kind {
        _ if text => quote(value, out),
        Type::Integer => match integer(trimmed) {
            Some((sign, digits)) => {
                out.extend(sign.as_bytes());
                out.extend(digits.as_bytes());
            }
            None => quote(value, out),
        },
        Type::Number => match trimmed.parse::<f64>() {
            Ok(number) if number.is_finite() => number_text(number, out),
            _ => quote(value, out),
        },
        Type::Boolean => {
            out.extend(if trimmed.eq_ignore_ascii_case("true") { b"true" } else { &b"false"[..] })
        }
        _ => any(trimmed, value, out),
    }
}

/// JSON, or a Python literal, or else text.
fn any(trimmed: &str, value: &str, out: &mut Secret<[u8]>) {
    if serde_json::from_str::<&RawValue>(trimmed).is_ok() {
        return out.extend(trimmed.as_bytes());
    }
    let len = out.expose().len();
    if !python::literal(trimmed, out) {
        out.truncate(len);
        quote(value, out);
    }
}

/// A JSON string.
pub fn quote(text: &str, out: &mut Secret<[u8]>) {
    serde_json::to_writer(Growing(out), text).expect("a text can be written, and a buffer takes all");
}

/// A whole number as Python's `int` reads it: its sign and its digits.
fn integer(text: &str) -> Option<(&str, &str)> {
    let (sign, digits) = match text.as_bytes().first()? {
        b'-' => text.split_at(1),
        b'+' => ("", &text[1..]),
        _ => ("", text),
    };
    let plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    plain.then(|| match digits.trim_start_matches('0') {
        "" => ("", "0"),
        digits => (sign, digits),
    })
}

/// A number as vLLM writes it: a whole one without a point.
fn number_text(number: f64, out: &mut Secret<[u8]>) {
    // into the secret at once: a string would grow, and leave copies
    let written = match number {
        0.0 => write!(Growing(out), "0"),
        _ if number.fract() == 0.0 => write!(Growing(out), "{number:.0}"),
        _ => write!(Growing(out), "{number}"),
    };
    written.expect("a buffer takes all");
}

#[cfg(test)]
mod tests {
    use super::*;

    /// vLLM's `_convert_param_value` and GLM's `_deserialize` say what is right.
    #[test]
    fn texts_become_what_the_schema_says() {
        let schema = serde_json::json!({
            "type": "object",
            "$defs": {"unit": {"enum": ["c", "f"]}},
            "properties": {
                "text": {"type": "string"}, "int": {"type": "integer"}, "num": {"type": "number"},
                "bool": {"type": "boolean"}, "list": {"type": "array"}, "dict": {"type": "object"},
                "maybe": {"anyOf": [{"type": "string"}, {"type": "null"}]}, "two": {"type": ["null", "integer"]},
                "unit": {"$ref": "#/$defs/unit"}, "none": {"description": "no type"}
            }
        });
        let schemas = Schemas::of(&[Tool::new("f", "", schema)]);
        let cases = [
            ("text", "null", "\"null\""),
            ("text", "12", "\"12\""),
            ("text", " a\n\"b\" ", "\" a\\n\\\"b\\\" \""),
            ("int", "12", "12"),
            ("int", "-007", "-7"),
            ("int", "1.5", "\"1.5\""),
            ("int", "null", "null"),
            ("num", "1.5", "1.5"),
            ("num", "2.0", "2"),
            ("num", "x", "\"x\""),
            ("bool", "True", "true"),
            ("bool", "yes", "false"),
            ("list", "[1, \"a\"]", "[1, \"a\"]"),
            ("list", "['a', True]", "[\"a\", true]"),
            ("dict", "{'k': None}", "{\"k\": null}"),
            ("dict", "{broken", "\"{broken\""),
            ("maybe", "None", "null"),
            ("maybe", "x", "\"x\""),
            ("two", "null", "null"),
            ("two", "3", "3"),
            ("unit", "1", "\"1\""),
            ("none", "1", "\"1\""),
            ("unknown", "1", "\"1\""),
        ];
        for (name, value, expected) in cases {
            let mut out = Secret::<[u8]>::default();
            convert(value, schemas.parameter("f", name), Reading::Text, &mut out);
            assert_eq!(String::from_utf8_lossy(out.expose()), expected, "{name} {value}");
        }
        for (name, value, expected) in
            [("none", "1", "1"), ("unknown", "[1]", "[1]"), ("none", "a b", "\"a b\"")]
        {
            let mut out = Secret::<[u8]>::default();
            convert(value, schemas.parameter("f", name), Reading::Value, &mut out);
            assert_eq!(String::from_utf8_lossy(out.expose()), expected, "{name} {value}");
        }
    }
}
