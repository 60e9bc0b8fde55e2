//! What a reply must look like, as the caller says it.

use std::fmt;

use serde_json::Value;

use super::schema;
use crate::memory::secret::Growing;
use crate::memory::{Secret, json};

/// The form that a reply must have. Tokens that would leave it are never drawn, so a reply that ends by itself has
/// this form; one that is cut off (`max_tokens`, the context, a stop string) is the beginning of such a text.
///
/// Schemas, expressions and grammars are content: overwritten when this drops, never printed (`Debug` prints the kind
/// and lengths) and never part of an error. They are checked when the request is accepted; the limits are in
/// [`ResponseFormat::MAX_SCHEMA_BYTES`] and its neighbours.
#[derive(Default)]
pub struct ResponseFormat {
    pub(super) kind: Kind,
    /// What cannot be enforced of a schema is left out.
    pub(super) lenient: bool,
    /// Keywords of a schema that were left out before this was made.
    pub(super) not_enforced: Vec<&'static str>,
}

#[derive(Default)]
pub(super) enum Kind {
    #[default]
    Text,
    JsonObject,
    /// A schema as JSON text; empty for a value that is nested too deep to be written out.
    JsonSchema(Secret<[u8]>),
    Regex(Secret<str>),
    Lark(Secret<str>),
    /// A Lark grammar of calls of tools, which nobody wrote by hand.
    Calls(Secret<str>),
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
        Kind::Text.into()
    }

    /// Any JSON object. Between its parts stand at most 40 characters of white space.
    pub fn json_object() -> Self {
        Kind::JsonObject.into()
    }

    /// JSON that is valid under this schema; keys in the order of its `properties`, white space as in
    /// [`ResponseFormat::json_object`].
    ///
    /// JSON Schema 2020-12 and earlier. These keywords are enforced wherever they stand: `type`, `enum`, `const`,
    /// `anyOf`, `allOf`, `$ref` within the document (by place, `$anchor` or `$id`), `properties`, `required`,
    /// `additionalProperties`, `dependentRequired`, `dependentSchemas`, `items`, `prefixItems`, `minItems`, `maxItems`,
    /// `minLength`, `maxLength`, `minimum`, `maximum`, `exclusiveMinimum`, `exclusiveMaximum`, `multipleOf`. These are
    /// where they can be:
    /// - `oneOf`, `not` and `if` with `then` and `else`: where what must not hold can be said in the keywords above,
    ///   `pattern` and `format` aside;
    /// - `pattern`: in the syntax of the `regex` crate, and with look-around outside of groups
    ///   (`^(?=.*[0-9])(?!admin)[a-z0-9]{8,}$`, `^((?!foo).)*$`);
    /// - `patternProperties` that exclude each other; `propertyNames` of one pattern, list of names or range of lengths;
    ///   `minProperties` and `maxProperties` where all properties are required;
    /// - `uniqueItems` where the items are among few values; `contains`, `minContains` and `maxContains`, with the items
    ///   among the first eight; `unevaluatedProperties` and `unevaluatedItems` that do not depend on the value.
    ///
    /// What cannot be enforced is refused by its name, or, with [`ResponseFormat::lenient`], left out. A `format` other
    /// than `date-time`, `date`, `time`, `duration`, `email`, `hostname`, `ipv4`, `ipv6`, `uuid` and `uri` is an
    /// annotation, as the specification has it; [`crate::Reply::not_enforced`] names it.
    ///
    /// Nothing invalid gets through, but that a key which the schema does not name may come twice. Not all that is
    /// valid does: keys come in one order only, bounds with decimals leave out some numbers near them, bounds beyond
    /// 9.2e18 (2^63 of integers) are taken for that, and strings have no `\u` escapes, so no control characters other
    /// than `\n`, `\r`, `\t`, `\b` and `\f`. Numbers without bounds are JSON's, of any length and exponent.
    ///
    /// At most [`ResponseFormat::MAX_SCHEMA_BYTES`], 8192 values, 64 levels and 200 properties in an object; less where
    /// alternatives and patterns multiply.
    ///
    /// The texts, keys and numbers of `schema` are overwritten.
    pub fn json_schema(schema: Value) -> Self {
        let mut text = Secret::<[u8]>::with_capacity(4096);
        if json::depth(&schema) <= schema::MAX_DEPTH {
            serde_json::to_writer(Growing(&mut text), &schema)
                .expect("a value's keys are strings, and a buffer takes all");
        }
        json::wipe(schema);
        Kind::JsonSchema(text).into()
    }

    /// What cannot be enforced of a JSON Schema is left out, and named by [`crate::Reply::not_enforced`], where it would
    /// be refused else. Replies are then valid but for these keywords.
    ///
    /// ```
    /// use amnesic::ResponseFormat;
    /// use serde_json::json;
    ///
    /// let schema = json!({ "type": "array", "items": { "type": "string" }, "uniqueItems": true });
    /// let format = ResponseFormat::json_schema(schema).lenient();
    /// assert!(!format.is_text());
    /// ```
    pub fn lenient(mut self) -> Self {
        self.lenient = true;
        self
    }

    /// The schema of a type, by its `JsonSchema` (feature `schema`), with three differences: objects have the type's
    /// properties only, unless parts of them are combined (`flatten`, internally tagged enums); `uniqueItems`, which sets
    /// have, is left out, since a set takes an element that comes twice; and integers get their types' ranges (up to
    /// 2^63 for `u64`, down to -9e18 for `i64`), without -0, which JSON has and integers have not.
    #[cfg(feature = "schema")]
    pub fn schema_of<T: schemars::JsonSchema>() -> Self {
        use schemars::generate::SchemaSettings;
        use schemars::transform::RecursiveTransform;
        let settings = SchemaSettings::draft2020_12().with_transform(RecursiveTransform(fit_to_rust));
        let mut schema = settings.into_generator().into_root_schema_for::<T>().to_value();
        if !combines(&schema) {
            close(&mut schema);
        }
        Self::json_schema(schema)
    }

    /// Text that this expression matches from its first to its last character, in the syntax of the `regex` crate
    /// (<https://docs.rs/regex/1/regex/#syntax>) without look-around; `^` and `$` may stand at its two ends.
    pub fn regex(expression: impl Into<String>) -> Self {
        Kind::Regex(Secret::new(expression.into())).into()
    }

    /// Text of this context-free grammar, in llguidance's variant of Lark's syntax
    /// (<https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md>); it begins at the rule `start`.
    ///
    /// `temperature=` and captures have no effect. The white space in `%ignore` and `%json` is the grammar's own
    /// affair, and may be without bounds.
    pub fn lark(grammar: impl Into<String>) -> Self {
        Kind::Lark(Secret::new(grammar.into())).into()
    }

    /// Whether the text is JSON.
    pub(crate) fn is_json(&self) -> bool {
        matches!(self.kind, Kind::JsonObject | Kind::JsonSchema(_))
    }

    /// Whether any text will do.
    pub fn is_text(&self) -> bool {
        matches!(self.kind, Kind::Text)
    }
}

impl From<Kind> for ResponseFormat {
    fn from(kind: Kind) -> Self {
        Self { kind, lenient: false, not_enforced: Vec::new() }
    }
}

impl fmt::Debug for ResponseFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (kind, len) = match &self.kind {
            Kind::Text => return f.write_str("Text"),
            Kind::JsonObject => return f.write_str("JsonObject"),
            Kind::JsonSchema(text) => ("JsonSchema", text.expose().len()),
            Kind::Regex(text) => ("Regex", text.expose().len()),
            Kind::Lark(text) => ("Lark", text.expose().len()),
            Kind::Calls(text) => ("Calls", text.expose().len()),
        };
        f.debug_struct(kind).field("bytes", &len).finish()
    }
}

/// Whether an object is made of several schemas: then none of them may refuse what another one asks for.
#[cfg(feature = "schema")]
fn combines(schema: &Value) -> bool {
    match schema {
        Value::Object(map) => {
            let others = ["$ref", "allOf", "anyOf", "oneOf"].iter().any(|word| map.contains_key(*word));
            map.contains_key("allOf")
                || map.contains_key("properties") && others
                || map.values().any(combines)
        }
        Value::Array(list) => list.iter().any(combines),
        _ => false,
    }
}

/// Leaves objects no properties but their own, which a type would ignore and a model may never end.
#[cfg(feature = "schema")]
fn close(schema: &mut Value) {
    match schema {
        Value::Object(map) => {
            if map.get("properties").is_some_and(Value::is_object)
                && map.get("type") == Some(&"object".into())
            {
                map.entry("additionalProperties").or_insert(false.into());
            }
            map.values_mut().for_each(close);
        }
        Value::Array(list) => list.iter_mut().for_each(close),
        _ => {}
    }
}

/// See [`ResponseFormat::schema_of`].
#[cfg(feature = "schema")]
fn fit_to_rust(schema: &mut schemars::Schema) {
    const MIN_I64: i64 = -9_000_000_000_000_000_000;
    schema.remove("uniqueItems");
    let (low, high) = match schema.get("format").and_then(Value::as_str) {
        Some("int8") => (i8::MIN.into(), i8::MAX.into()),
        Some("int16") => (i16::MIN.into(), i16::MAX.into()),
        Some("int32") => (i32::MIN.into(), i32::MAX.into()),
        Some("uint32") => (0, u32::MAX.into()),
        Some("int64" | "int" | "int128") => (MIN_I64, i64::MAX),
        Some("uint64" | "uint" | "uint128") => (0, i64::MAX),
        _ => return,
    };
    // The type's own attributes may say less.
    let low = schema.get("minimum").and_then(Value::as_i64).map_or(low, |own| own.max(low));
    let high = schema.get("maximum").and_then(Value::as_i64).map_or(high, |own| own.min(high));
    let object = schema.ensure_object();
    if low < 0 && high >= 0 && !object.contains_key("anyOf") {
        // In two parts neither of which has the number -0, which serde reads as a float.
        object.remove("minimum");
        object.remove("maximum");
        let parts = serde_json::json!([{ "minimum": low, "maximum": -1 }, { "minimum": 0, "maximum": high }]);
        object.insert("anyOf".into(), parts);
    } else {
        object.insert("minimum".into(), low.into());
        object.insert("maximum".into(), high.into());
    }
}
