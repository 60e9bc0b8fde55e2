//! `format` and `pattern`.

use serde_json::{Map, Value, json};

use super::super::pattern::{is_plain, lookaround};
use super::super::values::{FORMATS, expected};
use super::Lowering;
use super::write::{any_of, other_types, types};
use crate::error::Result;

impl Lowering<'_, '_> {
    /// A format that llguidance knows. Any other is an annotation, as the specification has it; it is noted where it is
    /// one of strings.
    pub fn format(&mut self, value: &Value, map: &Map<String, Value>) -> Result<Option<Value>> {
        let format = value.as_str().ok_or_else(|| expected("a JSON Schema whose `format` is a string"))?;
        let of_strings = types(map).contains(&"string");
        if of_strings && FORMATS.contains(&format) {
            return Ok(Some(value.clone()));
        }
        if of_strings {
            self.note("format");
        }
        Ok(None)
    }

    /// The pattern, if it looks around nowhere; an error within is what stands for it, if anything does.
    pub fn pattern(&mut self, value: &Value) -> Result<std::result::Result<Value, Option<Value>>> {
        let pattern = value.as_str().ok_or_else(|| expected("a JSON Schema whose `pattern` is a string"))?;
        if !lookaround::looks_around(pattern) {
            if self.how.lenient && !is_plain(pattern) {
                self.note("pattern");
                return Ok(Err(None));
            }
            return Ok(Ok(value.clone()));
        }
        match self.strings_with(pattern)? {
            // Beside other types: the pattern says nothing of them.
            Some(strings) => Ok(Err(Some(any_of([other_types(&Map::new(), "string"), strings])))),
            None => self.unenforced("pattern").map(|()| Err(None)),
        }
    }

    /// Strings in which an expression that looks around matches.
    fn strings_with(&mut self, pattern: &str) -> Result<Option<Value>> {
        let mut any = Vec::new();
        for conditions in lookaround::alternatives(pattern).into_iter().flatten() {
            let mut all = Vec::new();
            for pattern in conditions.all {
                if !is_plain(&pattern) {
                    return Ok(None);
                }
                all.push(json!({ "type": "string", "pattern": pattern }));
            }
            for pattern in conditions.none {
                match self.without(&pattern)? {
                    Some(strings) => all.push(strings),
                    None => return Ok(None),
                }
            }
            any.push(if all.contains(&Value::Bool(false)) { false.into() } else { json!({ "allOf": all }) });
        }
        Ok((!any.is_empty()).then(|| any_of(any)))
    }
}
