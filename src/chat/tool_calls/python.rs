//! Calls as Python writes them, `[name(key=value)]`, and Python literals as JSON.

use std::io::Write;

use super::emit::Calls;
use super::scan::{Rewrite, match_any_tag, skip_blank};
use super::types::quote;
use super::{CallParser, Outcome};
use crate::memory::secret::{Growing, Secret};

/// The marks of a format.
#[derive(Debug)]
pub struct Marks {
    /// What may begin a block; `[` does, too.
    pub opens: &'static [&'static str],
    pub closes: &'static [&'static str],
}

pub const PYTHONIC: Marks = Marks { opens: &[], closes: &[] };
pub const LLAMA4: Marks = Marks { opens: &["<|python_start|>"], closes: &["<|python_end|>"] };
pub const LFM2: Marks = Marks { opens: &["<|tool_call_start|>"], closes: &["<|tool_call_end|>"] };
pub const OLMO3: Marks = Marks { opens: &["<function_calls>"], closes: &["</function_calls>"] };
/// What Google's instructions for Gemma 3 ask for.
pub const GEMMA3: Marks = Marks { opens: &["```tool_code"], closes: &["```"] };

/// Literals in literals.
const MAX_DEPTH: usize = 64;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Open,
    Bracket,
    Name,
    Parameter,
    Value,
    /// Behind a call.
    Behind,
    Close,
}

/// Calls one behind another.
pub struct Pythonic {
    marks: &'static Marks,
    state: State,
    at: usize,
    listed: bool,
    any: bool,
    count: usize,
    key: (usize, usize),
    from: usize,
    scan: LiteralEnd,
}

impl Pythonic {
    pub fn new(marks: &'static Marks) -> Self {
        Self {
            marks,
            state: State::Open,
            at: 0,
            listed: false,
            any: false,
            count: 0,
            key: (0, 0),
            from: 0,
            scan: LiteralEnd::default(),
        }
    }

    /// A word from `at` on, if it is known where it ends.
    fn word<'t>(&self, text: &'t str, end: bool) -> Result<&'t str, ()> {
        let rest = &text[self.at..];
        let len = rest.find(|char: char| !(char.is_alphanumeric() || matches!(char, '_' | '.' | '-')));
        match len {
            None if !end => Err(()),
            None => Ok(rest),
            Some(len) => Ok(&rest[..len]),
        }
    }

    fn name(&mut self, text: &str, end: bool, calls: &mut Calls<'_, '_>) -> Option<Outcome> {
        let Ok(name) = self.word(text, end) else { return Some(Outcome::Wait) };
        let after = self.at + name.len();
        if name.is_empty() || name.starts_with(|char: char| char.is_ascii_digit()) {
            return Some(Outcome::Not(self.at.max(1)));
        }
        if text.as_bytes().get(after) != Some(&b'(') {
            return Some(Outcome::Not(after));
        }
        calls.begin("", name);
        (self.at, self.count, self.state) = (after + 1, 0, State::Parameter);
        None
    }

    fn parameter(&mut self, text: &str, end: bool, calls: &mut Calls<'_, '_>) -> Option<Outcome> {
        match text.as_bytes().get(self.at) {
            None => return Some(Outcome::Wait),
            Some(b')') => {
                calls.arguments(if self.count == 0 { "{}" } else { "}" });
                calls.end();
                let done = self.at + 1;
                (self.at, self.any, self.state) = (0, true, State::Behind);
                return Some(Outcome::Part(done));
            }
            Some(_) => {}
        }
        let Ok(key) = self.word(text, end) else { return Some(Outcome::Wait) };
        let after = skip_blank(text, self.at + key.len());
        match text.as_bytes().get(after) {
            None => Some(Outcome::Wait),
            Some(b'=') if !key.is_empty() => {
                self.key = (self.at, self.at + key.len());
                self.at = after + 1;
                (self.from, self.scan, self.state) = (self.at, LiteralEnd::default(), State::Value);
                None
            }
            Some(_) => Some(Outcome::Not(after)),
        }
    }

    fn value(&mut self, text: &str, calls: &mut Calls<'_, '_>) -> Option<Outcome> {
        let Some(end) = self.scan.find(text, &mut self.at) else { return Some(Outcome::Wait) };
        let mut out = Secret::<[u8]>::with_capacity(end - self.from + 16);
        out.extend(if self.count == 0 { b"{" } else { b", " });
        quote(&text[self.key.0..self.key.1], &mut out);
        out.extend(b": ");
        if !literal(&text[self.from..end], &mut out) {
            return Some(Outcome::Not(end));
        }
        calls.arguments(std::str::from_utf8(out.expose()).expect("JSON is UTF-8"));
        self.count += 1;
        self.at = end + usize::from(text.as_bytes()[end] == b',');
        self.state = State::Parameter;
        None
    }

    fn behind(&mut self, text: &str, end: bool) -> Option<Outcome> {
        match text.as_bytes().get(self.at) {
            None if !end => return Some(Outcome::Wait),
            Some(b',' | b';') => {
                self.at = skip_blank(text, self.at + 1);
                self.state = State::Name;
            }
            Some(b']') if self.listed => {
                (self.at, self.state) = (self.at + 1, State::Close);
            }
            // without brackets a line is a call
            Some(byte) if !self.listed && (byte.is_ascii_alphabetic() || *byte == b'_') => {
                self.state = State::Name;
            }
            _ => self.state = State::Close,
        }
        None
    }
}

impl CallParser for Pythonic {
    fn read(&mut self, text: &str, end: bool, calls: &mut Calls<'_, '_>) -> Outcome {
        loop {
            let before = self.at;
            if self.state != State::Value {
                self.at = skip_blank(text, self.at);
            }
            let outcome = match self.state {
                State::Open => match match_any_tag(text, self.at, self.marks.opens, end) {
                    Some(Err(())) => Some(Outcome::Wait),
                    found => {
                        self.at = found.and_then(Result::ok).map_or(self.at, |(_, after)| after);
                        self.state = State::Bracket;
                        None
                    }
                },
                State::Bracket => match text.as_bytes().get(self.at) {
                    None => Some(Outcome::Wait),
                    byte => {
                        self.listed = byte == Some(&b'[');
                        self.at += usize::from(self.listed);
                        self.state = State::Name;
                        None
                    }
                },
                State::Name if self.at == text.len() => Some(Outcome::Wait),
                State::Name => self.name(text, end, calls),
                State::Parameter => self.parameter(text, end, calls),
                State::Value => self.value(text, calls),
                State::Behind => self.behind(text, end),
                State::Close => match match_any_tag(text, self.at, self.marks.closes, end) {
                    Some(Err(())) => Some(Outcome::Wait),
                    Some(Ok((_, after))) => Some(Outcome::Over(after)),
                    None => Some(Outcome::Over(before)),
                },
            };
            if let Some(outcome) = outcome {
                return outcome;
            }
        }
    }
}

/// Where a parameter's value ends: at a comma or a bracket that is not within it.
#[derive(Debug, Default)]
struct LiteralEnd {
    depth: usize,
    /// The quote that ends the string, and whether it takes three of them.
    quote: Option<(u8, bool)>,
    escaped: bool,
}

impl LiteralEnd {
    fn find(&mut self, text: &str, at: &mut usize) -> Option<usize> {
        let bytes = text.as_bytes();
        while let Some(&byte) = bytes.get(*at) {
            let three = |at: usize| bytes.get(at..at + 3).map(|three| three == [byte; 3]);
            match (byte, self.quote) {
                _ if self.escaped => self.escaped = false,
                (b'\\', Some(_)) => self.escaped = true,
                (_, Some((quote, false))) if byte == quote => self.quote = None,
                (_, Some((quote, true))) if byte == quote && three(*at)? => {
                    *at += 2;
                    self.quote = None;
                }
                (_, Some(_)) => {}
                (b'"' | b'\'', None) => {
                    // two quotes are an empty string, three begin a long one
                    let triple = if bytes.get(*at + 1)? == &byte { three(*at)? } else { false };
                    *at += if triple { 2 } else { 0 };
                    self.quote = Some((byte, triple));
                }
                (b'(' | b'[' | b'{', None) => self.depth += 1,
                (b',' | b')', None) if self.depth == 0 => return Some(*at),
                (b')' | b']' | b'}', None) => self.depth = self.depth.saturating_sub(1),
                _ => {}
            }
            *at += 1;
        }
        None
    }
}

/// Writes a Python literal as JSON; false where it is none. Python's and JSON's words are both read.
pub fn literal(text: &str, out: &mut Secret<[u8]>) -> bool {
    let mut parser = Literal { text, at: 0, out };
    parser.blank();
    let read = parser.value(0).is_some();
    parser.blank();
    read && parser.at == text.len()
}

struct Literal<'a> {
    text: &'a str,
    at: usize,
    out: &'a mut Secret<[u8]>,
}

impl Rewrite for Literal<'_> {
    fn next(&mut self) -> Option<u8> {
        self.blank();
        self.peek()
    }

    fn pass(&mut self) {
        self.at += 1;
    }

    fn out(&mut self) -> &mut Secret<[u8]> {
        self.out
    }
}

impl Literal<'_> {
    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn blank(&mut self) {
        self.at = skip_blank(self.text, self.at);
    }

    fn value(&mut self, depth: usize) -> Option<()> {
        if depth > MAX_DEPTH {
            return None;
        }
        match self.peek()? {
            b'"' | b'\'' => self.string(),
            b'[' => self.list(b']', depth),
            b'(' => self.list(b')', depth),
            b'{' => self.dictionary(depth),
            b'-' | b'+' | b'.' | b'0'..=b'9' => self.number(),
            _ => self.word(),
        }
    }

    fn list(&mut self, close: u8, depth: usize) -> Option<()> {
        self.items(close, [b"[", b"]"], |this| this.value(depth + 1))
    }

    fn dictionary(&mut self, depth: usize) -> Option<()> {
        self.items(b'}', [b"{", b"}"], |this| {
            this.key()?;
            (this.next()? == b':').then_some(())?;
            this.at += 1;
            this.out.extend(b": ");
            this.blank();
            this.value(depth + 1)
        })
    }

    /// Keys that are no texts become such, as `json.dumps` makes them.
    fn key(&mut self) -> Option<()> {
        if matches!(self.peek()?, b'"' | b'\'') {
            return self.string();
        }
        self.out.extend(b"\"");
        match self.peek()? {
            b'-' | b'+' | b'.' | b'0'..=b'9' => self.number()?,
            _ => self.word()?,
        }
        self.out.extend(b"\"");
        Some(())
    }

    fn word(&mut self) -> Option<()> {
        let rest = &self.text[self.at..];
        let len = rest.find(|char: char| !char.is_alphanumeric() && char != '_').unwrap_or(rest.len());
        let json: &[u8] = match &rest[..len] {
            "True" | "true" => b"true",
            "False" | "false" => b"false",
            "None" | "null" => b"null",
            _ => return None,
        };
        self.at += len;
        self.out.extend(json);
        Some(())
    }

    fn number(&mut self) -> Option<()> {
        let rest = &self.text[self.at..];
        let part = |char: char| char.is_ascii_alphanumeric() || "+-._".contains(char);
        let len = rest.find(|char: char| !part(char)).unwrap_or(rest.len());
        let (sign, digits) = match rest.as_bytes()[0] {
            b'-' => ("-", &rest[1..len]),
            b'+' => ("", &rest[1..len]),
            _ => ("", &rest[..len]),
        };
        let mut plain = Secret::<[u8]>::with_capacity(len);
        digits.bytes().filter(|byte| *byte != b'_').for_each(|byte| plain.push(byte));
        let plain = std::str::from_utf8(plain.expose()).ok()?;
        let whole = plain.bytes().all(|byte| byte.is_ascii_digit());
        self.out.extend(sign.as_bytes());
        // into the secret at once: a string would grow, and leave copies
        let written = if whole && !plain.is_empty() {
            (plain == "0" || !plain.starts_with('0')).then_some(())?;
            self.out.extend(plain.as_bytes());
            Ok(())
        } else if let Some(hex) = plain.strip_prefix("0x") {
            write!(Growing(self.out), "{}", u64::from_str_radix(hex, 16).ok()?)
        } else {
            let begins = plain.starts_with(|char: char| char.is_ascii_digit() || char == '.');
            let number = plain.parse::<f64>().ok().filter(|number| begins && number.is_finite())?;
            write!(Growing(self.out), "{number:?}")
        };
        written.ok()?;
        self.at += len;
        Some(())
    }

    fn string(&mut self) -> Option<()> {
        let quote_byte = self.peek()?;
        let long = self.text.as_bytes()[self.at..].starts_with(&[quote_byte; 3]);
        self.at += if long { 3 } else { 1 };
        let mut text = Secret::<[u8]>::default();
        loop {
            let rest = &self.text[self.at..];
            let char = rest.chars().next()?;
            let ends = if long {
                rest.as_bytes().starts_with(&[quote_byte; 3])
            } else {
                char == char::from(quote_byte)
            };
            if ends {
                self.at += if long { 3 } else { 1 };
                break;
            }
            self.at += char.len_utf8();
            let char = if char == '\\' { self.escape()? } else { Some(char) };
            if let Some(char) = char {
                let mut bytes = [0; 4];
                text.extend(char.encode_utf8(&mut bytes).as_bytes());
            }
        }
        quote(std::str::from_utf8(text.expose()).ok()?, self.out);
        Some(())
    }

    /// What stands behind a backslash; `Some(None)` where that is nothing.
    fn escape(&mut self) -> Option<Option<char>> {
        let char = self.text[self.at..].chars().next()?;
        self.at += char.len_utf8();
        Some(Some(match char {
            'n' => '\n',
            't' => '\t',
            'r' => '\r',
            'b' => '\u{8}',
            'f' => '\u{c}',
            'a' => '\u{7}',
            'v' => '\u{b}',
            '0' => '\0',
            '\\' | '\'' | '"' => char,
            '\n' => return Some(None),
            'x' => self.code(2)?,
            'u' => self.code(4)?,
            'U' => self.code(8)?,
            // Python keeps the backslash of what is no escape
            _ => {
                self.at -= char.len_utf8();
                '\\'
            }
        }))
    }

    fn code(&mut self, digits: usize) -> Option<char> {
        let code = self.text.get(self.at..self.at + digits)?;
        let code = u32::from_str_radix(code, 16).ok()?;
        self.at += digits;
        char::from_u32(code)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `json.dumps(ast.literal_eval(text), ensure_ascii=False)` says what is right.
    #[test]
    fn literals_become_json() {
        for (text, json) in [
            ("'San Francisco'", "\"San Francisco\""),
            ("\"it's\"", "\"it's\""),
            ("'a\\'b\\n\\x41\\u00e9\\q'", "\"a'b\\nAé\\\\q\""),
            ("'''a'b'''", "\"a'b\""),
            ("[1, 2.50, -3, 1e3, True, None,]", "[1, 2.5, -3, 1000.0, true, null]"),
            ("{'a': {'b': (1, 'x')}, 2: []}", "{\"a\": {\"b\": [1, \"x\"]}, \"2\": []}"),
            ("1_000", "1000"),
            ("0x1f", "31"),
            ("{}", "{}"),
        ] {
            let mut out = Secret::<[u8]>::default();
            assert!(literal(text, &mut out), "{text}");
            assert_eq!(String::from_utf8_lossy(out.expose()), json, "{text}");
        }
        for none in ["", "x", "f()", "'a", "[1", "1 2", "{1}", "012", "inf", "--1"] {
            assert!(!literal(none, &mut Secret::<[u8]>::default()), "{none}");
        }
        let deep = "[".repeat(100_000);
        assert!(!literal(&deep, &mut Secret::<[u8]>::default()));
    }
}
