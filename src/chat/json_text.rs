//! Values as Python writes them: `json.dumps` for the filter `tojson`, `str` for what a template prints.

use std::fmt::{self, Write};

use minijinja::value::{Kwargs, Value, ValueKind};
use minijinja::{Error, ErrorKind};

/// Values in values; templates build no deeper ones, and recursion must end.
const MAX_DEPTH: usize = 128;

/// How `json.dumps` was asked to write.
struct Style {
    indent: Option<String>,
    item: String,
    key: String,
    ascii: bool,
    sort: bool,
}

impl Style {
    fn new(indent: Option<Value>, options: &Kwargs) -> Result<Self, Error> {
        let indent = match indent {
            Some(value) => Some(value),
            None => options.get::<Option<Value>>("indent")?,
        };
        let indent = match indent.filter(|value| !value.is_none()) {
            None => None,
            Some(value) => Some(match (value.as_str(), value.as_usize()) {
                (Some(text), _) if text.len() <= 16 => text.to_owned(),
                (None, Some(width)) if width <= 16 => " ".repeat(width),
                _ => return Err(Error::new(ErrorKind::InvalidOperation, "indent above 16")),
            }),
        };
        let separators = options.get::<Option<Vec<String>>>("separators")?;
        let (item, key) = match separators.as_deref() {
            Some([item, key]) => (item.clone(), key.clone()),
            Some(_) => return Err(Error::new(ErrorKind::InvalidOperation, "two separators wanted")),
            None => (if indent.is_some() { "," } else { ", " }.to_owned(), ": ".to_owned()),
        };
        let ascii = options.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false);
        let sort = options.get::<Option<bool>>("sort_keys")?.unwrap_or(false);
        options.assert_all_used()?;
        Ok(Self { indent, item, key, ascii, sort })
    }
}

/// The filter `tojson` of transformers: `json.dumps(value, ensure_ascii=False, ...)`, nothing escaped for HTML.
pub fn tojson(value: &Value, indent: Option<Value>, options: Kwargs) -> Result<String, Error> {
    let style = Style::new(indent, &options)?;
    let mut out = String::new();
    write_json(&mut out, value, &style, 0)?;
    Ok(out)
}

fn write_json(out: &mut String, value: &Value, style: &Style, depth: usize) -> Result<(), Error> {
    if depth > MAX_DEPTH {
        return Err(Error::new(ErrorKind::InvalidOperation, "nested too deeply"));
    }
    match value.kind() {
        ValueKind::None => out.push_str("null"),
        ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
        ValueKind::Number => write_number(out, value).map_err(|_| unwritable())?,
        ValueKind::String => write_string(out, value.as_str().unwrap_or_default(), style.ascii),
        ValueKind::Seq | ValueKind::Iterable => {
            let mut items = Items::open(out, style, depth, '[', ']');
            for item in value.try_iter()? {
                items.next();
                write_json(items.out, &item, style, depth + 1)?;
                super::python::check_bytes(items.out.len())?;
            }
            items.close();
        }
        ValueKind::Map => {
            let mut keys = value.try_iter()?.collect::<Vec<_>>();
            if style.sort {
                keys.sort();
            }
            let mut items = Items::open(out, style, depth, '{', '}');
            for key in keys {
                items.next();
                match (key.as_str(), key.kind()) {
                    (Some(text), _) => write_string(items.out, text, style.ascii),
                    // Python turns these into strings.
                    (None, ValueKind::None | ValueKind::Bool | ValueKind::Number) => {
                        items.out.push('"');
                        write_json(items.out, &key, style, depth + 1)?;
                        items.out.push('"');
                    }
                    _ => return Err(unwritable()),
                }
                items.out.push_str(&style.key);
                write_json(items.out, &value.get_item(&key)?, style, depth + 1)?;
                super::python::check_bytes(items.out.len())?;
            }
            items.close();
        }
        _ => return Err(unwritable()),
    }
    Ok(())
}

fn unwritable() -> Error {
    Error::new(ErrorKind::BadSerialization, "not a JSON value")
}

/// The brackets, separators and line breaks of one list or dictionary.
struct Items<'a> {
    out: &'a mut String,
    style: &'a Style,
    depth: usize,
    close: char,
    empty: bool,
}

impl<'a> Items<'a> {
    fn open(out: &'a mut String, style: &'a Style, depth: usize, open: char, close: char) -> Self {
        out.push(open);
        Self { out, style, depth, close, empty: true }
    }

    fn next(&mut self) {
        if !std::mem::take(&mut self.empty) {
            self.out.push_str(&self.style.item);
        }
        self.new_line(self.depth + 1);
    }

    fn close(mut self) {
        if !self.empty {
            self.new_line(self.depth);
        }
        self.out.push(self.close);
    }

    fn new_line(&mut self, depth: usize) {
        if let Some(indent) = &self.style.indent {
            self.out.push('\n');
            for _ in 0..depth {
                self.out.push_str(indent);
            }
        }
    }
}

fn write_string(out: &mut String, text: &str, ascii: bool) {
    out.push('"');
    for char in text.chars() {
        match char {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            char if char < ' ' || (ascii && char > '~') => {
                for unit in char.encode_utf16(&mut [0; 2]) {
                    write!(out, "\\u{unit:04x}").expect("a String takes every write");
                }
            }
            char => out.push(char),
        }
    }
    out.push('"');
}

/// A number as Python's `repr`: floats switch to an exponent below 1e-4 and from 1e16 on.
fn write_number(out: &mut dyn Write, value: &Value) -> fmt::Result {
    if value.is_integer() {
        return write!(out, "{value}");
    }
    let number = f64::try_from(value.clone()).map_err(|_| fmt::Error)?;
    if !number.is_finite() {
        let name = if number.is_nan() { "NaN" } else { "Infinity" };
        return write!(out, "{}{name}", if number < 0.0 { "-" } else { "" });
    }
    let scientific = format!("{number:e}");
    let (digits, exponent) = scientific.split_once('e').ok_or(fmt::Error)?;
    let exponent: i32 = exponent.parse().map_err(|_| fmt::Error)?;
    if number == 0.0 || (-4..16).contains(&exponent) {
        return write!(out, "{number:?}");
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    write!(out, "{digits}e{sign}{:02}", exponent.abs())
}

/// Writes what a template prints as Python's `str` does.
pub fn write_str(out: &mut dyn Write, value: &Value) -> fmt::Result {
    match value.as_str() {
        Some(text) => out.write_str(text),
        None if value.is_undefined() => Ok(()),
        None => write_repr(out, value, 0),
    }
}

fn write_repr(out: &mut dyn Write, value: &Value, depth: usize) -> fmt::Result {
    if depth > MAX_DEPTH {
        return Err(fmt::Error);
    }
    match value.kind() {
        ValueKind::Number => write_number(out, value),
        ValueKind::String => write_repr_str(out, value.as_str().unwrap_or_default()),
        ValueKind::Seq | ValueKind::Iterable => {
            out.write_char('[')?;
            for (index, item) in value.try_iter().map_err(|_| fmt::Error)?.enumerate() {
                out.write_str(if index > 0 { ", " } else { "" })?;
                write_repr(out, &item, depth + 1)?;
            }
            out.write_char(']')
        }
        ValueKind::Map => {
            out.write_char('{')?;
            for (index, key) in value.try_iter().map_err(|_| fmt::Error)?.enumerate() {
                out.write_str(if index > 0 { ", " } else { "" })?;
                write_repr(out, &key, depth + 1)?;
                out.write_str(": ")?;
                write_repr(out, &value.get_item(&key).map_err(|_| fmt::Error)?, depth + 1)?;
            }
            out.write_char('}')
        }
        _ => write!(out, "{value}"),
    }
}

fn write_repr_str(out: &mut dyn Write, text: &str) -> fmt::Result {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.write_char(quote)?;
    for char in text.chars() {
        match char {
            '\\' => out.write_str("\\\\")?,
            '\n' => out.write_str("\\n")?,
            '\r' => out.write_str("\\r")?,
            '\t' => out.write_str("\\t")?,
            char if char == quote => write!(out, "\\{char}")?,
            char if char < ' ' || char == '\u{7f}' => write!(out, "\\x{:02x}", char as u32)?,
            char => out.write_char(char)?,
        }
    }
    out.write_char(quote)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_are_as_in_python() {
        let cases = [
            (0.0, "0.0"),
            (-0.0, "-0.0"),
            (1.0, "1.0"),
            (0.1, "0.1"),
            (1e15, "1000000000000000.0"),
            (1e16, "1e+16"),
            (1.5e300, "1.5e+300"),
            (0.0001, "0.0001"),
            (0.00001, "1e-05"),
            (-2.5e-7, "-2.5e-07"),
            (f64::NEG_INFINITY, "-Infinity"),
        ];
        for (number, expected) in cases {
            let mut out = String::new();
            write_number(&mut out, &Value::from(number)).unwrap();
            assert_eq!(out, expected);
        }
    }
}
