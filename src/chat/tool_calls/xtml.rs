//! The calls of Kimi K3: elements whose marks are three tokens each, `<|open|>call tool="name"<|sep|>`.

use super::emit::Calls;
use super::scan::{TagMatch, find_tag, match_any_tag, match_tag, skip_blank};
use super::types::{Parameter, Reading, Type, convert, quote};
use super::{CallParser, Outcome};
use crate::memory::secret::Secret;

pub const OPEN: &str = "<|open|>tools<|sep|>";
const CLOSE: &str = "<|close|>tools<|sep|>";
const CALL: &str = "<|open|>call ";
const END_CALL: &str = "<|close|>call<|sep|>";
const ARGUMENT: &str = "<|open|>argument ";
const END_ARGUMENT: &str = "<|close|>argument<|sep|>";
const SEPARATOR: &str = "<|sep|>";
/// The longest attributes.
const MAX_HEAD: usize = 1024;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Open,
    /// Between calls, or before the first.
    Between,
    Call,
    Arguments,
    Argument,
    Value,
}

/// Calls in a channel of their own.
pub struct Xtml {
    state: State,
    at: usize,
    searched: usize,
    key: Secret<str>,
    /// Whether the value at hand is text.
    text: bool,
    any: bool,
    count: usize,
}

impl Xtml {
    pub fn new() -> Self {
        Self {
            state: State::Open,
            at: 0,
            searched: 0,
            key: Secret::default(),
            text: true,
            any: false,
            count: 0,
        }
    }

    fn enter(&mut self, state: State, at: usize) {
        (self.state, self.at, self.searched) = (state, at, at);
    }

    /// Attributes up to the mark behind them.
    fn head<'t>(&mut self, text: &'t str) -> Option<&'t str> {
        let at = find_tag(text, &mut self.searched, SEPARATOR)?;
        let head = &text[self.at..at];
        self.at = at + SEPARATOR.len();
        Some(head)
    }

    fn between(&mut self, text: &str, end: bool) -> Option<Outcome> {
        let blank = skip_blank(text, self.at);
        match match_any_tag(text, blank, &[CALL, CLOSE], end) {
            Some(Err(())) => return Some(Outcome::Wait),
            Some(Ok((0, after))) => self.enter(State::Call, after),
            Some(Ok((_, after))) if self.any => return Some(Outcome::Over(after)),
            None if self.any => return Some(Outcome::Over(self.at)),
            Some(Ok((_, after))) => return Some(Outcome::Not(after)),
            None => return Some(Outcome::Not(blank.max(1))),
        }
        None
    }

    /// An argument, or the call's end.
    fn arguments(&mut self, text: &str, end: bool, calls: &mut Calls<'_, '_>) -> Option<Outcome> {
        let blank = skip_blank(text, self.at);
        match match_any_tag(text, blank, &[ARGUMENT, END_CALL], end) {
            Some(Err(())) => return Some(Outcome::Wait),
            Some(Ok((0, after))) => self.enter(State::Argument, after),
            Some(Ok((_, after))) => {
                calls.arguments(if self.count == 0 { "{}" } else { "}" });
                calls.end();
                self.any = true;
                self.enter(State::Between, 0);
                return Some(Outcome::Part(after));
            }
            None => return Some(Outcome::Not(blank)),
        }
        None
    }

    fn give(&mut self, value: &str, calls: &mut Calls<'_, '_>) {
        let mut out = Secret::<[u8]>::with_capacity(value.len() + self.key.expose().len() + 8);
        out.extend(if self.count == 0 { b"{" } else { b", " });
        quote(self.key.expose(), &mut out);
        out.extend(b": ");
        let kind = if self.text { Type::Text } else { Type::Any };
        convert(value, Some(Parameter { kind, nullable: !self.text }), Reading::Text, &mut out);
        self.count += 1;
        calls.arguments(std::str::from_utf8(out.expose()).expect("JSON is UTF-8"));
    }
}

impl CallParser for Xtml {
    fn read(&mut self, text: &str, end: bool, calls: &mut Calls<'_, '_>) -> Outcome {
        loop {
            let outcome = match self.state {
                State::Open => match match_tag(text, self.at, OPEN, end) {
                    TagMatch::Wait => Some(Outcome::Wait),
                    TagMatch::No => Some(Outcome::Not(1)),
                    TagMatch::Yes(after) => {
                        self.enter(State::Between, after);
                        None
                    }
                },
                State::Between => self.between(text, end),
                State::Call => match self.head(text) {
                    None if text.len() - self.at > MAX_HEAD => Some(Outcome::Not(self.at)),
                    None => Some(Outcome::Wait),
                    Some(head) => match attribute(head, "tool").filter(|name| !name.expose().is_empty()) {
                        None => Some(Outcome::Not(self.at)),
                        Some(name) => {
                            calls.begin("", name.expose());
                            self.count = 0;
                            self.enter(State::Arguments, self.at);
                            None
                        }
                    },
                },
                State::Arguments => self.arguments(text, end, calls),
                State::Argument => match self.head(text) {
                    None if text.len() - self.at > MAX_HEAD => Some(Outcome::Not(self.at)),
                    None => Some(Outcome::Wait),
                    Some(head) => {
                        self.key = attribute(head, "key").unwrap_or_default();
                        self.text = attribute(head, "type").is_none_or(|kind| kind.expose() == "string");
                        self.enter(State::Value, self.at);
                        None
                    }
                },
                State::Value => match find_tag(text, &mut self.searched, END_ARGUMENT) {
                    None => Some(Outcome::Wait),
                    Some(to) => {
                        self.give(&text[self.at..to], calls);
                        self.enter(State::Arguments, to + END_ARGUMENT.len());
                        None
                    }
                },
            };
            if let Some(outcome) = outcome {
                return outcome;
            }
        }
    }
}

/// The value of an attribute, in which quotes and ampersands are escaped.
fn attribute(head: &str, name: &str) -> Option<Secret<str>> {
    let mut rest = head;
    loop {
        let (key, behind) = rest.split_once("=\"")?;
        let (value, behind) = behind.split_once('"')?;
        let word = key.rsplit(|char: char| !char.is_alphanumeric() && char != '_').next();
        if word == Some(name) {
            let quotes = Secret::new(value.replace("&quot;", "\""));
            return Some(Secret::new(quotes.expose().replace("&amp;", "&")));
        }
        rest = behind;
    }
}
