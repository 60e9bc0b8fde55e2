//! Lists and objects, values of any kind, and parts with separators between them.

use serde_json::{Map, Value};

use super::super::function::{check_count, required};
use super::super::raw::unspellable;
use super::super::writer::{escaped, json, quoted, somewhere, write};
use super::{Notation, Values};
use crate::error::Result;
use crate::memory::Secret;

impl<'v> Values<'_, 'v> {
    /// Parts in their order, with separators between those that are there.
    pub(super) fn sequence(&mut self, parts: &[(String, bool)]) -> String {
        let separator = self.separator();
        // behind some part, and where none was written yet
        let (mut rest, mut first) = (String::new(), String::from("\"\""));
        for (part, required) in parts.iter().rev() {
            let [behind, begun] =
                [format!("{separator} {part}"), format!("{part} {rest}")].map(String::into_bytes);
            let begun = self.writer.rule(&Secret::new(begun));
            let behind = self.writer.rule(&Secret::new(behind));
            let later = if rest.is_empty() { String::new() } else { format!(" {rest}") };
            first = if *required { begun } else { self.either(&[begun, first]) };
            let optional = if *required { "" } else { "?" };
            let all = Secret::new(format!("{behind}{optional}{later}").into_bytes());
            rest = self.writer.rule(&all);
        }
        format!("{first} ")
    }

    pub(super) fn separator(&self) -> &'static str {
        if self.notation == Notation::Python { "\",\" \" \"?" } else { "\",\"" }
    }

    pub(super) fn either(&mut self, rules: &[String]) -> String {
        self.writer.rule(&Secret::new(rules.join(" | ").into_bytes()))
    }

    pub(super) fn list(&mut self, map: &'v Map<String, Value>, depth: usize) -> Result<String> {
        self.check_flat()?;
        let item = match map.get("items") {
            Some(items @ (Value::Object(_) | Value::Bool(true))) => self.value(items, depth + 1, None)?,
            Some(_) => {
                self.writer.unenforced("items")?;
                self.anything()?
            }
            None => self.anything()?,
        };
        let count = |keyword: &str| map.get(keyword).and_then(Value::as_u64);
        let (least, most) = (count("minItems").unwrap_or(0), count("maxItems"));
        let separator = self.separator();
        let more = |least: u64, most: Option<u64>| match most {
            Some(0) => String::new(),
            Some(most) => format!("({separator} {item}){{{least},{most}}}"),
            None if least > 0 => format!("({separator} {item}){{{least},}}"),
            None => format!("({separator} {item})*"),
        };
        let body = match (least, most) {
            (_, Some(0)) => "\"[\" \"]\"".to_owned(),
            (0, most) => format!("\"[\" ({item} {})? \"]\"", more(0, most.map(|most| most - 1))),
            (least, most) => {
                format!("\"[\" {item} {} \"]\"", more(least - 1, most.map(|most| most.saturating_sub(1))))
            }
        };
        Ok(self.writer.rule(&Secret::new(body.into_bytes())))
    }

    pub(super) fn object(&mut self, map: &'v Map<String, Value>, depth: usize) -> Result<String> {
        self.check_flat()?;
        check_count(map)?;
        let required = required(map.get("required"));
        let named = map.get("properties").and_then(Value::as_object);
        if named.is_none_or(Map::is_empty) && required.is_empty() {
            return match map.get("additionalProperties") {
                Some(Value::Bool(false)) => Ok(self.writer.rule(&Secret::new(b"\"{\" \"}\"".to_vec()))),
                None | Some(Value::Bool(true)) => self.pairs(None),
                Some(of) => {
                    let value = self.value(of, depth + 1, None)?;
                    self.pairs(Some(value))
                }
            };
        }
        let mut pairs = Vec::new();
        for (key, schema) in named.into_iter().flatten() {
            let value = self.value(schema, depth + 1, None)?;
            pairs.push((self.pair(key, &value)?, required.contains(&key.as_str())));
        }
        for key in required.iter().filter(|key| named.is_none_or(|named| !named.contains_key(**key))) {
            let value = self.anything()?;
            pairs.push((self.pair(key, &value)?, true));
        }
        let body = format!("\"{{\" {}\"}}\"", self.sequence(&pairs));
        Ok(self.writer.rule(&Secret::new(body.into_bytes())))
    }

    pub(super) fn pair(&mut self, key: &str, value: &str) -> Result<String> {
        let mut body = Secret::<[u8]>::default();
        if self.notation == Notation::Python {
            let mut json = Secret::<[u8]>::default();
            write(&mut json, key);
            quoted(&mut body, std::str::from_utf8(json.expose()).expect("JSON is UTF-8"));
            body.extend(b"\":\" \" \"? ");
        } else {
            if key.is_empty() || key.trim() != key || key.contains(['<', ':', ',', '{', '}', '[', ']']) {
                return Err(unspellable("parameters with names"));
            }
            quoted(&mut body, key);
            body.extend(b"\":\" ");
        }
        body.extend(value.as_bytes());
        Ok(self.writer.rule(&body))
    }

    /// An object with any keys, and these values.
    pub(super) fn pairs(&mut self, value: Option<String>) -> Result<String> {
        let value = match value {
            Some(value) => value,
            None => self.anything()?,
        };
        let (key, separator) = match self.notation {
            Notation::Python => ("/\"[^\"\\\\\\x00-\\x1f\\x7f]*\"/ \":\" \" \"?", self.separator()),
            Notation::Gemma { .. } => ("/[A-Za-z_][A-Za-z0-9_]*/ \":\"", self.separator()),
        };
        let body = format!("\"{{\" ({key} {value} ({separator} {key} {value})*)? \"}}\"");
        Ok(self.writer.rule(&Secret::new(body.into_bytes())))
    }

    /// Any value.
    pub(super) fn anything(&mut self) -> Result<String> {
        if let Some(known) = self.known.get(&(std::ptr::null(), None)) {
            return Ok(known.clone());
        }
        let name = self.writer.reserve();
        self.known.insert((std::ptr::null(), None), name.clone());
        let mut found = Vec::new();
        match self.notation {
            Notation::Python => {
                let mut body = Secret::<[u8]>::default();
                json(&mut body, |out| out.extend(br#"{"type":["string","number","integer"]"#));
                found.push(self.writer.rule(&body));
                found.push("\"True\" | \"False\" | \"None\"".to_owned());
            }
            Notation::Gemma { mark, .. } => {
                let mut body = Secret::<[u8]>::default();
                self.writer.fixed(&mut body, mark)?;
                self.writer.text_until(&mut body, &[], &[somewhere(&escaped(mark))], mark)?;
                found.push(self.writer.rule(&body));
                let mut body = Secret::<[u8]>::default();
                json(&mut body, |out| out.extend(br#"{"type":["number","integer"]"#));
                found.push(self.writer.rule(&body));
                found.push("\"true\" | \"false\" | \"null\"".to_owned());
            }
        }
        let separator = self.separator();
        found.push(format!("\"[\" ({name} ({separator} {name})*)? \"]\""));
        found.push(self.pairs(Some(name.clone()))?);
        self.writer.define(&name, &Secret::new(found.join(" | ").into_bytes()));
        Ok(name)
    }

    /// Where texts in lists and objects are not told from other values, such cannot be held to a schema.
    pub(super) fn check_flat(&mut self) -> Result<()> {
        match self.notation {
            Notation::Gemma { flat: true, .. } => self.writer.unenforced("items"),
            _ => Ok(()),
        }
    }
}
