//! The text of a reply, taken apart while it arrives.

use std::fmt;

use super::message::ToolCall;
use super::reply::{END_THINK, PieceKind, Style, THINK};
use super::tool_calls::{self, CLOSE, OPEN, PYTHON, Syntax, Tagged};
use crate::memory::secret::Secret;

/// Closing tags within texts of one call; more are no call, so that a reply is not read over and over.
const MAX_FALSE_ENDS: usize = 16;

/// Something that a splitter found.
pub enum Event<'a> {
    Piece(PieceKind, &'a str),
    Call(ToolCall),
}

pub type Sink<'a> = &'a mut dyn FnMut(Event<'_>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Nothing but white space so far.
    Start,
    /// In reasoning that the prompt opened or the reply just has; white space is dropped.
    Opened,
    Reasoning,
    /// Behind reasoning or a call; white space is dropped.
    Behind,
    Text,
    /// What is held begins with a call.
    Call,
}

/// A reply while it arrives: gives content and reasoning as soon as no tag can begin in them, holds calls back.
///
/// The pieces of a kind, joined, are what [`Style::parse`] gives for the whole text, wherever it was cut.
pub struct Splitter {
    style: Style,
    state: State,
    /// Text not given yet; always whole characters.
    held: Secret<[u8]>,
    /// White space before a call: content if content follows the call.
    gap: Secret<[u8]>,
    /// How far `held` has been searched for the call's end.
    searched: usize,
    false_ends: usize,
}

impl Splitter {
    pub(super) fn new(style: Style) -> Self {
        Self {
            style,
            state: if style.inside { State::Opened } else { State::Start },
            held: Secret::default(),
            gap: Secret::default(),
            searched: 0,
            false_ends: 0,
        }
    }

    /// Reads all of a reply at once, calls included.
    pub(super) fn read_whole(mut self, text: &str, sink: Sink<'_>) {
        self.held.extend(text.as_bytes());
        self.read(true, sink);
    }

    /// Takes the reply's next `text`, and gives what is certain by now.
    pub fn push(&mut self, text: &str, give: &mut dyn FnMut(PieceKind, &str)) {
        self.held.extend(text.as_bytes());
        self.read(false, &mut pieces(give));
    }

    /// The reply has ended: gives what was held back, but for calls.
    pub fn finish(&mut self, give: &mut dyn FnMut(PieceKind, &str)) {
        self.read(true, &mut pieces(give));
    }

    fn read(&mut self, end: bool, sink: Sink<'_>) {
        while !self.held.expose().is_empty() {
            let goes_on = match self.state {
                State::Start => self.start(end),
                State::Opened => self.opened(end),
                State::Reasoning => self.reasoning(end, sink),
                State::Behind => self.behind(end),
                State::Text => self.text(end, sink),
                State::Call => self.call(end, sink),
            };
            if !goes_on {
                return;
            }
        }
    }

    /// Whether reasoning, a call or text comes first; white space before text is text.
    fn start(&mut self, end: bool) -> bool {
        let text = as_text(&self.held);
        let begun = text.trim_start();
        let blank = text.len() - begun.len();
        if self.style.reasoning && begun.starts_with(THINK) {
            self.held.drain_front(blank + THINK.len());
            return self.enter(State::Opened);
        }
        if !end && self.style.reasoning && THINK.starts_with(begun) {
            return false;
        }
        self.text_or_bare_call(end)
    }

    /// Drops white space, and a `<think>` that the model writes once more.
    fn opened(&mut self, end: bool) -> bool {
        self.skip_blank();
        let text = as_text(&self.held);
        if text.starts_with(THINK) {
            self.held.drain_front(THINK.len());
            return true;
        }
        if !end && THINK.starts_with(text) {
            return false;
        }
        self.enter(State::Reasoning)
    }

    fn reasoning(&mut self, end: bool, sink: Sink<'_>) -> bool {
        let text = as_text(&self.held);
        if let Some(at) = text.find(END_THINK) {
            let given = text[..at].trim_end().len();
            self.give(given, PieceKind::Reasoning, sink);
            self.held.drain_front(at - given + END_THINK.len());
            return self.enter(State::Behind);
        }
        let certain = text.len() - if end { 0 } else { partial(text, END_THINK) };
        let given = text[..certain].trim_end().len();
        self.give(given, PieceKind::Reasoning, sink);
        if end {
            self.held.truncate(0);
        }
        false
    }

    fn behind(&mut self, end: bool) -> bool {
        self.skip_blank();
        if self.held.expose().is_empty() {
            return false;
        }
        self.text_or_bare_call(end)
    }

    /// Llama's calls have no tag: a reply that begins with an object may be one.
    fn text_or_bare_call(&mut self, end: bool) -> bool {
        let begun = as_text(&self.held).trim_start();
        if self.style.calls == Syntax::Bare {
            if begun.starts_with('{') || begun.starts_with(PYTHON) {
                return self.enter(State::Call);
            }
            if !end && PYTHON.starts_with(begun) {
                return false;
            }
        }
        self.enter(State::Text)
    }

    fn text(&mut self, end: bool, sink: Sink<'_>) -> bool {
        let text = as_text(&self.held);
        let opening = self.style.calls.opening();
        if let Some(at) = opening.and_then(|opening| text.find(opening)) {
            let given = text[..at].trim_end().len();
            self.give_content(given, sink);
            self.gap.extend(&self.held.expose()[..at - given]);
            self.held.drain_front(at - given);
            return self.enter(State::Call);
        }
        let given = match opening {
            Some(opening) if !end => text[..text.len() - partial(text, opening)].trim_end().len(),
            _ => text.len(),
        };
        self.give_content(given, sink);
        false
    }

    fn call(&mut self, end: bool, sink: Sink<'_>) -> bool {
        if self.style.calls == Syntax::Tagged {
            let from = self.searched.max(OPEN.len());
            if let Some(at) = find(self.held.expose(), CLOSE.as_bytes(), from) {
                return self.tagged_call(at, sink);
            }
            self.searched = self.held.expose().len().saturating_sub(CLOSE.len() - 1);
        }
        if end {
            let whole = self.held.expose().len();
            match self.style.calls.read_all(as_text(&self.held)) {
                Some(calls) => {
                    calls.into_iter().for_each(|call| sink(Event::Call(call)));
                    self.held.truncate(0);
                }
                None => self.give_content(whole, sink),
            }
        }
        false
    }

    /// The call whose closing tag is at `at`, or seems to be.
    fn tagged_call(&mut self, at: usize, sink: Sink<'_>) -> bool {
        let body = &as_text(&self.held)[OPEN.len()..at];
        let behind = at + CLOSE.len();
        match tool_calls::read_tagged(body) {
            Tagged::Call(call) => {
                sink(Event::Call(call));
                self.held.drain_front(behind);
                self.enter(State::Behind)
            }
            Tagged::Incomplete if self.false_ends < MAX_FALSE_ENDS => {
                self.false_ends += 1;
                self.searched = behind;
                true
            }
            Tagged::Incomplete | Tagged::Malformed => {
                self.give_content(behind, sink);
                self.enter(State::Text)
            }
        }
    }

    fn enter(&mut self, state: State) -> bool {
        (self.state, self.searched, self.false_ends) = (state, 0, 0);
        true
    }

    fn skip_blank(&mut self) {
        let text = as_text(&self.held);
        let blank = text.len() - text.trim_start().len();
        self.held.drain_front(blank);
    }

    /// Gives the first `len` bytes held as content, behind the white space that turns out to be content with them.
    fn give_content(&mut self, len: usize, sink: Sink<'_>) {
        if len > 0 {
            if !self.gap.expose().is_empty() {
                sink(Event::Piece(PieceKind::Content, as_text(&self.gap)));
                self.gap.truncate(0);
            }
            self.give(len, PieceKind::Content, sink);
        }
    }

    fn give(&mut self, len: usize, kind: PieceKind, sink: Sink<'_>) {
        if len > 0 {
            sink(Event::Piece(kind, &as_text(&self.held)[..len]));
            self.held.drain_front(len);
        }
    }
}

impl fmt::Debug for Splitter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Splitter")
            .field("style", &self.style)
            .field("held_bytes", &self.held.expose().len())
            .finish_non_exhaustive()
    }
}

fn pieces(give: &mut dyn FnMut(PieceKind, &str)) -> impl FnMut(Event<'_>) {
    move |event| {
        if let Event::Piece(kind, text) = event {
            give(kind, text);
        }
    }
}

fn as_text(bytes: &Secret<[u8]>) -> &str {
    std::str::from_utf8(bytes.expose()).expect("texts are joined, and cut at tags and white space only")
}

/// Length of the longest end of `text` that may become `tag`.
fn partial(text: &str, tag: &str) -> usize {
    (1..tag.len()).rev().find(|&len| text.as_bytes().ends_with(&tag.as_bytes()[..len])).unwrap_or(0)
}

fn find(bytes: &[u8], tag: &[u8], from: usize) -> Option<usize> {
    let at = bytes.get(from..)?.windows(tag.len()).position(|window| window == tag)?;
    Some(from + at)
}
