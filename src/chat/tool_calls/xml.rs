//! Calls whose parameters stand between tags: Qwen3-Coder and its kin, MiniMax M2, DeepSeek V3.2 and V4, Step 3.

use std::sync::Arc;

use super::emit::Calls;
use super::scan::{TagMatch, find_tag, match_any_tag, match_tag, skip_blank};
use super::types::{Parameter, Reading, Schemas, Type, convert, quote};
use super::{CallParser, Outcome};
use crate::memory::secret::Secret;

/// The tags of a format.
#[derive(Debug)]
pub struct Tags {
    /// What stands around a call, or around all of them. Models leave it out.
    pub outer: (&'static str, &'static str),
    /// What begins a call; its name follows, up to `>`.
    pub function: &'static str,
    pub end_function: &'static str,
    /// What begins a parameter; its name follows, up to `>`.
    pub parameter: &'static str,
    pub end_parameter: &'static str,
    /// Marks that may stand around a call, within the outer ones.
    pub around: &'static [&'static str],
    pub edges: Edges,
}

/// What of a value's edges is no part of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Edges {
    /// One line's end on each side.
    Line,
    /// All white space.
    Blank,
    Nothing,
}

pub const QWEN3_CODER: Tags = Tags {
    outer: ("<tool_call>", "</tool_call>"),
    function: "<function=",
    end_function: "</function>",
    parameter: "<parameter=",
    end_parameter: "</parameter>",
    around: &[],
    edges: Edges::Line,
};
pub const SEED_OSS: Tags = Tags { outer: ("<seed:tool_call>", "</seed:tool_call>"), ..QWEN3_CODER };
pub const MINIMAX_M2: Tags = Tags {
    outer: ("<minimax:tool_call>", "</minimax:tool_call>"),
    function: "<invoke name=",
    end_function: "</invoke>",
    parameter: "<parameter name=",
    end_parameter: "</parameter>",
    around: &[],
    edges: Edges::Line,
};
pub const DEEPSEEK_V32: Tags = Tags {
    outer: ("<｜DSML｜function_calls>", "</｜DSML｜function_calls>"),
    function: "<｜DSML｜invoke name=",
    end_function: "</｜DSML｜invoke>",
    parameter: "<｜DSML｜parameter name=",
    end_parameter: "</｜DSML｜parameter>",
    around: &[],
    edges: Edges::Nothing,
};
pub const DEEPSEEK_V4: Tags =
    Tags { outer: ("<｜DSML｜tool_calls>", "</｜DSML｜tool_calls>"), ..DEEPSEEK_V32 };
pub const STEP3: Tags = Tags {
    outer: ("<｜tool_calls_begin｜>", "<｜tool_calls_end｜>"),
    function: "<steptml:invoke name=",
    end_function: "</steptml:invoke>",
    parameter: "<steptml:parameter name=",
    end_parameter: "</steptml:parameter>",
    around: &["<｜tool_call_begin｜>", "function<｜tool_sep｜>", "<｜tool_sep｜>", "<｜tool_call_end｜>"],
    edges: Edges::Blank,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Outer,
    Function,
    Name,
    Parameters,
    Key,
    Value,
    Behind,
}

/// Calls between tags.
pub struct Xml {
    tags: &'static Tags,
    schemas: Arc<Schemas>,
    state: State,
    at: usize,
    searched: usize,
    name: Secret<str>,
    key: Secret<str>,
    /// What DeepSeek says of a parameter: whether its value is text.
    told: Option<bool>,
    any: bool,
    count: usize,
}

impl Xml {
    pub fn new(tags: &'static Tags, schemas: Arc<Schemas>) -> Self {
        Self {
            tags,
            schemas,
            state: State::Outer,
            at: 0,
            searched: 0,
            name: Secret::default(),
            key: Secret::default(),
            told: None,
            any: false,
            count: 0,
        }
    }

    /// The name behind a tag, without quotes, and the attributes behind it.
    fn head<'t>(&mut self, text: &'t str) -> Option<(&'t str, &'t str)> {
        let at = find_tag(text, &mut self.searched, ">")?;
        let head = &text[self.at..at];
        self.at = at + 1;
        let head = head.trim();
        Some(match head.strip_prefix('"').and_then(|rest| rest.split_once('"')) {
            Some((name, attributes)) => (name, attributes),
            None => (head, ""),
        })
    }

    fn enter(&mut self, state: State, at: usize) {
        (self.state, self.at, self.searched) = (state, at, at);
    }

    /// Where the value ends, and where what follows it begins. Models leave end tags out.
    fn value_end(&mut self, text: &str, end: bool) -> Option<(usize, usize)> {
        let tags = self.tags;
        let mut from = self.searched;
        loop {
            let Some(at) = find_tag(text, &mut from, "<") else {
                self.searched = from;
                return None;
            };
            // what is here decides what is further on, so nothing behind it is looked at before it is known
            let line = at > self.at && text.as_bytes()[at - 1] == b'\n';
            match match_any_tag(text, at, &[tags.end_parameter, tags.parameter, tags.end_function], end) {
                Some(Err(())) => {
                    self.searched = at;
                    return None;
                }
                Some(Ok((0, after))) => return Some((at, after)),
                Some(Ok((1, _))) if line => return Some((at, at)),
                // within a value that quotes such a tag, no end of the block follows
                Some(Ok((2, after))) if line => {
                    let behind = skip_blank(text, after);
                    match match_tag(text, behind, tags.outer.1, end) {
                        TagMatch::Yes(_) => return Some((at, at)),
                        TagMatch::Wait => {
                            self.searched = at;
                            return None;
                        }
                        TagMatch::No if behind == text.len() => return Some((at, at)),
                        TagMatch::No => from = at + 1,
                    }
                }
                _ => from = at + 1,
            }
        }
    }

    fn give(&mut self, value: &str, calls: &mut Calls<'_, '_>) {
        let value = match self.tags.edges {
            Edges::Line => {
                let value = value.strip_prefix('\n').unwrap_or(value);
                value.strip_suffix('\n').unwrap_or(value)
            }
            Edges::Blank => value.trim(),
            Edges::Nothing => value,
        };
        let mut out = Secret::<[u8]>::with_capacity(value.len() + self.key.expose().len() + 8);
        out.extend(if self.count == 0 { b"{" } else { b", " });
        quote(self.key.expose(), &mut out);
        out.extend(b": ");
        let parameter = match self.told {
            Some(true) => Some(Parameter { kind: Type::Text, nullable: false }),
            Some(false) => Some(Parameter { kind: Type::Any, nullable: true }),
            None => self.schemas.parameter(self.name.expose(), self.key.expose()),
        };
        convert(value, parameter, Reading::Text, &mut out);
        self.count += 1;
        calls.arguments(std::str::from_utf8(out.expose()).expect("JSON is UTF-8"));
    }

    fn close(&mut self, calls: &mut Calls<'_, '_>) {
        calls.arguments(if self.count == 0 { "{}" } else { "}" });
        calls.end();
        self.any = true;
        self.enter(State::Behind, 0);
    }

    /// Passes over marks around a call; false where it is not known yet whether there is one.
    fn skip_around(&mut self, text: &str, end: bool) -> bool {
        loop {
            let blank = skip_blank(text, self.at);
            match match_any_tag(text, blank, self.tags.around, end) {
                Some(Err(())) => return false,
                Some(Ok((_, after))) => self.at = after,
                None => return true,
            }
        }
    }

    /// A parameter, or the call's end.
    fn parameters(&mut self, text: &str, end: bool, calls: &mut Calls<'_, '_>) -> Option<Outcome> {
        let blank = skip_blank(text, self.at);
        let tags = self.tags;
        match match_any_tag(text, blank, &[tags.parameter, tags.end_function, tags.outer.1], end) {
            Some(Err(())) => Some(Outcome::Wait),
            Some(Ok((0, after))) => {
                self.enter(State::Key, after);
                None
            }
            Some(Ok((1, after))) => {
                self.close(calls);
                Some(Outcome::Part(after))
            }
            // the end of the block ends its last call
            Some(Ok(_)) => {
                self.close(calls);
                Some(Outcome::Part(blank))
            }
            None => Some(Outcome::Not(blank)),
        }
    }
}

impl CallParser for Xml {
    fn read(&mut self, text: &str, end: bool, calls: &mut Calls<'_, '_>) -> Outcome {
        loop {
            match self.state {
                State::Outer => match match_any_tag(text, self.at, &[self.tags.outer.0], end) {
                    Some(Err(())) => return Outcome::Wait,
                    Some(Ok((_, after))) => self.enter(State::Function, after),
                    None => self.enter(State::Function, self.at),
                },
                State::Function => {
                    if !self.skip_around(text, end) {
                        return Outcome::Wait;
                    }
                    let blank = skip_blank(text, self.at);
                    match match_tag(text, blank, self.tags.function, end) {
                        TagMatch::Wait => return Outcome::Wait,
                        TagMatch::No => return Outcome::Not(blank.max(1)),
                        TagMatch::Yes(after) => self.enter(State::Name, after),
                    }
                }
                State::Name => {
                    let Some((name, _)) = self.head(text) else { return Outcome::Wait };
                    if name.is_empty() || name.contains('\n') {
                        return Outcome::Not(self.at);
                    }
                    self.name = Secret::<str>::copy(name);
                    self.count = 0;
                    calls.begin("", name);
                    self.enter(State::Parameters, self.at);
                }
                State::Parameters => {
                    if let Some(outcome) = self.parameters(text, end, calls) {
                        return outcome;
                    }
                }
                State::Key => {
                    let Some((key, attributes)) = self.head(text) else { return Outcome::Wait };
                    self.told = attributes.contains("string=").then(|| attributes.contains("\"true\""));
                    self.key = Secret::<str>::copy(key);
                    self.enter(State::Value, self.at);
                }
                State::Value => {
                    let Some((to, after)) = self.value_end(text, end) else { return Outcome::Wait };
                    self.give(&text[self.at..to], calls);
                    self.enter(State::Parameters, after);
                }
                State::Behind => {
                    if !self.skip_around(text, end) {
                        return Outcome::Wait;
                    }
                    let blank = skip_blank(text, self.at);
                    match match_any_tag(text, blank, &[self.tags.outer.1, self.tags.function], end) {
                        Some(Err(())) => return Outcome::Wait,
                        Some(Ok((0, after))) => return Outcome::Over(after),
                        Some(Ok((_, after))) => self.enter(State::Name, after),
                        None => return Outcome::Over(self.at),
                    }
                }
            }
        }
    }
}
