//! Texts as Python changes them: case, lines, replacements.

use std::borrow::Cow;

use minijinja::value::Value;
use minijinja::{Error, State};

use super::budget::{self, check_bytes};

/// White space as `str.split` sees it.
pub fn is_space(char: char) -> bool {
    char.is_whitespace() || ('\x1c'..='\x1f').contains(&char)
}

/// `str(value)`.
///
/// # Errors
/// It is too long.
pub fn string<'a>(state: &State, value: &'a Value) -> Result<Cow<'a, str>, Error> {
    if let Some(text) = value.as_str() {
        return Ok(Cow::Borrowed(text));
    }
    let text = budget::joined(state, std::iter::once(value))?;
    Ok(Cow::Owned(text.as_str().unwrap_or_default().to_owned()))
}

/// Values as texts, with `separator` between them.
///
/// # Errors
/// They are too long.
pub fn join(state: &State, values: &[Value], separator: &Value) -> Result<Value, Error> {
    let parts = values.iter().enumerate().flat_map(|(at, value)| {
        let before = if at > 0 { Some(separator) } else { None };
        before.into_iter().chain(std::iter::once(value))
    });
    budget::joined(state, parts)
}

/// A text in the case that the method `name` gives it.
pub fn cased(text: &str, name: &str) -> String {
    match name {
        "upper" => text.to_uppercase(),
        "lower" => text.to_lowercase(),
        "casefold" => text.replace(['ß', 'ẞ'], "ss").replace('ſ', "s").to_lowercase().replace('ς', "σ"),
        "capitalize" => {
            let mut chars = text.chars();
            let first: String = chars.next().map(|char| char.to_uppercase().collect()).unwrap_or_default();
            first + &chars.as_str().to_lowercase()
        }
        "swapcase" => text
            .chars()
            .flat_map(|char| -> Vec<char> {
                match (char.is_uppercase(), char.is_lowercase()) {
                    (true, _) => char.to_lowercase().collect(),
                    (_, true) => char.to_uppercase().collect(),
                    _ => vec![char],
                }
            })
            .collect(),
        _ => {
            let mut inside = false;
            let mut out = String::with_capacity(text.len());
            for char in text.chars() {
                match inside {
                    true => out.extend(char.to_lowercase()),
                    false => out.extend(char.to_uppercase()),
                }
                inside = char.is_uppercase() || char.is_lowercase();
            }
            out
        }
    }
}

/// The filter `title`: words begin after white space, hyphens and opening brackets.
pub fn titled(text: &str) -> String {
    let mut inside = false;
    let mut out = String::with_capacity(text.len());
    for char in text.chars() {
        let between = is_space(char) || matches!(char, '-' | '(' | '{' | '[' | '<');
        match inside && !between {
            true => out.extend(char.to_lowercase()),
            false => out.extend(char.to_uppercase()),
        }
        inside = !between;
    }
    out
}

/// `text.replace(old, new, count)`.
///
/// # Errors
/// The result is too long.
pub fn replace(text: &str, old: &str, new: &str, count: Option<i64>) -> Result<Value, Error> {
    let most = count.filter(|count| *count >= 0).map_or(usize::MAX, |count| count as usize);
    let places = match old.is_empty() {
        true => text.chars().count() + 1,
        false => text.matches(old).count(),
    };
    check_bytes(places.min(most).saturating_mul(new.len()).saturating_add(text.len()))?;
    Ok(Value::from(text.replacen(old, new, most)))
}

/// Lines between any of the line breaks that Python knows.
pub fn lines(text: &str, keep_ends: bool) -> impl Iterator<Item = &str> {
    let is_end = |char: char| {
        matches!(char, '\n' | '\r' | '\x0b' | '\x0c' | '\x1c'..='\x1e' | '\u{85}' | '\u{2028}' | '\u{2029}')
    };
    let mut rest = text;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let Some(at) = rest.find(is_end) else { return Some(std::mem::take(&mut rest)) };
        let end = &rest[at..];
        let width = if end.starts_with("\r\n") { 2 } else { end.chars().next().map_or(1, char::len_utf8) };
        let line = &rest[..if keep_ends { at + width } else { at }];
        rest = &rest[at + width..];
        Some(line)
    })
}

/// The filter `indent`.
///
/// # Errors
/// The result is too long.
pub fn indent(text: &str, by: &str, first: bool, blank: bool) -> Result<Value, Error> {
    let with_end = format!("{text}\n");
    let count = lines(&with_end, false).count();
    check_bytes(count.saturating_mul(by.len() + 1).saturating_add(text.len()))?;
    let mut out = String::new();
    for (at, line) in lines(&with_end, false).enumerate() {
        if at > 0 {
            out.push('\n');
        }
        let indented = if at == 0 { first } else { blank || !line.is_empty() };
        if indented {
            out.push_str(by);
        }
        out.push_str(line);
    }
    Ok(Value::from(out))
}

/// Percent-encoding of UTF-8.
pub fn quoted(text: &str, for_query: bool) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z' | b'_' | b'.' | b'-' | b'~' => out.push(byte as char),
            b'/' if !for_query => out.push('/'),
            b' ' if for_query => out.push('+'),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

/// Characters that mean something in HTML, as entities.
pub fn escaped(text: &str) -> String {
    let entity = |char: char| match char {
        '&' => "&amp;",
        '<' => "&lt;",
        '>' => "&gt;",
        '"' => "&#34;",
        '\'' => "&#39;",
        _ => "",
    };
    let mut out = String::with_capacity(text.len());
    for char in text.chars() {
        match entity(char) {
            "" => out.push(char),
            entity => out.push_str(entity),
        }
    }
    out
}

/// Text without comments and tags of HTML, its white space made single spaces, the common entities resolved.
pub fn without_tags(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('<') {
        let end = if rest[at..].starts_with("<!--") { "-->" } else { ">" };
        let Some(length) = rest[at..].find(end) else { break };
        out.push_str(&rest[..at]);
        rest = &rest[at + length + end.len()..];
    }
    out.push_str(rest);
    let words: Vec<_> = out.split(is_space).filter(|word| !word.is_empty()).collect();
    let entities =
        [("&lt;", "<"), ("&gt;", ">"), ("&quot;", "\""), ("&#34;", "\""), ("&#39;", "'"), ("&amp;", "&")];
    entities.iter().fold(words.join(" "), |text, (entity, char)| text.replace(entity, char))
}
