//! Texts, numbers, truth values and null, and values that a schema lists.

use serde_json::{Map, Value};

use super::super::raw::{allows, texts};
use super::super::writer::{escaped, json, quoted, somewhere, write};
use super::{Notation, Values};
use crate::chat::{Parameter, Type};
use crate::error::Result;
use crate::memory::Secret;

impl<'v> Values<'_, 'v> {
    pub(super) fn string(&mut self, schema: &'v Value, found: &mut Vec<String>) -> Result<()> {
        let Notation::Gemma { mark, .. } = self.notation else {
            let mut body = Secret::<[u8]>::default();
            json(&mut body, |out| {
                out.extend(br#"{"allOf":["#);
                write(out, schema);
                out.extend(br#"],"type":"string""#);
            });
            found.push(self.writer.rule(&body));
            return Ok(());
        };
        let excluded = [somewhere(&escaped(mark))];
        for alternative in texts(self.writer, schema, self.function.root(), 0)? {
            let Some(forms) = alternative.forms(self.writer)? else { continue };
            let mut body = Secret::<[u8]>::default();
            self.writer.fixed(&mut body, mark)?;
            self.writer.text_until(&mut body, &forms, &excluded, mark)?;
            found.push(self.writer.rule(&body));
        }
        Ok(())
    }

    pub(super) fn number(&mut self, map: &Map<String, Value>, kind: &str) -> String {
        let mut body = Secret::<[u8]>::default();
        json(&mut body, |out| {
            out.extend(br#"{"type":"#);
            write(out, kind);
            for keyword in ["minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"] {
                if let Some(value) = map.get(keyword) {
                    out.extend(b",");
                    write(out, keyword);
                    out.extend(b":");
                    write(out, value);
                }
            }
        });
        self.writer.rule(&body)
    }

    pub(super) fn null(&mut self) -> String {
        let word = if self.notation == Notation::Python { "\"None\"" } else { "\"null\"" };
        self.writer.rule(&Secret::new(word.as_bytes().to_vec()))
    }

    /// Values that are listed; of those that are no scalars, none.
    pub(super) fn values(
        &mut self,
        values: &'v [Value],
        schema: &'v Value,
        map: &'v Map<String, Value>,
        kind: Option<Parameter>,
        found: &mut Vec<String>,
    ) -> Result<()> {
        let taken = |of: &[Type]| kind.is_none_or(|kind| of.contains(&kind.kind));
        if values.iter().any(Value::is_string) && taken(&[Type::Text, Type::Untyped, Type::Any]) {
            self.string(schema, found)?;
        }
        for value in values {
            let scalar = match value {
                Value::Null => "null",
                Value::Bool(_) => "boolean",
                Value::Number(_) => "number",
                Value::String(_) => continue,
                _ => {
                    self.writer.unenforced("enum")?;
                    continue;
                }
            };
            let fits = allows(map, scalar) || scalar == "number" && allows(map, "integer");
            let text = kind.is_some_and(|kind| kind.kind == Type::Text);
            if !fits || text && !value.is_null() {
                continue;
            }
            let mut body = Secret::<[u8]>::default();
            match (value, self.notation) {
                (Value::Null, Notation::Python) => body.extend(b"\"None\""),
                (Value::Bool(true), Notation::Python) => body.extend(b"\"True\""),
                (Value::Bool(false), Notation::Python) => body.extend(b"\"False\""),
                _ => {
                    let mut json = Secret::<[u8]>::default();
                    write(&mut json, value);
                    quoted(&mut body, std::str::from_utf8(json.expose()).expect("JSON is UTF-8"));
                }
            }
            found.push(self.writer.rule(&body));
        }
        Ok(())
    }
}
