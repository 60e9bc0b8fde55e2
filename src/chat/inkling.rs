//! The replies of Inkling: messages whose marks say what is in them, which may come again in any order.
//!
//! `<|content_thinking|>` is reasoning, `<|content_invoke_tool_json|>` a call, the rest is content. What stands between
//! `<|message_model|>` and such a mark, as the name of a function, says nothing more.

use super::parsed::PieceKind;
use super::splitter::{Event, Sink};
use super::tool_calls::{CallParser, Calls, IdForm, Numbering, Outcome, inkling_block, partial};
use crate::memory::secret::Secret;

pub const MODEL: &str = "<|message_model|>";
pub const TEXT: &str = "<|content_text|>";
pub const THINKING: &str = "<|content_thinking|>";
pub const CALL: &str = "<|content_invoke_tool_json|>";
pub const END: &str = "<|end_message|>";
pub const END_SAMPLING: &str = "<|content_model_end_sampling|>";
const CALL_TEXT: &str = "<|content_invoke_tool_text|>";
const CALL_ERROR: &str = "<|content_tool_error|>";

/// All marks.
pub const MARKS: [&str; 8] = [MODEL, TEXT, THINKING, CALL, CALL_TEXT, CALL_ERROR, END, END_SAMPLING];
/// The longest header.
const MAX_HEADER: usize = 512;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Header,
    Piece(PieceKind),
    Call,
}

/// Takes a reply apart while it arrives.
pub struct Inkling {
    /// Whether messages may be calls.
    tools: bool,
    state: State,
    /// Text not given yet; always whole characters.
    held: Secret<[u8]>,
    /// White space that is given once something follows it.
    blank: Secret<[u8]>,
    /// Whether the message at hand has said something.
    said: bool,
    call: Option<Box<dyn CallParser>>,
}

impl Inkling {
    /// `inside` is what the prompt's last message is, where that goes on in the reply.
    pub fn new(tools: bool, inside: Option<PieceKind>) -> Self {
        Self {
            tools,
            state: inside.map_or(State::Header, State::Piece),
            held: Secret::default(),
            blank: Secret::default(),
            said: false,
            call: None,
        }
    }

    /// What a prompt's end says of the message that the reply goes on with.
    pub fn inside(prompt: &str) -> Option<PieceKind> {
        let last = MARKS.iter().filter_map(|mark| Some((prompt.rfind(mark)?, *mark))).max()?;
        match last.1 {
            THINKING => Some(PieceKind::Reasoning),
            TEXT => Some(PieceKind::Content),
            _ => None,
        }
    }

    /// Takes the reply's next `text`; all of it is given at its `end`.
    pub fn read(&mut self, text: &str, end: bool, numbering: &mut Numbering, sink: Sink<'_>) {
        self.held.extend(text.as_bytes());
        let mut calls = Calls { numbering, ids: IdForm::Counted, sink };
        while !self.held.expose().is_empty() {
            let goes_on = match self.state {
                State::Header => self.header(end),
                State::Piece(kind) => self.piece(kind, end, &mut calls),
                State::Call => self.call(end, &mut calls),
            };
            if !goes_on {
                break;
            }
        }
        let content = self.state == State::Piece(PieceKind::Content);
        if end && content && self.said && !self.blank.expose().is_empty() {
            (calls.sink)(Event::Piece(PieceKind::Content, as_text(&self.blank)));
            self.blank.truncate(0);
        }
    }

    /// Where the first mark is that means something here.
    fn mark(&self) -> Option<(usize, &'static str)> {
        let text = as_text(&self.held);
        let inner = self.state == State::Piece(PieceKind::Reasoning);
        // a message of reasoning ends with its own mark, or with a call
        let counts = |mark: &&&str| !inner || [THINKING, CALL, END, END_SAMPLING].contains(*mark);
        MARKS.iter().filter(counts).filter_map(|mark| Some((text.find(mark)?, *mark))).min()
    }

    fn enter(&mut self, mark: &str) {
        let kind = match mark {
            MODEL => return self.go(State::Header),
            THINKING => PieceKind::Reasoning,
            CALL if self.tools => {
                self.call = Some(inkling_block());
                self.blank.truncate(0);
                return self.go(State::Call);
            }
            _ => PieceKind::Content,
        };
        self.go(State::Piece(kind));
    }

    fn go(&mut self, state: State) {
        (self.state, self.said) = (state, false);
    }

    fn header(&mut self, end: bool) -> bool {
        let text = as_text(&self.held);
        match self.mark() {
            // a message that ends so was no header
            Some((at, END | END_SAMPLING)) if at > 0 => self.go(State::Piece(PieceKind::Content)),
            Some((at, mark)) if at <= MAX_HEADER => {
                self.held.drain_front(at + mark.len());
                self.enter(mark);
            }
            None if !end && text.len() <= MAX_HEADER => return false,
            _ => self.go(State::Piece(PieceKind::Content)),
        }
        true
    }

    fn piece(&mut self, kind: PieceKind, end: bool, calls: &mut Calls<'_, '_>) -> bool {
        let text = as_text(&self.held);
        let found = self.mark();
        let certain = match found {
            Some((at, _)) => at,
            None if end => text.len(),
            None => text.len() - MARKS.iter().map(|mark| partial(text, mark)).max().unwrap_or(0),
        };
        let piece = &text[..certain];
        let start = if self.said { 0 } else { piece.len() - piece.trim_start().len() };
        let to = piece.trim_end().len().max(start);
        if kind == PieceKind::Content {
            self.blank.extend(&piece.as_bytes()[..start]);
        }
        if to > start {
            if !self.blank.expose().is_empty() {
                (calls.sink)(Event::Piece(kind, as_text(&self.blank)));
                self.blank.truncate(0);
            }
            (calls.sink)(Event::Piece(kind, &piece[start..to]));
            self.said = true;
        }
        if self.said {
            self.blank.extend(&piece.as_bytes()[to..]);
        }
        let ends = found.is_some();
        if ends && kind == PieceKind::Content && self.said && !self.blank.expose().is_empty() {
            (calls.sink)(Event::Piece(kind, as_text(&self.blank)));
        }
        if ends && (kind == PieceKind::Reasoning || self.said) {
            self.blank.truncate(0);
        }
        self.held.drain_front(certain + found.map_or(0, |(_, mark)| mark.len()));
        let Some((_, mark)) = found else { return false };
        self.enter(mark);
        true
    }

    fn call(&mut self, end: bool, calls: &mut Calls<'_, '_>) -> bool {
        let text = as_text(&self.held);
        let outcome = match &mut self.call {
            Some(reader) => reader.read(text, end, calls),
            None => Outcome::Not(1),
        };
        match outcome {
            Outcome::Wait if !end => return false,
            Outcome::Part(len) => self.held.drain_front(len),
            Outcome::Over(len) => {
                self.held.drain_front(len);
                self.go(State::Piece(PieceKind::Content));
            }
            Outcome::Wait | Outcome::Not(_) => {
                calls.retract();
                self.go(State::Piece(PieceKind::Content));
            }
        }
        true
    }

    /// Bytes that are held back.
    pub fn held_bytes(&self) -> usize {
        self.held.expose().len() + self.blank.expose().len()
    }
}

fn as_text(bytes: &Secret<[u8]>) -> &str {
    std::str::from_utf8(bytes.expose()).expect("texts are joined, and cut at marks and white space only")
}
