//! What a Lark grammar must keep to before llguidance compiles it, and the JSON Schemas in it.

use serde_json::Value;

use super::ResponseFormat;
use super::schema::{self, How};
use crate::error::{Error, Result};

/// Lines of a Lark grammar: rules refer to rules, and llguidance follows them by recursion.
const MAX_LARK_LINES: usize = 512;
/// Brackets open at once on a line of a Lark grammar, those in its strings included.
const MAX_LARK_BRACKETS: usize = 128;

/// The grammar, with its JSON Schemas lowered.
pub fn checked(text: &str, how: How, not_enforced: &mut Vec<&'static str>) -> Result<String> {
    let expected = if text.len() > ResponseFormat::MAX_LARK_BYTES {
        format!("a Lark grammar of at most {} bytes", ResponseFormat::MAX_LARK_BYTES)
    } else if text.lines().count() > MAX_LARK_LINES {
        format!("a Lark grammar of at most {MAX_LARK_LINES} lines")
    } else if text.lines().any(|line| most_open(line) > MAX_LARK_BRACKETS) {
        format!("a Lark grammar with at most {MAX_LARK_BRACKETS} brackets open at once on a line")
    } else {
        return lower_schemas(text, how, not_enforced);
    };
    Err(Error::request("response_format", expected))
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
