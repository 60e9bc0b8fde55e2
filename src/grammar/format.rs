//! What a reply must look like, as the caller says it.

use std::fmt;
use std::io::{self, Write};

use serde_json::Value;

use super::schema;
use crate::memory::Secret;

/// The form that a reply must have. Tokens that would leave it are never drawn, so a reply that ends by itself has
/// this form; one that is cut off (`max_tokens`, the context, a stop string) is the beginning of such a text.
///
/// Schemas, expressions and grammars are content: overwritten when this drops, never printed (`Debug` prints the kind
/// and lengths) and never part of an error. They are checked when the request is accepted; the limits are in
/// [`ResponseFormat::MAX_SCHEMA_BYTES`] and its neighbours.
#[derive(Default)]
pub struct ResponseFormat(pub(super) Kind);

#[derive(Default)]
pub(super) enum Kind {
    #[default]
    Text,
    JsonObject,
    /// As JSON text; empty for a value that is nested too deep to be written out.
    JsonSchema(Secret<Vec<u8>>),
    Regex(Secret<String>),
    Lark(Secret<String>),
}

impl ResponseFormat {
    /// Longest JSON Schema, written without spaces.
    pub const MAX_SCHEMA_BYTES: usize = 256 << 10;
    /// Longest regular expression; in a schema, all its patterns together.
    pub const MAX_REGEX_BYTES: usize = 8 << 10;
    /// Longest Lark grammar.
    pub const MAX_LARK_BYTES: usize = 64 << 10;

    /// Any text: the model decides alone. The default.
    pub fn text() -> Self {
        Self(Kind::Text)
    }

    /// Any JSON object. Between its parts stand at most 40 characters of white space.
    pub fn json_object() -> Self {
        Self(Kind::JsonObject)
    }

    /// JSON that is valid under this schema; keys in the order of its `properties`, white space as in
    /// [`ResponseFormat::json_object`].
    ///
    /// JSON Schema 2020-12 and earlier, with these keywords: `type`, `enum`, `const`, `anyOf`, `oneOf` (where the
    /// alternatives exclude each other visibly), `allOf`, `$ref` within the document, `$defs`; `properties`,
    /// `required`, `additionalProperties`, `patternProperties`, `minProperties`, `maxProperties`; `items`,
    /// `prefixItems`, `minItems`, `maxItems`; `minLength`, `maxLength`, `pattern`, `format`; `minimum`, `maximum`,
    /// `exclusiveMinimum`, `exclusiveMaximum`, `multipleOf`; and annotations. Others are refused by name.
    ///
    /// The strings of `schema` are overwritten; numbers and the map's own nodes are freed as they are.
    pub fn json_schema(schema: Value) -> Self {
        let mut text = Secret::<Vec<u8>>::with_capacity(4096);
        if schema::depth(&schema) <= schema::MAX_DEPTH {
            serde_json::to_writer(Growing(&mut text), &schema)
                .expect("a value's keys are strings, and a buffer takes all");
        }
        wipe(schema);
        Self(Kind::JsonSchema(text))
    }

    /// The schema of a type, by its `JsonSchema` (feature `schema`). `uniqueItems`, which sets have, is left out: a
    /// set takes an element that comes twice.
    #[cfg(feature = "schema")]
    pub fn schema_of<T: schemars::JsonSchema>() -> Self {
        use schemars::generate::SchemaSettings;
        use schemars::transform::RecursiveTransform;
        let without_unique = RecursiveTransform(|schema: &mut schemars::Schema| {
            schema.remove("uniqueItems");
        });
        let settings = SchemaSettings::draft2020_12().with_transform(without_unique);
        Self::json_schema(settings.into_generator().into_root_schema_for::<T>().to_value())
    }

    /// Text that this expression matches from its first to its last character, in the syntax of the `regex` crate
    /// (<https://docs.rs/regex/1/regex/#syntax>) without look-around; `^` and `$` may stand at its two ends.
    pub fn regex(expression: impl Into<String>) -> Self {
        Self(Kind::Regex(Secret::new(expression.into())))
    }

    /// Text of this context-free grammar, in llguidance's variant of Lark's syntax
    /// (<https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md>); it begins at the rule `start`.
    ///
    /// `temperature=` and captures have no effect. The white space in `%ignore` and `%json` is the grammar's own
    /// affair, and may be without bounds.
    pub fn lark(grammar: impl Into<String>) -> Self {
        Self(Kind::Lark(Secret::new(grammar.into())))
    }

    /// Whether any text will do.
    pub fn is_text(&self) -> bool {
        matches!(self.0, Kind::Text)
    }
}

impl fmt::Debug for ResponseFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (kind, len) = match &self.0 {
            Kind::Text => return f.write_str("Text"),
            Kind::JsonObject => return f.write_str("JsonObject"),
            Kind::JsonSchema(text) => ("JsonSchema", text.expose().len()),
            Kind::Regex(text) => ("Regex", text.expose().len()),
            Kind::Lark(text) => ("Lark", text.expose().len()),
        };
        f.debug_struct(kind).field("bytes", &len).finish()
    }
}

/// Writes into a secret, which overwrites what it outgrows.
struct Growing<'a>(&'a mut Secret<Vec<u8>>);

impl Write for Growing<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Overwrites the strings of a value. No recursion: its depth is the caller's.
pub(super) fn wipe(value: Value) {
    let mut left = vec![value];
    while let Some(value) = left.pop() {
        match value {
            Value::String(text) => drop(Secret::new(text)),
            Value::Array(values) => left.extend(values),
            Value::Object(map) => left.extend(map.into_iter().map(|(key, value)| {
                drop(Secret::new(key));
                value
            })),
            Value::Null | Value::Bool(_) | Value::Number(_) => {}
        }
    }
}
