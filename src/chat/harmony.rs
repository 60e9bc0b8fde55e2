//! The replies of gpt-oss: messages with a channel and perhaps a recipient.
//!
//! `analysis` is reasoning; a message to `functions.name` is a call; the rest, `final` and what is said to the user on
//! `commentary` before calls, is content.

use super::parsed::PieceKind;
use super::splitter::{Event, Sink};
use super::tool_calls::{Calls, IdForm, Numbering, object, partial};
use crate::memory::secret::Secret;

pub const START: &str = "<|start|>";
pub const CHANNEL: &str = "<|channel|>";
pub const MESSAGE: &str = "<|message|>";
/// What a prompt ends with for a reply that is an answer and nothing else.
pub const FINAL: &str = "<|channel|>final<|message|>";

/// What ends a message. The last two begin another one.
const ENDS: [&str; 5] = ["<|end|>", "<|call|>", "<|return|>", START, CHANNEL];
/// What a header may begin with.
const HEADS: [&str; 6] = [START, CHANNEL, "<|constrain|>", "assistant", " to=", "to="];
/// The longest header.
const MAX_HEADER: usize = 512;
/// Whose messages are calls.
const FUNCTIONS: &str = "functions.";

/// Where a reply stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Header,
    Piece(PieceKind),
    /// In the arguments of a call.
    Call,
}

/// Takes a reply apart while it arrives.
pub struct Harmony {
    /// Whether messages to functions are calls.
    tools: bool,
    state: State,
    /// Text not given yet; always whole characters.
    held: Secret<[u8]>,
    /// The whole text of a call as the model wrote it.
    raw: Secret<[u8]>,
    /// Bytes of `raw` that are its header, and how far its arguments were given.
    header: usize,
    given: usize,
    /// Whether something of a kind was given: messages of one kind are parted by a line's end.
    said: [bool; 2],
    parted: [bool; 2],
}

impl Harmony {
    /// `inside` is what the prompt's last message is, where that goes on in the reply.
    pub fn new(tools: bool, inside: Option<PieceKind>) -> Self {
        Self {
            tools,
            state: inside.map_or(State::Header, State::Piece),
            held: Secret::default(),
            raw: Secret::default(),
            header: 0,
            given: 0,
            said: [false; 2],
            parted: [false; 2],
        }
    }

    /// What a prompt's end says of the message that the reply goes on with.
    pub fn inside(prompt: &str) -> Option<PieceKind> {
        let header = prompt.rsplit(START).next().unwrap_or(prompt).strip_suffix(MESSAGE)?;
        Some(if channel(header) == "analysis" { PieceKind::Reasoning } else { PieceKind::Content })
    }

    /// Takes the reply's next `text`; all of it is given at its `end`.
    pub fn read(&mut self, text: &str, end: bool, numbering: &mut Numbering, sink: Sink<'_>) {
        self.held.extend(text.as_bytes());
        let mut calls = Calls { numbering, ids: IdForm::Counted, sink };
        while !self.held.expose().is_empty() {
            let goes_on = match self.state {
                State::Header => self.header(end, &mut calls),
                State::Piece(kind) => self.piece(kind, end, &mut calls),
                State::Call => self.call(end, &mut calls),
            };
            if !goes_on {
                break;
            }
        }
        if end && self.state == State::Call {
            self.end_call(&mut calls);
        }
    }

    fn header(&mut self, end: bool, calls: &mut Calls<'_, '_>) -> bool {
        let text = as_text(&self.held);
        let begun = HEADS.iter().any(|head| text.starts_with(head) || head.starts_with(text));
        let found = text.find(MESSAGE);
        if let Some(at) = found.filter(|at| begun && *at <= MAX_HEADER) {
            let (header, length) = (&text[..at], at + MESSAGE.len());
            let (channel, recipient) = (channel(header), recipient(header));
            let name = recipient.map(|name| (name.strip_prefix(FUNCTIONS), name));
            match name {
                // tools that the model was trained with, used while it thinks
                Some((None, _)) if channel == "analysis" => {
                    self.state = State::Piece(PieceKind::Reasoning);
                }
                Some((known, name)) if self.tools => {
                    calls.begin("", known.unwrap_or(name));
                    self.raw.extend(&self.held.expose()[..length]);
                    (self.header, self.given, self.state) = (length, length, State::Call);
                }
                _ if channel == "analysis" => self.state = State::Piece(PieceKind::Reasoning),
                _ => self.state = State::Piece(PieceKind::Content),
            }
            if let State::Piece(kind) = self.state {
                self.parted[kind as usize] = self.said[kind as usize];
            }
            self.held.drain_front(length);
            return true;
        }
        if begun && found.is_none() && text.len() <= MAX_HEADER + MESSAGE.len() {
            if end {
                self.held.truncate(0); // a header that was cut off says nothing
            }
            return false;
        }
        // no header: what a model says that does not keep to the format is content
        self.state = State::Piece(PieceKind::Content);
        true
    }

    /// Where the message ends, and how much of what is held is surely its text.
    fn ending(&self, end: bool) -> (usize, Option<usize>) {
        let text = as_text(&self.held);
        let found = ENDS.iter().filter_map(|tag| Some((text.find(tag)?, *tag))).min_by_key(|(at, _)| *at);
        match found {
            Some((at, tag)) if tag == START || tag == CHANNEL => (at, Some(0)),
            Some((at, tag)) => (at, Some(tag.len())),
            None if end => (text.len(), None),
            None => (text.len() - ENDS.iter().map(|tag| partial(text, tag)).max().unwrap_or(0), None),
        }
    }

    fn piece(&mut self, kind: PieceKind, end: bool, calls: &mut Calls<'_, '_>) -> bool {
        let (len, ends) = self.ending(end);
        if len > 0 {
            if std::mem::take(&mut self.parted[kind as usize]) {
                (calls.sink)(Event::Piece(kind, "\n"));
            }
            self.said[kind as usize] = true;
            (calls.sink)(Event::Piece(kind, &as_text(&self.held)[..len]));
        }
        self.held.drain_front(len + ends.unwrap_or(0));
        self.state = if ends.is_some() { State::Header } else { self.state };
        ends.is_some()
    }

    fn call(&mut self, end: bool, calls: &mut Calls<'_, '_>) -> bool {
        let (len, ends) = self.ending(end);
        self.raw.extend(&self.held.expose()[..len]);
        self.held.drain_front(len + ends.unwrap_or(0));
        // white space around arguments is no part of them
        let all = as_text(&self.raw);
        let to = all.trim_end().len().max(self.header);
        let first = all.len() - all[self.header..].trim_start().len();
        self.given = self.given.max(first);
        if to > self.given {
            calls.arguments(&all[self.given..to]);
            self.given = to;
        }
        if ends.is_some() {
            self.end_call(calls);
        }
        ends.is_some()
    }

    fn end_call(&mut self, calls: &mut Calls<'_, '_>) {
        let body = as_text(&self.raw)[self.header..].trim();
        if body.is_empty() {
            calls.arguments("{}");
        }
        if object(body).is_some() && (body.is_empty() || body.starts_with('{')) {
            calls.end();
        } else {
            calls.retract();
            (calls.sink)(Event::Piece(PieceKind::Content, as_text(&self.raw)));
            self.said[PieceKind::Content as usize] = true;
        }
        self.raw.truncate(0);
        self.state = State::Header;
    }

    /// Bytes that are held back.
    pub fn held_bytes(&self) -> usize {
        self.held.expose().len() + self.raw.expose().len()
    }
}

/// The channel that a header names.
fn channel(header: &str) -> &str {
    let rest = header.split_once(CHANNEL).map_or("", |(_, rest)| rest).trim_start();
    let len = rest.find(|char: char| !char.is_ascii_alphanumeric()).unwrap_or(rest.len());
    &rest[..len]
}

/// Whom a header addresses: before the channel or behind it.
fn recipient(header: &str) -> Option<&str> {
    let rest = header.split_once("to=")?.1;
    let len = rest.find(|char: char| char.is_whitespace() || char == '<').unwrap_or(rest.len());
    (len > 0).then_some(&rest[..len])
}

fn as_text(bytes: &Secret<[u8]>) -> &str {
    std::str::from_utf8(bytes.expose()).expect("texts are joined, and cut at tags only")
}
