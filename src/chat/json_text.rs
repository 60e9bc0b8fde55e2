//! Values as Python writes them: `json.dumps` for the filter `tojson`, `str` for what a template prints.

use std::fmt::{self, Write};

use minijinja::value::{Value, ValueKind};
use minijinja::{Error, ErrorKind};

use super::values::{self, Row};

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
    fn new(args: &[Value]) -> Result<Self, Error> {
        let names = ["ensure_ascii", "indent", "separators", "sort_keys"];
        let [ascii, indent, separators, sort] = values::bind(args, names)?;
        let indent = match indent.filter(|value| !value.is_none()) {
            None => None,
            Some(value) => Some(match (value.as_str(), values::whole(&value)) {
                (Some(text), _) if text.len() <= 16 => text.to_owned(),
                (None, Some(width)) if width <= 16 => " ".repeat(width.max(0) as usize),
                _ => return Err(Error::new(ErrorKind::InvalidOperation, "indent above 16")),
            }),
        };
        let separators = separators.filter(|value| !value.is_none());
        let (item, key) = match separators.map(|value| values::items(&value)).transpose()?.as_deref() {
            Some([item, key]) => (values::text(Some(item))?, values::text(Some(key))?),
            Some(_) => return Err(Error::new(ErrorKind::InvalidOperation, "two separators wanted")),
            None => (if indent.is_some() { "," } else { ", " }.to_owned(), ": ".to_owned()),
        };
        let is_set = |value: Option<Value>| value.is_some_and(|value| value.is_true());
        Ok(Self { indent, item, key, ascii: is_set(ascii), sort: is_set(sort) })
    }
}

/// The filter `tojson` of transformers: `json.dumps(value, ensure_ascii=False, ...)`, nothing escaped for HTML.
pub fn tojson(value: &Value, args: &[Value]) -> Result<String, Error> {
    let style = Style::new(args)?;
    let mut out = String::new();
    write_json(&mut out, value, &style, 0)?;
    Ok(out)
}

fn write_json(out: &mut String, value: &Value, style: &Style, depth: usize) -> Result<(), Error> {
    if depth > MAX_DEPTH {
        return Err(Error::new(ErrorKind::InvalidOperation, "nested too deeply"));
    }
    let value = &values::as_object(value)?;
    if values::row(value).is_some_and(|row| !matches!(row, Row::Tuple | Row::Group)) {
        return Err(unwritable());
    }
    match value.kind() {
        ValueKind::None => out.push_str("null"),
        ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
        ValueKind::Number => write_number(out, value, ["NaN", "Infinity"]).map_err(|_| unwritable())?,
        ValueKind::String => write_string(out, value.as_str().unwrap_or_default(), style.ascii),
        ValueKind::Seq | ValueKind::Iterable => {
            let mut items = Items::open(out, style, depth, '[', ']');
            for item in value.try_iter()? {
                items.next();
                write_json(items.out, &item, style, depth + 1)?;
                super::budget::check_bytes(items.out.len())?;
            }
            items.close();
        }
        ValueKind::Map if values::is_map(value) => {
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
                super::budget::check_bytes(items.out.len())?;
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

/// A number as Python's `repr`: floats switch to an exponent below 1e-4 and from 1e16 on. `names` are those of what is
/// not a number, and of the infinite.
fn write_number(out: &mut dyn Write, value: &Value, names: [&str; 2]) -> fmt::Result {
    if value.is_integer() {
        return write!(out, "{value}");
    }
    let number = f64::try_from(value.clone()).map_err(|_| fmt::Error)?;
    if !number.is_finite() {
        let name = names[usize::from(!number.is_nan())];
        return write!(out, "{}{name}", if number < 0.0 { "-" } else { "" });
    }
    out.write_str(&float_text(number))
}

/// A finite float as Python's `repr`.
pub fn float_text(number: f64) -> String {
    let scientific = format!("{number:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if number == 0.0 || (-4..16).contains(&exponent) {
        return format!("{number:?}");
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{digits}e{sign}{:02}", exponent.abs())
}

/// Writes what a template prints as Python's `str` does.
pub fn write_str(out: &mut dyn Write, value: &Value) -> fmt::Result {
    match value.as_str() {
        Some(text) => out.write_str(text),
        None if value.is_undefined() => Ok(()),
        None => match values::as_text(value) {
            text if text.as_str().is_some() => out.write_str(text.as_str().unwrap_or_default()),
            value => write_repr(out, &value, 0),
        },
    }
}

/// Writes a value as Python's `repr` does.
///
/// # Errors
/// It is nested too deeply, or `out` takes no more.
pub fn write_repr(out: &mut dyn Write, value: &Value, depth: usize) -> fmt::Result {
    if depth > MAX_DEPTH {
        return Err(fmt::Error);
    }
    let value = &values::sent_object(value);
    if let Some(row) = values::row(value) {
        return write_row(out, value, row, depth);
    }
    match value.kind() {
        ValueKind::Undefined => out.write_str("Undefined"),
        ValueKind::Number => write_number(out, value, ["nan", "inf"]),
        ValueKind::String => write_repr_str(out, value.as_str().unwrap_or_default()),
        ValueKind::Seq | ValueKind::Iterable => {
            out.write_char('[')?;
            write_items(out, value, depth)?;
            out.write_char(']')
        }
        ValueKind::Map if values::is_map(value) => {
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

fn write_items(out: &mut dyn Write, value: &Value, depth: usize) -> fmt::Result {
    for (index, item) in value.try_iter().map_err(|_| fmt::Error)?.enumerate() {
        out.write_str(if index > 0 { ", " } else { "" })?;
        write_repr(out, &item, depth + 1)?;
    }
    Ok(())
}

fn write_row(out: &mut dyn Write, value: &Value, row: Row, depth: usize) -> fmt::Result {
    let (open, close) = match row {
        Row::Tuple | Row::Group if value.len() == Some(1) => ("(", ",)"),
        Row::Tuple | Row::Group => ("(", ")"),
        Row::Keys => ("dict_keys([", "])"),
        Row::Values => ("dict_values([", "])"),
        Row::Items => ("dict_items([", "])"),
        // Python adds its address.
        Row::Generator => return out.write_str("<generator object>"),
    };
    out.write_str(open)?;
    write_items(out, value, depth)?;
    out.write_str(close)
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
            char if !is_printable(char) => match char as u32 {
                code @ ..0x100 => write!(out, "\\x{code:02x}")?,
                code @ ..0x10000 => write!(out, "\\u{code:04x}")?,
                code => write!(out, "\\U{code:08x}")?,
            },
            char => out.write_char(char)?,
        }
    }
    out.write_char(quote)
}

/// Whether Python's `repr` shows the character itself; code points without a character are not told apart.
pub fn is_printable(char: char) -> bool {
    !matches!(char,
        '\0'..='\x1f' | '\x7f'..='\u{a0}' | '\u{ad}' | '\u{600}'..='\u{605}' | '\u{61c}' | '\u{6dd}' | '\u{70f}'
        | '\u{1680}' | '\u{180e}' | '\u{2000}'..='\u{200f}' | '\u{2028}'..='\u{202f}' | '\u{205f}'..='\u{206f}'
        | '\u{3000}' | '\u{e000}'..='\u{f8ff}' | '\u{feff}' | '\u{fff0}'..='\u{fffb}' | '\u{fffe}'..='\u{ffff}'
        | '\u{e0000}'..='\u{e0fff}' | '\u{f0000}'..)
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
            (f64::NEG_INFINITY, "-inf"),
        ];
        for (number, expected) in cases {
            let mut out = String::new();
            write_number(&mut out, &Value::from(number), ["nan", "inf"]).unwrap();
            assert_eq!(out, expected);
        }
    }
}
