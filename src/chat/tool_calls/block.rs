//! Calls as JSON objects, alone or in lists, between marks or without any.

use super::emit::Calls;
use super::object::{ObjectReader, Read, Rules};
use super::scan::{TagMatch, match_any_tag, match_tag, skip_blank};
use super::{CallParser, Outcome};

/// How a format puts its objects.
#[derive(Debug)]
pub struct Shape {
    /// What a block begins with; without any of them it begins with its first bracket.
    pub opens: &'static [&'static str],
    /// What may end it.
    pub closes: &'static [&'static str],
    /// Whether calls always stand in a list.
    pub list: bool,
    pub rules: Rules,
}

const PLAIN: Rules =
    Rules { needs_arguments: false, late_id: false, strict: false, keyed: false, args: false };
/// For formats that mark calls badly: an object is a call only if it says so in full.
const FULL: Rules = Rules { needs_arguments: true, ..PLAIN };

pub const HERMES: Shape =
    Shape { opens: &["<tool_call>"], closes: &["</tool_call>"], list: false, rules: PLAIN };
pub const LONGCAT: Shape =
    Shape { opens: &["<longcat_tool_call>"], closes: &["</longcat_tool_call>"], list: false, rules: PLAIN };
pub const GRANITE: Shape =
    Shape { opens: &["<|tool_call|>", "<tool_call>"], closes: &["</tool_call>"], list: true, rules: PLAIN };
pub const GRANITE_20B: Shape = Shape { opens: &["<function_call>"], closes: &[], list: false, rules: PLAIN };
pub const PHI4: Shape =
    Shape { opens: &["functools", "<|tool_call|>"], closes: &["<|/tool_call|>"], list: true, rules: FULL };
pub const JAMBA: Shape =
    Shape { opens: &["<tool_calls>"], closes: &["</tool_calls>"], list: false, rules: PLAIN };
pub const NEMOTRON: Shape =
    Shape { opens: &["<TOOLCALL>"], closes: &["</TOOLCALL>"], list: true, rules: PLAIN };
pub const INTERNLM: Shape = Shape {
    opens: &["<|action_start|><|plugin|>", "<|action_start|> <|plugin|>"],
    closes: &["<|action_end|>"],
    list: false,
    rules: PLAIN,
};
pub const COHERE: Shape =
    Shape { opens: &["<|START_ACTION|>", "Action:"], closes: &["<|END_ACTION|>"], list: true, rules: PLAIN };
pub const LLAMA: Shape =
    Shape { opens: &["<|python_tag|>"], closes: &[";"], list: false, rules: Rules { strict: true, ..FULL } };
pub const APERTUS: Shape = Shape {
    opens: &["<|tools_prefix|>"],
    closes: &["<|tools_suffix|>"],
    list: false,
    rules: Rules { keyed: true, needs_arguments: true, ..PLAIN },
};
/// Behind the mark of a message, which is read before.
pub const INKLING: Shape =
    Shape { opens: &[], closes: &[], list: false, rules: Rules { args: true, ..PLAIN } };
/// Behind `[TOOL_CALLS]`, which is read before.
pub const MISTRAL: Shape =
    Shape { opens: &[], closes: &[], list: false, rules: Rules { late_id: true, ..PLAIN } };

/// A reader of a message of Inkling that is a call.
pub fn inkling_block() -> Box<dyn CallParser> {
    Box::new(Block::behind(&INKLING, 0))
}

/// Code fences that models put around calls.
const FENCES: [&str; 4] = ["```json", "```tool_call", "```tool_code", "```"];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Open,
    Fence,
    Body,
    /// A list goes on: an object, or its end.
    Item,
    Object,
    /// Behind an object.
    Behind,
    FenceEnd,
    Close,
}

/// A block of calls.
pub struct Block {
    shape: &'static Shape,
    state: State,
    at: usize,
    fenced: bool,
    listed: bool,
    rules: Rules,
    object: ObjectReader,
}

impl Block {
    pub fn new(shape: &'static Shape) -> Self {
        let rules = shape.rules;
        let object = ObjectReader::new(rules, 0);
        Self { shape, state: State::Open, at: 0, fenced: false, listed: false, rules, object }
    }

    /// Whose first bracket is at `at`, or behind white space there.
    pub fn behind(shape: &'static Shape, at: usize) -> Self {
        Self { state: State::Fence, at, ..Self::new(shape) }
    }

    /// Where an opening or a fence ends; `Err` where that is not known yet.
    fn opening(&mut self, text: &str, tags: &[&str], end: bool) -> Result<bool, ()> {
        match match_any_tag(text, self.at, tags, end) {
            Some(Ok((_, after))) => {
                self.at = after;
                Ok(true)
            }
            Some(Err(())) => Err(()),
            None => Ok(false),
        }
    }

    /// An object or a list begins.
    fn body(&mut self, text: &str) -> Option<Outcome> {
        match text.as_bytes().get(self.at) {
            None => return Some(Outcome::Wait),
            Some(b'[') => {
                self.at += 1;
                (self.listed, self.state) = (true, State::Item);
            }
            Some(b'{') if !self.shape.list => self.begin(),
            Some(_) => return Some(Outcome::Not(self.at)),
        }
        None
    }

    fn begin(&mut self) {
        self.object = ObjectReader::new(self.rules, self.at);
        self.state = State::Object;
    }

    /// Behind all objects: the mark that ends the block, or another object.
    fn close(&mut self, text: &str, end: bool) -> Option<Outcome> {
        // models write a bracket too many
        let rest = text[self.at..].trim_start_matches(|char: char| char.is_whitespace() || char == '}');
        let behind = text.len() - rest.len();
        let closes = self.shape.closes;
        match match_any_tag(text, behind, closes, end) {
            Some(Ok((_, after))) => return Some(Outcome::Over(after)),
            Some(Err(())) => return Some(Outcome::Wait),
            None => {}
        }
        if !closes.is_empty() && !self.listed && !self.shape.rules.strict && rest.starts_with('{') {
            self.at = behind;
            self.begin();
            return None;
        }
        Some(Outcome::Over(self.at))
    }
}

impl CallParser for Block {
    fn read(&mut self, text: &str, end: bool, calls: &mut Calls<'_, '_>) -> Outcome {
        loop {
            let before = self.at;
            if self.state != State::Object {
                self.at = skip_blank(text, self.at);
            }
            match self.state {
                State::Open => match self.opening(text, self.shape.opens, end) {
                    Ok(marked) => {
                        if marked && self.shape.rules.strict {
                            self.rules = PLAIN; // a mark says enough
                        }
                        self.state = State::Fence;
                    }
                    Err(()) => return Outcome::Wait,
                },
                State::Fence => match self.opening(text, &FENCES, end) {
                    Ok(fenced) => (self.fenced, self.state) = (fenced, State::Body),
                    Err(()) => return Outcome::Wait,
                },
                State::Body => {
                    if let Some(outcome) = self.body(text) {
                        return outcome;
                    }
                }
                State::Item => match text.as_bytes().get(self.at) {
                    None => return Outcome::Wait,
                    Some(b'{') => self.begin(),
                    Some(_) => return Outcome::Not(self.at),
                },
                State::Object => match self.object.read(text, calls) {
                    Read::Wait => return Outcome::Wait,
                    Read::No(at) => return Outcome::Not(at),
                    Read::Done(at) => {
                        (self.at, self.state) = (0, State::Behind);
                        return Outcome::Part(at);
                    }
                },
                State::Behind => {
                    self.state = State::FenceEnd;
                    if self.listed {
                        match text.as_bytes().get(self.at) {
                            None if !end => {
                                self.state = State::Behind;
                                return Outcome::Wait;
                            }
                            Some(b',') => {
                                self.at += 1;
                                self.state = State::Item;
                            }
                            Some(b']') => self.at += 1,
                            _ => return Outcome::Over(before),
                        }
                    }
                }
                State::FenceEnd => {
                    if self.fenced {
                        match match_tag(text, self.at, "```", end) {
                            TagMatch::Yes(after) => self.at = after,
                            TagMatch::Wait => return Outcome::Wait,
                            TagMatch::No => {}
                        }
                    }
                    self.state = State::Close;
                }
                State::Close => {
                    self.at = before;
                    if let Some(outcome) = self.close(text, end) {
                        return outcome;
                    }
                }
            }
        }
    }
}
