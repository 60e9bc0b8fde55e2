//! The calls of GLM 4.5 and later: a name, then keys and values between tags.

use std::sync::Arc;

use super::emit::Calls;
use super::scan::{TagMatch, find_tag, match_any_tag, match_tag, skip_blank};
use super::types::{Reading, Schemas, convert, quote};
use super::{CallParser, Outcome};
use crate::memory::secret::Secret;

/// GLM 4.5 and later: `<tool_call>name`, then `<arg_key>`s and `<arg_value>`s.
pub struct Glm {
    schemas: Arc<Schemas>,
    state: GlmState,
    at: usize,
    searched: usize,
    name: Secret<str>,
    key: Secret<str>,
    count: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum GlmState {
    Open,
    Name,
    Arguments,
    Key,
    Between,
    Value,
}

const GLM_OPEN: &str = "<tool_call>";
const GLM_CLOSE: &str = "</tool_call>";
const KEY: (&str, &str) = ("<arg_key>", "</arg_key>");
const VALUE: (&str, &str) = ("<arg_value>", "</arg_value>");
/// The longest name.
const MAX_NAME: usize = 256;

impl Glm {
    pub fn new(schemas: Arc<Schemas>) -> Self {
        Self {
            schemas,
            state: GlmState::Open,
            at: 0,
            searched: 0,
            name: Secret::default(),
            key: Secret::default(),
            count: 0,
        }
    }

    fn enter(&mut self, state: GlmState, at: usize) {
        (self.state, self.at, self.searched) = (state, at, at);
    }

    /// The name ends at a line's end or a tag.
    fn name(&mut self, text: &str) -> Option<Outcome> {
        let from = skip_blank(text, self.at);
        let rest = &text[from..];
        let Some(len) = rest.find(['\n', '<', '{', '[']) else {
            return Some(if rest.len() > MAX_NAME { Outcome::Not(from) } else { Outcome::Wait });
        };
        let name = rest[..len].trim();
        if name.is_empty() || len > MAX_NAME || matches!(rest.as_bytes()[len], b'{' | b'[') {
            return Some(Outcome::Not(from));
        }
        self.name = Secret::<str>::copy(name);
        self.enter(GlmState::Arguments, from + len);
        None
    }

    fn arguments(&mut self, text: &str, end: bool, calls: &mut Calls<'_, '_>) -> Option<Outcome> {
        let blank = skip_blank(text, self.at);
        match match_any_tag(text, blank, &[KEY.0, GLM_CLOSE], end) {
            Some(Err(())) => Some(Outcome::Wait),
            Some(Ok((which, after))) => {
                if self.count == 0 {
                    calls.begin("", self.name.expose());
                }
                if which == 0 {
                    self.enter(GlmState::Key, after);
                    return None;
                }
                calls.arguments(if self.count == 0 { "{}" } else { "}" });
                calls.end();
                Some(Outcome::Over(after))
            }
            None => Some(Outcome::Not(blank)),
        }
    }

    fn give(&mut self, value: &str, calls: &mut Calls<'_, '_>) {
        let mut out = Secret::<[u8]>::with_capacity(value.len() + self.key.expose().len() + 8);
        out.extend(if self.count == 0 { b"{" } else { b", " });
        quote(self.key.expose(), &mut out);
        out.extend(b": ");
        let parameter = self.schemas.parameter(self.name.expose(), self.key.expose());
        convert(value, parameter, Reading::Value, &mut out);
        self.count += 1;
        calls.arguments(std::str::from_utf8(out.expose()).expect("JSON is UTF-8"));
    }
}

impl CallParser for Glm {
    fn read(&mut self, text: &str, end: bool, calls: &mut Calls<'_, '_>) -> Outcome {
        loop {
            match self.state {
                GlmState::Open => match match_tag(text, self.at, GLM_OPEN, end) {
                    TagMatch::Wait => return Outcome::Wait,
                    TagMatch::No => return Outcome::Not(1),
                    TagMatch::Yes(after) => self.enter(GlmState::Name, after),
                },
                GlmState::Name => {
                    if let Some(outcome) = self.name(text) {
                        return outcome;
                    }
                }
                GlmState::Arguments => {
                    if let Some(outcome) = self.arguments(text, end, calls) {
                        return outcome;
                    }
                }
                GlmState::Key => {
                    let Some(at) = find_tag(text, &mut self.searched, KEY.1) else { return Outcome::Wait };
                    self.key = Secret::<str>::copy(text[self.at..at].trim());
                    self.enter(GlmState::Between, at + KEY.1.len());
                }
                GlmState::Between => {
                    let blank = skip_blank(text, self.at);
                    match match_tag(text, blank, VALUE.0, end) {
                        TagMatch::Wait => return Outcome::Wait,
                        TagMatch::No => return Outcome::Not(blank),
                        TagMatch::Yes(after) => self.enter(GlmState::Value, after),
                    }
                }
                GlmState::Value => {
                    let Some(at) = find_tag(text, &mut self.searched, VALUE.1) else { return Outcome::Wait };
                    self.give(&text[self.at..at], calls);
                    self.enter(GlmState::Arguments, at + VALUE.1.len());
                }
            }
        }
    }
}
