//! What a Lark grammar must keep to before llguidance compiles it, and the JSON Schemas in it.

use serde_json::Value;

use super::ResponseFormat;
use super::schema::{self, How};
use crate::error::{Error, Result};

/// What a grammar may have.
pub struct Limits {
    field: &'static str,
    bytes: usize,
    /// Rules refer to rules, and llguidance follows them by recursion.
    lines: usize,
    /// Brackets open at once on a line, those in its strings included.
    brackets: usize,
}

/// Limits of a grammar that a caller wrote.
pub const BY_HAND: Limits =
    Limits { field: "response_format", bytes: ResponseFormat::MAX_LARK_BYTES, lines: 512, brackets: 128 };
/// Limits of a grammar that was made of tools. Its rules refer to each other as deep as the tools' schemas are nested, which
/// has a limit of its own.
pub const OF_CALLS: Limits = Limits { field: "tools", bytes: 1 << 20, lines: 16_384, brackets: 256 };

/// The grammar, with its JSON Schemas lowered.
pub fn checked(
    text: &str,
    limits: &Limits,
    how: How,
    not_enforced: &mut Vec<&'static str>,
) -> Result<String> {
    let Limits { field, bytes, lines, brackets } = *limits;
    let expected = if text.len() > bytes {
        format!("a Lark grammar of at most {bytes} bytes")
    } else if text.lines().count() > lines {
        format!("a Lark grammar of at most {lines} lines")
    } else if text.lines().any(|line| most_open(line) > brackets) {
        format!("a Lark grammar with at most {brackets} brackets open at once on a line")
    } else {
        return lower_schemas(text, how, not_enforced);
    };
    Err(Error::request(field, expected))
}

fn lower_schemas(text: &str, how: How, not_enforced: &mut Vec<&'static str>) -> Result<String> {
    const KEYWORD: &str = "%json";
    let (mut lowered, mut rest) = (String::with_capacity(text.len()), text);
    while let Some(at) = rest.find(KEYWORD) {
        let (before, behind) = rest.split_at(at + KEYWORD.len());
        lowered.push_str(before);
        rest = behind;
        // Where no JSON follows, the keyword stands in a string or a comment, or llguidance will refuse it.
        let mut values = serde_json::Deserializer::from_str(behind).into_iter::<Value>();
        if let Some(Ok(document)) = values.next() {
            rest = &behind[values.byte_offset()..];
            let mut schema = schema::lowered(&document, how, not_enforced);
            // White space and the like are the grammar's own affair.
            if let (Ok(Value::Object(map)), Some(options)) = (&mut schema, document.get("x-guidance")) {
                map.insert("x-guidance".into(), options.clone());
            }
            crate::memory::json::wipe(document);
            let schema = schema?;
            lowered.push(' ');
            lowered.push_str(&schema.to_string());
            crate::memory::json::wipe(schema);
        }
    }
    lowered.push_str(rest);
    Ok(lowered)
}

/// The largest number of brackets that are open at once, as if there were no strings.
fn most_open(line: &str) -> usize {
    let (mut open, mut most) = (0_usize, 0);
    for byte in line.bytes() {
        match byte {
            b'(' | b'[' | b'{' => open += 1,
            b')' | b']' | b'}' => open = open.saturating_sub(1),
            _ => {}
        }
        most = most.max(open);
    }
    most
}
