//! The text of a reply, taken apart while it arrives.

use std::fmt;

use super::citations::Citations;
use super::harmony::Harmony;
use super::inkling::Inkling;
use super::marks::Marks;
use super::parsed::PieceKind;
use super::reply::{Channels, Style};
use super::tool_calls::{CallParser, CallPart, Calls, Numbering, Outcome, match_any_tag, partial};
use crate::memory::secret::Secret;

/// Something that a splitter found.
pub enum Event<'a> {
    Piece(PieceKind, &'a str),
    /// A part of a call, and which call of the reply it is.
    Call(usize, CallPart<'a>),
}

pub type Sink<'a> = &'a mut dyn FnMut(Event<'_>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Nothing but white space so far.
    Start,
    /// In reasoning that the prompt opened or the reply just has; white space is dropped.
    Opened,
    Reasoning,
    /// Behind reasoning, a call or a mark; white space is dropped.
    Behind,
    Text,
    /// What is held begins with a call.
    Call,
}

/// A reply while it arrives: gives content, reasoning and calls as soon as they are certain.
///
/// What it gives, joined, is what [`Style::parse`] gives for the whole text, wherever it was cut. A call that has begun
/// and turns out to be none, or is cut off, is retracted, and its text is content.
pub struct Splitter {
    style: Style,
    state: State,
    /// Text not given yet; always whole characters.
    held: Secret<[u8]>,
    /// White space before a call: content if content follows the call.
    gap: Secret<[u8]>,
    /// Reads the call at hand.
    reader: Option<Box<dyn CallParser>>,
    numbering: Numbering,
    /// The reader of messages with channels; with it, none of the fields above is used.
    messages: Option<Messages>,
    citations: Option<Citations>,
}

/// Reads replies that are messages.
enum Messages {
    Harmony(Harmony),
    Inkling(Inkling),
}

impl Splitter {
    pub(super) fn new(style: Style) -> Self {
        let inside = style.inside.then_some(PieceKind::Reasoning);
        let inside = inside.or(style.answers.then_some(PieceKind::Content));
        Self {
            citations: style.citations.then(Citations::new),
            state: if style.inside { State::Opened } else { State::Start },
            held: Secret::default(),
            gap: Secret::default(),
            reader: None,
            numbering: Numbering::default(),
            messages: style.channels.map(|channels| match channels {
                Channels::Harmony => Messages::Harmony(Harmony::new(style.calls.is_some(), inside)),
                Channels::Inkling => Messages::Inkling(Inkling::new(style.calls.is_some(), inside)),
            }),
            style,
        }
    }

    /// Takes the reply's next `text`, and gives what is certain by now.
    pub fn push(&mut self, text: &str, sink: Sink<'_>) {
        self.take(text, false, sink);
    }

    /// The reply has ended: gives what was held back.
    pub fn finish(&mut self, sink: Sink<'_>) {
        self.take("", true, sink);
    }

    pub(super) fn take(&mut self, text: &str, end: bool, sink: Sink<'_>) {
        let Some(mut citations) = self.citations.take() else { return self.take_apart(text, end, sink) };
        self.take_apart(text, end, &mut |event| citations.take(event, sink));
        if end {
            citations.finish(sink);
        }
        self.citations = Some(citations);
    }

    fn take_apart(&mut self, text: &str, end: bool, sink: Sink<'_>) {
        match &mut self.messages {
            Some(Messages::Harmony(reader)) => return reader.read(text, end, &mut self.numbering, sink),
            Some(Messages::Inkling(reader)) => return reader.read(text, end, &mut self.numbering, sink),
            None => {}
        }
        self.held.extend(text.as_bytes());
        self.read(end, sink);
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
        let blank = text.len() - text.trim_start().len();
        match self.style.marks.and_then(|marks| match_any_tag(text, blank, marks.opens, end)) {
            Some(Ok((_, after))) => {
                self.held.drain_front(after);
                self.enter(State::Opened)
            }
            Some(Err(())) => false,
            None => self.answer_or_call(end),
        }
    }

    /// Drops white space, and an opening mark that the model writes once more.
    fn opened(&mut self, end: bool) -> bool {
        self.skip_blank();
        let opens = self.style.marks.map_or(&[][..], |marks| marks.opens);
        match match_any_tag(as_text(&self.held), 0, opens, end) {
            Some(Ok((_, after))) => {
                self.held.drain_front(after);
                true
            }
            Some(Err(())) => false,
            None => self.enter(State::Reasoning),
        }
    }

    fn reasoning(&mut self, end: bool, sink: Sink<'_>) -> bool {
        let text = as_text(&self.held);
        let close = self.style.marks.map_or("", |marks| marks.close);
        if let Some(at) = text.find(close) {
            let given = text[..at].trim_end().len();
            self.give(given, PieceKind::Reasoning, sink);
            self.held.drain_front(at - given + close.len());
            return self.enter(State::Behind);
        }
        let certain = text.len() - if end { 0 } else { partial(text, close) };
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
        self.answer_or_call(end)
    }

    /// Marks around the answer are dropped. Some formats have calls without a mark, where nothing else is before them.
    fn answer_or_call(&mut self, end: bool) -> bool {
        let text = as_text(&self.held);
        let blank = text.len() - text.trim_start().len();
        let answer = self.style.marks.map_or(&[][..], |marks: &Marks| marks.answer);
        match match_any_tag(text, blank, answer, end) {
            Some(Ok((_, after))) => {
                self.held.drain_front(after);
                return self.enter(State::Behind);
            }
            Some(Err(())) if blank < text.len() => return false,
            _ => {}
        }
        let bare = self.style.calls.and_then(|calls| calls.bare());
        if bare.is_some_and(|bracket| text[blank..].starts_with(bracket)) {
            self.gap.extend(&self.held.expose()[..blank]);
            self.held.drain_front(blank);
            return self.begin_call();
        }
        // until more than white space is there, nobody knows
        if bare.is_some() && blank == text.len() && !end {
            return false;
        }
        self.enter(State::Text)
    }

    fn begin_call(&mut self) -> bool {
        self.reader = self.style.calls.and_then(|calls| calls.reader(&self.style.schemas));
        self.enter(State::Call)
    }

    fn text(&mut self, end: bool, sink: Sink<'_>) -> bool {
        let text = as_text(&self.held);
        let openings = self.style.calls.map_or(&[][..], |calls| calls.openings());
        let answer = self.style.marks.map_or(&[][..], |marks: &Marks| marks.answer);
        let found =
            |tags: &[&'static str]| tags.iter().filter_map(|tag| Some((text.find(tag)?, tag.len()))).min();
        let (call, mark) = (found(openings), found(answer));
        if let Some((at, len)) = mark
            && call.is_none_or(|(call, _)| at < call)
        {
            let given = text[..at].trim_end().len();
            self.give_content(given, sink);
            self.held.drain_front(at - given + len);
            return self.enter(State::Behind);
        }
        if let Some((at, _)) = call {
            let given = text[..at].trim_end().len();
            self.give_content(given, sink);
            self.gap.extend(&self.held.expose()[..at - given]);
            self.held.drain_front(at - given);
            return self.begin_call();
        }
        let tags = || openings.iter().chain(answer);
        let given = if end || tags().next().is_none() {
            text.len()
        } else {
            text[..text.len() - tags().map(|tag| partial(text, tag)).max().unwrap_or(0)].trim_end().len()
        };
        self.give_content(given, sink);
        false
    }

    fn call(&mut self, end: bool, sink: Sink<'_>) -> bool {
        let text = as_text(&self.held);
        let ids = self.style.calls.map_or(super::tool_calls::IdForm::Counted, |calls| calls.ids());
        let mut calls = Calls { numbering: &mut self.numbering, ids, sink };
        let outcome = match &mut self.reader {
            Some(reader) => reader.read(text, end, &mut calls),
            None => Outcome::Not(text.len()),
        };
        match outcome {
            Outcome::Wait if !end => false,
            Outcome::Part(len) => {
                self.held.drain_front(len);
                true
            }
            Outcome::Over(len) => {
                self.held.drain_front(len);
                self.enter(State::Behind)
            }
            Outcome::Wait => self.no_call(usize::MAX, sink),
            Outcome::Not(len) => self.no_call(len, sink),
        }
    }

    /// What is held is no call up to `len`: it is content.
    fn no_call(&mut self, len: usize, sink: Sink<'_>) -> bool {
        let ids = super::tool_calls::IdForm::Counted;
        Calls { numbering: &mut self.numbering, ids, sink }.retract();
        let text = as_text(&self.held);
        let mut len = len.clamp(1, text.len());
        while !text.is_char_boundary(len) {
            len += 1;
        }
        self.give_content(len, sink);
        self.enter(State::Text)
    }

    fn enter(&mut self, state: State) -> bool {
        if state != State::Call {
            self.reader = None;
        }
        self.state = state;
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
        let messages = match &self.messages {
            Some(Messages::Harmony(reader)) => reader.held_bytes(),
            Some(Messages::Inkling(reader)) => reader.held_bytes(),
            None => 0,
        };
        let citations = self.citations.as_ref().map_or(0, Citations::held_bytes);
        f.debug_struct("Splitter")
            .field("style", &self.style)
            .field("held_bytes", &(self.held.expose().len() + messages + citations))
            .finish_non_exhaustive()
    }
}

fn as_text(bytes: &Secret<[u8]>) -> &str {
    std::str::from_utf8(bytes.expose()).expect("texts are joined, and cut at tags and white space only")
}
