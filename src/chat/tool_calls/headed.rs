//! Calls whose name stands before their arguments: DeepSeek, Kimi, Mistral.

use super::block::{self, Block};
use super::emit::Calls;
use super::object::object;
use super::scan::{JsonEnd, TagMatch, find_tag, match_any_tag, match_tag, skip_blank};
use super::{CallParser, Outcome};

/// The marks of a format.
#[derive(Debug)]
pub struct Marks {
    /// What may stand around all calls.
    pub section: (&'static str, &'static str),
    pub begin: &'static str,
    /// What ends the name.
    pub separator: &'static str,
    pub end: &'static str,
    /// Whether the name is an id as well: `functions.name:0`.
    pub named_id: bool,
}

pub const DEEPSEEK: Marks = Marks {
    section: ("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"),
    begin: "<｜tool▁call▁begin｜>",
    separator: "<｜tool▁sep｜>",
    end: "<｜tool▁call▁end｜>",
    named_id: false,
};
pub const KIMI: Marks = Marks {
    section: ("<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"),
    begin: "<|tool_call_begin|>",
    separator: "<|tool_call_argument_begin|>",
    end: "<|tool_call_end|>",
    named_id: true,
};

pub const MISTRAL: &str = "[TOOL_CALLS]";
pub const MISTRAL_ID: &str = "[CALL_ID]";
pub const MISTRAL_ARGUMENTS: &str = "[ARGS]";

/// The longest name with its id.
const MAX_HEAD: usize = 512;

/// Arguments that are an object, given as they come.
struct Arguments {
    from: usize,
    at: usize,
    given: usize,
    scan: JsonEnd,
}

enum Given {
    Wait,
    /// They are complete, and end here.
    Done(usize),
    No(usize),
}

impl Arguments {
    fn new(at: usize) -> Self {
        Self { from: at, at, given: at, scan: JsonEnd::default() }
    }

    /// Reads on; the call has begun.
    fn read(&mut self, text: &str, calls: &mut Calls<'_, '_>) -> Given {
        if text.as_bytes().get(self.from).is_some_and(|&byte| byte != b'{') {
            return Given::No(self.from);
        }
        let found = self.scan.find(text, &mut self.at);
        let to = found.unwrap_or(self.at);
        calls.arguments(&text[self.given..to]);
        self.given = to;
        match found {
            None => Given::Wait,
            Some(end) if object(&text[self.from..end]).is_some() => {
                calls.end();
                Given::Done(end)
            }
            Some(end) => Given::No(end),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Between calls, or before the first.
    Between,
    Head,
    /// DeepSeek V3 writes `function` for the kind of call, and the name in a line of its own.
    Kind,
    Line,
    Fence,
    Arguments,
    FenceEnd,
    End,
}

/// Calls between marks, in a section or not.
pub struct Headed {
    marks: &'static Marks,
    state: State,
    at: usize,
    searched: usize,
    /// Where the name is.
    name: (usize, usize),
    fenced: bool,
    any: bool,
    arguments: Arguments,
}

impl Headed {
    pub fn new(marks: &'static Marks) -> Self {
        Self {
            marks,
            state: State::Between,
            at: 0,
            searched: 0,
            name: (0, 0),
            fenced: false,
            any: false,
            arguments: Arguments::new(0),
        }
    }

    fn between(&mut self, text: &str, end: bool) -> Option<Outcome> {
        let blank = skip_blank(text, self.at);
        let (open, close) = self.marks.section;
        match match_any_tag(text, blank, &[open, self.marks.begin, close], end) {
            Some(Err(())) => return Some(Outcome::Wait),
            Some(Ok((0, after))) => self.at = after,
            Some(Ok((1, after))) => {
                (self.at, self.searched, self.state) = (after, after, State::Head);
            }
            Some(Ok((_, after))) if self.any => return Some(Outcome::Over(after)),
            Some(Ok((_, after))) => return Some(Outcome::Not(after)),
            None if self.any => return Some(Outcome::Over(self.at)),
            None => return Some(Outcome::Not(blank.max(1).min(text.len()))),
        }
        None
    }

    fn head(&mut self, text: &str) -> Option<Outcome> {
        let Some(at) = find_tag(text, &mut self.searched, self.marks.separator) else {
            return Some(if text.len() - self.at > MAX_HEAD { Outcome::Not(self.at) } else { Outcome::Wait });
        };
        if at - self.at > MAX_HEAD {
            return Some(Outcome::Not(self.at));
        }
        self.name = (self.at, at);
        self.at = at + self.marks.separator.len();
        self.state = if text[self.name.0..at].trim() == "function" { State::Kind } else { State::Fence };
        None
    }

    /// The call's name, and the id within it.
    fn begin(&self, text: &str, calls: &mut Calls<'_, '_>) -> bool {
        let head = text[self.name.0..self.name.1].trim();
        let name = match self.marks.named_id {
            false => head,
            true => {
                let name = head.rsplit_once(':').map_or(head, |(name, _)| name);
                name.rsplit_once('.').map_or(name, |(_, name)| name)
            }
        };
        if name.is_empty() {
            return false;
        }
        calls.begin(if self.marks.named_id { head } else { "" }, name);
        true
    }
}

impl CallParser for Headed {
    fn read(&mut self, text: &str, end: bool, calls: &mut Calls<'_, '_>) -> Outcome {
        loop {
            match self.state {
                State::Between => {
                    if let Some(outcome) = self.between(text, end) {
                        return outcome;
                    }
                }
                State::Head => {
                    if let Some(outcome) = self.head(text) {
                        return outcome;
                    }
                }
                State::Kind => match text.as_bytes().get(self.at) {
                    None => return Outcome::Wait,
                    Some(b'{') => self.state = State::Fence,
                    Some(_) => (self.searched, self.state) = (self.at, State::Line),
                },
                State::Line => {
                    let Some(at) = find_tag(text, &mut self.searched, "\n") else { return Outcome::Wait };
                    self.name = (self.at, at);
                    (self.at, self.state) = (at + 1, State::Fence);
                }
                State::Fence => {
                    self.at = skip_blank(text, self.at);
                    match match_any_tag(text, self.at, &["```json", "```"], end) {
                        Some(Err(())) => return Outcome::Wait,
                        Some(Ok((_, after))) => {
                            self.fenced = true;
                            self.at = skip_blank(text, after);
                        }
                        None => {}
                    }
                    if self.at == text.len() {
                        return Outcome::Wait;
                    }
                    if text.as_bytes()[self.at] != b'{' || !self.begin(text, calls) {
                        return Outcome::Not(self.at);
                    }
                    (self.arguments, self.state) = (Arguments::new(self.at), State::Arguments);
                }
                State::Arguments => match self.arguments.read(text, calls) {
                    Given::Wait => return Outcome::Wait,
                    Given::No(at) => return Outcome::Not(at),
                    Given::Done(at) => {
                        (self.at, self.any, self.state) = (0, true, State::FenceEnd);
                        return Outcome::Part(at);
                    }
                },
                State::FenceEnd => {
                    let blank = skip_blank(text, self.at);
                    if self.fenced {
                        match match_tag(text, blank, "```", end) {
                            TagMatch::Wait => return Outcome::Wait,
                            TagMatch::Yes(after) => self.at = after,
                            TagMatch::No => {}
                        }
                    }
                    (self.fenced, self.state) = (false, State::End);
                }
                State::End => {
                    match match_tag(text, skip_blank(text, self.at), self.marks.end, end) {
                        TagMatch::Wait => return Outcome::Wait,
                        TagMatch::Yes(after) => self.at = after,
                        TagMatch::No => {}
                    }
                    self.state = State::Between;
                    // what belongs to the call goes with it, also where the reply is cut off behind it
                    let done = std::mem::take(&mut self.at);
                    return Outcome::Part(done);
                }
            }
        }
    }
}

/// `[TOOL_CALLS]`, and behind it a list of objects, or `name[CALL_ID]id[ARGS]{...}`, where id and marks may be missing.
pub struct Mistral {
    state: MistralState,
    at: usize,
}

enum MistralState {
    Open,
    Choose,
    Objects(Block),
    Head,
    Arguments(Arguments),
}

impl Mistral {
    pub fn new() -> Self {
        Self { state: MistralState::Open, at: 0 }
    }

    /// The name and the id, which end where the arguments begin.
    fn head(&mut self, text: &str, end: bool, calls: &mut Calls<'_, '_>) -> Option<Outcome> {
        let rest = &text[self.at..];
        let Some(bracket) = rest.find('{') else {
            let long = rest.len() > MAX_HEAD;
            return Some(if long || end { Outcome::Not(self.at) } else { Outcome::Wait });
        };
        let head = rest[..bracket].trim();
        let head = head.strip_suffix(MISTRAL_ARGUMENTS).unwrap_or(head);
        let (name, id) = head.split_once(MISTRAL_ID).unwrap_or((head, ""));
        let (name, id) = (name.trim(), id.trim());
        let odd = |char: char| char.is_whitespace() || "[]\"',:;".contains(char);
        if name.is_empty() || name.contains(odd) || id.contains(odd) || bracket > MAX_HEAD {
            return Some(Outcome::Not(self.at));
        }
        calls.begin(id, name);
        self.state = MistralState::Arguments(Arguments::new(self.at + bracket));
        None
    }
}

impl CallParser for Mistral {
    fn read(&mut self, text: &str, end: bool, calls: &mut Calls<'_, '_>) -> Outcome {
        loop {
            match &mut self.state {
                MistralState::Open => match match_tag(text, self.at, MISTRAL, end) {
                    TagMatch::Wait => return Outcome::Wait,
                    TagMatch::No => return Outcome::Not(1),
                    TagMatch::Yes(after) => (self.at, self.state) = (after, MistralState::Choose),
                },
                MistralState::Choose => {
                    self.at = skip_blank(text, self.at);
                    self.state = match text.as_bytes().get(self.at) {
                        None => return Outcome::Wait,
                        Some(b'[' | b'{' | b'`') => {
                            MistralState::Objects(Block::behind(&block::MISTRAL, self.at))
                        }
                        Some(_) => MistralState::Head,
                    };
                }
                MistralState::Objects(block) => return block.read(text, end, calls),
                MistralState::Head => {
                    if let Some(outcome) = self.head(text, end, calls) {
                        return outcome;
                    }
                }
                MistralState::Arguments(arguments) => match arguments.read(text, calls) {
                    Given::Wait => return Outcome::Wait,
                    Given::No(at) => return Outcome::Not(at),
                    Given::Done(at) => return Outcome::Over(at),
                },
            }
        }
    }
}
