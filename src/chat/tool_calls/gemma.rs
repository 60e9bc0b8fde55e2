//! The calls of FunctionGemma and Gemma 4: `call:name{key:value}`, with marks of their own around texts.

use std::sync::Arc;

use super::emit::Calls;
use super::object::object;
use super::scan::{Rewrite, TagMatch, match_any_tag, match_tag, skip_blank};
use super::types::{Parameter, Reading, Schemas, Type, convert, quote};
use super::{CallParser, Outcome};
use crate::memory::secret::Secret;

/// The marks of a format.
#[derive(Debug)]
pub struct Marks {
    pub open: &'static str,
    pub close: &'static str,
    /// What stands on both sides of a text.
    pub quote: &'static str,
    /// Whether a text between those marks may stand for a value that is none.
    pub loose: bool,
}

pub const FUNCTION_GEMMA: Marks =
    Marks { open: "<start_function_call>", close: "<end_function_call>", quote: "<escape>", loose: true };
pub const GEMMA4: Marks =
    Marks { open: "<|tool_call>", close: "<tool_call|>", quote: "<|\"|>", loose: false };

/// The longest name.
const MAX_NAME: usize = 256;
/// Values in values.
const MAX_DEPTH: usize = 64;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Open,
    Call,
    Name,
    Body,
    Close,
}

/// One call.
pub struct Gemma {
    marks: &'static Marks,
    schemas: Arc<Schemas>,
    state: State,
    at: usize,
    name: (usize, usize),
    from: usize,
    depth: usize,
    quoted: bool,
}

impl Gemma {
    pub fn new(marks: &'static Marks, schemas: Arc<Schemas>) -> Self {
        Self { marks, schemas, state: State::Open, at: 0, name: (0, 0), from: 0, depth: 0, quoted: false }
    }

    fn name(&mut self, text: &str, calls: &mut Calls<'_, '_>) -> Option<Outcome> {
        let rest = &text[self.at..];
        let Some(len) = rest.find('{') else {
            return Some(if rest.len() > MAX_NAME { Outcome::Not(self.at) } else { Outcome::Wait });
        };
        let name = rest[..len].trim();
        if name.is_empty() || name.contains(char::is_whitespace) || len > MAX_NAME {
            return Some(Outcome::Not(self.at));
        }
        calls.begin("", name);
        self.name = (self.at, self.at + len);
        self.from = self.at + len;
        (self.at, self.depth, self.state) = (self.from, 0, State::Body);
        None
    }

    /// Goes on to the bracket that ends the arguments.
    fn body(&mut self, text: &str, end: bool, calls: &mut Calls<'_, '_>) -> Option<Outcome> {
        while let Some(&byte) = text.as_bytes().get(self.at) {
            match byte {
                b'<' => match match_tag(text, self.at, self.marks.quote, end) {
                    TagMatch::Wait => return Some(Outcome::Wait),
                    TagMatch::Yes(after) => {
                        self.quoted = !self.quoted;
                        self.at = after;
                        continue;
                    }
                    TagMatch::No => {}
                },
                _ if self.quoted => {}
                b'{' | b'[' => self.depth += 1,
                b'}' | b']' => {
                    self.depth = self.depth.saturating_sub(1);
                    if self.depth == 0 {
                        return Some(self.arguments(text, calls));
                    }
                }
                _ => {}
            }
            self.at += 1;
        }
        Some(Outcome::Wait)
    }

    fn arguments(&mut self, text: &str, calls: &mut Calls<'_, '_>) -> Outcome {
        let done = self.at + 1;
        let body = &text[self.from..done];
        let mut out = Secret::<[u8]>::with_capacity(body.len() + 64);
        let name = text[self.name.0..self.name.1].trim();
        let mut values = Values { marks: self.marks, text: body, at: 0, out: &mut out };
        let parameter = |key: &str| self.schemas.parameter(name, key);
        let read = values.dictionary(0, &parameter).is_some() && values.at == body.len();
        let json = std::str::from_utf8(out.expose()).ok().filter(|_| read);
        match json.and_then(object) {
            Some(json) => {
                calls.arguments(json.expose());
                calls.end();
                (self.at, self.state) = (0, State::Close);
                Outcome::Part(done)
            }
            None => Outcome::Not(done),
        }
    }
}

impl CallParser for Gemma {
    fn read(&mut self, text: &str, end: bool, calls: &mut Calls<'_, '_>) -> Outcome {
        loop {
            let outcome = match self.state {
                State::Open | State::Call => {
                    let tag = if self.state == State::Open { self.marks.open } else { "call:" };
                    let blank = skip_blank(text, self.at);
                    match match_tag(text, blank, tag, end) {
                        TagMatch::Wait => Some(Outcome::Wait),
                        TagMatch::No => Some(Outcome::Not(blank.max(1))),
                        TagMatch::Yes(after) => {
                            self.at = after;
                            self.state = if self.state == State::Open { State::Call } else { State::Name };
                            None
                        }
                    }
                }
                State::Name => self.name(text, calls),
                State::Body => self.body(text, end, calls),
                State::Close => match match_any_tag(text, skip_blank(text, 0), &[self.marks.close], end) {
                    Some(Err(())) => Some(Outcome::Wait),
                    Some(Ok((_, after))) => Some(Outcome::Over(after)),
                    None => Some(Outcome::Over(0)),
                },
            };
            if let Some(outcome) = outcome {
                return outcome;
            }
        }
    }
}

/// Values as these formats write them, on their way to JSON.
struct Values<'a> {
    marks: &'static Marks,
    text: &'a str,
    at: usize,
    out: &'a mut Secret<[u8]>,
}

impl Rewrite for Values<'_> {
    fn next(&mut self) -> Option<u8> {
        self.at = skip_blank(self.text, self.at);
        self.text.as_bytes().get(self.at).copied()
    }

    fn pass(&mut self) {
        self.at += 1;
    }

    fn out(&mut self) -> &mut Secret<[u8]> {
        self.out
    }
}

impl Values<'_> {
    fn dictionary(&mut self, depth: usize, of: &dyn Fn(&str) -> Option<Parameter>) -> Option<()> {
        self.items(b'}', [b"{", b"}"], |this| {
            let len = this.text[this.at..].find(':')?;
            let key = this.text[this.at..this.at + len].trim();
            let bare = key.strip_prefix(this.marks.quote).and_then(|key| key.strip_suffix(this.marks.quote));
            let key = bare.unwrap_or(key);
            quote(key, this.out);
            this.out.extend(b": ");
            this.at += len + 1;
            this.value(depth + 1, of(key))
        })
    }

    fn list(&mut self, depth: usize) -> Option<()> {
        self.items(b']', [b"[", b"]"], |this| this.value(depth + 1, None))
    }

    fn value(&mut self, depth: usize, parameter: Option<Parameter>) -> Option<()> {
        if depth > MAX_DEPTH {
            return None;
        }
        let byte = self.next()?;
        if let Some(rest) = self.text[self.at..].strip_prefix(self.marks.quote) {
            let len = rest.find(self.marks.quote)?;
            self.at += len + 2 * self.marks.quote.len();
            match (self.marks.loose, parameter) {
                (false, _) => quote(&rest[..len], self.out),
                (true, parameter) => convert(&rest[..len], parameter, Reading::Value, self.out),
            }
            return Some(());
        }
        match byte {
            b'{' => self.dictionary(depth, &|_| None),
            b'[' => self.list(depth),
            _ => {
                let rest = &self.text[self.at..];
                let len = rest.find([',', '}', ']'])?;
                self.at += len;
                let word = rest[..len].trim();
                let text = parameter.is_some_and(|parameter| parameter.kind == Type::Text);
                match ["nil", "none", "null"].iter().any(|null| word.eq_ignore_ascii_case(null)) && !text {
                    true => self.out.extend(b"null"),
                    false => convert(word, parameter, Reading::Value, self.out),
                }
                Some(())
            }
        }
    }
}
